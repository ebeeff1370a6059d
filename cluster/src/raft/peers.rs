//! Connections to the other nodes: one a peer, shared by all groups and by forwarded requests.

use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId};
use drover_proto::cluster::{Announce, AnnounceResponse, Deliver};
use tokio::sync::{mpsc, oneshot};

/// A handle to all peers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peers {}

/// What a peer asks of the layers above Raft. Raft messages are answered below.
#[derive(Debug)]
pub enum Incoming {
    /// An encoded `cluster.v1.Request` for the leader of the group; answer with an encoded response.
    Request { from: NodeId, group: GroupId, request: Bytes, reply: oneshot::Sender<Bytes> },
    /// For a session on this node. No answer.
    Deliver { from: NodeId, deliver: Deliver },
    /// Sessions that a node holds, for the leader of the group.
    Announce {
        from: NodeId,
        group: GroupId,
        announce: Announce,
        reply: oneshot::Sender<AnnounceResponse>,
    },
    /// Live events of a peer, best effort.
    Events { from: NodeId, events: Bytes },
    /// Whether a peer wants this node's live events.
    EventsWanted { from: NodeId, wanted: bool },
}

/// Why a call to a peer has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was never sent.
    #[error("node {node} cannot be reached: {problem}")]
    Unreachable { node: NodeId, problem: String },
    /// It was sent; whether it was carried out is unknown.
    #[error("the connection to node {node} was lost")]
    Lost { node: NodeId },
    #[error("node {node} did not answer in time")]
    Timeout { node: NodeId },
    /// Nothing was sent: too much waits for this peer already.
    #[error("the queue to node {node} is full")]
    Busy { node: NodeId },
}

impl Peers {
    /// Asks a peer; `request` is an encoded `cluster.v1.Request`.
    pub async fn request(
        &self,
        to: NodeId,
        group: GroupId,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let _ = (to, group, request, deadline);
        todo!()
    }

    /// Best effort, no answer.
    pub fn deliver(&self, to: NodeId, deliver: Deliver) {
        let _ = (to, deliver);
        todo!()
    }

    pub async fn announce(
        &self,
        to: NodeId,
        group: GroupId,
        announce: Announce,
        deadline: Duration,
    ) -> Result<AnnounceResponse, CallError> {
        let _ = (to, group, announce, deadline);
        todo!()
    }

    /// Best effort, no answer.
    pub fn send_events(&self, to: NodeId, events: Bytes) {
        let _ = (to, events);
        todo!()
    }

    pub fn want_events(&self, wanted: bool) {
        let _ = wanted;
        todo!()
    }

    /// Whether the connection to a peer is up.
    pub fn is_connected(&self, node: NodeId) -> bool {
        let _ = node;
        todo!()
    }
}

/// The queue of what peers ask; bounded.
pub type IncomingQueue = mpsc::Receiver<Incoming>;
