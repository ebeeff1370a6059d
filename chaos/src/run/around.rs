//! What devices felt in the seconds around a fault of a leader: all faults of a kind laid one upon the other.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fault::Fault;
use super::nemesis::Nemesis;
use super::outage::alone;
use crate::history::DeviceHistory;
use crate::kill::failover::quantile;

/// The seconds that are shown: so many before a fault begins, and after. Single faults are this far apart (`plan`).
const BEFORE_S: i64 = 2;
const AFTER_S: i64 = 7;

/// The faults of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Around {
    pub nemesis: Nemesis,
    pub faults: usize,
    pub seconds: Vec<Second>,
}

/// One second before or after the faults began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Second {
    /// Where it begins; 0 is the fault.
    pub from_s: i64,
    /// Messages that were acknowledged in it, on average.
    pub acknowledged: f64,
    /// Of those of all faults, from the sending to the acknowledgement.
    pub p99_ms: u64,
}

/// One for each nemesis that must depose a leader, of faults that came alone.
pub(super) fn around(faults: &[Fault], histories: &[DeviceHistory]) -> Vec<Around> {
    let mut begun: BTreeMap<Nemesis, Vec<u64>> = BTreeMap::new();
    for fault in alone(faults) {
        begun.entry(fault.nemesis).or_default().push(fault.from_ms);
    }
    let transmissions = histories.iter().flat_map(|history| &history.transmissions);
    let acked: Vec<(u64, u64)> =
        transmissions.filter_map(|sent| Some((sent.sent_ms, sent.acked_ms?))).collect();
    let laid = begun.into_iter().map(|(nemesis, begun)| Around {
        nemesis,
        faults: begun.len(),
        seconds: (-BEFORE_S..AFTER_S).map(|from_s| second(from_s, &begun, &acked)).collect(),
    });
    laid.collect()
}

fn second(from_s: i64, begun: &[u64], acked: &[(u64, u64)]) -> Second {
    let is_in = |acked_ms: u64, begun_ms: u64| {
        let since_ms = acked_ms.cast_signed() - begun_ms.cast_signed();
        since_ms.div_euclid(1_000) == from_s
    };
    let latencies = |begun_ms: &u64| {
        let hit = acked.iter().filter(|(_, acked_ms)| is_in(*acked_ms, *begun_ms));
        hit.map(|(sent_ms, acked_ms)| acked_ms.saturating_sub(*sent_ms)).collect::<Vec<u64>>()
    };
    let mut latencies: Vec<u64> = begun.iter().flat_map(latencies).collect();
    latencies.sort_unstable();
    Second {
        from_s,
        acknowledged: latencies.len() as f64 / begun.len().max(1) as f64,
        p99_ms: quantile(&latencies, 99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Transmission;

    #[test]
    fn faults_of_a_kind_are_laid_one_upon_the_other() {
        let sent = |sent_ms, acked_ms| Transmission {
            sequence: 0,
            connection: 1,
            position: 0,
            sent_ms,
            acked_ms: Some(acked_ms),
        };
        let transmissions = vec![sent(9_400, 9_500), sent(10_100, 11_200), sent(30_300, 31_400)];
        let history = DeviceHistory { transmissions, ..DeviceHistory::default() };
        let fault = |from_ms| Fault {
            until_ms: from_ms + 5_000,
            ..Fault::sample(Nemesis::Kill, vec![1], from_ms)
        };
        let around = around(&[fault(10_000), fault(30_000)], &[history]);
        assert_eq!((around.len(), around[0].faults), (1, 2));
        let at = |from_s| around[0].seconds.iter().find(|second| second.from_s == from_s).unwrap();
        assert_eq!((at(-1).acknowledged, at(-1).p99_ms), (0.5, 100));
        assert_eq!((at(0).acknowledged, at(0).p99_ms), (0.0, 0));
        assert_eq!((at(1).acknowledged, at(1).p99_ms), (1.0, 1_100));
    }
}
