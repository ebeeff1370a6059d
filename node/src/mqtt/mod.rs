//! MQTT 3.1.1 as Azure IoT Hub speaks it: bytes to packets to typed requests, and back.
//!
//! | file | does |
//! |---|---|
//! | [`listener`] | accepts sockets within limits, TLS, stop |
//! | [`connection`] | carries bytes and requests between a socket, a session and the cluster |
//! | [`websocket`] | the route on the HTTPS port, messages as a stream of bytes |
//! | [`codec`] | framing, the gate of rules, packets |
//! | [`login`], [`opening`] | what a CONNECT claims; from the claim to a committed epoch |
//! | [`attempts`] | failed logins, and what they cost who fails |
//! | [`revocation`] | when a right ends that is not in the device's own record |
//! | [`session`] | the pure state machine of a connection |
//! | [`topics`], [`properties`] | what topics mean; messages with their properties |
//! | [`status`], [`close`] | errors as MQTT can say them; why a connection ended |

mod attempts;
pub mod close;
pub mod codec;
pub mod config;
mod connection;
mod devicebound;
mod listener;
pub mod login;
mod metrics;
mod opening;
pub mod properties;
mod revocation;
pub mod session;
pub mod status;
pub mod topics;
mod websocket;

pub use config::Config;
pub use listener::{Server, Transport};
pub use websocket::routes;
