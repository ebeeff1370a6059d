//! Whole processes, real sockets, SIGKILL. One binary; few tests, each worth its seconds.

mod bad_input;
mod credentials;
mod dev;
mod disk;
mod elsewhere;
mod failover;
mod takeover;
mod telemetry;
mod twin;
