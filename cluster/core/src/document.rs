//! The value tree of twins: what JSON can say, with the order of members fixed so that replicas agree.
//!
//! Text never enters here: `drover_cluster::wire::json` turns JSON into these values and back.

use std::collections::BTreeMap;

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
