//! One Raft group of this node.

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId};
use tokio::sync::watch;

use super::{Error, Leadership, Response};

/// A handle of a running group. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Group {}

/// How far a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub last_log_index: u64,
    pub voters: Vec<NodeId>,
    /// On the leader: the last index that each other replica is known to have.
    pub matched: Vec<(NodeId, u64)>,
}

impl Group {
    pub fn id(&self) -> GroupId {
        todo!()
    }

    /// Proposes one entry (an encoded `record.v1.Batch` or `MetaChange`) and waits until it is applied here.
    pub async fn propose(&self, entry: Bytes) -> Result<Response, Error> {
        let _ = entry;
        todo!()
    }

    /// `ReadIndex` (Raft thesis, 6.4): on return this node was the leader after the call began, and has applied
    /// everything that was committed before it.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        todo!()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        todo!()
    }

    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Hands the leadership to another replica.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), Error> {
        let _ = to;
        todo!()
    }
}
