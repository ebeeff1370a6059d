//! What callers of the cluster can see, and what to do next.

use drover_core::change::Refusal;
use drover_core::ids::{DeviceId, GroupId};
use drover_core::meta::MetaRefusal;
use drover_core::method::MethodFailure;

/// Three kinds are kept apart: refused (deterministic, nothing was changed), try again (nothing was changed, or it is
/// said to be unknown), and broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    RefusedByMeta(#[from] MetaRefusal),
    /// The call of a method has no answer.
    #[error(transparent)]
    Method(#[from] MethodFailure),
    /// The request itself is not valid.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// Nothing was changed.
    #[error("{group} has no leader at the moment: try again")]
    NoLeader { group: GroupId },
    /// Nothing was changed: a queue is full.
    #[error("{what} is full: try again later")]
    Busy { what: String },
    /// Nothing was changed: the actor of the device failed while the request waited for it.
    #[error("the actor of device {device} has failed and was restarted: try again")]
    Restarted { device: DeviceId },
    /// Nothing was changed: the device sends more than its configured rate.
    #[error("the rate limit of the device is used up: send more slowly")]
    RateLimited,
    /// The change may have happened or not.
    #[error("no answer within the deadline: the outcome is unknown, read before you repeat")]
    Timeout,
    /// The change may have happened or not: the leader was lost while it was under way.
    #[error("{group} lost its leader: the outcome is unknown, read before you repeat")]
    LeaderLost { group: GroupId },
    /// Nothing was changed.
    #[error(
        "the disk of node {node} has {free_bytes} bytes left: make room, then writes go on by themselves"
    )]
    DiskFull { node: String, free_bytes: u64 },
    #[error("there is no cluster yet: run drover cluster init at one node")]
    NotInitialized,
    #[error("the cluster is being restored from a backup: it serves when all of it is here")]
    Restoring,
    /// Records of a backup were not taken over.
    #[error("{group} was not restored: {problem}")]
    NotRestored { group: GroupId, problem: String },
    #[error("this node is stopping: connect to another one")]
    Stopping,
    /// The replica is stopped because its data cannot be trusted; others serve.
    #[error("{group} is stopped on this node: {problem}")]
    GroupStopped { group: GroupId, problem: String },
}

impl Error {
    /// Whether the request may have been carried out all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Timeout | Self::LeaderLost { .. })
    }

    /// Whether the same request can succeed later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoLeader { .. }
            | Self::Busy { .. }
            | Self::Restarted { .. }
            | Self::RateLimited
            | Self::Timeout
            | Self::LeaderLost { .. }
            | Self::DiskFull { .. }
            | Self::Stopping
            | Self::Restoring
            | Self::GroupStopped { .. } => true,
            Self::Method(failure) => {
                matches!(failure, MethodFailure::Moving | MethodFailure::TooManyCalls { .. })
            }
            Self::Refused(_)
            | Self::RefusedByMeta(_)
            | Self::Invalid { .. }
            | Self::NotRestored { .. }
            | Self::NotInitialized => false,
        }
    }
}
