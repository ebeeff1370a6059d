//! The program `drover`: sockets, protocols, configuration, the order of start and stop.
//!
//! Everything that must be right about devices is in `drover_cluster`; here bytes become requests and answers become
//! bytes. A module is a room with one job; `main.rs` only turns arguments into a call of one of them.

mod accept;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod grpc;
pub mod http;
pub mod identity;
pub mod join;
pub mod metrics;
pub mod mqtt;
pub mod observe;
mod peer;
pub mod run;
pub mod tls;
