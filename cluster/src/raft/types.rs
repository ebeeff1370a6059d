//! What openraft is told about our entries, nodes and runtime, and how its values become records.
//!
//! A term has at most one leader (standard Raft ids), so a log id is a term and an index, and a vote is a term and a
//! node. An entry's payload is bytes that were encoded once, by its proposer: no replica encodes it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use drover_core::ids::ReplicaId;
use drover_proto::record;
use openraft::OptionalSend;
use openraft::impls::{OneshotResponder, leader_id_std};
use openraft::vote::RaftLeaderId;

use super::Response;
use super::runtime::Runtime;

/// The types of all groups, of the meta group and of shards alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Response;
    type NodeId = ReplicaId;
    type Node = PeerNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<LeaderId>;
    type Payload = EntryPayload;
    type Entry = openraft::Entry<CommittedLeaderId, EntryPayload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub type LeaderId = leader_id_std::LeaderId<u64, ReplicaId>;
/// In a log id: just the term.
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type EntryPayload = openraft::EntryPayload<Proposal, ReplicaId, PeerNode>;
pub type Membership = openraft::Membership<ReplicaId, PeerNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, super::snapshot::SnapshotData>;
pub type StorageError = openraft::StorageError<TypeConfig>;

/// An encoded `record.v1.Batch` (in a shard) or `record.v1.MetaChange` (in the meta group).
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What Raft keeps about a member of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerNode {
    /// host:port of its peer listener.
    pub address: String,
}

/// Why a stored or received record is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Invalid {
    pub problem: &'static str,
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

pub fn log_id_to_record(id: &LogId) -> record::LogId {
    record::LogId { term: id.leader_id.term, index: id.index }
}

pub fn log_id_from_record(record: record::LogId) -> LogId {
    log_id(record.term, record.index)
}

pub fn vote_to_record(vote: &Vote) -> record::Vote {
    record::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for.to_u64(),
        committed: vote.committed,
    }
}

pub fn vote_from_record(record: record::Vote) -> Vote {
    let leader_id = LeaderId { term: record.term, voted_for: ReplicaId::from_u64(record.node) };
    Vote { leader_id, committed: record.committed }
}

pub fn membership_to_record(membership: &Membership) -> record::Membership {
    let voters = |config: &BTreeSet<ReplicaId>| record::Voters {
        nodes: config.iter().map(|node| node.to_u64()).collect(),
    };
    let replica = |(node, peer): (&ReplicaId, &PeerNode)| record::Replica {
        node: node.to_u64(),
        address: peer.address.clone(),
    };
    record::Membership {
        configs: membership.get_joint_config().iter().map(voters).collect(),
        replicas: membership.nodes().map(replica).collect(),
    }
}

pub fn membership_from_record(record: record::Membership) -> Result<Membership, Invalid> {
    let voters = |config: record::Voters| -> BTreeSet<ReplicaId> {
        config.nodes.into_iter().map(ReplicaId::from_u64).collect()
    };
    let replica = |replica: record::Replica| {
        (ReplicaId::from_u64(replica.node), PeerNode { address: replica.address })
    };
    let configs: Vec<_> = record.configs.into_iter().map(voters).collect();
    let nodes: BTreeMap<_, _> = record.replicas.into_iter().map(replica).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes)
        .map_err(|_| Invalid { problem: "a membership without voters, or with a voter unknown" })
}

pub fn payload_to_record(payload: &EntryPayload) -> record::log_entry::Payload {
    match payload {
        EntryPayload::Blank => record::log_entry::Payload::Blank(true),
        EntryPayload::Normal(Proposal(bytes)) => record::log_entry::Payload::Normal(bytes.clone()),
        EntryPayload::Membership(membership) => {
            record::log_entry::Payload::Membership(membership_to_record(membership))
        }
    }
}

pub fn payload_from_record(record: record::log_entry::Payload) -> Result<EntryPayload, Invalid> {
    Ok(match record {
        record::log_entry::Payload::Blank(_) => EntryPayload::Blank,
        record::log_entry::Payload::Normal(bytes) => EntryPayload::Normal(Proposal(bytes)),
        record::log_entry::Payload::Membership(membership) => {
            EntryPayload::Membership(membership_from_record(membership)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use drover_core::ids::NodeId;

    use super::*;

    #[test]
    fn a_membership_survives_its_record() {
        let node = |number| ReplicaId::first(NodeId::new(number, 0));
        let peer = |port: u16| PeerNode { address: format!("127.0.0.1:{port}") };
        let configs = vec![BTreeSet::from([node(1), node(2)]), BTreeSet::from([node(2)])];
        let nodes = BTreeMap::from([(node(1), peer(1)), (node(2), peer(2)), (node(3), peer(3))]);
        let membership = Membership::new(configs, nodes).expect("every voter is known");
        let record = membership_to_record(&membership);
        assert_eq!(membership_from_record(record), Ok(membership));
    }

    #[test]
    fn a_membership_with_an_unknown_voter_is_refused() {
        let record = record::Membership {
            configs: vec![record::Voters { nodes: vec![7] }],
            replicas: vec![record::Replica { node: 8, address: String::new() }],
        };
        assert!(membership_from_record(record).is_err());
    }
}
