//! How long devices were not served while a fault lasted, and whether a take-over met messages under way.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::fault::Fault;
use super::nemesis::Nemesis;
use crate::history::DeviceHistory;
use crate::kill::failover::{quantile, served_after};

/// For one kind of fault of leaders, and devices that had the same way to them: from its beginning to the first acknowledgement
/// of each device whose shard the node led, of a message that it sent after that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failover {
    pub nemesis: Nemesis,
    pub through: Through,
    /// Those that hit devices which went this way.
    pub faults: usize,
    pub samples: usize,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
}

/// How a device was connected when the fault began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Through {
    /// At another node, which forwards to the leader.
    OtherNode,
    /// At the node that the fault befell, or it dialled that one before it was served. A stopped process cannot say so, and
    /// the device has to find out by itself.
    SameNode,
}

impl Through {
    pub fn name(self) -> &'static str {
        match self {
            Self::OtherNode => "through other nodes",
            Self::SameNode => "at the node itself, or dialling it",
        }
    }

    fn of(history: &DeviceHistory, fault: &Fault, served_ms: u64) -> Self {
        let home = history.homes.iter().rev().find(|home| home.from_ms <= fault.from_ms);
        let meanwhile = fault.from_ms..served_ms;
        let dialled = history.dials.iter().filter(|dial| meanwhile.contains(&dial.from_ms));
        if home.into_iter().chain(dialled).any(|at| at.node == fault.node) {
            Self::SameNode
        } else {
            Self::OtherNode
        }
    }
}

impl fmt::Display for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nemesis, through, faults, samples, p50_ms, p99_ms, max_ms } = self;
        write!(
            f,
            "{nemesis}, {}: p50 {p50_ms} ms, p99 {p99_ms} ms, max {max_ms} ms ({faults} of leaders, {samples} samples)",
            through.name()
        )
    }
}

/// Faults and delays.
type Delays = (usize, Vec<u64>);

/// Of each nemesis that must depose a leader, by faults that came alone: with two at once there may be no majority.
pub(super) fn failovers(faults: &[Fault], histories: &[DeviceHistory]) -> Vec<Failover> {
    let mut delays: BTreeMap<(Nemesis, Through), Delays> = BTreeMap::new();
    for fault in alone(faults) {
        let hit = histories.iter().filter(|history| fault.shards.contains(&history.shard));
        let served = hit.filter_map(|hit| Some((hit, served_after(hit, fault.from_ms)?)));
        let served: Vec<(Through, u64)> = served
            .map(|(hit, at_ms)| (Through::of(hit, fault, at_ms), at_ms - fault.from_ms))
            .collect();
        for through in [Through::OtherNode, Through::SameNode] {
            let went = served.iter().filter(|(way, _)| *way == through);
            let went: Vec<u64> = went.map(|(_, delay)| *delay).collect();
            if !went.is_empty() {
                let (count, all) = delays.entry((fault.nemesis, through)).or_default();
                *count += 1;
                all.extend(went);
            }
        }
    }
    delays.into_iter().map(summed).collect()
}

/// Faults of leaders that must be replaced, each with nothing else beside it.
pub(super) fn alone(faults: &[Fault]) -> impl Iterator<Item = &Fault> {
    let is_alone = |fault: &&Fault| {
        let overlap =
            |other: &&Fault| other.from_ms < fault.until_ms && fault.from_ms < other.until_ms;
        faults.iter().filter(overlap).count() == 1
    };
    let deposing = |fault: &&Fault| fault.nemesis.deposes() && !fault.shards.is_empty();
    faults.iter().filter(deposing).filter(is_alone)
}

fn summed(((nemesis, through), (faults, mut delays)): ((Nemesis, Through), Delays)) -> Failover {
    delays.sort_unstable();
    Failover {
        nemesis,
        through,
        faults,
        samples: delays.len(),
        p50_ms: quantile(&delays, 50),
        p99_ms: quantile(&delays, 99),
        max_ms: quantile(&delays, 100),
    }
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
    use crate::history::{Home, Transmission};

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
        Fault { until_ms: from_ms + 800, ..Fault::sample(nemesis, shards, from_ms) }
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
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].nemesis, found[0].samples, found[0].max_ms), (Nemesis::Kill, 1, 550));
    }

    #[test]
    fn devices_at_the_node_of_the_fault_are_counted_apart() {
        let home = |node, from_ms| Home { node, from_ms };
        let mut there = device(&[(1, 120, Some(900))]);
        there.homes = vec![home(2, 0), home(1, 50), home(2, 600)];
        let mut elsewhere = device(&[(1, 120, Some(400))]);
        elsewhere.homes = vec![home(2, 0), home(1, 150)];
        let mut strayed = device(&[(1, 120, Some(700))]);
        strayed.homes = vec![home(2, 0)];
        strayed.dials = vec![home(2, 0), home(1, 300), home(3, 650)];
        let devices = [there, elsewhere, strayed];
        let found = failovers(&[fault(Nemesis::Kill, vec![3], 100)], &devices);
        let seen = found.iter().map(|found| (found.through, found.samples, found.max_ms));
        let seen: Vec<_> = seen.collect();
        assert_eq!(seen, [(Through::OtherNode, 1, 300), (Through::SameNode, 2, 800)]);
    }

    #[test]
    fn a_take_over_counts_if_the_connection_before_it_left_messages_unanswered() {
        let quiet = device(&[(1, 0, Some(1)), (2, 2, None)]);
        assert_eq!(takeovers_in_flight(&[quiet]), 0);
        let caught = device(&[(1, 0, Some(1)), (1, 1, None), (2, 2, Some(3)), (3, 4, None)]);
        assert_eq!(takeovers_in_flight(&[caught]), 1);
    }
}
