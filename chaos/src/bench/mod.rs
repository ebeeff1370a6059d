//! Everything that is claimed about speed and memory, measured in one sitting on one machine, beside the peers.
//!
//! Absolute figures depend on the machine; the ratios are the claim. A row that cannot be measured says why and the
//! sitting goes on: nothing here fails a build. [`figures`] collects medians, [`hub`], [`mail`], [`scale`], [`members`] and [`beside`]
//! measure, [`noise`] says what the machine itself does to them, [`table`] draws the ratios.

mod beside;
pub mod figures;
mod hub;
mod mail;
mod members;
mod noise;
mod scale;
pub mod table;

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use figures::{Figures, System};

/// What is measured. The table has them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// Telemetry, 100 connections, window 16.
    Telemetry,
    /// Telemetry, 100 connections, one message in flight each.
    Turns,
    /// Telemetry, one connection, one message in flight.
    Single,
    /// Latency at 1,000 messages a second, open loop.
    Latency,
    /// Patches of reported properties, 100 connections.
    Reported,
    /// Memory of connected devices that say nothing.
    Idle,
    /// Memory of registered devices that are not connected.
    Offline,
    /// CPU of a cluster that does nothing.
    IdleCpu,
    /// From SIGKILL of a leader to the next acknowledgement.
    Failover,
    /// Restart of a node that stores much.
    Restart,
    /// CPU a message with ten times the devices, ten times the messages; disk a message.
    Growth,
    /// Commands at 200 a second: from being sent to the device, and to being known as completed.
    Commands,
    /// Direct methods, 64 callers, 100 devices.
    Methods,
    /// One call that sends a command to 10,000 connected devices.
    FanOut,
    /// Mailboxes of 1,000 commands of devices that are not connected: time, disk, memory.
    Mailboxes,
    /// Telemetry with 1, 3 and 5 nodes, and the CPU that a message costs each of them.
    Nodes,
    /// 10,000 devices by TLS, all at one node, which is killed: time and memory until all are back.
    Herd,
    /// From three nodes to five under load: replicas copied, time, throughput meanwhile.
    Grow,
    /// From five nodes to three, likewise.
    Shrink,
    /// Planned moves of leaders: how long an acknowledgement takes that meets one.
    Handover,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// A few seconds a row, once: to see that it runs, not to quote.
    pub quick: bool,
    /// Empty: all.
    pub only: Vec<Row>,
    /// Leave the peers out.
    pub alone: bool,
}

impl Options {
    pub fn wants(&self, row: Row) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }

    fn wants_any(&self, rows: &[Row]) -> bool {
        rows.iter().any(|row| self.wants(*row))
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 8 })
    }

    fn repeats(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// `full`, or a tenth of it.
    fn scaled(&self, full: usize) -> usize {
        if self.quick { full / 10 } else { full }
    }
}

/// One run of everything.
pub struct Sitting {
    options: Options,
    pub figures: Figures,
}

impl Sitting {
    /// Measures what `options` want, the machine first and last.
    pub async fn run(options: Options) -> Self {
        let mut sitting = Self { options, figures: Figures::default() };
        sitting.noise("before").await;
        if !sitting.options.alone {
            beside::all(&mut sitting).await;
        }
        hub::all(&mut sitting).await;
        mail::all(&mut sitting).await;
        scale::all(&mut sitting).await;
        members::all(&mut sitting).await;
        sitting.noise("after").await;
        sitting
    }

    async fn noise(&mut self, when: &str) {
        let measured = noise::measure(self.options.repeats()).await;
        match measured {
            Ok(lines) => self.figures.machine.extend(lines.map(|line| format!("{when}: {line}"))),
            Err(error) => self.figures.failed("machine", &error),
        }
    }

    /// Takes note of a part that could not be measured.
    fn note(&mut self, part: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.figures.failed(part, &error);
        }
    }

    fn add(&mut self, row: Row, system: System, metric: &'static str, values: Vec<f64>) {
        self.figures.add(row, system, metric, values);
    }
}
