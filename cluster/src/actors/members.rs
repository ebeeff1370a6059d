//! Requests about the members of the cluster: who may join, who leaves, what moves.
//!
//! Success of each: the change is durable on a majority of the meta group. What it asks for is then carried out by the
//! mover, step by step, and can be watched in the status.

use std::collections::BTreeSet;

use bytes::Bytes;
use drover_core::ids::{GroupId, LogTime, NodeId, ShardId};
use drover_core::membership::{
    Departure, JoinToken, Joining, MembershipChange, MembershipRefusal, Signer,
};
use drover_core::meta::MetaChange;

use super::cluster::{Cluster, ClusterStatus};
use super::error::Error;

impl Cluster {
    /// The time as this node stamps it on changes.
    pub fn now(&self) -> LogTime {
        self.shared.config.clock.now()
    }

    /// Makes `signer` sign the certificates of nodes, unless the cluster has one already. Answers who signs.
    pub async fn signer_or(&self, signer: Signer) -> Result<Signer, Error> {
        let refused = MembershipRefusal::SignerExists;
        match self.change_members(MembershipChange::SetSigner(signer)).await {
            Err(Error::RefusedByMeta(refusal)) if refusal == refused.into() => {}
            set => set?,
        }
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        // It is committed, and this node may lag: then it can be asked again.
        meta.membership.signer.clone().ok_or(Error::Timeout)
    }

    /// `digest`: SHA-256 of what its holder knows.
    pub async fn add_join_token(
        &self,
        id: String,
        digest: Bytes,
        expires: LogTime,
    ) -> Result<(), Error> {
        let token = JoinToken { digest, expires, used: None };
        self.change_members(MembershipChange::AddToken { id, token }).await
    }

    /// Makes a node a member. Its token must have been checked. Answers the id that it has from now on.
    pub async fn join(&self, joining: Joining) -> Result<NodeId, Error> {
        let token = joining.token.clone();
        self.change_members(MembershipChange::Join(joining)).await?;
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        let used = meta.membership.tokens.get(&token).and_then(|token| token.used.as_ref());
        used.map(|used| used.node).ok_or(Error::Timeout)
    }

    /// Lets a node give away what it leads and, as far as other nodes can take them, its replicas and sessions.
    pub async fn drain(&self, node: NodeId) -> Result<(), Error> {
        let departure = Departure::Drained;
        self.change_members(MembershipChange::Depart { node, departure }).await
    }

    /// The same for a node that is to be restarted: it keeps its replicas.
    pub async fn drain_for_restart(&self, node: NodeId) -> Result<(), Error> {
        let departure = Departure::Restarting;
        self.change_members(MembershipChange::Depart { node, departure }).await
    }

    /// Ends a drain, or a removal that is not finished.
    pub async fn undrain(&self, node: NodeId) -> Result<(), Error> {
        self.change_members(MembershipChange::Return { node }).await
    }

    /// Lets a replica that was stopped, because its data cannot be trusted, begin anew from the others. Refused while another
    /// replica of the shard is on its way, and with fewer than three of them: what it has may be needed.
    pub async fn rebuild(&self, node: NodeId, shard: ShardId) -> Result<(), Error> {
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        let replica = meta.replica(shard, node);
        self.change_members(MembershipChange::Rebuild { shard, replica }).await
    }

    /// Takes a node out of the cluster that is dead or holds nothing any more. Refused if a group would be left without a
    /// majority that answers, or if it is alive and not drained.
    pub async fn remove(&self, node: NodeId) -> Result<(), Error> {
        check_removal(&self.status().await?, node)?;
        let departure = Departure::Removed;
        self.change_members(MembershipChange::Depart { node, departure }).await
    }

    pub async fn pause_moves(&self) -> Result<(), Error> {
        self.change_members(MembershipChange::PauseMoves(true)).await
    }

    pub async fn resume_moves(&self) -> Result<(), Error> {
        self.change_members(MembershipChange::PauseMoves(false)).await
    }

    /// Takes back what has begun and is not done, and pauses.
    pub async fn cancel_moves(&self) -> Result<(), Error> {
        self.change_members(MembershipChange::CancelMoves).await
    }

    pub(super) async fn change_members(&self, change: MembershipChange) -> Result<(), Error> {
        self.check_restored()?;
        self.change_meta(MetaChange::Membership(change)).await
    }

    /// The id of the member with this number, as this node knows it.
    pub fn member(&self, number: u32) -> Result<NodeId, Error> {
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        let found = meta.members.keys().rev().find(|node| node.number() == number);
        found.copied().ok_or_else(|| {
            refused(MembershipRefusal::MemberNotFound { node: NodeId::new(number, 0) })
        })
    }
}

/// Whether every group can go on, and restore what the node had, without it.
fn check_removal(status: &ClusterStatus, node: NodeId) -> Result<(), Error> {
    let alive: BTreeSet<NodeId> =
        status.nodes.iter().filter(|node| node.reachable).map(|node| node.node).collect();
    if alive.contains(&node) && status.meta.holds_replicas(node) {
        return Err(refused(MembershipRefusal::IsAlive { node }));
    }
    for shard in &status.shards {
        let voters: BTreeSet<NodeId> = shard.replicas.iter().map(|(node, ..)| *node).collect();
        if !voters.contains(&node) {
            continue;
        }
        let answering = |(voter, _, problem): &&(NodeId, Option<u64>, String)| {
            *voter != node && alive.contains(voter) && problem.is_empty()
        };
        let left = shard.replicas.iter().filter(answering).count();
        if left * 2 <= voters.len() {
            let group = shard.shard.map_or(GroupId::Meta, GroupId::Shard);
            return Err(refused(MembershipRefusal::LosesQuorum { group, left }));
        }
    }
    Ok(())
}

fn refused(refusal: MembershipRefusal) -> Error {
    Error::RefusedByMeta(refusal.into())
}
