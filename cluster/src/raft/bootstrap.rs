//! The first voters of a new shard's group.
//!
//! Every replica of the placement starts its part of the group, empty. The first one of the placement makes them the
//! voters; the others do if it does not. All name the same set, which openraft allows. What must never happen is that
//! empty replicas form a group beside one that has data: so a replica begins only when a majority is empty, and nobody
//! that answers has anything.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_core::ids::ReplicaId;
use tokio::time::sleep;

use super::group::Group;
use super::groups::Groups;
use super::transport::Transport;
use super::types::PeerNode;

/// Each replica waits this much longer than the one before it in the placement.
const TURN: Duration = Duration::from_secs(2);
/// Between two attempts, while too few replicas answer.
const PAUSE: Duration = Duration::from_millis(200);

/// Goes on until the group has its voters.
pub(super) async fn run(groups: Groups, group: Group, voters: BTreeMap<ReplicaId, PeerNode>) {
    let turn = groups
        .meta()
        .borrow()
        .as_ref()
        .and_then(|meta| match group.id() {
            drover_core::ids::GroupId::Meta => None,
            drover_core::ids::GroupId::Shard(shard) => meta.placement.get(&shard).cloned(),
        })
        .and_then(|replicas| replicas.iter().position(|node| *node == groups.node()))
        .unwrap_or(0);
    sleep(TURN * turn as u32).await;
    // Until somebody has done it, the replica has failed or was ended; the node's stop ends it as well.
    let is_here =
        || groups.get(group.id()).is_some_and(|running| running.replica() == group.replica());
    while is_here()
        && let Ok(false) = group.raft().is_initialized().await
    {
        if !may_begin(&groups, &group, voters.keys()).await {
            sleep(PAUSE).await;
        } else if let Err(error) = group.raft().initialize(voters.clone()).await {
            tracing::debug!(group = %group.id(), %error, "somebody else was faster");
            return;
        }
    }
}

/// Whether a majority of the voters is known to be empty, this replica included, and nobody is known not to be.
async fn may_begin<'a>(
    groups: &Groups,
    group: &Group,
    voters: impl ExactSizeIterator<Item = &'a ReplicaId>,
) -> bool {
    let majority = voters.len() / 2 + 1;
    let transport = Transport::new(group.replica(), group.id(), groups.peers().clone());
    let others = voters.filter(|replica| **replica != group.replica());
    let answers =
        futures::future::join_all(others.map(|replica| transport.is_empty(*replica))).await;
    let empty = 1 + answers.iter().filter(|answer| **answer == Some(true)).count();
    empty >= majority && !answers.contains(&Some(false))
}
