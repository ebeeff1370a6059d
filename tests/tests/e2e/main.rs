//! Whole processes, real sockets, SIGKILL. One binary; few tests, each worth its seconds.

mod api;
mod backup;
mod bad_input;
mod certificates;
mod cli;
mod commands;
mod credentials;
mod dev;
mod disk;
mod elsewhere;
mod failover;
mod join;
mod methods;
mod metrics;
mod modules;
mod open_files;
mod presence;
mod recover;
mod sdks;
mod stop;
mod takeover;
mod telemetry;
mod twin;
mod upgrade;
mod websocket;
mod x509;
