//! How a node with an empty folder becomes a member of a running cluster.
//!
//! Its operator has a [`token`] that was made at any member. The node makes a key, [`ask`]s a member for a certificate and
//! an id, keeps both as its [`identity`] in its data folder, and starts like any other. The token names the cluster's
//! authorities, so neither side can be taken in by a third.

pub mod ask;
pub mod identity;
pub mod token;

/// Clocks of nodes may be apart by this much: certificates, tokens and times of messages come from them.
pub const CLOCK_SKEW_MS_MAX: u64 = 60_000;

/// Why a node is not a member.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this is no join token: {problem}; copy all of what drover cluster join-token prints")]
    Token { problem: &'static str },
    #[error(
        "{folder} holds the data of a node already: join with an empty folder, under which the node is a new member"
    )]
    NotEmpty { folder: String },
    #[error(
        "node.peer_address is not set, and {listen} is no address that other nodes can connect to"
    )]
    NoAddress { listen: String },
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
    #[error("no member could be asked: {0}")]
    Unreachable(String),
    #[error("the cluster has refused this node: {0}")]
    Refused(String),
    #[error("the member's answer makes no sense: {0}")]
    Answer(String),
}
