//! The cluster as its nodes see themselves, put together for operators.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_core::ids::{GroupId, LogTime, NodeId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::cluster::{ClusterStatus, NodeStatus, ShardStatus};
use super::error::Error;
use super::node::Shared;
use super::serve;
use crate::raft::group::Group;
use crate::storage::state;
use crate::wire::request::{
    Answer, GroupSummary, NodeSummary, Request, decode_response, encode_request,
};

/// How long a node may take to describe itself. A slower one is shown as unreachable.
const DEADLINE: Duration = Duration::from_secs(2);

/// This node as it sees itself.
pub(super) fn summary(shared: &Shared) -> NodeSummary {
    let problems = shared.groups.problems();
    NodeSummary {
        version: shared.config.version.clone(),
        sessions: u32::try_from(shared.sessions.count()).unwrap_or(u32::MAX),
        started: shared.started,
        disk_free_bytes: shared.storage.usage().map_or(0, |usage| usage.free_bytes),
        problems: problems.iter().map(|(group, problem)| format!("{group}: {problem}")).collect(),
        sync_ms: millis(shared.groups.sync_wait()),
        delay_ms: millis(shared.delay.get()),
        receiving: shared.peers.receiving(),
        groups: shared
            .groups
            .watch()
            .borrow()
            .iter()
            .map(|(id, group)| group_summary(shared, *id, group))
            .collect(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn group_summary(shared: &Shared, id: GroupId, group: &Group) -> GroupSummary {
    let (progress, followers) = (group.progress(), group.replicas().learners);
    let leadership = *group.leadership().borrow();
    let leads = leadership.serving;
    let stream = match id {
        GroupId::Meta => None,
        // A replica that cannot be read is listed among the problems from now on.
        GroupId::Shard(_) => state::stream(&*shared.storage, id)
            .inspect_err(|error| drop(serve::unreadable(group, error.clone())))
            .ok(),
    }
    .unwrap_or_default();
    let matched: BTreeMap<_, _> = progress.matched.into_iter().collect();
    let replica = |node: NodeId| (node, matched.get(&node).copied());
    GroupSummary {
        group: id,
        leader: leadership.leader,
        leads,
        term: progress.term,
        committed_index: progress.committed_index,
        replicas: progress.voters.into_iter().map(replica).collect(),
        followers: followers.into_iter().map(|follower| replica(follower.node())).collect(),
        first_offset: stream.first,
        next_offset: stream.next,
        device_count: stream.device_count,
        load: group.load(),
    }
}

/// Asks every member for its view.
pub(super) async fn cluster(shared: &Shared) -> Result<ClusterStatus, Error> {
    let meta = shared.meta().ok_or(Error::NotInitialized)?;
    let mut answers: FuturesUnordered<_> =
        meta.members.keys().map(|node| async move { (*node, ask(shared, *node).await) }).collect();
    let mut summaries = BTreeMap::new();
    while let Some((node, summary)) = answers.next().await {
        summaries.insert(node, summary);
    }
    let groups =
        std::iter::once(GroupId::Meta).chain(meta.shard_count.shards().map(GroupId::Shard));
    let shards = groups.map(|group| shard_status(group, &summaries)).collect();
    let nodes = summaries.into_iter().map(|(node, summary)| node_status(node, summary)).collect();
    Ok(ClusterStatus { meta: (*meta).clone(), answered_by: shared.config.node, nodes, shards })
}

async fn ask(shared: &Shared, node: NodeId) -> Option<NodeSummary> {
    if node == shared.config.node {
        return Some(summary(shared));
    }
    let request = encode_request(&Request::NodeSummary);
    let response = tokio::select! {
        biased;
        () = shared.groups.until_silent(node) => return None,
        response = shared.peers.request(node, GroupId::Meta, request, DEADLINE) => response.ok()?,
    };
    match decode_response(response) {
        Ok(Answer::Node(summary)) => Some(summary),
        Ok(_) | Err(_) => None,
    }
}

fn node_status(node: NodeId, summary: Option<NodeSummary>) -> NodeStatus {
    let reachable = summary.is_some();
    let summary = summary
        .unwrap_or_else(|| NodeSummary { started: LogTime::new(0), ..NodeSummary::default() });
    let NodeSummary { version, sessions, started, .. } = summary;
    let NodeSummary { disk_free_bytes, sync_ms, delay_ms, receiving, problems, .. } = summary;
    NodeStatus {
        node,
        reachable,
        version,
        sessions,
        started,
        disk_free_bytes,
        sync_ms,
        delay_ms,
        receiving,
        problems,
    }
}

/// A group by the word of its leader, or of the replica with the newest term if none leads.
fn shard_status(group: GroupId, summaries: &BTreeMap<NodeId, Option<NodeSummary>>) -> ShardStatus {
    let views = summaries.iter().filter_map(|(node, summary)| {
        let groups = &summary.as_ref()?.groups;
        Some((*node, groups.iter().find(|view| view.group == group)?))
    });
    let views: Vec<_> = views.collect();
    let best = views.iter().max_by_key(|(_, view)| (view.leads, view.term));
    let shard = match group {
        GroupId::Meta => None,
        GroupId::Shard(shard) => Some(shard),
    };
    let Some((_, best)) = best else {
        let (term, committed_index, device_count, load) = (0, 0, 0, 0);
        let (first_offset, next_offset) = Default::default();
        let (leader, replicas, followers) = (None, Vec::new(), Vec::new());
        return ShardStatus {
            shard,
            leader,
            term,
            committed_index,
            replicas,
            followers,
            first_offset,
            next_offset,
            device_count,
            load,
        };
    };
    let replica = |(node, matched): &(NodeId, Option<u64>)| {
        let problem = match summaries.get(node) {
            Some(Some(_)) if views.iter().any(|(of, _)| of == node) => "",
            Some(Some(_)) => "stopped",
            Some(None) | None => "unreachable",
        };
        (*node, *matched, problem.to_owned())
    };
    ShardStatus {
        shard,
        leader: best.leader,
        term: best.term,
        committed_index: best.committed_index,
        replicas: best.replicas.iter().map(replica).collect(),
        followers: best.followers.clone(),
        first_offset: best.first_offset,
        next_offset: best.next_offset,
        device_count: best.device_count,
        load: if best.leads { best.load } else { 0 },
    }
}
