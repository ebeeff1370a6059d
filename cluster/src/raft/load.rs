//! What the leaders of this node write, measured for whoever spreads leaders over nodes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::groups::Groups;

/// How often rates are taken. Half of a rate is what it was before, so a burst of some seconds moves nobody.
const INTERVAL: Duration = Duration::from_secs(5);
/// What an entry costs besides its bytes: a share of an fsync and two messages for each replica, about as much as a kilobyte.
const ENTRY_BYTES: u64 = 1024;

/// What one group writes as long as it is led here.
#[derive(Debug, Default)]
pub(super) struct Meter {
    written: AtomicU64,
    bytes_per_second: AtomicU64,
}

impl Meter {
    pub(super) fn count(&self, entry: usize) {
        self.written.fetch_add(ENTRY_BYTES + entry as u64, Ordering::Relaxed);
    }

    /// Each entry counts a kilobyte more than it has.
    pub(super) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    fn take(&self, interval: Duration) {
        let written = self.written.swap(0, Ordering::Relaxed);
        let interval_ms = (interval.as_millis() as u64).max(1);
        let now = written.saturating_mul(1_000) / interval_ms;
        let before = self.bytes_per_second();
        self.bytes_per_second.store(before.midpoint(now), Ordering::Relaxed);
    }
}

/// Takes the rates until it is dropped.
pub(super) async fn run(groups: Groups) {
    loop {
        let begun = Instant::now();
        sleep(INTERVAL).await;
        let interval = begun.elapsed();
        for group in groups.watch().borrow().values() {
            group.meter().take(interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_rises_and_falls_by_half_in_each_interval() {
        let meter = Meter::default();
        let second = Duration::from_secs(1);
        for _ in 0..10 {
            meter.count(7 * 1024);
        }
        meter.take(2 * second);
        assert_eq!(meter.bytes_per_second(), 20 * 1024, "half of eight kilobytes, five times");
        meter.take(second);
        assert_eq!(meter.bytes_per_second(), 10 * 1024);
    }
}
