//! How long this node's disk takes to make something durable, measured on the syncs that happen anyway.
//!
//! A node with a disk that stalls goes on leading, because the others are a majority; but all that it leads waits for them, and
//! what it reads waits for the disk. Whoever plans leaders takes them away from it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::recent::RecentMean;

#[derive(Debug, Default)]
pub(super) struct Syncs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When each sync was asked for that is not answered, oldest first: a store answers them in order.
    waiting: VecDeque<Instant>,
    recent: RecentMean,
}

impl Syncs {
    pub(super) fn begin(&self) {
        self.lock().waiting.push_back(Instant::now());
    }

    pub(super) fn end(&self) {
        let mut state = self.lock();
        if let Some(began) = state.waiting.pop_front() {
            state.recent.add(began.elapsed());
        }
    }

    /// What a sync takes, as a mean over the last seconds, or for how long one has waited by now if that is longer.
    pub(super) fn wait(&self) -> Duration {
        let mut state = self.lock();
        let waits = state.waiting.front().map_or(Duration::ZERO, Instant::elapsed);
        state.recent.get().max(waits)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it in hand")
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::recent::WINDOW;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_seen_while_it_does_and_forgotten_afterwards() {
        let syncs = Syncs::default();
        for wait in [2, 4] {
            syncs.begin();
            advance(Duration::from_millis(wait)).await;
            syncs.end();
        }
        assert_eq!(syncs.wait(), Duration::from_millis(3));
        syncs.begin();
        advance(Duration::from_secs(1)).await;
        assert_eq!(syncs.wait(), Duration::from_secs(1));
        syncs.end();
        assert_eq!(syncs.wait(), Duration::from_millis(1_006) / 3);
        advance(2 * WINDOW).await;
        assert_eq!(syncs.wait(), Duration::ZERO);
    }
}
