//! Actors, routing, back-pressure.

pub mod cluster;
pub mod error;
pub mod session;
