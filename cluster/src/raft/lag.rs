//! How far the replicas of the groups that this node leads are behind, measured for whoever watches.
//!
//! A leader knows what each replica has acknowledged to it in its term. One that has acknowledged nothing is counted
//! apart: nobody can tell how much it lacks.

use std::time::Duration;

use super::group::Progress;
use super::groups::Groups;
use crate::metrics;

/// As often as histograms are folded. An idle cluster should not notice.
const INTERVAL: Duration = Duration::from_secs(5);

/// Over all groups that are led here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lag {
    pub(crate) led_groups: usize,
    /// What the replica that is furthest behind lacks.
    pub(crate) entries_max: u64,
    pub(crate) silent_replicas: usize,
}

impl Lag {
    fn add(&mut self, progress: &Progress) {
        let behind = |(_, matched): &(_, u64)| progress.last_log_index.saturating_sub(*matched);
        let furthest = progress.matched.iter().map(behind).max().unwrap_or(0);
        self.led_groups += 1;
        self.entries_max = self.entries_max.max(furthest);
        // The leader itself is a voter, too.
        let others = progress.voters.len().saturating_sub(1);
        self.silent_replicas += others.saturating_sub(progress.matched.len());
    }
}

/// Measures until it is dropped.
pub(super) async fn run(groups: Groups) {
    loop {
        metrics::raft_lag(measure(&groups));
        tokio::time::sleep(INTERVAL).await;
    }
}

fn measure(groups: &Groups) -> Lag {
    let mut lag = Lag::default();
    for group in groups.watch().borrow().values() {
        if group.leadership().borrow().serving {
            lag.add(&group.progress());
        }
    }
    lag
}

#[cfg(test)]
mod tests {
    use drover_core::ids::NodeId;

    use super::*;

    #[test]
    fn the_furthest_replica_of_all_groups_counts_and_silent_ones_are_counted_apart() {
        let node = |number| NodeId::new(number, 0);
        let progress = |last_log_index, matched: &[(u32, u64)]| Progress {
            last_log_index,
            voters: vec![node(1), node(2), node(3)],
            matched: matched.iter().map(|(number, index)| (node(*number), *index)).collect(),
            ..Progress::default()
        };
        let mut lag = Lag::default();
        lag.add(&progress(100, &[(2, 100), (3, 93)]));
        lag.add(&progress(50, &[(2, 49)]));
        assert_eq!(lag, Lag { led_groups: 2, entries_max: 7, silent_replicas: 1 });
    }
}
