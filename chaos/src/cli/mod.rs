//! The arguments of `chaos`, one file a subcommand.

mod bench;
mod kill;
mod load;
mod run;
#[cfg(feature = "sim")]
mod sim;

use std::io::Write as _;

use clap::{Parser, Subcommand};
use serde::Serialize;

/// Breaks and measures Drover clusters (and brokers like them).
#[derive(Parser)]
#[command(version)]
pub(crate) struct Command {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Drive a broker that is already running.
    Load(load::Load),
    /// Measure everything beside mosquitto, NATS and etcd, and print one table.
    Bench(bench::Bench),
    /// Kill nodes of a cluster while devices send, and check what was kept.
    Kill(kill::Kill),
    /// Put a cluster under faults drawn from a seed: networks, disks, power, clocks; and check what was kept.
    Run(run::Run),
    /// Run seeds of the simulation.
    #[cfg(feature = "sim")]
    Sim(sim::Sim),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.job {
            Job::Load(load) => load.run().await,
            Job::Bench(bench) => bench.run().await,
            Job::Kill(kill) => kill.run().await,
            Job::Run(run) => run.run().await,
            #[cfg(feature = "sim")]
            Job::Sim(sim) => sim.run().await,
        }
    }
}

/// The result goes to standard output: a line for people, or JSON.
fn print(line: &impl std::fmt::Display, value: &impl Serialize, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, value)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
