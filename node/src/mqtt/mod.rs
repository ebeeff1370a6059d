//! MQTT: listeners, and a task for each connection.

pub mod codec;
pub mod login;
pub mod properties;
pub mod topics;
