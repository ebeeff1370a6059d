//! Messages as they stand in a shard's stream, as its readers get them. Plain values: how they are stored is
//! storage's, how they travel is wire's.

use crate::change::{Event, Message};
use crate::ids::{DeviceId, GenerationId, LogTime, Offset, SessionEpoch, ShardId};

/// A message as it stands in its shard's stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMessage {
    pub shard: ShardId,
    pub offset: Offset,
    pub at: LogTime,
    pub device: DeviceId,
    pub generation: GenerationId,
    /// The connection it came over; `None` for a single request.
    pub epoch: Option<SessionEpoch>,
    /// What the device proved its identity with: `sas`, `selfSigned`, `certificateAuthority`, `none`.
    pub authentication: &'static str,
    pub message: Message,
}

/// Messages of a stream from an offset on.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamPage {
    pub messages: Vec<StoredMessage>,
    /// Where to read on.
    pub next: Offset,
    /// The first offset that retention has left.
    pub first: Offset,
}

/// What live readers are told, best effort.
#[derive(Debug, Clone, PartialEq)]
pub enum Live {
    Messages(Vec<StoredMessage>),
    Event(Event),
    /// So many were dropped because this reader was slow.
    Missed(u64),
}
