//! What the tests of several files share: the shell around apply, documents written as short text, and generators.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::change::{DeviceChange, DeviceSpec};
use crate::device::{Authentication, Key, Status};
use crate::document::{Object, Value};
use crate::ids::{DeviceId, LogTime, NodeId, ShardCount};
use crate::level::Levels;
use crate::membership::Membership;
use crate::meta::{Member, Meta};
use crate::placement;
use crate::shard::{Applied, Records, Stream, apply_device, needs_owner};

/// Applies a change with all that follows from it, as the shell does. The first answer is that of the change itself.
pub(crate) fn apply_all(
    records: &mut BTreeMap<DeviceId, Records>,
    stream: &mut Stream,
    id: &DeviceId,
    change: &DeviceChange,
    at: LogTime,
) -> Vec<(DeviceId, Applied)> {
    let wanted = Some(id.owner()).filter(|_| needs_owner(id, change));
    let owner = wanted.and_then(|owner| records.get(&owner)?.device.clone());
    let of_it = records.entry(id.clone()).or_default();
    of_it.commands.get_or_insert_default();
    of_it.owner = owner.map(Box::new);
    let applied = apply_device(of_it, stream, id, change, at);
    if let Some(owner) = of_it.owner.take().filter(|_| applied.owner_touched) {
        let of_owner = records.entry(owner.id.clone()).or_default();
        of_owner.device = Some(*owner);
    }
    let follows = applied.follows.clone();
    let mut all = vec![(id.clone(), applied)];
    for (id, change) in follows {
        all.extend(apply_all(records, stream, &id, &change, at));
    }
    all
}

/// Reads a document written as JSON without quotes: `{a:1,b:[x,0.5,null],c:{d:true}}`.
pub(crate) fn object(text: &str) -> Object {
    let mut reader = Reader { rest: text };
    let Value::Object(object) = reader.value() else { panic!("{text} is not an object") };
    assert_eq!(reader.rest, "", "left over of {text}");
    object
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn value(&mut self) -> Value {
        match self.rest.chars().next() {
            Some('{') => {
                let members = self.list('}', |reader| {
                    let key = reader.word();
                    reader.skip(':');
                    (key.to_owned(), reader.value())
                });
                Value::Object(members.into_iter().collect())
            }
            Some('[') => Value::Array(self.list(']', Self::value)),
            Some(_) | None => scalar(self.word()),
        }
    }

    fn list<T>(&mut self, end: char, item: impl Fn(&mut Self) -> T) -> Vec<T> {
        self.rest = &self.rest[1..];
        let mut items = Vec::new();
        while !self.rest.starts_with(end) {
            items.push(item(self));
            if !self.rest.starts_with(end) {
                self.skip(',');
            }
        }
        self.skip(end);
        items
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find([':', ',', '}', ']']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn skip(&mut self, expected: char) {
        let rest = self.rest.strip_prefix(expected);
        self.rest = rest.unwrap_or_else(|| panic!("no {expected} before {}", self.rest));
    }
}

fn scalar(word: &str) -> Value {
    match word {
        "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        word => match (word.parse(), word.parse()) {
            (Ok(integer), _) => Value::Integer(integer),
            (Err(_), Ok(float)) => Value::Float(float),
            (Err(_), Err(_)) => Value::Text(word.to_owned()),
        },
    }
}

pub(crate) fn key(byte: u8) -> Key {
    Key::new(vec![byte; 32]).expect("32 bytes are a legal key")
}

/// An enabled device with two keys and an empty twin.
pub(crate) fn spec() -> DeviceSpec {
    DeviceSpec {
        status: Status::Enabled,
        status_reason: None,
        authentication: Authentication::Sas { primary: key(1), secondary: key(2) },
        tags: Object::new(),
        desired: Object::new(),
    }
}

/// Few keys, so that documents meet in them.
fn short_key() -> impl Strategy<Value = String> {
    "[abc]"
}

fn scalars() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        (-9_i64..9).prop_map(Value::Integer),
        (-9_i32..9).prop_map(|number| Value::Float(f64::from(number) / 4.0)),
        "[xyz]{0,3}".prop_map(Value::Text),
        prop::collection::vec(Just(Value::Null), 0..3).prop_map(Value::Array),
    ]
}

fn documents(leaf: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Object> {
    let value = leaf.prop_recursive(3, 24, 4, |value| {
        prop::collection::btree_map(short_key(), value, 0..4).prop_map(Value::Object)
    });
    prop::collection::btree_map(short_key(), value, 0..4)
}

/// A legal section: no member is `null`.
pub(crate) fn section() -> impl Strategy<Value = Object> {
    documents(scalars())
}

/// A legal patch.
pub(crate) fn patch() -> impl Strategy<Value = Object> {
    documents(prop_oneof![3 => scalars().boxed(), 1 => Just(Value::Null).boxed()])
}

/// A cluster of so many nodes, 16 shards and up to 3 replicas of each, as it is when it was made.
pub(crate) fn cluster(nodes: u32) -> Meta {
    let member = |number| Member {
        peer_address: format!("node-{number}:7070"),
        admin_address: String::new(),
        zone: String::new(),
    };
    let members: BTreeMap<_, _> =
        (1..=nodes).map(|number| (NodeId::new(number, 0), member(number))).collect();
    let shard_count = ShardCount::new(16).expect("16 is a legal count");
    let replication_factor = if nodes < 3 { 1 } else { 3 };
    let replicas = usize::from(replication_factor);
    Meta {
        cluster_id: "test".to_owned(),
        name: String::new(),
        shard_count,
        replication_factor,
        placement: placement::plan(shard_count, replicas, &members, &BTreeMap::new()),
        members,
        policies: BTreeMap::new(),
        authorities: BTreeMap::new(),
        membership: Membership::default(),
        levels: Levels::default(),
        restoring: None,
        version: 1,
    }
}
