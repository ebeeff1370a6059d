//! The load generator: how fast a broker acknowledges, and at what cost.
//!
//! Closed loop ([`closed`]) asks for the greatest throughput: each connection keeps a window full. Open loop ([`open`])
//! asks for latency at a rate: what is late counts from when it should have been sent. [`idle`] only connects, [`herd`] does so again. [`commands`] and
//! [`methods`] come from back ends and go to [`recipients`]. [`steady`] goes on while the cluster changes below it.
//!
//! It is written to run on one thread beside the nodes that it measures.

pub mod closed;
pub mod commands;
pub mod herd;
pub mod idle;
pub mod methods;
pub mod open;
pub mod recipients;
pub mod report;
mod request;
pub mod steady;

pub use report::Report;
pub use request::Kind;
