//! What more nodes bring and cost, and what the others have to bear when one of them dies with ten thousand devices.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use super::figures::System;
use super::hub::{SETTLE, SHARDS, start};
use super::{Row, Sitting};
use crate::fleet::Fleet;
use crate::load::report::Tally;
use crate::load::{Kind, Report, closed, herd, idle};
use crate::mqtt::link::Link;
use crate::nodes::Nodes;
use crate::process::{file_limit, raise_file_limit};

const DEVICES: &str = "bench-{n}";
const CONNECTIONS: usize = 100;
const WINDOW: u16 = 16;
const HERD: usize = 10_000;
/// The node that dies.
const KILLED: usize = 2;
/// Whoever is not back by then never will be.
const BACK_MAX: Duration = Duration::from_mins(3);
/// Files of a process beside a connection for each device.
const FILES_BESIDE: u64 = 1_000;
const FILES: u32 = 65_536;
const MIB: f64 = 1024.0 * 1024.0;
const SAMPLE: Duration = Duration::from_millis(100);

pub(super) async fn all(sitting: &mut Sitting) {
    if sitting.options.wants(Row::Nodes) {
        for (count, system) in [(1, System::Drover1), (3, System::Drover3), (5, System::Drover5)] {
            let result = nodes(sitting, count, system).await;
            sitting.note(system.name(), result);
        }
    }
    if sitting.options.wants(Row::Herd) {
        let result = stampede(sitting).await;
        sitting.note("herd", result);
    }
}

/// The same load for clusters of one, three and five: what is acknowledged, and what that costs each node. From the cost can
/// be reckoned what nodes with cores of their own would do.
async fn nodes(sitting: &mut Sitting, count: usize, system: System) -> anyhow::Result<()> {
    let (mut nodes, fleet) = start(count, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..CONNECTIONS).await?;
    let plan = closed::Plan::new(Kind::Telemetry, CONNECTIONS, WINDOW, sitting.options.duration());
    let plan = closed::Plan { warm_up: Duration::ZERO, ..plan };
    let warm_up = closed::Plan { duration: Duration::from_secs(1), ..plan.clone() };
    closed::run(&fleet, &warm_up).await?;
    let [mut rates, mut together, mut mean, mut most]: [Vec<f64>; 4] = Default::default();
    for _ in 0..sitting.options.repeats() {
        let before = cpu_seconds(&nodes)?;
        let report = closed::run(&fleet, &plan).await?;
        ensure!(report.failed_connections == 0 && report.unanswered == 0, "{report}");
        let used = cpu_seconds(&nodes)?
            .into_iter()
            .zip(before)
            .map(|(after, before)| (after - before) * 1e6 / report.acked as f64);
        let used: Vec<f64> = used.collect();
        rates.push(report.per_second);
        together.push(used.iter().sum());
        mean.push(used.iter().sum::<f64>() / count as f64);
        most.push(used.iter().copied().fold(0.0, f64::max));
    }
    sitting.add(Row::Nodes, system, "a second", rates);
    sitting.add(Row::Nodes, system, "CPU us a message, all nodes", together);
    sitting.add(Row::Nodes, system, "CPU us a message and node, mean", mean);
    sitting.add(Row::Nodes, system, "CPU us a message and node, largest", most);
    nodes.check_alive()
}

fn cpu_seconds(nodes: &Nodes) -> anyhow::Result<Vec<f64>> {
    let of = |node| Ok(nodes.usage_of(node)?.cpu.as_secs_f64());
    (0..nodes.count()).map(of).collect()
}

/// All at one node, which is killed: all are back at the two others at once, by TLS.
async fn stampede(sitting: &mut Sitting) -> anyhow::Result<()> {
    let count = sitting.options.scaled(HERD);
    check_files(count).await?;
    let (mut nodes, _) = start(3, SHARDS).await?;
    let fleet = nodes.fleet_tls(DEVICES)?;
    nodes.admin().create_devices(&fleet, 0..count).await?;
    let there = Fleet { addresses: vec![fleet.addresses[KILLED]], ..fleet.clone() };
    let (links, _) = idle::connect(&there, 0..count).await?;
    sleep(SETTLE).await;
    let before = survivors(&nodes)?;
    let mut elsewhere = fleet;
    elsewhere.addresses.remove(KILLED);
    let mut coming = coming_back(links, &Arc::new(elsewhere));
    let begin = Instant::now();
    nodes.kill(KILLED).await?;
    let (report, peak) = timeout(BACK_MAX, all_back(&mut coming, &nodes, begin))
        .await
        .with_context(|| format!("{} of {count} are not back in {BACK_MAX:?}", coming.len()))??;
    tracing::info!(%report, "all are back");
    let grown = peak.iter().zip(&before).map(|(peak, before)| peak.saturating_sub(*before));
    let drover = System::Drover3;
    sitting.add(Row::Herd, drover, "devices", vec![count as f64]);
    sitting.add(Row::Herd, drover, "s until all are back", vec![report.seconds]);
    sitting.add(Row::Herd, drover, "connect by TLS, p50 ms", vec![report.p50_ms]);
    sitting.add(Row::Herd, drover, "connect by TLS, p99 ms", vec![report.p99_ms]);
    let largest = peak.iter().copied().max().unwrap_or_default() as f64;
    sitting.add(Row::Herd, drover, "MiB of the larger node at its peak", vec![largest / MIB]);
    let each = grown.sum::<u64>() as f64 / 1024.0 / count as f64;
    sitting.add(Row::Herd, drover, "KB a device at the peak", vec![each]);
    nodes.check_alive()
}

/// Nodes start with the limit of this process.
async fn check_files(count: usize) -> anyhow::Result<()> {
    raise_file_limit(FILES).await?;
    let (limit, needed) = (file_limit()?, count as u64 + FILES_BESIDE);
    ensure!(
        limit >= needed,
        "{count} devices need {needed} open files, and this user may hold {limit}: raise `ulimit -Hn`"
    );
    Ok(())
}

/// Whoever notices the end of its connection is back at once.
fn coming_back(links: Vec<(usize, Link)>, fleet: &Arc<Fleet>) -> JoinSet<(Duration, Link)> {
    let mut coming = JoinSet::new();
    for (number, mut link) in links {
        let fleet = Arc::clone(fleet);
        coming.spawn(async move {
            // What comes before is for nobody.
            while link.fill().await.is_ok() {
                link.shrink();
            }
            drop(link);
            let (latency, mut link) = herd::come_back(&fleet, number).await;
            link.shrink();
            (latency, link)
        });
    }
    coming
}

/// When the last is back: how long each attempt took, and the most memory that each of the other nodes had.
async fn all_back(
    coming: &mut JoinSet<(Duration, Link)>,
    nodes: &Nodes,
    begin: Instant,
) -> anyhow::Result<(Report, Vec<u64>)> {
    let (mut tally, mut links) = (Tally::new(), Vec::new());
    let (mut peak, mut samples) = (survivors(nodes)?, interval(SAMPLE));
    loop {
        tokio::select! {
            joined = coming.join_next() => {
                let Some(joined) = joined else { break };
                let (latency, link) = joined.context("a device's task panicked")?;
                tally.record(latency);
                // They stay until the last is there.
                links.push(link);
            }
            _ = samples.tick() => note_peak(&mut peak, &survivors(nodes)?),
        }
    }
    let elapsed = begin.elapsed();
    note_peak(&mut peak, &survivors(nodes)?);
    Ok((tally.report(elapsed, Vec::new()), peak))
}

fn note_peak(peak: &mut [u64], now: &[u64]) {
    for (peak, now) in peak.iter_mut().zip(now) {
        *peak = (*peak).max(*now);
    }
}

/// The memory of the nodes that live on.
fn survivors(nodes: &Nodes) -> anyhow::Result<Vec<u64>> {
    let others = (0..nodes.count()).filter(|node| *node != KILLED);
    others.map(|node| Ok(nodes.usage_of(node)?.rss_bytes)).collect()
}
