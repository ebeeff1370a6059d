//! Commands and methods: end to end, to ten thousand devices at once, into mailboxes that nobody empties.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::figures::System;
use super::hub::{SETTLE, SHARDS, rss_of_restarted_with, start};
use super::{Row, Sitting};
use crate::load::recipients::{Listening, Recipients};
use crate::load::{commands, methods};
use crate::nodes::Nodes;
use crate::process::disk_bytes;

/// Far from what a hub can do: it is latency that is asked for.
const COMMANDS_A_SECOND: u32 = 200;
const RECIPIENTS: usize = 100;
const CALLERS: usize = 64;
const FAN_OUT: usize = 10_000;
const MAILBOXES: usize = 10_000;
const DEPTH: usize = 1_000;
const SMALL_CACHE: &str = "8MiB";

pub(super) async fn all(sitting: &mut Sitting) {
    let one_node = (1, 0, System::Drover1);
    // A device's commands come to the node after its own.
    let across = (3, 1, System::Drover3);
    for (nodes, away, system) in [one_node, across] {
        if sitting.options.wants(Row::Commands) {
            let result = end_to_end(sitting, nodes, away, system).await;
            sitting.note("commands", result);
        }
        if sitting.options.wants(Row::Methods) {
            let result = calls(sitting, nodes, system).await;
            sitting.note("methods", result);
        }
    }
    if sitting.options.wants(Row::FanOut) {
        let result = fan_out(sitting).await;
        sitting.note("fan-out", result);
    }
    if sitting.options.wants(Row::Mailboxes) {
        let result = mailboxes(sitting).await;
        sitting.note("mailboxes", result);
    }
}

async fn end_to_end(
    sitting: &mut Sitting,
    nodes: usize,
    away: usize,
    system: System,
) -> anyhow::Result<()> {
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..sitting.options.repeats() {
        // The numbers of commands begin anew, and a hub remembers them.
        let (mut nodes, fleet) = start(nodes, SHARDS).await?;
        nodes.admin().create_devices(&fleet, 0..RECIPIENTS).await?;
        let mut devices = Recipients::connect(&fleet, RECIPIENTS, Listening::Commands).await?;
        let (rate, duration) = (COMMANDS_A_SECOND, sitting.options.duration());
        let plan = commands::Pace { devices: RECIPIENTS, rate, duration, away, shards: SHARDS };
        let backends = nodes.admin().backends();
        let seen = commands::pace(&fleet, &backends, &mut devices, &plan).await?;
        let (delivered, completed) = (seen.delivered, seen.completed);
        let quantiles = [delivered.p50_ms, delivered.p99_ms, completed.p50_ms, completed.p99_ms];
        figures.iter_mut().zip(quantiles).for_each(|(figures, value)| figures.push(value));
        nodes.check_alive()?;
    }
    let metrics = [
        "200/s, sent to device, p50 ms",
        "200/s, sent to device, p99 ms",
        "200/s, sent to completed, p50 ms",
        "200/s, sent to completed, p99 ms",
    ];
    for (metric, runs) in metrics.into_iter().zip(figures) {
        sitting.add(Row::Commands, system, metric, runs);
    }
    Ok(())
}

async fn calls(sitting: &mut Sitting, nodes: usize, system: System) -> anyhow::Result<()> {
    let (mut nodes, fleet) = start(nodes, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..RECIPIENTS).await?;
    let mut devices = Recipients::connect(&fleet, RECIPIENTS, Listening::Methods).await?;
    let backends = nodes.admin().backends();
    let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..sitting.options.repeats() {
        let duration = sitting.options.duration();
        let plan = methods::Plan { devices: RECIPIENTS, callers: CALLERS, duration };
        let report = methods::call(&fleet, &backends, &plan).await?;
        rates.push(report.per_second);
        p50.push(report.p50_ms);
        p99.push(report.p99_ms);
    }
    devices.check()?;
    sitting.add(Row::Methods, system, "a second, 64 callers", rates);
    sitting.add(Row::Methods, system, "64 callers, p50 ms", p50);
    sitting.add(Row::Methods, system, "64 callers, p99 ms", p99);
    nodes.check_alive()
}

async fn fan_out(sitting: &mut Sitting) -> anyhow::Result<()> {
    let count = sitting.options.scaled(FAN_OUT);
    let (mut nodes, fleet) = start(3, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..count).await?;
    let mut devices = Recipients::connect(&fleet, count, Listening::Commands).await?;
    sleep(SETTLE).await;
    let backend = &nodes.admin().backends()[0];
    let times = commands::fan_out(&fleet, backend, &mut devices, count).await?;
    let drover = System::Drover3;
    sitting.add(Row::FanOut, drover, "devices", vec![count as f64]);
    sitting.add(Row::FanOut, drover, "s to the last durable", vec![times.queued.as_secs_f64()]);
    sitting.add(Row::FanOut, drover, "s to the last PUBACK", vec![times.taken.as_secs_f64()]);
    nodes.check_alive()
}

async fn mailboxes(sitting: &mut Sitting) -> anyhow::Result<()> {
    let devices = sitting.options.scaled(MAILBOXES);
    let patience = Duration::from_secs(if sitting.options.quick { 15 } else { 1_200 });
    let (mut nodes, fleet) = start(3, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..devices).await?;
    let before = Memory::of(&mut nodes).await?;
    let empty = disk_bytes(nodes.folder()).await?;
    let backends = nodes.admin().backends();
    let begin = Instant::now();
    let until = begin + patience;
    let filled = commands::fill(&fleet, &backends, devices, DEPTH, until).await?;
    let queued = (filled.mailboxes * DEPTH) as f64;
    let rate = queued / begin.elapsed().as_secs_f64();
    sleep(SETTLE).await;
    let disk = disk_bytes(nodes.folder()).await?.saturating_sub(empty) as f64;
    let after = Memory::of(&mut nodes).await?;
    let drover = System::Drover3;
    let full = vec![filled.mailboxes as f64];
    sitting.add(Row::Mailboxes, drover, "mailboxes with 1,000 commands each", full);
    sitting.add(Row::Mailboxes, drover, "commands a second into them", vec![rate]);
    sitting.add(Row::Mailboxes, drover, "commands sent again", vec![filled.again as f64]);
    for (metric, bytes) in [
        ("MiB RSS of a restarted node, before", before.default),
        ("MiB RSS of a restarted node, after", after.default),
        ("MiB RSS with small caches, before", before.small_caches),
        ("MiB RSS with small caches, after", after.small_caches),
    ] {
        sitting.add(Row::Mailboxes, drover, metric, vec![bytes / f64::from(1 << 20)]);
    }
    let per_command = disk / queued / nodes.count() as f64;
    sitting.add(Row::Mailboxes, drover, "bytes of disk a command and replica", vec![per_command]);
    nodes.check_alive()
}

/// RSS of a restarted node in bytes. What is on disk fills caches until they are full, so small ones tell whether anything else
/// grows with it.
struct Memory {
    default: f64,
    small_caches: f64,
}

impl Memory {
    /// Leaves the node with its default settings.
    async fn of(nodes: &mut Nodes) -> anyhow::Result<Self> {
        let small = ["DROVER_STORAGE__CACHE", "DROVER_STORAGE__MEMTABLES"]
            .map(|key| (key.to_owned(), SMALL_CACHE.to_owned()));
        let small_caches = rss_of_restarted_with(nodes, small.to_vec()).await?;
        let default = rss_of_restarted_with(nodes, Vec::new()).await?;
        Ok(Self { default, small_caches })
    }
}
