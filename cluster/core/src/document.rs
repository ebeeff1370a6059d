//! The value tree of twins: what JSON can say, with the order of members fixed so that replicas agree.
//!
//! Merging, differences and content limits (`spec/twin-semantics.md` sections 3 and 4). Text never enters here:
//! `drover_cluster::wire::json` turns JSON into these values and back. Versions and metadata are `twin`'s.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// A value in a twin. Objects are ordered by key, because order must never come from a hash.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// In a patch: delete the member. Kept only inside arrays.
    Null,
    Bool(bool),
    /// -4503599627370496 to 4503599627370495 (twin-semantics, content limits).
    Integer(i64),
    Float(f64),
    Text(String),
    Array(Vec<Value>),
    Object(Object),
}

/// The members of an object, or a whole section of a twin, or a merge patch (RFC 7396) for one.
pub type Object = BTreeMap<String, Value>;

/// The longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest string value, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 4096;
/// How many objects and arrays may stand within each other below the root of a section.
pub const NESTING_MAX: usize = 10;
/// The integers that a twin can hold.
pub const INTEGERS: RangeInclusive<i64> = -4_503_599_627_370_496..=4_503_599_627_370_495;

/// How many characters of a key an error shows: keys come from outside and may be huge.
const SHOWN_CHARACTERS_MAX: usize = 64;

/// Merges `patch` into `target` (RFC 7396): `null` deletes, objects merge member by member, anything else replaces.
pub fn merge(target: &mut Object, patch: &Object) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => merge_member(target, key, patch),
            Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::Array(_) => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

fn merge_member(target: &mut Object, key: &str, patch: &Object) {
    if let Some(Value::Object(members)) = target.get_mut(key) {
        merge(members, patch);
    } else {
        target.insert(key.to_owned(), Value::Object(merged(&Object::new(), patch)));
    }
}

/// What `merge` makes of a copy of `base`.
pub fn merged(base: &Object, patch: &Object) -> Object {
    let mut target = base.clone();
    merge(&mut target, patch);
    target
}

/// The patch that turns `before` into `after` when it is merged: members that are gone are `null`. Neither may have a
/// `null` member, as no section of a twin has.
pub fn difference(before: &Object, after: &Object) -> Object {
    let mut patch = Object::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in after {
        match (before.get(key), value) {
            (Some(former), value) if former == value => {}
            (Some(Value::Object(former)), Value::Object(members)) => {
                patch.insert(key.clone(), Value::Object(difference(former, members)));
            }
            (_, value) => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    patch
}

/// Where and how a document breaks the content limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// From the root of the section, such as `a.b[2].c`; keys are escaped and shortened. Empty for the section itself.
    pub path: String,
    pub problem: String,
}

impl Violation {
    fn here(problem: impl Into<String>) -> Self {
        Self { path: String::new(), problem: problem.into() }
    }

    /// The same, seen from one level further up.
    pub(crate) fn under(self, parent: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Self { path: format!("{parent}{separator}{}", self.path), ..self }
    }
}

/// Checks the content of a section or of a patch for one: keys, values and nesting.
pub fn check_content(object: &Object) -> Result<(), Violation> {
    check_members(object, 0)
}

/// Checks the size of a section or of a patch for one. Its nesting must have been checked.
pub fn check_size(object: &Object, bytes_max: usize) -> Result<(), Violation> {
    match size(object) {
        bytes if bytes > bytes_max => Err(Violation::here(format!(
            "it has {bytes} bytes: at most {bytes_max} are allowed, keys and values together"
        ))),
        _ => Ok(()),
    }
}

/// `level` counts the containers from the section's root, which is 0, down to the one that holds these members.
fn check_members(object: &Object, level: usize) -> Result<(), Violation> {
    for (key, value) in object {
        check_key(key)
            .and_then(|()| check_value(value, level))
            .map_err(|violation| violation.under(&shown(key)))?;
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), Violation> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Violation::here(format!(
            "the key has {} bytes: at most {KEY_BYTES_MAX} are allowed",
            key.len()
        )));
    }
    match key.chars().find(|character| character.is_control() || ".$ ".contains(*character)) {
        Some(character) => Err(Violation::here(format!(
            "the key has the character {character:?}: control characters, '.', '$' and space are not allowed"
        ))),
        None => Ok(()),
    }
}

fn check_value(value: &Value, level: usize) -> Result<(), Violation> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Integer(number) => check_integer(*number),
        Value::Float(number) if number.is_finite() => Ok(()),
        Value::Float(_) => Err(Violation::here("the number is not finite")),
        Value::Text(text) if text.len() <= TEXT_BYTES_MAX => Ok(()),
        Value::Text(text) => Err(Violation::here(format!(
            "the text has {} bytes: at most {TEXT_BYTES_MAX} are allowed",
            text.len()
        ))),
        Value::Array(items) => {
            let level = descend(level)?;
            items.iter().enumerate().try_for_each(|(index, item)| {
                check_value(item, level).map_err(|violation| violation.under(&format!("[{index}]")))
            })
        }
        Value::Object(members) => check_members(members, descend(level)?),
    }
}

fn check_integer(number: i64) -> Result<(), Violation> {
    if INTEGERS.contains(&number) {
        return Ok(());
    }
    Err(Violation::here(format!(
        "the integer {number} is out of range: {} to {} are allowed",
        INTEGERS.start(),
        INTEGERS.end()
    )))
}

fn descend(level: usize) -> Result<usize, Violation> {
    if level < NESTING_MAX {
        return Ok(level + 1);
    }
    Err(Violation::here(format!("it is nested too deep: at most {NESTING_MAX} levels are allowed")))
}

/// The size that counts towards a section's limit: keys, strings without control characters, 8 for a number, 4 for a
/// boolean, nothing for `null`.
fn size(object: &Object) -> usize {
    object.iter().map(|(key, value)| key.len() + size_of_value(value)).sum()
}

fn size_of_value(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Integer(_) | Value::Float(_) => 8,
        Value::Text(text) => {
            text.chars().filter(|character| !character.is_control()).map(char::len_utf8).sum()
        }
        Value::Array(items) => items.iter().map(size_of_value).sum(),
        Value::Object(members) => size(members),
    }
}

/// A key as an error may show it: no control characters, not endless.
fn shown(key: &str) -> String {
    key.chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{object, patch, section};

    #[test]
    fn null_deletes_objects_merge_and_anything_else_replaces() {
        let mut target = object("{a:1,b:{c:1,d:2},e:[1,2]}");
        merge(&mut target, &object("{a:null,b:{c:null,x:{y:null}},e:[null],f:{}}"));
        assert_eq!(target, object("{b:{d:2,x:{}},e:[null],f:{}}"));
    }

    #[test]
    fn an_object_replaces_a_scalar_and_a_scalar_an_object() {
        let mut target = object("{a:1,b:{c:1}}");
        merge(&mut target, &object("{a:{x:1},b:2}"));
        assert_eq!(target, object("{a:{x:1},b:2}"));
    }

    #[test]
    fn an_error_says_where_and_what() {
        let check = |text: &str| check_content(&object(text)).expect_err("beyond a limit");
        assert_eq!(check("{a:{b:[1,{c:4503599627370496}]}}").path, "a.b[1].c");
        assert_eq!(check("{a:{$b:1}}").path, "a.$b");
        assert!(check("{a.b:1}").problem.contains("'.'"));
    }

    #[test]
    fn integers_stop_at_the_documented_bounds() {
        assert_eq!(
            check_content(&object("{a:4503599627370495,b:-4503599627370496}")),
            Ok(()),
            "both bounds are in"
        );
        check_content(&object("{a:-4503599627370497}")).expect_err("one below");
    }

    #[test]
    fn ten_levels_are_allowed_and_eleven_are_not() {
        let nested = |levels| {
            (0..levels).fold(Value::Bool(true), |value, _| {
                Value::Object(Object::from([("n".to_owned(), value)]))
            })
        };
        let of = |levels| Object::from([("n".to_owned(), nested(levels))]);
        assert_eq!(check_content(&of(10)), Ok(()));
        check_content(&of(11)).expect_err("eleven levels");
    }

    #[test]
    fn keys_and_texts_have_their_limits_to_the_byte() {
        let of = |key: usize, text: usize| {
            check_content(&Object::from([("k".repeat(key), Value::Text("é".repeat(text / 2)))]))
        };
        assert_eq!(of(1024, 4096), Ok(()));
        of(1025, 0).expect_err("a longer key");
        of(1, 4098).expect_err("a longer text");
    }

    #[test]
    fn floats_must_be_finite() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let object = Object::from([("a".to_owned(), Value::Float(number))]);
            check_content(&object).expect_err("not finite");
        }
    }

    #[test]
    fn size_counts_keys_and_values_but_no_control_characters() {
        let document = Object::from([
            ("ab".to_owned(), Value::Text("x\ny\u{85}é".to_owned())),
            ("c".to_owned(), Value::Array(vec![Value::Null, Value::Bool(true), Value::Float(0.5)])),
            ("d".to_owned(), Value::Object(object("{e:1}"))),
        ]);
        assert_eq!(size(&document), 2 + 4 + 1 + 12 + 1 + 1 + 8);
    }

    proptest! {
        #[test]
        fn a_difference_merged_into_the_one_gives_the_other(a in section(), b in section()) {
            prop_assert_eq!(merged(&a, &difference(&a, &b)), b);
        }

        #[test]
        fn the_difference_of_equals_is_empty(a in section()) {
            prop_assert!(difference(&a, &a).is_empty());
        }

        #[test]
        fn merging_twice_is_merging_once(base in section(), patch in patch()) {
            let once = merged(&base, &patch);
            prop_assert_eq!(merged(&once, &patch), once);
        }

        #[test]
        fn no_member_of_a_merged_section_is_null(base in section(), patch in patch()) {
            fn has_null(object: &Object) -> bool {
                object.values().any(|value| match value {
                    Value::Null => true,
                    Value::Object(members) => has_null(members),
                    Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Text(_)
                    | Value::Array(_) => false,
                })
            }
            prop_assert!(!has_null(&merged(&base, &patch)));
        }
    }
}
