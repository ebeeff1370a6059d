//! Raft groups on openraft: the meta group and one group a shard, over one connection to each peer.

mod balance;
mod bootstrap;
mod chunk;
#[cfg(test)]
mod conformance;
pub mod copy;
mod election;
mod frames;
pub(crate) mod grid;
pub mod group;
pub mod groups;
mod heard;
mod incarnation;
pub(crate) mod lag;
mod lease;
mod link;
mod load;
pub mod log_record;
pub mod log_store;
mod log_tail;
mod mail;
#[cfg(test)]
mod mail_cost;
mod messages;
mod mutant;
pub mod network;
pub mod peers;
mod position;
mod reach;
mod receive;
pub mod recover;
pub mod runtime;
mod serve;
pub mod snapshot;
mod snapshot_pace;
pub mod state_machine;
mod syncs;
#[cfg(test)]
mod tests;
pub mod tls;
mod transport;
pub mod types;
mod working_set;

pub use link::FORMAT as PEER_FORMAT;

use drover_core::change::{Effect, Outcome};
use drover_core::ids::NodeId;
use drover_core::meta::{Meta, MetaRefusal};

/// What one committed entry answers to the leader that proposed it.
#[derive(Debug, Clone, Default)]
pub enum Response {
    /// A blank or membership entry.
    #[default]
    None,
    /// An entry of a shard: an outcome for each change, and what is to be done outside.
    Shard { outcomes: Vec<Outcome>, effects: Vec<Effect> },
    /// An entry of the meta group: the state after it.
    Meta(Result<Box<Meta>, MetaRefusal>),
}

/// Who leads a group, as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    pub term: u64,
    /// This node leads, and has applied the first entry of its own term: it may serve.
    pub serving: bool,
}

/// Why Raft did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was proposed.
    #[error("this node does not lead the group, {leader:?} does")]
    NotLeader { leader: Option<NodeId> },
    /// The entry may still be committed, or not.
    #[error("the leader was lost while the entry was under way: its outcome is unknown")]
    Unknown,
    #[error("no answer in time")]
    Timeout,
    /// The group is stopped on this node and answers nothing any more.
    #[error("the group is stopped: {problem}")]
    Stopped { problem: String },
    /// The group's voters are as they were.
    #[error("the members of the group were not changed: {problem}")]
    NotChanged { problem: String },
    /// Records of a group were not copied, or not all of them.
    #[error("copying the group was interrupted: {problem}")]
    Interrupted { problem: String },
    /// The meta group refused the change.
    #[error(transparent)]
    Refused(MetaRefusal),
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
}
