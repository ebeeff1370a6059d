//! JSON text on the command line, to and from what the API speaks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_proto::admin;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp};
use serde_json::{Map, Number, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Failure;

/// A JSON object given as an argument: the text itself, `@FILE`, or `-` for standard input.
pub(crate) fn object_argument(argument: &str) -> Result<Struct, Failure> {
    let text = text_argument(argument)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(members)) => Ok(structure(&members)),
        Ok(_) => Err(Failure::Usage("this must be a JSON object: {\"name\": value}".to_owned())),
        Err(error) => Err(Failure::Usage(format!("this is not JSON: {error}"))),
    }
}

pub(crate) fn text_argument(argument: &str) -> Result<String, Failure> {
    match argument {
        "-" => super::files::read_text("-"),
        _ => match argument.strip_prefix('@') {
            Some(file) => super::files::read_text(file),
            None => Ok(argument.to_owned()),
        },
    }
}

pub(crate) fn structure(members: &Map<String, Value>) -> Struct {
    Struct { fields: members.iter().map(|(key, member)| (key.clone(), protobuf(member))).collect() }
}

fn protobuf(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(protobuf).collect() })
        }
        Value::Object(members) => Kind::StructValue(structure(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

pub(crate) fn object(structure: Option<&Struct>) -> Value {
    let members = structure.map(|structure| &structure.fields).into_iter().flatten();
    Value::Object(members.map(|(key, member)| (key.clone(), value(member))).collect())
}

fn value(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => Value::Bool(*truth),
        Some(Kind::NumberValue(number)) => self::number(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::StructValue(structure)) => object(Some(structure)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(self::value).collect()),
    }
}

/// Whole numbers are shown whole. The API has doubles only, so this is what was meant, up to 2^53.
fn number(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let is_minus_zero = number == 0.0 && number.is_sign_negative();
    if number.fract() == 0.0 && number.abs() <= EXACT && !is_minus_zero {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn milliseconds(time: &Timestamp) -> u16 {
    u16::try_from(time.nanos / 1_000_000).unwrap_or_default()
}

pub(crate) fn time(time: Option<&Timestamp>) -> Value {
    time.map_or(Value::Null, |time| Value::String(time_text(time)))
}

/// A time as people and programs read it, in UTC to the millisecond.
pub(crate) fn time_text(time: &Timestamp) -> String {
    OffsetDateTime::from_unix_timestamp(time.seconds)
        .ok()
        .and_then(|whole| whole.replace_millisecond(milliseconds(time)).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{} s after 1970", time.seconds))
}

/// A message. The body is shown as JSON if it is JSON, as text if it is text, and as base64 otherwise.
pub(crate) fn message(message: &admin::Message) -> Value {
    let mut shown = json!({
        "shard": message.shard,
        "offset": message.offset,
        "deviceId": message.device_id,
        "enqueuedTime": time(message.enqueued.as_ref()),
        "systemProperties": properties(&message.system_properties),
        "properties": properties(&message.application_properties),
        "authentication": message.authentication,
    });
    if !message.module_id.is_empty() {
        shown["moduleId"] = json!(message.module_id);
    }
    let (name, body) = match body(&message.body) {
        Body::Json(value) => ("body", value),
        Body::Text(text) => ("body", Value::String(text)),
        Body::Binary(base64) => ("bodyBase64", Value::String(base64)),
    };
    shown[name] = body;
    shown
}

/// A device's id, or with a slash that of its module, which no id contains.
pub(crate) fn name(device: &str, module: &str) -> String {
    if module.is_empty() { device.to_owned() } else { format!("{device}/{module}") }
}

/// What a body turns out to be.
#[derive(Debug, PartialEq)]
pub(crate) enum Body {
    Json(Value),
    Text(String),
    Binary(String),
}

pub(crate) fn body(bytes: &[u8]) -> Body {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Body::Binary(STANDARD.encode(bytes));
    };
    match serde_json::from_str(text) {
        Ok(value) => Body::Json(value),
        Err(_) => Body::Text(text.to_owned()),
    }
}

pub(crate) fn properties(properties: &[admin::Property]) -> Value {
    let member = |property: &admin::Property| (property.key.clone(), json!(property.value));
    Value::Object(properties.iter().map(member).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_survives_the_way_to_the_api_and_back() {
        let text = r#"{"a":[1,-2.5,null,true],"b":{"c":"x"},"n":null}"#;
        let sent = object_argument(text).expect("it is an object");
        assert_eq!(object(Some(&sent)).to_string(), text);
    }

    #[test]
    fn what_is_not_an_object_is_a_mistake_of_usage() {
        for text in ["[1]", "1", "{", ""] {
            assert!(matches!(object_argument(text), Err(Failure::Usage(_))), "{text:?}");
        }
    }

    #[test]
    fn a_body_is_shown_as_what_it_is() {
        assert_eq!(body(br#"{"t":1}"#), Body::Json(json!({"t": 1})));
        assert_eq!(body("21 °C".as_bytes()), Body::Text("21 °C".to_owned()));
        assert_eq!(body(&[0xff, 0x00]), Body::Binary("/wA=".to_owned()));
    }

    #[test]
    fn a_time_is_utc_to_the_millisecond() {
        let time = Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 };
        assert_eq!(time_text(&time), "2023-11-14T22:13:20.123Z");
    }
}
