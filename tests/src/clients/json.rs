//! JSON as protobuf says it.

use drover_proto::admin::TwinSection;
use serde_json::Value;

/// An object, such as a patch.
pub fn json_struct(value: &Value) -> prost_types::Struct {
    let entries = value.as_object().expect("an object");
    let fields = entries.iter().map(|(key, value)| (key.clone(), json_value(value))).collect();
    prost_types::Struct { fields }
}

fn json_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().expect("a finite number")),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.iter().map(json_value).collect(),
        }),
        Value::Object(_) => Kind::StructValue(json_struct(value)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A number among the properties of a twin's section.
pub fn number(section: Option<&TwinSection>, key: &str) -> Option<f64> {
    use prost_types::value::Kind;
    match section?.properties.as_ref()?.fields.get(key)?.kind {
        Some(Kind::NumberValue(number)) => Some(number),
        _ => None,
    }
}
