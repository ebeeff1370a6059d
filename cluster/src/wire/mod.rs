//! How core values become bytes and back. The only place that knows both core types and protobuf.

pub mod batch;
pub mod delivery;
pub mod events;
pub mod json;
mod mail;
mod membership;
pub mod message;
pub mod method;
pub mod problem;
pub mod record;
pub mod request;

#[cfg(test)]
mod testing;

use std::fmt;

/// What was wrong with which field of something that was to be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    pub field: String,
    pub problem: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }
}
