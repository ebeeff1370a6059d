//! When each peer was heard last.
//!
//! Silence is a hint and no proof: the peer may be dead, stopped, cut off or slow. So only that may follow from it which does
//! no harm if it was wrong: to ask for pre-votes early (`election`), and not to wait for an answer (`reach`). The first goes
//! by whatever a peer says, the second by its answers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use drover_core::ids::NodeId;
use tokio::time::Instant;

/// Of nodes that have said something in this life of the process, or have been given the time to.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Heard {
    /// Something came from the node, whatever it was.
    pub(super) fn note(&self, node: NodeId) {
        self.last().insert(node, Instant::now());
    }

    /// For how long nothing has come from the node.
    pub(super) fn silence(&self, node: NodeId) -> Option<Duration> {
        self.last().get(&node).map(Instant::elapsed)
    }

    /// Nodes from which nothing has come for `least` or longer, and for how long.
    pub(super) fn silent(&self, least: Duration) -> Vec<(NodeId, Duration)> {
        let last = self.last();
        let silences = last.iter().map(|(node, heard)| (*node, heard.elapsed()));
        silences.filter(|(_, silence)| *silence >= least).collect()
    }

    /// A node that is no member any more is not missed.
    pub(super) fn forget(&self, node: NodeId) {
        self.last().remove(&node);
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.last.lock().expect("nobody panics with the table in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_begins_with_the_last_word_and_nobody_is_missed_who_never_spoke() {
        let (heard, node) = (Heard::default(), NodeId::new(2, 0));
        assert_eq!(heard.silence(node), None);
        heard.note(node);
        tokio::time::advance(Duration::from_millis(700)).await;
        let silence = Duration::from_millis(700);
        assert_eq!(heard.silence(node), Some(silence));
        assert_eq!(heard.silent(silence), [(node, silence)]);
        heard.note(node);
        assert!(heard.silent(silence).is_empty());
        heard.forget(node);
        assert_eq!(heard.silence(node), None);
    }
}
