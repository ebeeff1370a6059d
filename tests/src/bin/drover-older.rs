//! `drover` as its build before the last feature level: the same program, only that it supports one level less. Tests of upgrades run it
//! beside the real one.

use clap::Parser;
use drover_core::level::{self, FeatureLevel};
use drover_node::cli::{self, Arguments};

fn main() {
    level::pretend(FeatureLevel::new(FeatureLevel::LATEST.get() - 1));
    cli::run_to_end(Arguments::parse())
}
