//! The commands of the program.
//!
//! `dev` and `node` run a hub, `config` reads its configuration; the others are clients of the admin API. A command ends
//! with `Ok` or a [`Failure`], whose exit code scripts can tell apart (`docs/operations.md` lists them).

mod authorities;
mod backup;
mod bulk;
mod client;
mod cluster;
mod commands;
mod config;
mod credentials;
mod cursors;
mod dev;
mod devices;
mod failure;
mod files;
mod follow;
mod hub;
mod json;
mod members;
mod messages;
mod methods;
mod modules;
mod node;
mod output;
mod policies;
mod presence;
mod progress;
mod recover;
mod send_many;
mod tokens;
mod twins;
mod upgrade;
mod watch;
mod zones;

use std::io::Write as _;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use signal_hook::low_level;

use failure::Failure;

/// What scripts and supervisors can tell apart; `Failure::code` gives them.
const EXIT_CODES: &str = "\
Exit codes:
  0  done             4  nothing was changed: try again     10  a port is taken
  1  failed           5  no credential, or a wrong one      11  the storage failed
  2  wrong arguments  6  not as expected: read again        12  the build is too old
  3  not found        7  no answer: read before you repeat";

/// A hub for connected devices that you run yourself.
#[derive(Debug, Parser)]
#[command(name = "drover", version, propagate_version = true, after_help = EXIT_CODES)]
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
    #[command(flatten)]
    Hub(hub::Command),
    /// Print the completion script for a shell, to be sourced by it.
    Completion { shell: Shell },
}

/// Carries out one command and ends the process with its exit code; says why if it failed.
///
/// No destructors of the process run: RocksDB's statics would be gone below threads that still hold the store, which aborts
/// (facebook/rocksdb#11349) and hides the code. What was acknowledged is on the disk by then.
pub fn run_to_end(arguments: Arguments) -> ! {
    let code = match call(arguments) {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("drover: {failure}");
            failure.code()
        }
    };
    // Nobody reads it any more if this fails.
    std::io::stdout().flush().ok();
    low_level::exit(code.into())
}

fn call(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Dev(arguments) => dev::call(arguments),
        Command::Node(arguments) => node::call(&arguments),
        Command::Config(command) => config::call(command),
        Command::Hub(command) => hub::call(command),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "drover", &mut script);
            // A reader that has seen enough is no failure, and clap would panic over it.
            std::io::stdout().write_all(&script).or_else(|error| {
                let gone = error.kind() == std::io::ErrorKind::BrokenPipe;
                if gone { Ok(()) } else { Err(Failure::Failed(format!("cannot print: {error}"))) }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parses(line: &str) -> bool {
        Arguments::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn the_definition_of_the_commands_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_lines_of_the_documentation_are_understood() {
        for line in [
            "drover devices create pump",
            "drover devices list --json",
            "drover devices disable pump --reason stolen",
            "drover devices rotate-keys pump --primary",
            "drover devices sas-token pump --ttl 2h",
            "drover devices watch",
            "drover devices watch pump* --json --limit 3",
            "drover devices bulk-create -",
            "drover devices connection-string pump --module ai",
            "drover devices sas-token pump --module ai",
            "drover devices sas-token --device-connection-string text",
            "drover modules create pump ai --thumbprint AA",
            "drover modules list pump --json",
            "drover modules rotate-keys pump ai --secondary",
            "drover modules delete pump ai --if-match 3",
            "drover twins get pump --module ai",
            "drover messages tail --device pump --module ai",
            "drover messages history pump --module ai",
            "drover commands send pump {} --module ai",
            "drover commands cancel pump 7 --module ai",
            "drover methods invoke pump reboot --module ai",
            "drover twins get pump --endpoint https://localhost:7443 --ca ca.pem",
            "drover twins patch pump --desired {} --if-match 3",
            "drover messages tail --device pump*",
            "drover messages read --group billing --commit --follow",
            "drover messages history pump --from 10m",
            "drover commands send pump {} --key rate --ack full --ttl 2h --property a=b",
            "drover commands send pump @file --at 2026-11-22T10:00:00Z --message-id 7",
            "drover commands list pump --bodies",
            "drover commands cancel pump 7",
            "drover commands purge pump",
            "drover commands history pump 7",
            "drover commands feedback --group billing --commit --follow",
            "drover cluster backup create s3://bucket/hub/monday",
            "drover cluster backup verify backups/monday --json",
            "drover cluster backup restore file:///backups/monday --member 1=a:1,b:2 --token-file t",
            "drover cluster recover --config node.toml --accept-loss id --accept-empty-shards",
            "drover methods invoke pump reboot",
            "drover methods invoke pump reboot {\"in\":5} --connect-timeout 10s --response-timeout 1m",
            "drover cursors seek billing --shard 3 --next-offset 0",
            "drover cluster init --member 1=a:1,b:2 --token-file t",
            "drover authorities create factory --certificate ca.pem",
            "drover authorities verify factory --certificate -",
            "drover cluster status --shards",
            "drover cluster status --watch",
            "drover cluster join-token --ttl 2h",
            "drover node --join drover-join-1.AAAA --number 4 --zone b --peer-address 10.0.0.4:7070",
            "drover cluster drain 3",
            "drover cluster drain 3 --keep-replicas",
            "drover cluster undrain 3",
            "drover cluster upgrade hold",
            "drover cluster upgrade finish",
            "drover cluster rename North",
            "drover cluster remove 3",
            "drover cluster rebuild --node 2 --shard 5",
            "drover cluster moves pause",
            "drover cluster moves resume",
            "drover cluster moves cancel",
            "drover cluster moves show",
            "drover policies put reader --permissions registry-read,service-connect",
            "drover completion bash",
        ] {
            assert!(parses(line), "{line}");
        }
    }

    #[test]
    fn a_command_that_leaves_out_what_matters_is_refused() {
        for line in [
            "drover devices rotate-keys pump",
            "drover devices sas-token",
            "drover modules create pump",
            "drover modules rotate-keys pump ai",
            "drover twins patch pump",
            "drover messages read --commit",
            "drover devices create pump --ca-signed --primary-key AAAA",
            "drover policies put reader",
        ] {
            assert!(!parses(line), "{line}");
        }
    }
}
