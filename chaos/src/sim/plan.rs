//! What one simulated run does, drawn from its seed: a different mixture of machines, timing and faults each time.

use std::time::Duration;

use drover_cluster::raft::groups::Timing;
use drover_cluster::storage::simulated::Behaviour;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::operator::{Order, SPARES, draw_orders};

/// Simulated time with faults. Most of what breaks breaks within seconds; more seeds find more than longer runs.
const FAULTS_MS: u64 = 25_000;

/// So many runs change the members of their cluster.
const MEMBERSHIP_CHANGES: f64 = 0.6;
/// In so many, of those that lose no machine for good, a disk rots.
const ROT: f64 = 0.6;
/// In so many, of those with devices that speak MQTT, these are cut off from nodes.
const DEVICES_CUT_OFF: f64 = 0.6;

/// The product's timers, hasty ones and slow ones.
const TIMINGS: [Timing; 3] = [
    Timing { heartbeat_ms: 200, election_min_ms: 500, election_max_ms: 750 },
    Timing { heartbeat_ms: 100, election_min_ms: 250, election_max_ms: 400 },
    Timing { heartbeat_ms: 400, election_min_ms: 1_000, election_max_ms: 1_500 },
];

/// Longer than any run.
const LOCK_MS_NEVER: u64 = 300_000;

/// Replicas of each shard. A plan has at least so many nodes.
pub(super) const REPLICATION_FACTOR: u8 = 3;

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// Nodes that the cluster is made of. They are numbered as their machines.
    pub nodes: u32,
    /// Machines in all: the rest joins later, or never.
    pub machines: u32,
    pub shards: u32,
    pub devices: usize,
    /// Devices that speak MQTT over sockets.
    pub socket_devices: usize,
    pub faults_ms: u64,
    pub disk: Behaviour,
    pub latency_max: Duration,
    /// Entries of a log that are kept: few, and followers that lag get snapshots.
    pub log_entries_kept: u64,
    /// How long a client waits between two requests, at the most.
    pub pause_ms_max: u64,
    /// By how much the wall clocks of nodes differ, at the most.
    pub skew_ms_max: u64,
    /// How long a command stays locked for a connection that says nothing about it.
    pub lock_ms: u64,
    pub faults: Vec<Fault>,
    /// The machine whose disk rots. No other does, and none is lost for good besides: no shard loses the majority of its replicas.
    pub rotting: Option<u32>,
    /// Whether devices that speak MQTT are cut off from nodes.
    pub cuts_devices_off: bool,
    /// How long a period of faults is, at the most.
    pub period_ms_max: u64,
    /// How many of all periods have no fault: some bugs only show on an idle network.
    pub quiet: f64,
    pub timing: Timing,
    /// What an operator does meanwhile, in this order; nothing in some runs.
    pub orders: Vec<Order>,
}

/// What a period of faults may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A node loses its power, and what was not synced.
    Crash,
    /// All nodes do, at once.
    PowerCut,
    /// A node and the others do not hear each other.
    Isolate,
    /// One direction between two nodes is cut.
    OneWay,
    /// What a node sends is kept back, and arrives later.
    Hold,
    /// Messages take much longer.
    Slow,
}

impl Fault {
    pub const ALL: [Self; 6] =
        [Self::Crash, Self::PowerCut, Self::Isolate, Self::OneWay, Self::Hold, Self::Slow];
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut draw = stream(seed, "plan", 0);
        let nodes = if draw.random_bool(0.15) { 5 } else { 3 };
        let mut faults: Vec<_> = Fault::ALL.into_iter().filter(|_| draw.random_bool(0.7)).collect();
        if !faults.contains(&Fault::Crash) && !faults.contains(&Fault::PowerCut) {
            faults.push(Fault::Crash);
        }
        let mut operator = stream(seed, "orders", 0);
        let changes_members = operator.random_bool(MEMBERSHIP_CHANGES);
        let orders = if changes_members { draw_orders(&mut operator, nodes) } else { Vec::new() };
        let mut cadence = stream(seed, "cadence", 0);
        let socket_devices = [0, 2, 2, 3][operator.random_range(0..4)];
        let mut rot = stream(seed, "rot", 0);
        let may_rot = !orders.iter().any(|order| matches!(order, Order::Lose(_)));
        let rotting = (may_rot && rot.random_bool(ROT)).then(|| rot.random_range(1..=nodes));
        Self {
            seed,
            socket_devices,
            rotting,
            cuts_devices_off: socket_devices > 0 && rot.random_bool(DEVICES_CUT_OFF),
            nodes,
            machines: nodes + if orders.is_empty() { 0 } else { SPARES },
            orders,
            timing: TIMINGS[cadence.random_range(0..TIMINGS.len())],
            period_ms_max: [3_000, 6_000, 10_000][cadence.random_range(0..3)],
            quiet: [0.0, 0.25, 0.5][cadence.random_range(0..3)],
            shards: draw.random_range(2..=4),
            devices: draw.random_range(4..=8),
            faults_ms: FAULTS_MS,
            disk: Behaviour {
                sync_us_max: [500, 5_000, 30_000][draw.random_range(0..3)],
                failing_syncs_per_mille: u32::from(draw.random_bool(0.2)),
            },
            latency_max: Duration::from_millis([2, 10, 40][draw.random_range(0..3)]),
            log_entries_kept: [20, 200, 100_000][draw.random_range(0..3)],
            pause_ms_max: [60, 200, 500][draw.random_range(0..3)],
            skew_ms_max: [0, 100, 3_600_000][draw.random_range(0..3)],
            faults,
            lock_ms: [2_000, LOCK_MS_NEVER][draw.random_range(0..2)],
        }
    }

    /// Whether a lock can end before its connection does. By clocks that are far apart any time can pass at once.
    pub fn locks_may_run_out(&self) -> bool {
        self.lock_ms < LOCK_MS_NEVER || self.skew_ms_max > 1_000
    }
}

/// Random numbers of one purpose: what one draws changes nothing for the others.
pub(super) fn stream(seed: u64, purpose: &str, number: u64) -> StdRng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    for (place, byte) in key[16..].iter_mut().zip(purpose.bytes()) {
        *place = byte;
    }
    StdRng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_plan_takes_two_replicas_of_a_shard_for_good() {
        let loses = |plan: &Plan| plan.orders.iter().any(|order| matches!(order, Order::Lose(_)));
        let plans = (0..500).map(Plan::new).filter(|plan| plan.rotting.is_some());
        assert_eq!(plans.filter(loses).count(), 0);
    }

    #[test]
    fn seeds_draw_every_fault_and_every_size() {
        let plans: Vec<_> = (0..200).map(Plan::new).collect();
        for fault in Fault::ALL {
            assert!(plans.iter().any(|plan| plan.faults.contains(&fault)), "{fault:?}");
        }
        assert!(plans.iter().any(|plan| plan.nodes == 5));
        assert!(plans.iter().any(|plan| plan.timing == Timing::default()));
        assert!(plans.iter().any(|plan| plan.orders.is_empty()));
        let is_replaced = |order: &Order| matches!(order, Order::Join { replaces: Some(_), .. });
        assert!(plans.iter().any(|plan| plan.orders.iter().any(is_replaced)));
        assert!(plans.iter().any(|plan| plan.disk.failing_syncs_per_mille > 0));
        assert!(plans.iter().any(|plan| plan.rotting.is_some() && !plan.orders.is_empty()));
        assert!(plans.iter().any(|plan| plan.cuts_devices_off));
        assert!(plans.iter().any(Plan::locks_may_run_out));
        assert!(plans.iter().any(|plan| !plan.locks_may_run_out()));
    }
}
