//! Values of twins.

use bytes::Bytes;
use drover_core::document::{Object, Value};
use drover_proto::record;

use super::{decode, encode, required};
use crate::wire::Invalid;

pub fn object_to_bytes(object: &Object) -> Bytes {
    encode(&object_to_record(object))
}

pub fn object_from_bytes(bytes: Bytes) -> Result<Object, Invalid> {
    object_from_record(decode("object", bytes)?)
}

pub(super) fn object_to_record(object: &Object) -> record::Object {
    let member = |(key, value): (&String, &Value)| record::Member {
        key: key.clone(),
        value: Some(value_to_record(value)),
    };
    record::Object { members: object.iter().map(member).collect() }
}

/// Recursion is bounded: the decoder of protobuf refuses what is nested deeper than 100.
pub(super) fn object_from_record(record: record::Object) -> Result<Object, Invalid> {
    let member = |member: record::Member| {
        let value = value_from_record(required("member.value", member.value)?)?;
        Ok((member.key, value))
    };
    record.members.into_iter().map(member).collect()
}

fn value_to_record(value: &Value) -> record::Value {
    use record::value::Kind;
    let kind = match value {
        Value::Null => Kind::Null(true),
        Value::Bool(value) => Kind::Boolean(*value),
        Value::Integer(value) => Kind::Integer(*value),
        Value::Float(value) => Kind::Number(*value),
        Value::Text(value) => Kind::Text(value.clone()),
        Value::Array(items) => {
            Kind::Array(record::Array { items: items.iter().map(value_to_record).collect() })
        }
        Value::Object(object) => Kind::Object(object_to_record(object)),
    };
    record::Value { kind: Some(kind) }
}

fn value_from_record(record: record::Value) -> Result<Value, Invalid> {
    use record::value::Kind;
    Ok(match required("value.kind", record.kind)? {
        Kind::Null(_) => Value::Null,
        Kind::Boolean(value) => Value::Bool(value),
        Kind::Integer(value) => Value::Integer(value),
        Kind::Number(value) => Value::Float(value),
        Kind::Text(value) => Value::Text(value),
        Kind::Array(array) => {
            Value::Array(array.items.into_iter().map(value_from_record).collect::<Result<_, _>>()?)
        }
        Kind::Object(object) => Value::Object(object_from_record(object)?),
    })
}
