//! How core values become bytes and back. The only place that knows both core types and protobuf.

pub mod json;
pub mod peer;
pub mod record;
