//! JSON text to twin values and back.
//!
//! What a twin may hold is for the core to say: here a text is only read. A number becomes an integer if it is written
//! as one and fits 64 bits, else a float. Of members with the same key the last one counts, as in most parsers.

use drover_core::document::{Object, Value};

/// Why a text is not a JSON object that a twin can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Invalid {
    pub problem: String,
}

/// Parses a JSON object. Nesting deeper than 128 is refused before it is followed, which bounds the recursion of every
/// conversion here.
pub fn parse_object(text: &[u8]) -> Result<Object, Invalid> {
    let invalid = |problem: String| Invalid { problem: format!("the body is not JSON: {problem}") };
    match serde_json::from_slice(text).map_err(|error| invalid(error.to_string()))? {
        serde_json::Value::Object(members) => object(members),
        _ => Err(Invalid { problem: "the body is not a JSON object".to_owned() }),
    }
}

fn object(members: serde_json::Map<String, serde_json::Value>) -> Result<Object, Invalid> {
    members.into_iter().map(|(key, member)| Ok((key, value(member)?))).collect()
}

fn value(json: serde_json::Value) -> Result<Value, Invalid> {
    Ok(match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(value) => number(&value)?,
        serde_json::Value::String(text) => Value::Text(text),
        serde_json::Value::Array(items) => {
            Value::Array(items.into_iter().map(value).collect::<Result<_, _>>()?)
        }
        serde_json::Value::Object(members) => Value::Object(object(members)?),
    })
}

fn number(number: &serde_json::Number) -> Result<Value, Invalid> {
    if let Some(integer) = number.as_i64() {
        return Ok(Value::Integer(integer));
    }
    match number.as_f64() {
        Some(_) if number.is_u64() => {
            Err(Invalid { problem: format!("{number} is greater than an integer can be") })
        }
        Some(float) => Ok(Value::Float(float)),
        None => Err(Invalid { problem: format!("{number} is not a number that can be kept") }),
    }
}

/// Renders an object as JSON text, members in key order.
pub fn render_object(object: &Object) -> String {
    json_object(object).to_string()
}

/// An object as a tree of JSON, to be put into a greater one.
pub fn json_object(object: &Object) -> serde_json::Value {
    object.iter().map(|(key, value)| (key.clone(), json(value))).collect()
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(json).collect(),
        Value::Object(object) => json_object(object),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        parse_object(text.as_bytes()).expect_err("it is refused").problem
    }

    #[test]
    fn an_object_is_read_and_written_in_key_order() {
        let text = r#"{"b":[1,null,{"c":"d"}],"a":-1.5,"e":true}"#;
        let object = parse_object(text.as_bytes()).expect("it is an object");
        assert_eq!(object["a"], Value::Float(-1.5));
        assert_eq!(render_object(&object), r#"{"a":-1.5,"b":[1,null,{"c":"d"}],"e":true}"#);
    }

    #[test]
    fn nesting_of_ten_thousand_is_refused_without_following_it() {
        let text = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
        assert!(problem(&text).contains("recursion limit"), "{}", problem(&text));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(problem("[1]"), "the body is not a JSON object");
        assert!(problem("{\"a\":").contains("not JSON"));
        assert!(problem("").contains("not JSON"));
        assert!(problem("{\"a\":1e999999}").contains("number out of range"));
    }

    #[test]
    fn an_integer_that_does_not_fit_is_refused_and_not_rounded() {
        assert!(problem("{\"a\":18446744073709551615}").contains("greater than an integer"));
        let object = parse_object(b"{\"a\":4503599627370496}").expect("the core has its own limit");
        assert_eq!(object["a"], Value::Integer(4_503_599_627_370_496));
    }

    #[test]
    fn of_equal_keys_the_last_one_counts() {
        let object = parse_object(br#"{"a":1,"a":2}"#).expect("it is an object");
        assert_eq!(object["a"], Value::Integer(2));
    }
}
