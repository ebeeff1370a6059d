//! How long devices were not served after a kill.

use serde::Serialize;

use super::faults::Kill;
use crate::history::DeviceHistory;

/// From a kill to the first acknowledgement of each device whose shard the killed node led, of a message that it sent
/// after the kill.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failover {
    pub samples: usize,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
    /// Devices that got none before the next kill or the end.
    pub unserved: usize,
}

impl Failover {
    pub(super) fn measure(kills: &[Kill], histories: &[DeviceHistory]) -> Self {
        let mut delays = Vec::new();
        let mut unserved = 0;
        for (index, kill) in kills.iter().enumerate() {
            let until = kills.get(index + 1).map_or(u64::MAX, |next| next.at_ms);
            for history in histories.iter().filter(|history| kill.shards.contains(&history.shard)) {
                match served_after(history, kill.at_ms).filter(|acked| *acked < until) {
                    Some(acked) => delays.push(acked - kill.at_ms),
                    None => unserved += 1,
                }
            }
        }
        delays.sort_unstable();
        Self {
            samples: delays.len(),
            p50_ms: quantile(&delays, 50),
            p99_ms: quantile(&delays, 99),
            max_ms: quantile(&delays, 100),
            unserved,
        }
    }
}

/// When the first message that was sent at `from_ms` or later was acknowledged.
pub(crate) fn served_after(history: &DeviceHistory, from_ms: u64) -> Option<u64> {
    let sent_after = history.transmissions.iter().filter(|sent| sent.sent_ms >= from_ms);
    sent_after.filter_map(|sent| sent.acked_ms).min()
}

/// The smallest of the sorted values that `percent` of a hundred do not exceed; 0 without values.
pub(crate) fn quantile(sorted: &[u64], percent: usize) -> u64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Transmission;

    fn device(shard: u32, times: &[(u64, Option<u64>)]) -> DeviceHistory {
        let transmissions = times.iter().map(|(sent_ms, acked_ms)| Transmission {
            sequence: 0,
            connection: 1,
            position: 0,
            sent_ms: *sent_ms,
            acked_ms: *acked_ms,
        });
        let transmissions = transmissions.collect();
        DeviceHistory { shard, transmissions, ..DeviceHistory::default() }
    }

    fn kill(at_ms: u64, shards: Vec<u32>) -> Kill {
        Kill { at_ms, node: 1, shards, down_ms: 0, return_ms: 0 }
    }

    #[test]
    fn failover_counts_from_the_kill_and_only_what_was_sent_after_it() {
        let hit = device(0, &[(90, Some(110)), (120, Some(700)), (130, Some(650))]);
        let spared = device(1, &[(100, Some(101))]);
        let silent = device(0, &[(100, None)]);
        let failover = Failover::measure(&[kill(100, vec![0])], &[hit, spared, silent]);
        assert_eq!((failover.samples, failover.max_ms, failover.unserved), (1, 550, 1));
    }

    #[test]
    fn an_acknowledgement_after_the_next_kill_does_not_count_for_the_first() {
        let device = device(0, &[(100, Some(900))]);
        let kills = [kill(100, vec![0]), kill(800, vec![])];
        assert_eq!(Failover::measure(&kills, &[device]).unserved, 1);
    }
}
