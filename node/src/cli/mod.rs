//! The commands of the program.
//!
//! `dev` and `node` run a hub, `config` reads its configuration; the others are clients of the admin API. A command ends
//! with `Ok` or a [`Failure`], whose exit code scripts can tell apart (`docs/operations.md` lists them).

mod config;
mod dev;
mod failure;
mod node;

use clap::{Parser, Subcommand};

pub use failure::Failure;

/// A hub for connected devices that you run yourself.
#[derive(Debug, Parser)]
#[command(name = "drover", version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a hub for development: it makes its own CA, keys, data folder and first device.
    Dev(dev::Arguments),
    /// Run one node of a cluster.
    Node(node::Arguments),
    /// Check or show a node's configuration.
    #[command(subcommand)]
    Config(config::Command),
}

/// Carries out one command.
pub fn call(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Dev(arguments) => dev::call(arguments),
        Command::Node(arguments) => node::call(&arguments),
        Command::Config(command) => config::call(command),
    }
}
