//! `drover` as its build before the last feature level: the same program, only that it supports one level less. Tests of upgrades run it
//! beside the real one.

use std::process::ExitCode;

use clap::Parser;
use drover_core::level::{self, FeatureLevel};
use drover_node::cli::{self, Arguments};

fn main() -> ExitCode {
    level::pretend(FeatureLevel::new(FeatureLevel::LATEST.get() - 1));
    match cli::call(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("drover: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
