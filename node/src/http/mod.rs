//! The HTTPS port: TLS, HTTP/1.1, limits.
//!
//! What is served there is given to it as routes by the rooms that serve it: MQTT over WebSocket is `mqtt`'s. HTTP/2 is
//! not offered: no client of a device needs it, and what is not there cannot be flooded (S-27).

mod listener;

pub use listener::{Limits, serve};
