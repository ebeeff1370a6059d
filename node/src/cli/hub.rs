//! The commands that ask a hub: what they have in common is how they reach it and what they print.

use std::io;

use clap::{Args, Subcommand};

use super::client::HubArguments;
use super::output::Output;
use super::{
    Failure, authorities, cluster, commands, cursors, devices, messages, methods, modules,
    policies, twins,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Device identities: create, list, change, keys and tokens.
    Devices(With<devices::Command>),
    /// Modules: parts of a device that connect by themselves.
    Modules(With<modules::Command>),
    /// Twins: tags, desired and reported properties.
    Twins(With<twins::Command>),
    /// Telemetry: live, from the streams, one device's history.
    Messages(With<messages::Command>),
    /// Commands: send them to devices' mailboxes, see what became of them.
    Commands(With<commands::Command>),
    /// Direct methods: call a connected device.
    Methods(With<methods::Command>),
    /// How far consumer groups have read.
    Cursors(With<cursors::Command>),
    /// Certificate authorities whose devices may connect.
    Authorities(With<authorities::Command>),
    /// Make a cluster of nodes, see how it is.
    Cluster(With<cluster::Command>),
    /// Access policies: who may use the API.
    Policies(With<policies::Command>),
}

/// A command with the options of the connection.
#[derive(Debug, Args)]
pub(super) struct With<C: Subcommand> {
    #[command(flatten)]
    connection: HubArguments,
    #[command(subcommand)]
    command: C,
}

pub(super) fn call(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("no runtime: {error}")))?;
    match runtime.block_on(carry_out(command)) {
        Err(Failure::NobodyReads) => Ok(()),
        ended => ended,
    }
}

async fn carry_out(command: Command) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    match command {
        Command::Devices(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            devices::call(command, &connection, out).await
        }
        Command::Modules(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            modules::call(command, &connection, out).await
        }
        Command::Twins(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            twins::call(command, &connection, out).await
        }
        Command::Messages(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            messages::call(command, &connection, out).await
        }
        Command::Commands(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            commands::call(command, &connection, out).await
        }
        Command::Methods(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            methods::call(command, &connection, out).await
        }
        Command::Cursors(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            cursors::call(command, &connection, out).await
        }
        Command::Authorities(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            authorities::call(command, &connection, out).await
        }
        Command::Cluster(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            cluster::call(command, &connection, out).await
        }
        Command::Policies(With { connection, command }) => {
            let out = &mut Output::new(&mut stdout, connection.form());
            policies::call(command, &connection, out).await
        }
    }
}
