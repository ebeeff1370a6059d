//! What a run does, drawn from its seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Sizes and times of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub duration: Duration,
    pub nodes: usize,
    pub shards: u32,
    /// Devices that only send.
    pub devices: usize,
    /// Devices that get commands and calls.
    pub recipients: usize,
    /// Messages a second of one device. Together half of what two busy cores can do, or time-outs are all one finds.
    pub rate: u32,
    /// By how much the clocks of nodes may differ from ours, in milliseconds.
    pub skew_ms: u64,
    /// Whose absence makes a run say nothing: fewer acknowledged messages are not a test.
    pub acknowledged_min: u64,
}

impl Plan {
    pub fn new(seed: u64, duration: Duration) -> Self {
        let (devices, rate) = (48, 20);
        let offered = duration.as_secs() * devices as u64 * u64::from(rate);
        Self {
            seed,
            duration,
            nodes: 3,
            shards: 8,
            devices,
            recipients: 12,
            rate,
            // They have our clock, give or take what `adjtime` does in a run.
            skew_ms: 50,
            acknowledged_min: offered / 4,
        }
    }

    /// Faults one after the other, for ever: the run takes as many as it has time for.
    pub(super) fn faults(&self) -> impl Iterator<Item = Fault> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let (nodes, shards) = (self.nodes, self.shards);
        std::iter::repeat_with(move || {
            let calm = Duration::from_millis(random.random_range(1_000..4_000));
            let down = Duration::from_millis(random.random_range(500..6_000));
            // Mostly a leader: a follower's death hurts nobody.
            let target = if random.random_bool(0.75) {
                Target::LeaderOf(random.random_range(0..shards))
            } else {
                Target::Node(random.random_range(0..nodes))
            };
            Fault { calm, target, down }
        })
    }
}

/// A node is killed after a calm and stays down for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) calm: Duration,
    pub(super) target: Target,
    pub(super) down: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    LeaderOf(u32),
    Node(usize),
}
