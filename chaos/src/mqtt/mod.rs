//! A small MQTT 3.1.1 client for load and faults.
//!
//! It is ours because a load generator shares its two cores with the nodes it measures, and because a kill test must
//! know what was on the wire and what was not. It says what it is told, in the order it is told, and never retries.

pub mod codec;
pub mod link;
