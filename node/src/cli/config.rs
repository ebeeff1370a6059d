//! `drover config`: is a configuration valid, and what does it come to.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Subcommand;

use super::Failure;
use crate::config::{Sources, show};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say whether a configuration is valid. Exit code 2 if it is not.
    Check { file: PathBuf },
    /// Print all keys with their meaning: the defaults, or what a file and the environment make of them.
    Show { file: Option<PathBuf> },
}

pub(super) fn call(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check { file } => {
            Sources { file: Some(file.clone()), flags: Vec::new() }.load()?;
            print(&format!("{} is valid\n", file.display()))
        }
        Command::Show { file } => {
            print(&show::to_toml(&Sources { file, flags: Vec::new() }.load()?))
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough (`| head`) closes the pipe: nothing is lost by that.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot print: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
