//! What a node's snapshots may take of its network and its disk together: the appends of all groups share them.
//!
//! All snapshots that a node sends share one pace, whatever they are for: a move, a follower that was away for long, a backup. So a
//! node that comes back and needs every group at once gets no more from another than one snapshot would.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Bytes a second, of keys and values. `None`: as fast as it goes.
#[derive(Debug)]
pub(super) struct SnapshotPace {
    rate: Option<NonZeroU64>,
    /// When the next chunk may leave.
    free: Mutex<Instant>,
}

impl SnapshotPace {
    /// Must be called inside the runtime.
    pub(super) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, free: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may leave. Whoever asks first goes first, so snapshots take turns.
    pub(super) async fn wait_for(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let takes = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
        let turn = {
            let mut free = self.free.lock().expect("nobody panics with it in hand");
            // What was not used is not saved up: that would be a burst.
            let turn = (*free).max(Instant::now());
            *free = turn + takes;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;

    const MIB: usize = 1024 * 1024;

    /// What it takes to send so many chunks of a MiB, at 8 MiB a second, from so many snapshots together.
    async fn takes(pace: &Arc<SnapshotPace>, snapshots: usize, chunks: usize) -> Duration {
        let begin = Instant::now();
        let mut sending = JoinSet::new();
        for _ in 0..snapshots {
            let pace = Arc::clone(pace);
            sending.spawn(async move {
                for _ in 0..chunks {
                    pace.wait_for(MIB).await;
                }
            });
        }
        sending.join_all().await;
        begin.elapsed()
    }

    fn pace() -> Arc<SnapshotPace> {
        Arc::new(SnapshotPace::new(NonZeroU64::new(8 * MIB as u64)))
    }

    #[tokio::test(start_paused = true)]
    async fn snapshots_share_the_rate_of_their_node() {
        // The first chunk waits for nothing, and time is counted in milliseconds.
        let (least, most) = (Duration::from_millis(1_875), Duration::from_millis(1_895));
        let alone = takes(&pace(), 1, 16).await;
        assert!((least..most).contains(&alone), "{alone:?}");
        let together = takes(&pace(), 4, 4).await;
        assert!((least..most).contains(&together), "{together:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_not_made_up_for_by_a_burst() {
        let pace = pace();
        pace.wait_for(MIB).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        let after = takes(&pace, 1, 9).await;
        assert!(after >= Duration::from_secs(1), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nothing_waits() {
        let pace = Arc::new(SnapshotPace::new(None));
        assert_eq!(takes(&pace, 2, 100).await, Duration::ZERO);
    }
}
