//! Elections that begin before the time-out: when the process of a leader dies, its connections break at once, and when it is
//! cut off or stopped, nothing comes from it any more.
//!
//! Both are hints and no proofs, so nothing here weakens Raft: a replica waits until the leader's lease must have run
//! out, and then asks for pre-votes, which those who still hear the leader refuse. Without the hint it would wait for the
//! lease and for a random election time-out on top.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::Leadership;
use super::group::Group;
use super::groups::Groups;

/// Replicas stand one after the other, so that the first has won before the second begins: two forced writes and two
/// round trips on a loaded machine.
const STAGGER: Duration = Duration::from_millis(60);
/// The lease runs from when a heartbeat was taken up, which may be a little after the connection broke.
const MARGIN: Duration = Duration::from_millis(10);
/// How often to look for nodes that have fallen silent; small beside the lease.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Acts on broken connections and on silence, as long as the node runs.
pub(super) async fn watch(groups: Groups) {
    let mut losses = groups.peers().losses();
    let mut hints = BTreeMap::new();
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            lost = losses.recv() => match lost {
                Ok(node) => {
                    hints.insert(node, Instant::now());
                    stand_for_groups_of(&groups, node, Duration::ZERO);
                }
                // The time-outs of the groups are still there.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            _ = looks.tick() => {
                for (node, silence) in fallen_silent(&groups, &mut hints) {
                    stand_for_groups_of(&groups, node, silence);
                }
            }
        }
    }
}

/// Nodes that have been silent for a lease, and for how long: each once in a silence, and not if its connection broke in it.
/// To stand a second time would disturb the first.
fn fallen_silent(
    groups: &Groups,
    hints: &mut BTreeMap<NodeId, Instant>,
) -> Vec<(NodeId, Duration)> {
    let lease = Duration::from_millis(groups.timing(GroupId::Meta).election_max_ms);
    let mut silent = groups.peers().silent(lease);
    silent.retain(|(node, silence)| hints.get(node).is_none_or(|hint| hint.elapsed() > *silence));
    for (node, _) in &silent {
        hints.insert(*node, Instant::now());
    }
    silent
}

/// `since`: for how long its leases have been running out.
fn stand_for_groups_of(groups: &Groups, lost: NodeId, since: Duration) {
    for group in groups.watch().borrow().values() {
        let leadership = *group.leadership().borrow();
        if leadership.leader != Some(lost) {
            continue;
        }
        let Some(turn) = turn(groups, group, lost) else { continue };
        let lease = Duration::from_millis(groups.timing(group.id()).election_max_ms);
        let delay = (lease + MARGIN).saturating_sub(since) + STAGGER * turn;
        tokio::spawn(stand(group.clone(), leadership, delay));
    }
}

/// When it is this node's turn: the order of the placement, without the lost node. Nothing if this node has no vote.
fn turn(groups: &Groups, group: &Group, lost: NodeId) -> Option<u32> {
    let voters = group.progress().voters;
    let preferred = match group.id() {
        GroupId::Meta => voters.clone(),
        GroupId::Shard(shard) => {
            let meta = groups.meta();
            let placement =
                meta.borrow().as_ref().and_then(|meta| meta.placement.get(&shard).cloned());
            placement.unwrap_or_else(|| voters.clone())
        }
    };
    let candidates = preferred.into_iter().filter(|node| *node != lost && voters.contains(node));
    candidates.zip(0..).find(|(node, _)| *node == groups.node()).map(|(_, turn)| turn)
}

/// Stands for election unless somebody else has won by then.
async fn stand(group: Group, seen: Leadership, delay: Duration) {
    let mut leadership = group.leadership();
    let succeeded = leadership.wait_for(|now| now.leader != seen.leader || now.term != seen.term);
    tokio::select! {
        biased;
        _ = succeeded => return,
        () = sleep(delay) => {}
    }
    tracing::info!(group = %group.id(), lost = seen.leader.map(tracing::field::display), "standing for election");
    if let Err(fatal) = group.raft().trigger().elect(true).await {
        tracing::debug!(group = %group.id(), %fatal, "cannot stand: the group has stopped");
    }
}
