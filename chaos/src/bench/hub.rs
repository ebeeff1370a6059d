//! Drover itself: three nodes, one node, idle nodes, nodes that die.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::sleep;

use super::beside::{closed_loop, telemetry};
use super::figures::System;
use super::{Row, Sitting};
use crate::fleet::Fleet;
use crate::kill::plan::Plan;
use crate::load::{Kind, closed, idle, open};
use crate::nodes::{Nodes, Shape};
use crate::process::disk_bytes;
use crate::{kill, process};

pub(super) const SHARDS: u32 = 16;
const SHARDS_MANY: u32 = 256;
pub(super) const DEVICES: &str = "bench-{n}";
/// Caches and compactions come to rest before memory or idle CPU is read.
pub(super) const SETTLE: Duration = Duration::from_secs(5);
const RESTART_TIMEOUT: Duration = Duration::from_mins(2);
/// Half of what a busy machine does: CPU a message is compared at a rate that is always reached.
const GROWTH_RATE: u32 = 2_000;
const FILES: u32 = 65_536;
/// The node that is killed and started again.
const RESTARTED: usize = 2;

pub(super) async fn all(sitting: &mut Sitting) {
    let limit = process::raise_file_limit(FILES).await;
    sitting.note("file limit", limit);
    let loaded = [Row::Telemetry, Row::Turns, Row::Single, Row::Latency, Row::Reported];
    let stored = [Row::Offline, Row::Restart, Row::Growth];
    if sitting.options.wants_any(&loaded) {
        let result = three(sitting).await;
        sitting.note("Drover, 3 nodes", result);
    }
    if sitting.options.wants_any(&[Row::Telemetry, Row::Turns, Row::Single]) {
        let result = one(sitting).await;
        sitting.note("Drover, 1 node", result);
    }
    if sitting.options.wants(Row::Idle) {
        for (by_tls, part) in [(false, "idle devices, plain"), (true, "idle devices, TLS")] {
            let result = memory(sitting, by_tls).await;
            sitting.note(part, result);
        }
    }
    if sitting.options.wants_any(&stored) {
        let result = much(sitting).await;
        sitting.note("Drover with much to keep", result);
    }
    for (shards, metric) in
        [(SHARDS, "% of a core a node, 16 shards"), (SHARDS_MANY, "% of a core a node, 256 shards")]
    {
        if sitting.options.wants(Row::IdleCpu) {
            let result = idle_cpu(sitting, shards, metric).await;
            sitting.note(metric, result);
        }
    }
    if sitting.options.wants(Row::Failover) {
        let result = failover(sitting).await;
        sitting.note("failover", result);
    }
}

pub(super) async fn start(nodes: usize, shards: u32) -> anyhow::Result<(Nodes, Fleet)> {
    let nodes = Nodes::start(&Shape { nodes, shards }).await?;
    let fleet = nodes.fleet(DEVICES);
    Ok((nodes, fleet))
}

async fn three(sitting: &mut Sitting) -> anyhow::Result<()> {
    let (mut nodes, fleet) = start(3, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..100).await?;
    let result = telemetry(sitting, System::Drover3, &fleet).await;
    sitting.note("Drover, 3 nodes, telemetry", result);
    closed_loop(sitting, Row::Reported, System::Drover3, &fleet, Kind::Reported, 100, 1).await?;
    nodes.check_alive()
}

/// On a cluster of its own: memory that others have used and freed would hide what is asked for here.
async fn memory(sitting: &mut Sitting, by_tls: bool) -> anyhow::Result<()> {
    let (mut nodes, plain) = start(3, SHARDS).await?;
    let count = sitting.options.scaled(10_000);
    nodes.admin().create_devices(&plain, 0..count).await?;
    let (fleet, metric) = if by_tls {
        (nodes.fleet_tls(DEVICES)?, "KB a connection, TLS")
    } else {
        (plain, "KB a connection, plain")
    };
    sleep(SETTLE).await;
    let before = nodes.usage()?.rss_bytes;
    let (links, storm) = idle::connect(&fleet, 0..count).await?;
    tracing::info!(%storm, metric, "connected");
    sleep(SETTLE).await;
    let grown = nodes.usage()?.rss_bytes.saturating_sub(before);
    drop(links);
    sitting.add(Row::Idle, System::Drover3, metric, vec![grown as f64 / 1024.0 / count as f64]);
    nodes.check_alive()
}

async fn one(sitting: &mut Sitting) -> anyhow::Result<()> {
    let (mut nodes, fleet) = start(1, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..100).await?;
    for (row, connections, window) in
        [(Row::Telemetry, 100, 16), (Row::Turns, 100, 1), (Row::Single, 1, 1)]
    {
        let kind = Kind::Telemetry;
        closed_loop(sitting, row, System::Drover1, &fleet, kind, connections, window).await?;
    }
    nodes.check_alive()
}

/// Many devices, many messages: what they cost in memory, disk and CPU, and how fast a node comes back to them.
async fn much(sitting: &mut Sitting) -> anyhow::Result<()> {
    let (mut nodes, fleet) = start(3, SHARDS).await?;
    let devices = sitting.options.scaled(100_000);
    let messages = sitting.options.scaled(1_000_000);
    nodes.admin().create_devices(&fleet, 0..100).await?;
    let few = cpu_per_message(sitting, &nodes, &fleet, 100).await?;
    let before = rss_of_restarted(&mut nodes).await?;
    nodes.admin().create_devices(&fleet, 100..devices).await?;
    let grown = rss_of_restarted(&mut nodes).await? - before;
    sitting.add(Row::Offline, System::Drover3, "bytes a device", vec![grown / devices as f64]);
    let many = cpu_per_message(sitting, &nodes, &fleet, 1_000).await?;
    let empty = disk_bytes(nodes.folder()).await?;
    fill(&fleet, messages).await?;
    sleep(SETTLE).await;
    let disk = disk_bytes(nodes.folder()).await?.saturating_sub(empty);
    let full = cpu_per_message(sitting, &nodes, &fleet, 100).await?;
    let drover = System::Drover3;
    sitting.add(Row::Growth, drover, "CPU us a message, 100 devices", vec![few]);
    sitting.add(Row::Growth, drover, "CPU us a message, 1,000 of 100,000 devices", vec![many]);
    sitting.add(Row::Growth, drover, "CPU us a message, after 1,000,000 messages", vec![full]);
    let per_message = disk as f64 / messages as f64 / nodes.count() as f64;
    sitting.add(Row::Growth, drover, "bytes of disk a message and replica", vec![per_message]);
    if sitting.options.wants(Row::Restart) {
        nodes.kill(RESTARTED).await?;
        nodes.restart(RESTARTED)?;
        let ready = nodes.until_answers(RESTARTED, RESTART_TIMEOUT).await?;
        sitting.add(Row::Restart, drover, "s until ready", vec![ready.as_secs_f64()]);
    }
    nodes.check_alive()
}

/// What a node takes that has just come back and serves nobody: what it needs to know of each registered device, without
/// what caches hold of those that were used.
async fn rss_of_restarted(nodes: &mut Nodes) -> anyhow::Result<f64> {
    rss_of_restarted_with(nodes, Vec::new()).await
}

/// With these settings of the environment.
pub(super) async fn rss_of_restarted_with(
    nodes: &mut Nodes,
    environment: Vec<(String, String)>,
) -> anyhow::Result<f64> {
    nodes.kill(RESTARTED).await?;
    nodes.restart_with(RESTARTED, environment)?;
    nodes.until_answers(RESTARTED, RESTART_TIMEOUT).await?;
    sleep(SETTLE * 3).await;
    Ok(nodes.usage_of(RESTARTED)?.rss_bytes as f64)
}

async fn cpu_per_message(
    sitting: &Sitting,
    nodes: &Nodes,
    fleet: &Fleet,
    connections: usize,
) -> anyhow::Result<f64> {
    let warm_up = Duration::ZERO;
    let plan =
        open::Plan::new(Kind::Telemetry, connections, GROWTH_RATE, sitting.options.duration());
    let before = nodes.usage()?.cpu;
    let report = open::run(fleet, &open::Plan { warm_up, ..plan }).await?;
    ensure!(report.unanswered == 0 && report.failed_connections == 0, "{report}");
    Ok(nodes.usage()?.cpu.saturating_sub(before).as_secs_f64() * 1e6 / report.acked as f64)
}

pub(super) async fn fill(fleet: &Fleet, messages: usize) -> anyhow::Result<()> {
    let connections = 100;
    let plan = closed::Plan::new(Kind::Telemetry, connections, 64, Duration::from_mins(5));
    let requests_max = Some((messages / connections) as u64);
    let plan = closed::Plan { warm_up: Duration::ZERO, requests_max, ..plan };
    let report = closed::run(fleet, &plan).await?;
    ensure!(report.acked as usize >= messages, "only {report}");
    Ok(())
}

async fn idle_cpu(sitting: &mut Sitting, shards: u32, metric: &'static str) -> anyhow::Result<()> {
    let (mut nodes, _) = start(3, shards).await?;
    sleep(SETTLE * 2).await;
    let seconds = if sitting.options.quick { 5.0 } else { 15.0 };
    let cpu = |node| anyhow::Ok(nodes.usage_of(node)?.cpu);
    let before = (0..3).map(cpu).collect::<Result<Vec<_>, _>>()?;
    sleep(Duration::from_secs_f64(seconds)).await;
    let shares = (0..3).zip(before).map(|(node, before)| {
        Ok(100.0 * nodes.usage_of(node)?.cpu.saturating_sub(before).as_secs_f64() / seconds)
    });
    let shares = shares.collect::<anyhow::Result<Vec<f64>>>()?;
    sitting.add(Row::IdleCpu, System::Drover3, metric, shares);
    nodes.check_alive()
}

async fn failover(sitting: &mut Sitting) -> anyhow::Result<()> {
    let seconds = if sitting.options.quick { 30 } else { 120 };
    // Only devices that send: a recipient breaks its connection off by itself.
    let plan = Plan { recipients: 0, ..Plan::new(1, Duration::from_secs(seconds)) };
    let report = kill::run(&plan).await?.findings;
    let times = &report.failover;
    ensure!(times.samples > 0, "no leader was killed");
    let drover = System::Drover3;
    sitting.add(Row::Failover, drover, "p50 ms", vec![times.p50_ms as f64]);
    sitting.add(Row::Failover, drover, "p99 ms", vec![times.p99_ms as f64]);
    sitting.add(Row::Failover, drover, "max ms", vec![times.max_ms as f64]);
    sitting.add(
        Row::Failover,
        drover,
        "acknowledged and lost",
        vec![report.checked.telemetry.lost.total() as f64],
    );
    Ok(())
}
