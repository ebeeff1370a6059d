//! How long devices were not served while a fault lasted, and whether a take-over met messages under way.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fault::Fault;
use super::nemesis::Nemesis;
use crate::history::DeviceHistory;
use crate::kill::failover::{quantile, served_after};

/// For one kind of fault: from its beginning to the first acknowledgement of each device whose shard the node led, of a
/// message that it sent after that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failover {
    pub nemesis: Nemesis,
    pub faults: usize,
    pub samples: usize,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

/// One for each nemesis that must depose a leader, of faults that came alone: with two at once there may be no majority.
pub(super) fn failovers(faults: &[Fault], histories: &[DeviceHistory]) -> Vec<Failover> {
    let mut delays: BTreeMap<Nemesis, (usize, Vec<u64>)> = BTreeMap::new();
    let is_alone = |fault: &Fault| {
        let overlap =
            |other: &&Fault| other.from_ms < fault.until_ms && fault.from_ms < other.until_ms;
        faults.iter().filter(overlap).count() == 1
    };
    let deposing = |fault: &&Fault| fault.nemesis.deposes() && !fault.shards.is_empty();
    for fault in faults.iter().filter(deposing).filter(|fault| is_alone(fault)) {
        let (count, delays) = delays.entry(fault.nemesis).or_default();
        *count += 1;
        let hit = histories.iter().filter(|history| fault.shards.contains(&history.shard));
        delays.extend(
            hit.filter_map(|history| Some(served_after(history, fault.from_ms)? - fault.from_ms)),
        );
    }
    let summed = delays.into_iter().map(|(nemesis, (faults, mut delays))| {
        delays.sort_unstable();
        Failover {
            nemesis,
            faults,
            samples: delays.len(),
            p50_ms: quantile(&delays, 50),
            p99_ms: quantile(&delays, 99),
            max_ms: quantile(&delays, 100),
        }
    });
    summed.collect()
}

/// Connections that replaced one on which messages waited for their acknowledgement.
pub(super) fn takeovers_in_flight(histories: &[DeviceHistory]) -> u64 {
    let of_device = |history: &DeviceHistory| {
        let mut open: BTreeMap<u32, bool> = BTreeMap::new();
        for sent in &history.transmissions {
            *open.entry(sent.connection).or_default() |= sent.acked_ms.is_none();
        }
        // The last connection was not replaced.
        open.into_iter().rev().skip(1).filter(|(_, is_open)| *is_open).count() as u64
    };
    histories.iter().map(of_device).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Transmission;

    fn device(sent: &[(u32, u64, Option<u64>)]) -> DeviceHistory {
        let transmissions = sent.iter().map(|(connection, sent_ms, acked_ms)| Transmission {
            sequence: 0,
            connection: *connection,
            position: 0,
            sent_ms: *sent_ms,
            acked_ms: *acked_ms,
        });
        let transmissions = transmissions.collect();
        DeviceHistory { shard: 3, transmissions, ..DeviceHistory::default() }
    }

    fn fault(nemesis: Nemesis, shards: Vec<u32>, from_ms: u64) -> Fault {
        Fault {
            nemesis,
            node: 1,
            shards,
            from_ms,
            until_ms: from_ms + 800,
            evidence: 1,
            detail: String::new(),
            complaint: None,
        }
    }

    #[test]
    fn failover_counts_from_the_fault_and_only_for_devices_of_its_shards() {
        let histories = [device(&[(1, 90, Some(110)), (1, 120, Some(700)), (2, 130, Some(650))])];
        let faults = [
            fault(Nemesis::Kill, vec![3], 100),
            fault(Nemesis::Partition, vec![2], 1_000),
            fault(Nemesis::SlowDisk, vec![3], 2_000),
            fault(Nemesis::Reset, vec![3], 2_500),
        ];
        let found = failovers(&faults, &histories);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].nemesis, found[0].samples, found[0].max_ms), (Nemesis::Kill, 1, 550));
        assert_eq!((found[1].nemesis, found[1].samples), (Nemesis::Partition, 0));
    }

    #[test]
    fn a_take_over_counts_if_the_connection_before_it_left_messages_unanswered() {
        let quiet = device(&[(1, 0, Some(1)), (2, 2, None)]);
        assert_eq!(takeovers_in_flight(&[quiet]), 0);
        let caught = device(&[(1, 0, Some(1)), (1, 1, None), (2, 2, Some(3)), (3, 4, None)]);
        assert_eq!(takeovers_in_flight(&[caught]), 1);
    }
}
