//! What devices felt, second by second.

use serde::Serialize;

use crate::history::DeviceHistory;
use crate::kill::failover::quantile;

/// One second of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Messages that were acknowledged in it.
    pub acknowledged: u64,
    /// Of those, from the sending to the acknowledgement.
    pub p99_ms: u64,
}

/// All seconds from the beginning to the last acknowledgement.
pub(super) fn timeline(histories: &[DeviceHistory]) -> Vec<Second> {
    let mut latencies: Vec<Vec<u64>> = Vec::new();
    let transmissions = histories.iter().flat_map(|history| &history.transmissions);
    for (sent_ms, acked_ms) in transmissions.filter_map(|sent| Some((sent.sent_ms, sent.acked_ms?)))
    {
        let second = (acked_ms / 1000) as usize;
        if latencies.len() <= second {
            latencies.resize(second + 1, Vec::new());
        }
        latencies[second].push(acked_ms.saturating_sub(sent_ms));
    }
    let seconds = latencies.into_iter().map(|mut latencies| {
        latencies.sort_unstable();
        Second { acknowledged: latencies.len() as u64, p99_ms: quantile(&latencies, 99) }
    });
    seconds.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Transmission;

    #[test]
    fn a_message_counts_in_the_second_of_its_acknowledgement() {
        let sent = |sent_ms, acked_ms| Transmission {
            sequence: 0,
            connection: 1,
            position: 0,
            sent_ms,
            acked_ms,
        };
        let transmissions = vec![
            sent(100, Some(200)),
            sent(900, Some(2100)),
            sent(2000, Some(2010)),
            sent(2000, None),
        ];
        let history = DeviceHistory { transmissions, ..DeviceHistory::default() };
        let second = |acknowledged, p99_ms| Second { acknowledged, p99_ms };
        assert_eq!(timeline(&[history]), [second(1, 100), second(0, 0), second(2, 1200)]);
    }
}
