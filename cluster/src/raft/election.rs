//! Elections that begin before the time-out: when the process of a leader dies, its connections break at once.
//!
//! That is a hint and no proof, so nothing here weakens Raft: a replica waits until the leader's lease must have run
//! out, and then asks for pre-votes, which those who still hear the leader refuse. Without the hint it would wait for the
//! lease and for a random election time-out on top.

use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

use super::Leadership;
use super::group::Group;
use super::groups::Groups;

/// Replicas stand one after the other, so that the first has won before the second begins: two forced writes and two
/// round trips on a loaded machine.
const STAGGER: Duration = Duration::from_millis(60);
/// The lease runs from when a heartbeat was taken up, which may be a little after the connection broke.
const MARGIN: Duration = Duration::from_millis(10);

/// Listens for broken connections, as long as the node runs.
pub(super) async fn watch(groups: Groups) {
    let mut losses = groups.peers().losses();
    loop {
        match losses.recv().await {
            Ok(node) => stand_for_groups_of(&groups, node),
            // The time-outs of the groups are still there.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

fn stand_for_groups_of(groups: &Groups, lost: NodeId) {
    for group in groups.watch().borrow().values() {
        let leadership = *group.leadership().borrow();
        if leadership.leader != Some(lost) {
            continue;
        }
        let Some(turn) = turn(groups, group, lost) else { continue };
        let lease = Duration::from_millis(groups.timing(group.id()).election_max_ms);
        tokio::spawn(stand(group.clone(), leadership, lease + MARGIN + STAGGER * turn));
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
    tracing::info!(group = %group.id(), lost = ?seen.leader, "standing for election");
    if let Err(fatal) = group.raft().trigger().elect(true).await {
        tracing::debug!(group = %group.id(), %fatal, "cannot stand: the group has stopped");
    }
}
