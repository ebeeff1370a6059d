//! How late this node's timers fire. A node that gets too little CPU, or whose machine is suspended again and again, answers, and
//! keeps its leases, but everything that it leads is late. Whoever plans leaders takes them away from it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::node::Shared;
use crate::recent::RecentMean;

/// Often enough that stalls of a fraction of a second do not fall between two looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// A single long stop counts no more than this: its node has lost what it led to an election, and may be well afterwards.
const LATE_MAX: Duration = Duration::from_millis(500);

/// As a mean over the last seconds.
#[derive(Debug, Default)]
pub(super) struct Delay {
    recent: Mutex<RecentMean>,
}

impl Delay {
    pub(super) fn get(&self) -> Duration {
        self.recent.lock().expect("nobody panics with it in hand").get()
    }

    fn add(&self, late: Duration) {
        self.recent.lock().expect("nobody panics with it in hand").add(late.min(LATE_MAX));
    }
}

/// Goes on until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let due = Instant::now() + INTERVAL;
        sleep_until(due).await;
        shared.delay.add(due.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_short_stalls_count_and_a_single_long_one_hardly() {
        let (starved, stopped) = (Delay::default(), Delay::default());
        for round in 0..100 {
            starved.add(Duration::from_millis(90));
            stopped.add(Duration::from_secs(if round == 50 { 9 } else { 0 }));
        }
        assert_eq!(starved.get(), Duration::from_millis(90));
        assert_eq!(stopped.get(), Duration::from_millis(5));
    }
}
