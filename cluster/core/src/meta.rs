//! What the whole cluster agrees on: members, where shards live, who may do what. The state of group 0.

use std::collections::{BTreeMap, BTreeSet};

use crate::access::Permission;
use crate::device::Key;
use crate::ids::{LogTime, NodeId, ShardCount, ShardId};

/// The state of the meta group. `None` until the cluster is initialized.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    pub cluster_id: String,
    pub shard_count: ShardCount,
    pub replication_factor: u8,
    pub members: BTreeMap<NodeId, Member>,
    /// The replicas of each shard; the first is where the leader should be.
    pub placement: BTreeMap<ShardId, Vec<NodeId>>,
    pub policies: BTreeMap<String, Policy>,
    /// Grows by one with each accepted change.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// host:port of the peer listener.
    pub peer_address: String,
    /// host:port where clients reach the gRPC API.
    pub admin_address: String,
    pub zone: String,
}

/// A shared access policy: either key signs tokens with these permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub primary: Key,
    pub secondary: Key,
    pub permissions: BTreeSet<Permission>,
}

/// What Raft replicates in the meta group.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaChange {
    Initialize(Box<Meta>),
    PutPolicy {
        name: String,
        policy: Policy,
    },
    DeletePolicy {
        name: String,
    },
    /// Refused unless the state has the version that the plan was made from.
    Place {
        expected_version: u64,
        placement: BTreeMap<ShardId, Vec<NodeId>>,
    },
}

/// One log entry of the meta group.
#[derive(Debug, Clone, PartialEq)]
pub struct MetaEntry {
    pub at: LogTime,
    pub change: MetaChange,
}

/// Why the meta group refused a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaRefusal {
    #[error("the cluster {cluster_id} exists already: it is initialized once")]
    AlreadyInitialized { cluster_id: String },
    #[error("there is no cluster yet: run drover cluster init at one node")]
    NotInitialized,
    #[error("the state has version {current}, not {expected}: plan again")]
    VersionMismatch { expected: u64, current: u64 },
    #[error("there is no policy {name}")]
    PolicyNotFound { name: String },
    #[error("the policy name {name:?} is not valid: use 1 to 64 letters, digits, - . _")]
    InvalidPolicyName { name: String },
    #[error("there are {limit} policies already: delete one first")]
    TooManyPolicies { limit: usize },
    #[error("policy {name} is the last one that may administer the cluster: make another first")]
    LastAdministrator { name: String },
}
