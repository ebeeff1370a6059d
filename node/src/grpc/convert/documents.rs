//! `google.protobuf.Struct` to twin values and back.
//!
//! A `Struct` knows one kind of number, the double. A whole one within the range of twin integers becomes an integer,
//! so that `1` that was written as JSON is read as `1` over every protocol; all others stay floats. Both ways are
//! exact: every twin integer fits into a double.

use std::collections::BTreeMap;

use drover_cluster::core::document::{Object, Value};
use drover_cluster::core::ids::LogTime;
use drover_cluster::core::twin::Metadata;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::grpc::status::Invalid;

/// How deep a value may nest before it is refused unread. Twins allow 10 levels; the rest is for the twin's own rules
/// to refuse with their own text. It bounds the recursion here.
const DEPTH_MAX: usize = 32;
/// The integers of a twin (`spec/twin-semantics.md` section 4): 52 bits and a sign.
const INTEGERS: std::ops::RangeInclusive<f64> = -4_503_599_627_370_496.0..=4_503_599_627_370_495.0;
/// Seven fraction digits, as Azure IoT Hub writes them.
const ISO_TIME: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:7]Z");

/// A section or a merge patch from its protobuf form.
pub(crate) fn object(field: &str, section: Struct) -> Result<Object, Invalid> {
    members(field, section.fields, 1)
}

fn members(
    path: &str,
    fields: BTreeMap<String, prost_types::Value>,
    depth: usize,
) -> Result<Object, Invalid> {
    if depth > DEPTH_MAX {
        return Err(Invalid::new(path, format!("values nest deeper than {DEPTH_MAX} levels")));
    }
    fields
        .into_iter()
        .map(|(key, member)| {
            let member = value(&format!("{path}.{key}"), member, depth)?;
            Ok((key, member))
        })
        .collect()
}

fn value(path: &str, value: prost_types::Value, depth: usize) -> Result<Value, Invalid> {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Ok(Value::Null),
        Some(Kind::BoolValue(truth)) => Ok(Value::Bool(truth)),
        Some(Kind::NumberValue(number)) => self::number(path, number),
        Some(Kind::StringValue(text)) => Ok(Value::Text(text)),
        Some(Kind::StructValue(object)) => {
            Ok(Value::Object(members(path, object.fields, depth + 1)?))
        }
        Some(Kind::ListValue(list)) => Ok(Value::Array(items(path, list, depth + 1)?)),
    }
}

fn items(path: &str, list: ListValue, depth: usize) -> Result<Vec<Value>, Invalid> {
    if depth > DEPTH_MAX {
        return Err(Invalid::new(path, format!("values nest deeper than {DEPTH_MAX} levels")));
    }
    list.values.into_iter().map(|item| value(path, item, depth)).collect()
}

fn number(path: &str, number: f64) -> Result<Value, Invalid> {
    if !number.is_finite() {
        return Err(Invalid::new(path, "a number must be finite"));
    }
    // Minus zero is no integer: it would come back without its sign.
    let is_minus_zero = number == 0.0 && number.is_sign_negative();
    if number.fract() == 0.0 && INTEGERS.contains(&number) && !is_minus_zero {
        return Ok(Value::Integer(number as i64));
    }
    Ok(Value::Float(number))
}

/// The protobuf form of a section.
pub(crate) fn structure(object: &Object) -> Struct {
    Struct { fields: object.iter().map(|(key, member)| (key.clone(), protobuf(member))).collect() }
}

fn protobuf(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        #[expect(clippy::cast_precision_loss, reason = "twin integers have 52 bits")]
        Value::Integer(integer) => Kind::NumberValue(*integer as f64),
        Value::Float(float) => Kind::NumberValue(*float),
        Value::Text(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(protobuf).collect() })
        }
        Value::Object(object) => Kind::StructValue(structure(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Whether metadata shows the version of the last write: it does for desired properties only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteVersions {
    Shown,
    Hidden,
}

/// Metadata as Azure IoT Hub shows it: the tree of properties with `$lastUpdated` at every level.
pub(crate) fn metadata(metadata: &Metadata, versions: WriteVersions) -> Struct {
    let text = |text: String| prost_types::Value { kind: Some(Kind::StringValue(text)) };
    let mut fields: BTreeMap<_, _> = metadata
        .members
        .iter()
        .map(|(key, member)| {
            let kind = Kind::StructValue(self::metadata(member, versions));
            (key.clone(), prost_types::Value { kind: Some(kind) })
        })
        .collect();
    fields.insert("$lastUpdated".to_owned(), text(iso_time(metadata.updated)));
    if versions == WriteVersions::Shown {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a version of 2^53 takes longer than the device lives"
        )]
        let version = Kind::NumberValue(metadata.updated_version.get() as f64);
        fields.insert("$lastUpdatedVersion".to_owned(), prost_types::Value { kind: Some(version) });
    }
    Struct { fields }
}

/// A log time as text, such as `2026-11-22T23:45:08.1230000Z`.
pub(crate) fn iso_time(at: LogTime) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.get()) * 1_000_000)
        .ok()
        .and_then(|time| time.format(ISO_TIME).ok())
        .unwrap_or_else(|| format!("{at} ms after 1970"))
}

#[cfg(test)]
mod tests {
    use drover_cluster::core::ids::Version;

    use super::*;

    fn number_value(number: f64) -> prost_types::Value {
        prost_types::Value { kind: Some(Kind::NumberValue(number)) }
    }

    fn one(value: prost_types::Value) -> Result<Value, Invalid> {
        let fields = BTreeMap::from([("a".to_owned(), value)]);
        object("desired", Struct { fields })
            .map(|mut object| object.remove("a").expect("one member"))
    }

    #[test]
    fn whole_numbers_of_the_twin_range_are_integers_and_all_others_floats() {
        assert_eq!(one(number_value(1.0)), Ok(Value::Integer(1)));
        assert_eq!(
            one(number_value(-4_503_599_627_370_496.0)),
            Ok(Value::Integer(-4_503_599_627_370_496))
        );
        assert_eq!(
            one(number_value(4_503_599_627_370_496.0)),
            Ok(Value::Float(4_503_599_627_370_496.0))
        );
        assert_eq!(one(number_value(1.5)), Ok(Value::Float(1.5)));
        assert_eq!(one(number_value(-0.0)), Ok(Value::Float(-0.0)));
    }

    #[test]
    fn what_is_not_a_number_is_refused_by_the_name_of_its_member() {
        let refused = one(number_value(f64::NAN)).expect_err("NaN is no value");
        assert_eq!(refused.field, "desired.a");
        assert!(one(number_value(f64::INFINITY)).is_err());
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_without_following_it() {
        let mut deep = number_value(1.0);
        for _ in 0..DEPTH_MAX {
            let fields = BTreeMap::from([("a".to_owned(), deep)]);
            deep = prost_types::Value { kind: Some(Kind::StructValue(Struct { fields })) };
        }
        assert!(one(deep).is_err());
        let mut lists = number_value(1.0);
        for _ in 0..=DEPTH_MAX {
            lists = prost_types::Value {
                kind: Some(Kind::ListValue(ListValue { values: vec![lists] })),
            };
        }
        assert!(one(lists).is_err());
    }

    #[test]
    fn a_document_survives_the_way_out_and_back() {
        let inner = Object::from([("off".to_owned(), Value::Bool(false))]);
        let document = Object::from([
            ("array".to_owned(), Value::Array(vec![Value::Null, Value::Integer(-3)])),
            ("float".to_owned(), Value::Float(0.1)),
            ("object".to_owned(), Value::Object(inner)),
            ("text".to_owned(), Value::Text("grün".to_owned())),
        ]);
        assert_eq!(object("tags", structure(&document)), Ok(document));
    }

    #[test]
    fn metadata_mirrors_the_tree_and_shows_versions_in_desired_only() {
        let leaf = Metadata {
            updated: LogTime::new(1_700_000_000_123),
            updated_version: Version::new(3),
            members: BTreeMap::new(),
        };
        let root =
            Metadata { members: BTreeMap::from([("rate".to_owned(), leaf.clone())]), ..leaf };
        let desired = metadata(&root, WriteVersions::Shown);
        let Some(Kind::StructValue(rate)) = &desired.fields["rate"].kind else { panic!("no tree") };
        assert_eq!(
            rate.fields["$lastUpdated"].kind,
            Some(Kind::StringValue("2023-11-14T22:13:20.1230000Z".to_owned()))
        );
        assert_eq!(rate.fields["$lastUpdatedVersion"].kind, Some(Kind::NumberValue(3.0)));
        let reported = metadata(&root, WriteVersions::Hidden);
        assert!(!reported.fields.contains_key("$lastUpdatedVersion"));
    }
}
