//! Values of twins.
//!
//! An entry that cannot be decoded again would stop every replica of its shard, and the decoder of protobuf refuses what
//! is nested deeper than 100 messages. So what is nested deeper than any twin may be loses its innermost content when it
//! is encoded: apply refuses the rest of it at the same place and for the same reason.

use bytes::Bytes;
use drover_core::document::{NESTING_MAX, Object, Value};
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
    members_to_record(object, 0)
}

/// `level` counts the containers from the root, which is 0, down to the one that holds these members.
fn members_to_record(object: &Object, level: usize) -> record::Object {
    let member = |(key, value): (&String, &Value)| record::Member {
        key: key.clone(),
        value: Some(value_to_record(value, level)),
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

fn value_to_record(value: &Value, level: usize) -> record::Value {
    use record::value::Kind;
    let too_deep = level >= NESTING_MAX;
    let kind = match value {
        Value::Null => Kind::Null(true),
        Value::Bool(value) => Kind::Boolean(*value),
        Value::Integer(value) => Kind::Integer(*value),
        Value::Float(value) => Kind::Number(*value),
        Value::Text(value) => Kind::Text(value.clone()),
        Value::Array(_) if too_deep => Kind::Array(record::Array::default()),
        Value::Array(items) => {
            let items = items.iter().map(|item| value_to_record(item, level + 1)).collect();
            Kind::Array(record::Array { items })
        }
        Value::Object(_) if too_deep => Kind::Object(record::Object::default()),
        Value::Object(members) => Kind::Object(members_to_record(members, level + 1)),
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
