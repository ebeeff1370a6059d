//! Wall clocks of simulated nodes: each runs evenly, and each is wrong by another amount.

use std::time::Duration;

use drover_cluster::actors::clock::Clock;
use drover_cluster::core::ids::LogTime;

/// When every run begins, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// A node's wall clock.
#[derive(Debug)]
pub(super) struct SkewedClock {
    pub(super) ahead_ms: u64,
}

impl Clock for SkewedClock {
    fn now(&self) -> LogTime {
        let elapsed: Duration = turmoil::sim_elapsed().unwrap_or_default();
        LogTime::new(EPOCH_MS + self.ahead_ms + elapsed.as_millis() as u64)
    }
}
