//! JSON text to twin values and back.
//!
//! Only the form of the text is checked here: what a twin may hold (ranges, sizes, nesting) is `core::document`'s. Text
//! comes from devices, so that nothing here may panic or follow nesting without an end (security test S-30).

use std::fmt;

use drover_core::document::{Object, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// Why a text is not a JSON value that a twin can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Invalid {
    pub problem: String,
}

/// Parses a JSON object. Nesting deeper than 127 is refused before it is followed; of members with the same key the last
/// one counts.
pub fn parse_object(text: &[u8]) -> Result<Object, Invalid> {
    match parse_value(text)? {
        Value::Object(object) => Ok(object),
        Value::Null
        | Value::Bool(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Text(_)
        | Value::Array(_) => Err(Invalid { problem: "it is JSON, but not an object".to_owned() }),
    }
}

/// Parses any JSON value, like [`parse_object`]. Integers of more than 64 bits become floats.
pub fn parse_value(text: &[u8]) -> Result<Value, Invalid> {
    serde_json::from_slice(text).map(|Parsed(value)| value).map_err(|error| Invalid {
        problem: format!("it is not JSON that a twin can hold: {error}"),
    })
}

/// Whether a text is one JSON value, whatever its size and depth: nothing is built of it, and nesting costs no stack.
pub fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text)
        .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// Renders an object as JSON text, members in key order.
pub fn render_object(object: &Object) -> String {
    serde_json::to_string(&RenderedObject(object))
        .expect("keys are texts, and memory does not fail")
}

/// Renders a value as JSON text, members in key order.
pub fn render_value(value: &Value) -> String {
    serde_json::to_string(&Rendered(value)).expect("keys are texts, and memory does not fail")
}

struct Parsed(Value);

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor).map(Self)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value)
            .map(Value::Integer)
            .map_err(|_| E::custom(format_args!("the integer {value} is out of range")))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Parsed(item)) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Object::new();
        while let Some((key, Parsed(value))) = map.next_entry()? {
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

struct Rendered<'a>(&'a Value);

impl Serialize for Rendered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Integer(value) => serializer.serialize_i64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Text(value) => serializer.serialize_str(value),
            Value::Array(items) => {
                let mut sequence = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| sequence.serialize_element(&Rendered(item)))?;
                sequence.end()
            }
            Value::Object(members) => RenderedObject(members).serialize(serializer),
        }
    }
}

struct RenderedObject<'a>(&'a Object);

impl Serialize for RenderedObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(key, value)| map.serialize_entry(key, &Rendered(value)))?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::testing::object;

    fn value(text: &str) -> Value {
        parse_value(text.as_bytes()).expect("it is JSON")
    }

    fn problem(text: &str) -> String {
        parse_value(text.as_bytes()).expect_err("it is not for a twin").problem
    }

    #[test]
    fn whole_numbers_are_integers_and_others_floats() {
        assert_eq!(value("20"), Value::Integer(20));
        assert_eq!(value("-9223372036854775808"), Value::Integer(i64::MIN));
        assert_eq!(value("20.0"), Value::Float(20.0));
        assert_eq!(value("2e1"), Value::Float(20.0));
        assert_eq!(value("99999999999999999999"), Value::Float(1e20));
    }

    #[test]
    fn numbers_beyond_what_can_be_held_are_refused() {
        assert!(problem("9223372036854775808").contains("out of range"));
        assert!(problem("1e999999").contains("out of range"));
    }

    #[test]
    fn of_members_with_one_key_the_last_counts() {
        let object = parse_object(br#"{"a":1,"a":{"b":2}}"#).expect("it is JSON");
        assert_eq!(render_object(&object), r#"{"a":{"b":2}}"#);
    }

    #[test]
    fn nesting_is_followed_so_far_and_no_further() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse_value(nested(127).as_bytes()).is_ok());
        assert!(problem(&nested(128)).contains("recursion limit"));
        assert!(problem(&nested(1_000_000)).contains("recursion limit"));
    }

    #[test]
    fn only_an_object_is_an_object() {
        for text in
            ["null", "[]", "1", "\"{}\"", "", "{", "{}x", "{\"a\":\"\\ud800\"}", "\u{feff}{}"]
        {
            parse_object(text.as_bytes()).expect_err(text);
        }
        parse_object(&[b'{', b'"', 0xff, b'"', b':', b'1', b'}']).expect_err("not UTF-8");
    }

    #[test]
    fn members_are_rendered_in_the_order_of_their_keys() {
        let object = parse_object(br#"{"b":[null,true,0.5],"a":"\"\n"}"#).expect("it is JSON");
        assert_eq!(render_object(&object), r#"{"a":"\"\n","b":[null,true,0.5]}"#);
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_parsed_to_the_same(object in object()) {
            prop_assert_eq!(parse_object(render_object(&object).as_bytes()), Ok(object));
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _answered = parse_value(&bytes);
        }
    }
}
