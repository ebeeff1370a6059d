//! Carries out what the meta state says about replicas: whoever leads a group changes its voters, one step at a time.
//!
//! Each node does its part. The leader of the meta group plans, lets members follow the meta group and forgets those that
//! are removed. The leader of a shard whose move has begun goes the way: the new replica follows as a learner, catches up,
//! takes the old one's vote by a joint configuration, and the move ends in the meta state. Every step looks at what is
//! and does what is missing, so that it may be repeated, and go on at another node after any death. No step can harm: openraft
//! keeps quorums, and no replica's id is ever used twice.

use std::collections::BTreeSet;
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId, ReplicaId, ShardId};
use drover_core::membership::{MembershipChange, Move};
use drover_core::meta::{Meta, MetaChange};
use drover_core::moves;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::balance::leave_meta;
use super::cluster::Cluster;
use super::error::Error;
use super::router::{error_of, failure_of};
use crate::raft;
use crate::raft::group::{Demoted, Group, Replicas};

/// How often a node looks, while it leads something that is to change.
const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// And otherwise, besides whenever the meta state changes: who leads changes without it.
const IDLE_INTERVAL: Duration = Duration::from_secs(2);

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is nothing to do here.
    Done,
    /// Something was done, or is waited for: look again soon.
    Again,
}

/// Goes on until the node stops.
pub(super) async fn run(cluster: Cluster) {
    let mut seen = cluster.watch_meta();
    loop {
        seen.mark_unchanged();
        let interval = match look(&cluster).await {
            Step::Done => IDLE_INTERVAL,
            Step::Again => STEP_INTERVAL,
        };
        tokio::select! {
            () = sleep(interval) => {}
            changed = seen.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(cluster: &Cluster) -> Step {
    let Some(meta) = cluster.meta() else { return Step::Done };
    let mut step = Step::Done;
    if let Some(group) = led(cluster, GroupId::Meta) {
        step = noted("the members", plan(cluster, &meta, &group).await);
    }
    for (shard, moving) in &meta.membership.moves {
        let Some(group) = led(cluster, GroupId::Shard(*shard)) else { continue };
        // One that waits begins when another ends, and this node is told.
        if moving.began.is_some() {
            let way = Way { cluster, meta: &meta, shard: *shard, moving, group: &group };
            noted("a move", way.step().await);
            step = Step::Again;
        }
    }
    step
}

/// A step that failed is taken again: what stands in its way is mostly an election.
fn noted(what: &str, step: Result<Step, Error>) -> Step {
    step.unwrap_or_else(|error| {
        debug!(%error, what, "a step has failed and is taken again");
        Step::Again
    })
}

/// A group that this node leads and may serve.
pub(super) fn led(cluster: &Cluster, id: GroupId) -> Option<Group> {
    let group = cluster.shared.groups.get(id)?;
    let serving = group.leadership().borrow().serving;
    serving.then_some(group)
}

/// What the leader of the meta group does.
async fn plan(cluster: &Cluster, meta: &Meta, group: &Group) -> Result<Step, Error> {
    if follow_members(meta, group).await? == Step::Again {
        return Ok(Step::Again);
    }
    leave_meta(group, |node| meta.membership.departures.contains_key(&node)).await?;
    let preferred = moves::preferences(meta, None);
    if !preferred.is_empty() {
        let expected_version = meta.version;
        let place = MetaChange::Place { expected_version, placement: preferred };
        return propose(cluster, place).await;
    }
    let missing = moves::next(meta);
    if !missing.is_empty() {
        info!(moves = missing.len(), "planned moves of replicas");
        let expected_version = meta.version;
        let planned = MembershipChange::PlanMoves { expected_version, moves: missing };
        return propose(cluster, MetaChange::Membership(planned)).await;
    }
    let is_emptied =
        |node: &&NodeId| meta.membership.is_leaving(**node) && !meta.holds_replicas(**node);
    if let Some(node) = meta.membership.departures.keys().find(is_emptied) {
        return forget(cluster, group, *node).await;
    }
    Ok(Step::Done)
}

/// Every member follows the meta group, and those vote that should.
async fn follow_members(meta: &Meta, group: &Group) -> Result<Step, Error> {
    let replicas = group.replicas();
    let known: BTreeSet<NodeId> =
        replicas.voters.iter().chain(&replicas.learners).map(|replica| replica.node()).collect();
    let missing = meta.members.iter().find(|(node, _)| !known.contains(node));
    if let Some((node, member)) = missing {
        info!(%node, "a member begins to follow the meta group");
        let replica = ReplicaId::first(*node);
        group.add_learner(replica, member.peer_address.clone()).await.map_err(of_raft(group))?;
        return Ok(Step::Again);
    }
    let is_stranger = |replica: &&ReplicaId| !meta.members.contains_key(&replica.node());
    let strangers: BTreeSet<ReplicaId> =
        replicas.learners.iter().filter(is_stranger).copied().collect();
    if !strangers.is_empty() {
        group.remove_learners(strangers).await.map_err(of_raft(group))?;
        return Ok(Step::Again);
    }
    let today = replicas.voters.iter().map(|replica| replica.node()).collect();
    let wanted = moves::meta_voters(meta, &today);
    let wanted: BTreeSet<ReplicaId> = wanted.into_iter().map(ReplicaId::first).collect();
    change_voters(group, &replicas, wanted, Demoted::Follow).await
}

/// Takes a node that holds nothing, and votes nowhere, out of the members. Who is no member is taken out of the meta group
/// after that, so that the node can still hear of it.
async fn forget(cluster: &Cluster, group: &Group, node: NodeId) -> Result<Step, Error> {
    if group.replicas().voters.contains(&ReplicaId::first(node)) {
        return Ok(Step::Again);
    }
    info!(%node, "a node is a member no more");
    propose(cluster, MetaChange::Membership(MembershipChange::Forget { node })).await
}

async fn propose(cluster: &Cluster, change: MetaChange) -> Result<Step, Error> {
    cluster.change_meta(change).await.map(|()| Step::Again)
}

/// Makes these the voters of a group that this node leads, once all of them have caught up.
async fn change_voters(
    group: &Group,
    replicas: &Replicas,
    wanted: BTreeSet<ReplicaId>,
    others: Demoted,
) -> Result<Step, Error> {
    if replicas.voters == wanted && !replicas.is_changing {
        return Ok(Step::Done);
    }
    if !is_safe(group.replica(), replicas, &wanted) {
        return Ok(Step::Again);
    }
    if !wanted.contains(&group.replica()) {
        // The leader hands over first: a group waits shorter for that than for a leader that has left it.
        let mut heirs = wanted.intersection(&replicas.voters);
        if let Some(heir) = heirs.find(|heir| replicas.has_caught_up(**heir)) {
            group.transfer_leader(heir.node()).await.map_err(of_raft(group))?;
        }
        return Ok(Step::Again);
    }
    group.change_voters(wanted, others).await.map_err(of_raft(group))?;
    Ok(Step::Again)
}

/// Whether a group would go on at once with these voters: the new ones have caught up, and so has a majority of all. One of
/// the old ones may be away.
fn is_safe(leader: ReplicaId, replicas: &Replicas, wanted: &BTreeSet<ReplicaId>) -> bool {
    let is_ready = |replica: &ReplicaId| *replica == leader || replicas.has_caught_up(*replica);
    let ready = wanted.iter().filter(|replica| is_ready(replica)).count();
    wanted.difference(&replicas.voters).all(is_ready) && 2 * ready > wanted.len()
}

/// A move under way, at the leader of its shard.
struct Way<'a> {
    cluster: &'a Cluster,
    meta: &'a Meta,
    shard: ShardId,
    moving: &'a Move,
    group: &'a Group,
}

impl Way<'_> {
    /// Does the first thing that is missing.
    async fn step(&self) -> Result<Step, Error> {
        let replicas = self.group.replicas();
        let wanted = self.meta.voters(self.shard);
        let is_there = replicas.voters == wanted && !replicas.is_changing;
        let strangers: BTreeSet<ReplicaId> =
            replicas.learners.difference(&wanted).copied().collect();
        if !strangers.is_empty() {
            self.group.remove_learners(strangers).await.map_err(of_raft(self.group))?;
        } else if is_there {
            return self.end().await;
        } else if let Some(replica) = self.unknown(&replicas, &wanted) {
            self.begin(replica).await?;
        } else if !self.meta.membership.is_paused || replicas.is_changing {
            // A configuration with two majorities is never left standing.
            change_voters(self.group, &replicas, wanted, Demoted::Leave).await?;
        }
        Ok(Step::Again)
    }

    /// A replica that is to vote and does not even follow. Nobody, while moves are paused.
    fn unknown(&self, replicas: &Replicas, wanted: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
        let known = |replica: &ReplicaId| {
            replicas.voters.contains(replica) || replicas.learners.contains(replica)
        };
        let unknown = wanted.iter().copied().find(|replica| !known(replica));
        unknown.filter(|_| !self.meta.membership.is_paused)
    }

    async fn begin(&self, replica: ReplicaId) -> Result<(), Error> {
        let Some(member) = self.meta.members.get(&replica.node()) else { return Ok(()) };
        info!(shard = %self.shard, from = self.moving.from.map(tracing::field::display), to = %replica, "a replica begins to follow");
        let address = member.peer_address.clone();
        self.group.add_learner(replica, address).await.map_err(of_raft(self.group))
    }

    async fn end(&self) -> Result<Step, Error> {
        let Move { id, to, is_cancelled, .. } = *self.moving;
        let ended = MembershipChange::EndMove { shard: self.shard, id };
        match self.cluster.change_meta(MetaChange::Membership(ended)).await {
            Ok(()) => info!(shard = %self.shard, %to, is_cancelled, "a move has ended"),
            // Somebody else has said it.
            Err(Error::RefusedByMeta(refusal)) => debug!(shard = %self.shard, %refusal, "ended"),
            Err(error) => {
                warn!(shard = %self.shard, %error, "a move has ended and cannot be noted yet");
                return Err(error);
            }
        }
        Ok(Step::Again)
    }
}

pub(super) fn of_raft(group: &Group) -> impl Fn(raft::Error) -> Error {
    let id = group.id();
    move |error| error_of(id, failure_of(error))
}
