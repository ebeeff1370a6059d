//! A drained node gives its sessions away, after all else: a few at a time, so that the other nodes are not stormed.
//!
//! While it has moves to make or leads a shard, its devices stay: they are served by others soon anyway, and one interruption
//! is enough. New connections are refused from the start of the drain on. Sessions end in turns, one of each shard, so that the
//! logins that follow come to all leaders and to none in a burst.

use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::{GroupId, ShardCount, ShardId};
use drover_core::moves;
use tracing::info;

use super::node::Shared;
use super::sessions::Sessions;

/// How often some are ended: a second's worth at once would be a small storm itself.
const INTERVAL: Duration = Duration::from_millis(100);
/// Of those in a second.
const INTERVALS_A_SECOND: usize = 10;

/// Goes on until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let (mut meta, mut disowned) = (shared.groups.meta(), shared.peers.disowned());
    let mut last = None;
    loop {
        if shared.departure().is_none() {
            let changed = tokio::select! {
                changed = meta.changed() => changed,
                changed = disowned.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            continue;
        }
        let shards = shared.meta().map(|meta| meta.shard_count);
        let is_due = shared.sessions.count() > 0 && has_given_all(&shared);
        if let Some(shards) = shards.filter(|_| is_due) {
            let share = shared.config.limits.drained_sessions_per_second;
            let share = share.div_ceil(INTERVALS_A_SECOND).max(1);
            let ended = end_some(&shared.sessions, share, shards, &mut last);
            if ended > 0 {
                info!(ended, left = shared.sessions.count(), "drained sessions");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Ends up to so many sessions, in turns that begin after the shard that was the last.
fn end_some(
    sessions: &Sessions,
    share: usize,
    shards: ShardCount,
    last: &mut Option<ShardId>,
) -> usize {
    let after = last.map_or(0, |last| last.number() + 1);
    let numbers = (0..shards.get()).cycle().skip(after as usize);
    let mut turns = numbers.filter_map(|number| ShardId::new(number, shards));
    let mut ended = 0;
    while ended < share {
        let mut round = turns.by_ref().take(shards.get() as usize);
        let Some(shard) = round.find(|shard| sessions.end_one(*shard)) else { break };
        *last = Some(shard);
        ended += 1;
    }
    ended
}

/// Whether this node leads no shard, and nothing moves away from it any more.
fn has_given_all(shared: &Shared) -> bool {
    let Some(meta) = shared.meta() else { return false };
    let node = shared.config.node;
    let goes = meta.membership.moves.values().any(|m| m.from == Some(node));
    let leads = shared.groups.watch().borrow().iter().any(|(id, group)| {
        matches!(id, GroupId::Shard(_)) && group.leadership().borrow().leader == Some(node)
    });
    !goes && !leads && moves::next(&meta).is_empty()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use drover_core::ids::{DeviceId, SessionEpoch};
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn sessions_end_in_turns_one_of_each_shard() {
        let (sessions, shards) = (Sessions::default(), ShardCount::new(4).expect("legal"));
        let mut queues = BTreeMap::new();
        for number in 0..40 {
            let device: DeviceId = format!("pump-{number}").parse().expect("a legal id");
            let (deliveries, queue) = mpsc::channel(1);
            let opened = sessions.opening(ShardId::of(&device, shards), &device);
            assert!(opened.hold(SessionEpoch::new(1), deliveries));
            queues.insert(device, queue);
        }
        let (mut last, mut ended) = (None, BTreeMap::<ShardId, usize>::new());
        for left in [37, 34, 31, 28] {
            assert_eq!(end_some(&sessions, 3, shards, &mut last), 3);
            assert_eq!(sessions.count(), left);
        }
        for (device, queue) in &mut queues {
            let is_told = usize::from(queue.try_recv().is_ok());
            *ended.entry(ShardId::of(device, shards)).or_default() += is_told;
        }
        assert_eq!(ended.into_values().collect::<Vec<_>>(), [3; 4], "twelve of four shards");
        assert_eq!(end_some(&sessions, 100, shards, &mut last), 28, "and then there are none");
        assert_eq!(end_some(&sessions, 100, shards, &mut last), 0);
    }
}
