//! Leaders go where there is least to do, and away from nodes whose disk or CPU stalls.
//!
//! The leader of the meta group asks all members from time to time what their shards write, how long their disks take and how late
//! their timers fire, and orders the replicas of shards anew (`core::leaders` plans it). Whoever leads a shard then hands over to the first of them
//! (`raft::balance`). Replicas do not move because of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use drover_core::leaders::Loads;
use drover_core::meta::MetaChange;
use drover_core::moves;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::cluster::{Cluster, ClusterStatus, ShardStatus};
use super::error::Error;
use super::mover::{led, of_raft};
use crate::raft::group::Group;

/// A disk stalls that takes so long for a sync …
const SYNC_MS_MIN: u64 = 100;
/// … a CPU that lets timers wait for so long …
const DELAY_MS_MIN: u64 = 40;
/// … and so many times as long as the middle one of all: where all are slow, nobody would do better.
const STALL_TIMES: u64 = 8;
/// A node that has stalled is not trusted for so long: leaders that come and go would be worse than either.
const STALL_REMEMBERED: Duration = Duration::from_mins(1);

/// Goes on until the node stops.
pub(super) async fn run(cluster: Cluster) {
    let mut stalled = BTreeMap::new();
    loop {
        sleep(cluster.shared.config.limits.balance_interval).await;
        let Some(group) = led(&cluster, GroupId::Meta) else { continue };
        if let Err(error) = look(&cluster, &group, &mut stalled).await {
            debug!(%error, "leaders are not spread this time");
        }
    }
}

async fn look(
    cluster: &Cluster,
    group: &Group,
    stalled: &mut BTreeMap<NodeId, Instant>,
) -> Result<(), Error> {
    let status = cluster.status().await?;
    let now = Instant::now();
    let reachable = || status.nodes.iter().filter(|node| node.reachable);
    let syncs = reachable().map(|node| (node.sync_ms, node.node)).collect();
    let disks = stalling(syncs, SYNC_MS_MIN).into_iter().map(|stall| ("disk", stall));
    let delays = reachable().map(|node| (node.delay_ms, node.node)).collect();
    let cpus = stalling(delays, DELAY_MS_MIN).into_iter().map(|stall| ("CPU", stall));
    for (what, (wait_ms, node)) in disks.chain(cpus) {
        if stalled.insert(node, now).is_none() {
            warn!(%node, what, wait_ms, "a node stalls: it leads nothing until it is well");
        }
    }
    stalled.retain(|_, seen| now.duration_since(*seen) < STALL_REMEMBERED);
    let loads = loads(&status, stalled.keys().copied().collect());
    let Some(meta) = cluster.meta() else { return Ok(()) };
    let placement = moves::preferences(&meta, Some(&loads));
    if !placement.is_empty() {
        info!(shards = placement.len(), "other replicas should lead");
        let expected_version = meta.version;
        cluster.change_meta(MetaChange::Place { expected_version, placement }).await?;
    }
    leave_meta(group, |node| loads.slow.contains(&node)).await
}

/// Nodes where something takes much longer than at the others, and at least so many milliseconds.
fn stalling(mut waits: Vec<(u64, NodeId)>, ms_min: u64) -> Vec<(u64, NodeId)> {
    waits.sort_unstable();
    let middle = waits.get(waits.len().saturating_sub(1) / 2).map_or(0, |(wait, _)| *wait);
    let limit = middle.saturating_mul(STALL_TIMES).max(ms_min);
    waits.retain(|(wait, _)| *wait >= limit);
    waits
}

fn loads(status: &ClusterStatus, slow: BTreeSet<NodeId>) -> Loads {
    let load = |shard: &ShardStatus| Some((shard.shard?, shard.load));
    Loads { shards: status.shards.iter().filter_map(load).collect(), slow }
}

/// The meta group has no order of its own: who leads it and should not hands it to one that should and has caught up.
pub(super) async fn leave_meta(
    group: &Group,
    should_not: impl Fn(NodeId) -> bool,
) -> Result<(), Error> {
    if !should_not(group.replica().node()) {
        return Ok(());
    }
    let replicas = group.replicas();
    let able = replicas.voters.iter().filter(|replica| !should_not(replica.node()));
    let mut able = able.filter(|replica| replicas.has_caught_up(**replica));
    match able.next() {
        Some(heir) => group.transfer_leader(heir.node()).await.map_err(of_raft(group)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_stalls_that_is_slow_where_others_are_not() {
        let stalls = |waits: &[u64]| -> Vec<u32> {
            let nodes = (1..).map(|number| NodeId::new(number, 0));
            let stalling = stalling(waits.iter().copied().zip(nodes).collect(), SYNC_MS_MIN);
            stalling.iter().map(|(_, node)| node.number()).collect()
        };
        assert_eq!(stalls(&[2, 3, 150]), [3]);
        assert_eq!(stalls(&[2, 3, 90]), [0; 0], "slow, and bearable");
        assert_eq!(stalls(&[120, 150, 400]), [0; 0], "all are slow");
        assert_eq!(stalls(&[500, 1]), [1]);
        assert_eq!(stalls(&[5_000]), [0; 0], "there is nobody else");
    }
}
