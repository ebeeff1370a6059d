//! The peers, one after the other: whoever is not measured is not running.

use std::time::Duration;

use tokio::time::sleep;

use super::figures::System;
use super::{Row, Sitting};
use crate::fleet::Fleet;
use crate::load::{Kind, closed, idle, open};
use crate::peers::nats::Sync;
use crate::peers::{Peer, etcd, mosquitto, nats};

/// Memory is read when the connections have stood for a moment.
const SETTLE: Duration = Duration::from_secs(2);
const THROUGHPUT: &[Row] = &[Row::Telemetry, Row::Turns, Row::Single, Row::Latency, Row::Idle];
const PUTS: &[Row] = &[Row::Telemetry, Row::Single, Row::Reported];

pub(super) async fn all(sitting: &mut Sitting) {
    if sitting.options.wants_any(THROUGHPUT) {
        let result = broker(sitting, System::Mosquitto, mosquitto::start().await).await;
        sitting.note("mosquitto", result);
        let result = broker(sitting, System::Nats, nats::start(Sync::Default).await).await;
        sitting.note("NATS", result);
        let result = broker(sitting, System::NatsSync, nats::start(Sync::Always).await).await;
        sitting.note("NATS with sync always", result);
    }
    if sitting.options.wants_any(PUTS) {
        let result = puts(sitting).await;
        sitting.note("etcd", result);
    }
}

async fn broker(
    sitting: &mut Sitting,
    system: System,
    started: anyhow::Result<Peer>,
) -> anyhow::Result<()> {
    let peer = started?;
    let fleet = Fleet::broker(peer.addresses.clone());
    telemetry(sitting, system, &fleet).await?;
    if sitting.options.wants(Row::Idle) {
        let count = sitting.options.scaled(10_000);
        let before = peer.usage()?.rss_bytes;
        let (links, _) = idle::connect(&fleet, 0..count).await?;
        sleep(SETTLE).await;
        let grown = peer.usage()?.rss_bytes.saturating_sub(before);
        drop(links);
        sitting.add(
            Row::Idle,
            system,
            "KB a connection, plain",
            vec![grown as f64 / 1024.0 / count as f64],
        );
    }
    Ok(())
}

/// The rows that any MQTT broker has.
pub(super) async fn telemetry(
    sitting: &mut Sitting,
    system: System,
    fleet: &Fleet,
) -> anyhow::Result<()> {
    for (row, connections, window) in
        [(Row::Telemetry, 100, 16), (Row::Turns, 100, 1), (Row::Single, 1, 1)]
    {
        closed_loop(sitting, row, system, fleet, Kind::Telemetry, connections, window).await?;
    }
    if sitting.options.wants(Row::Latency) {
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        for _ in 0..sitting.options.repeats() {
            let plan = open::Plan::new(Kind::Telemetry, 20, 1_000, sitting.options.duration());
            let report = open::run(fleet, &plan).await?;
            anyhow::ensure!(report.failed_connections == 0, "{report}");
            p50.push(report.p50_ms);
            p99.push(report.p99_ms);
        }
        sitting.add(Row::Latency, system, "p50 ms", p50);
        sitting.add(Row::Latency, system, "p99 ms", p99);
    }
    Ok(())
}

/// Several runs of a closed loop, if the row is wanted.
pub(super) async fn closed_loop(
    sitting: &mut Sitting,
    row: Row,
    system: System,
    fleet: &Fleet,
    kind: Kind,
    connections: usize,
    window: u16,
) -> anyhow::Result<()> {
    if !sitting.options.wants(row) {
        return Ok(());
    }
    let mut rates = Vec::new();
    for _ in 0..sitting.options.repeats() {
        let plan = closed::Plan::new(kind, connections, window, sitting.options.duration());
        let report = closed::run(fleet, &plan).await?;
        anyhow::ensure!(report.failed_connections == 0 && report.unanswered == 0, "{report}");
        rates.push(report.per_second);
    }
    sitting.add(row, system, "a second", rates);
    Ok(())
}

async fn puts(sitting: &mut Sitting) -> anyhow::Result<()> {
    let peer = etcd::start().await?;
    for (row, clients) in [(Row::Telemetry, 128), (Row::Single, 1)] {
        let mut rates = Vec::new();
        for _ in 0..sitting.options.repeats() {
            rates.push(etcd::puts(&peer, clients, sitting.options.duration()).await?.per_second);
        }
        sitting.add(row, System::Etcd, "a second", rates);
    }
    Ok(())
}
