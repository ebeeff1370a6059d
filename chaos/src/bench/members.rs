//! Nodes that come and go under load, and leaders that move because somebody wants them to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_core::ids::{DeviceId, ShardCount, ShardId};
use drover_proto::admin::ClusterStatus;
use tokio::time::{Instant, sleep};

use super::figures::System;
use super::hub::{DEVICES as DEVICE_IDS, SETTLE, SHARDS, fill, start};
use super::{Row, Sitting};
use crate::fleet::Fleet;
use crate::http;
use crate::load::steady::Steady;
use crate::nodes::{Nodes, Place, Spare};
use crate::peers::until_ok;

const DEVICES: usize = 64;
/// What is there to be copied, in messages of 200 bytes.
const STORED: usize = 400_000;
const REPLICAS: usize = 3;
const SENT_BYTES: &str = "drover_raft_snapshot_bytes_sent_total";
/// Shards that are older than a few minutes have more entries behind them than their logs keep, so new replicas get snapshots. So
/// do these.
const ENTRIES_KEPT: [&str; 2] = ["DROVER_RAFT__LOG_ENTRIES_KEPT", "500"];
/// Moves are given up that take longer.
const PATIENCE: Duration = Duration::from_mins(5);
const LOOK: Duration = Duration::from_millis(100);
/// So far apart, no message waits for another one: what is measured is the move.
const PAUSE: Duration = Duration::from_millis(20);
/// Drains of a node in turn. Each is two rounds of moves, of about five leaders each: away and back.
const DRAINS: usize = 8;
/// The node whose devices are watched. It is never drained: only leaders move, no sessions.
const WATCHED: usize = 2;

pub(super) async fn all(sitting: &mut Sitting) {
    if sitting.options.wants_any(&[Row::Grow, Row::Shrink]) {
        let result = grow_and_shrink(sitting).await;
        sitting.note("3 to 5 nodes and back", result);
    }
    if sitting.options.wants(Row::Handover) {
        let result = handovers(sitting).await;
        sitting.note("planned leader moves", result);
    }
}

async fn grow_and_shrink(sitting: &mut Sitting) -> anyhow::Result<()> {
    let place =
        Place { environment: vec![ENTRIES_KEPT.map(str::to_owned).into()], ..Place::default() };
    let mut nodes = Nodes::start_at(vec![place.clone(); 3], SHARDS).await?;
    let fleet = nodes.fleet(DEVICE_IDS);
    nodes.admin().create_devices(&fleet, 0..100).await?;
    fill(&fleet, sitting.options.scaled(STORED)).await?;
    sleep(SETTLE).await;
    // At founding members only: their sessions stay while the cluster grows and shrinks, so that moves alone are measured.
    let load = Steady::start(&fleet, DEVICES, Duration::ZERO);
    let mut spares = [nodes.spare(place.clone())?, nodes.spare(place)?];
    let pages: Vec<SocketAddr> =
        nodes.http().into_iter().chain(spares.each_ref().map(Spare::http)).collect();

    let three = throughput(sitting, &load).await;
    let watch = Watch::begin(&nodes, &load, &pages).await?;
    for spare in &mut spares {
        spare.join(&nodes.admin().join_token().await?)?;
    }
    let joined: Vec<u32> = until_ok("two nodes have joined", PATIENCE, async || {
        spares.iter().map(|spare| spare.number().context("it is no member yet")).collect()
    })
    .await?;
    let share = SHARDS as usize * REPLICAS / 5;
    let grown =
        watch.until(|status| joined.iter().all(|node| replicas(status, *node) >= share)).await?;
    sleep(SETTLE).await;
    let five = throughput(sitting, &load).await;
    grown.report(sitting, Row::Grow, three, five, share * joined.len());

    let status = nodes.admin().status().await?;
    let ideal = joined.iter().map(|node| replicas(&status, *node)).sum();
    let watch = Watch::begin(&nodes, &load, &pages).await?;
    // The second before anything has moved to it from the first.
    for node in &joined {
        nodes.admin().drain(*node).await?;
    }
    let shrunk =
        watch.until(|status| joined.iter().all(|node| replicas(status, *node) == 0)).await?;
    sleep(SETTLE).await;
    let after = throughput(sitting, &load).await;
    shrunk.report(sitting, Row::Shrink, five, after, ideal);
    ensure!(load.lost() == 0, "{} connections of nodes that stayed were lost", load.lost());
    nodes.check_alive()
}

/// Acknowledgements a second.
async fn throughput(sitting: &Sitting, load: &Steady) -> f64 {
    let (begin, acked) = (Instant::now(), load.acked());
    sleep(sitting.options.duration()).await;
    (load.acked() - acked) as f64 / begin.elapsed().as_secs_f64()
}

/// Replicas of shards on the node with this number.
fn replicas(status: &ClusterStatus, node: u32) -> usize {
    let shards = status.shards.iter().filter(|shard| shard.shard.is_some());
    shards.flat_map(|shard| &shard.replicas).filter(|r| r.node == node).count()
}

/// Bytes of a replica, the mean of all shards: what a snapshot of it has.
async fn replica_bytes(nodes: &Nodes) -> anyhow::Result<f64> {
    let mut sum = 0;
    for shard in 0..SHARDS {
        sum += nodes.admin().snapshot_bytes(shard).await?;
    }
    Ok(sum as f64 / f64::from(SHARDS))
}

/// Bytes of snapshots that nodes have sent. One that is not there has sent none.
async fn sent_bytes(pages: &[SocketAddr]) -> f64 {
    let mut sum = 0.0;
    for page in pages {
        let page = http::get(*page, "/metrics").await.unwrap_or_default();
        sum += http::metric(&page, SENT_BYTES).unwrap_or_default();
    }
    sum
}

/// Looks on while replicas move.
struct Watch<'a> {
    nodes: &'a Nodes,
    load: &'a Steady,
    pages: &'a [SocketAddr],
    /// Bytes of a replica, and of what was sent before.
    bytes: f64,
    sent: f64,
    begun: Instant,
    acked: u64,
    /// Shard, from, to and beginning of each move.
    moves: BTreeSet<(u32, Option<u32>, u32, i64, i32)>,
}

/// What moves came to.
struct Moved {
    moves: usize,
    took: Duration,
    per_second: f64,
    /// Of a replica, the mean of before and after.
    replica_bytes: f64,
    sent_bytes: f64,
}

impl<'a> Watch<'a> {
    async fn begin(
        nodes: &'a Nodes,
        load: &'a Steady,
        pages: &'a [SocketAddr],
    ) -> anyhow::Result<Self> {
        let bytes = replica_bytes(nodes).await?;
        let sent = sent_bytes(pages).await;
        let (begun, acked) = (Instant::now(), load.acked());
        Ok(Self { nodes, load, pages, bytes, sent, begun, acked, moves: BTreeSet::new() })
    }

    /// Until nothing moves and it `is_done`.
    async fn until(mut self, is_done: impl Fn(&ClusterStatus) -> bool) -> anyhow::Result<Moved> {
        loop {
            // A node that has just come may be slow to say how it is.
            if let Ok(status) = self.nodes.admin().status().await {
                for m in &status.moves {
                    let Some(began) = m.began else { continue };
                    self.moves.insert((m.shard, m.from, m.to, began.seconds, began.nanos));
                }
                if status.moves.is_empty() && is_done(&status) {
                    return self.end().await;
                }
            }
            tracing::debug!(
                ms = self.begun.elapsed().as_millis(),
                acked = self.load.acked() - self.acked,
                moves = self.moves.len(),
                "looked"
            );
            let waited = self.begun.elapsed();
            ensure!(waited < PATIENCE, "it moves still after {waited:?}\n{}", self.nodes.logs());
            sleep(LOOK).await;
        }
    }

    async fn end(self) -> anyhow::Result<Moved> {
        let took = self.begun.elapsed();
        let acked = self.load.acked() - self.acked;
        let sent_bytes = sent_bytes(self.pages).await - self.sent;
        let replica_bytes = f64::midpoint(self.bytes, replica_bytes(self.nodes).await?);
        let per_second = acked as f64 / took.as_secs_f64();
        Ok(Moved { moves: self.moves.len(), took, per_second, replica_bytes, sent_bytes })
    }
}

impl Moved {
    fn report(&self, sitting: &mut Sitting, row: Row, before: f64, after: f64, ideal: usize) {
        let ideal_bytes = self.replica_bytes * ideal as f64;
        let figures = [
            ("replicas copied", self.moves as f64),
            ("replicas copied to the ideal", self.moves as f64 / ideal as f64),
            ("MB sent", self.sent_bytes / 1e6),
            ("bytes sent to the ideal", self.sent_bytes / ideal_bytes),
            ("s until nothing moves", self.took.as_secs_f64()),
            ("a second before", before),
            ("a second meanwhile", self.per_second),
            ("a second after", after),
            ("throughput meanwhile to before", self.per_second / before),
            (
                "throughput meanwhile to the less of before and after",
                self.per_second / before.min(after),
            ),
        ];
        for (metric, value) in figures {
            sitting.add(row, System::Drover3, metric, vec![value]);
        }
    }
}

/// Leaders are moved by drains of the two other nodes in turn, and by the balance that gives them back.
async fn handovers(sitting: &mut Sitting) -> anyhow::Result<()> {
    let (mut nodes, mut fleet) = start(3, SHARDS).await?;
    nodes.admin().create_devices(&fleet, 0..DEVICES).await?;
    fleet.addresses = vec![fleet.addresses[WATCHED]];
    let load = Steady::start(&fleet, DEVICES, PAUSE);
    let shards = shards_of(&fleet)?;
    sleep(SETTLE).await;
    load.take_worst();
    let mut quiet: Vec<Duration> = Vec::new();
    let mut met: Vec<Duration> = Vec::new();
    for round in 0..if sitting.options.quick { DRAINS / 4 } else { DRAINS } {
        let node = (round % WATCHED) as u32 + 1;
        for ask in [Ask::Leave, Ask::Lead] {
            load.take_worst();
            sleep(SETTLE / 5).await;
            quiet.extend(load.take_worst());
            met.extend(moved(&nodes, &load, &shards, node, ask).await?);
        }
    }
    ensure!(load.lost() == 0, "{} connections were lost", load.lost());
    ensure!(!met.is_empty(), "no leader of a device moved");
    let drover = System::Drover3;
    sitting.add(Row::Handover, drover, "acknowledgements that met a move", vec![met.len() as f64]);
    for (metric, quantile) in [("p50 ms", 0.5), ("p99 ms", 0.99), ("max ms", 1.0)] {
        sitting.add(Row::Handover, drover, metric, vec![at_quantile(&mut met, quantile)]);
    }
    let quiet = at_quantile(&mut quiet, 0.5);
    sitting.add(Row::Handover, drover, "ms, the worst of a device in a quiet second", vec![quiet]);
    nodes.check_alive()
}

/// What a node is asked for.
#[derive(Clone, Copy)]
enum Ask {
    Leave,
    Lead,
}

/// Asks a node, and waits until leaders have moved because of it. Answers the worst acknowledgement of each device whose shard has another
/// leader than before.
async fn moved(
    nodes: &Nodes,
    load: &Steady,
    shards: &[u32],
    node: u32,
    ask: Ask,
) -> anyhow::Result<Vec<Duration>> {
    let before = leaders(&nodes.admin().status().await?);
    match ask {
        Ask::Leave => nodes.admin().drain_for_restart(node).await?,
        Ask::Lead => nodes.admin().undrain(node).await?,
    }
    let begun = Instant::now();
    loop {
        let leaders = leaders(&nodes.admin().status().await?);
        let led = leaders.values().filter(|leader| **leader == Some(node)).count();
        let is_done = match ask {
            Ask::Leave => led == 0,
            Ask::Lead => led > 0,
        };
        if is_done && leaders.values().all(Option::is_some) {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "leaders do not move\n{}", nodes.logs());
        sleep(LOOK).await;
    }
    // More leaders may follow the first, and what waits for one is acknowledged by then.
    sleep(SETTLE).await;
    let after = leaders(&nodes.admin().status().await?);
    let worst = load.take_worst().into_iter().zip(shards);
    let met = worst.filter(|(_, shard)| before.get(shard) != after.get(shard));
    Ok(met.map(|(worst, _)| worst).collect())
}

fn leaders(status: &ClusterStatus) -> BTreeMap<u32, Option<u32>> {
    status.shards.iter().filter_map(|shard| Some((shard.shard?, shard.leader))).collect()
}

/// The shard of each device.
fn shards_of(fleet: &Fleet) -> anyhow::Result<Vec<u32>> {
    let count = ShardCount::new(SHARDS).context("a legal count")?;
    let shard = |number| {
        let device: DeviceId = fleet.id(number).parse().context("a legal id")?;
        Ok(ShardId::of(&device, count).number())
    };
    (0..DEVICES).map(shard).collect()
}

/// In milliseconds.
fn at_quantile(values: &mut [Duration], quantile: f64) -> f64 {
    values.sort_unstable();
    let place = (values.len().saturating_sub(1) as f64 * quantile).round() as usize;
    values.get(place).map_or(0.0, |value| value.as_secs_f64() * 1_000.0)
}
