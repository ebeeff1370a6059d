//! What is left of a cluster on one node, and how that node goes on alone, when a majority is lost for good.
//!
//! It works on the store of a node that does not run. Each group of it gets one more log entry, which makes this replica its only
//! voter, as if a leader of a new term had appended it and crashed; the meta group gets one behind that, which says so of the
//! cluster. All are written in one batch. When the node starts, the groups elect themselves and commit what their logs hold: what
//! was acknowledged and is here stays; what only the lost replicas had is lost, and nobody can tell what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drover_core::ids::{GroupId, LogTime, NodeId, ReplicaId};
use drover_core::membership::MembershipChange;
use drover_core::meta::{Meta, MetaChange, MetaEntry};
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use prost::Message as _;
use tokio::sync::oneshot;

use super::log_record::{Mark, encode_entry, entry_key, mark_key};
use super::log_store::LogStore;
use super::position::Position;
use super::types::{
    Entry, EntryPayload, LeaderId, Membership, PeerNode, Proposal, Vote, log_id, vote_to_record,
};
use super::{Error, incarnation};
use crate::storage::{self, Batch, Storage, Table, Write, state};
use crate::wire::record;

/// What a node has of a cluster.
#[derive(Debug, Clone)]
pub struct Survey {
    pub node: NodeId,
    /// The meta state as this node has applied it.
    pub meta: Meta,
    /// The meta group, then each shard, whether or not there is anything of it here.
    pub groups: Vec<Survivor>,
}

/// What a node has of one group.
#[derive(Debug, Clone)]
pub struct Survivor {
    pub group: GroupId,
    pub found: Result<Replica, Missing>,
}

/// A replica that can go on.
#[derive(Debug, Clone)]
pub struct Replica {
    pub id: ReplicaId,
    /// Who has a vote, as the end of its log says. Without this node it only followed, and may lack more.
    pub voters: BTreeSet<ReplicaId>,
    /// The end of its log, and of what was applied of it.
    pub last_term: u64,
    pub last_index: u64,
    pub applied_index: u64,
    /// The time of the newest change that was applied, of a shard.
    pub applied_at: Option<LogTime>,
    /// Its vote, to be outbidden.
    vote_term: u64,
}

/// Why there is nothing that can go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("there is no replica of it on this node")]
    Nothing,
    /// The next start of the node removes it.
    #[error("its replica on this node was given up, and another one is to take its place")]
    Void,
    #[error("its replica on this node is not to be trusted: {problem}")]
    Damaged { problem: String },
}

impl Survey {
    /// Whether this node is the only voter of every group that it has: then there is nothing to recover.
    pub fn is_alone(&self) -> bool {
        let mut found = self.groups.iter().filter_map(|group| group.found.as_ref().ok());
        found.all(|replica| replica.voters == BTreeSet::from([replica.id]))
    }
}

/// Looks at everything that the node has. Fails if there is no cluster, or nothing can be told about it.
pub async fn survey(storage: &Arc<dyn Storage>, node: NodeId) -> Result<Survey, Error> {
    let meta = state::meta(&**storage)?.ok_or_else(|| Error::Stopped {
        problem: "this node has never been in a cluster".to_owned(),
    })?;
    let shards = meta.shard_count.shards().map(GroupId::Shard);
    let mut groups = Vec::new();
    for group in std::iter::once(GroupId::Meta).chain(shards) {
        let found = match replica(storage, node, group).await {
            Ok(Some(replica)) if is_void(&meta, replica.id, group) => Err(Missing::Void),
            Ok(Some(replica)) => Ok(replica),
            Ok(None) => Err(Missing::Nothing),
            Err(error @ (storage::Error::Corrupt { .. } | storage::Error::Amnesia { .. })) => {
                Err(Missing::Damaged { problem: error.to_string() })
            }
            Err(error) => return Err(error.into()),
        };
        groups.push(Survivor { group, found });
    }
    Ok(Survey { node, meta, groups })
}

/// Makes the node all that the cluster consists of. `at` is stamped on the change of the meta state. Durable on return.
pub async fn recover(
    storage: &Arc<dyn Storage>,
    survey: &Survey,
    at: LogTime,
) -> Result<(), Error> {
    let address = survey.meta.members.get(&survey.node).map(|member| member.peer_address.clone());
    let peer = PeerNode { address: address.unwrap_or_default() };
    let mut writes = Vec::new();
    for Survivor { group, found } in &survey.groups {
        let Ok(replica) = found else { continue };
        let alone = Membership::new(
            vec![BTreeSet::from([replica.id])],
            BTreeMap::from([(replica.id, peer.clone())]),
        );
        let alone = alone.map_err(|error| Error::NotChanged { problem: error.to_string() })?;
        let mut payloads = vec![EntryPayload::Membership(alone)];
        if *group == GroupId::Meta {
            let change = MembershipChange::Recover { survivor: survey.node };
            let entry = MetaEntry { at, change: MetaChange::Membership(change) };
            payloads.push(EntryPayload::Normal(Proposal(record::meta_entry_to_bytes(&entry))));
        }
        append(*group, replica, payloads, &mut writes);
    }
    storage.write(Batch { writes })?;
    let (done, synced) = oneshot::channel();
    storage.sync(Box::new(move |result| {
        // Whoever waits is told; if nobody does, the caller has failed already.
        done.send(result).ok();
    }));
    let lost = |_| storage::Error::Io { what: "the store was closed".into() };
    Ok(synced.await.map_err(lost)??)
}

fn is_void(meta: &Meta, replica: ReplicaId, group: GroupId) -> bool {
    match group {
        GroupId::Meta => false,
        GroupId::Shard(shard) => {
            meta.replica(shard, replica.node()).incarnation() > replica.incarnation()
        }
    }
}

/// The log goes on as under a leader of a term that nobody has had: this replica.
fn append(group: GroupId, replica: &Replica, payloads: Vec<EntryPayload>, writes: &mut Vec<Write>) {
    let term = replica.vote_term.max(replica.last_term) + 1;
    let leader_id = LeaderId { term, voted_for: replica.id };
    let vote = Vote { leader_id, committed: true };
    let value = vote_to_record(&vote).encode_to_vec().into();
    writes.push(Write::Put { table: Table::Log, key: mark_key(group, Mark::Vote), value });
    for (index, payload) in (replica.last_index + 1..).zip(payloads) {
        let entry = Entry { log_id: log_id(term, index), payload };
        let (key, value) = (entry_key(group, index), encode_entry(&entry));
        writes.push(Write::Put { table: Table::Log, key, value });
    }
}

async fn replica(
    storage: &Arc<dyn Storage>,
    node: NodeId,
    group: GroupId,
) -> Result<Option<Replica>, storage::Error> {
    let position = Position::load(&**storage, group)?;
    let mut log = LogStore::open(Arc::clone(storage), group)?;
    let unreadable = |error: std::io::Error| storage::Error::Corrupt { what: error.to_string() };
    let last = log.get_log_state().await.map_err(unreadable)?.last_log_id.max(position.last);
    let Some(last) = last else { return Ok(None) };
    let vote = log.read_vote().await.map_err(unreadable)?;
    let applied_at = match group {
        GroupId::Meta => None,
        GroupId::Shard(_) => Some(state::stream(&**storage, group)?.at),
    };
    let applied_index = position.last.map_or(0, |id| id.index);
    let membership = newest(&mut log, applied_index + 1..last.index + 1, &position).await?;
    Ok(Some(Replica {
        id: ReplicaId::new(node, incarnation::stored(&**storage, group)?),
        voters: membership.voter_ids().collect(),
        last_term: last.leader_id.term,
        last_index: last.index,
        applied_index,
        applied_at,
        vote_term: vote.map_or(0, |vote| vote.leader_id.term),
    }))
}

/// The last membership of the log; what was applied of it, where the rest has none.
async fn newest(
    log: &mut LogStore,
    rest: std::ops::Range<u64>,
    position: &Position,
) -> Result<Membership, storage::Error> {
    let unreadable = |error: std::io::Error| storage::Error::Corrupt { what: error.to_string() };
    let mut newest = position.membership.membership().clone();
    let mut from = rest.start;
    while from < rest.end {
        let piece = log.limited_get_log_entries(from, rest.end).await.map_err(unreadable)?;
        let Some(last) = piece.last() else { break };
        from = last.log_id.index + 1;
        for entry in piece {
            if let EntryPayload::Membership(membership) = entry.payload {
                newest = membership;
            }
        }
    }
    Ok(newest)
}
