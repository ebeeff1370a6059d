//! How commands ended, for their senders: a shard's log of feedback, read by consumer groups with cursors.
//!
//! A record is appended in the same step that ends its command, so there is exactly one for each command that asked for
//! it (I-16). The records themselves are written by the shell.

use std::collections::BTreeMap;

use crate::change::Done;
use crate::ids::{CommandId, DeviceId, GenerationId, LogTime, Offset, ShardId};
use crate::mailbox::Ending;
use crate::shard::Applied;

/// Where the log of a shard's feedback begins and ends, and who has read how far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedbackLog {
    /// The first offset that retention has left.
    pub first: Offset,
    /// The offset of the next record.
    pub next: Offset,
    pub cursors: BTreeMap<String, Offset>,
}

/// How one command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    pub device: DeviceId,
    pub generation: GenerationId,
    pub command: CommandId,
    pub ending: Ending,
    pub queued: LogTime,
    /// When it ended.
    pub at: LogTime,
    pub deliveries: u32,
}

/// A record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFeedback {
    pub shard: ShardId,
    pub offset: Offset,
    pub feedback: Feedback,
}

/// Feedback of a shard from an offset on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedbackPage {
    pub records: Vec<StoredFeedback>,
    /// Where to read on.
    pub next: Offset,
    /// The first offset that retention has left.
    pub first: Offset,
}

impl FeedbackLog {
    /// Makes room for so many records; the answer is the offset of the first.
    pub(crate) fn append(&mut self, count: usize) -> Offset {
        let first = self.next;
        self.next = first.plus(count as u64);
        first
    }

    pub(crate) fn retain(&mut self, before: Offset) -> Applied {
        let before = before.min(self.next);
        if before <= self.first {
            return Applied::accepted(Done::Retained { first: self.first });
        }
        self.first = before;
        let applied = Applied::accepted(Done::Retained { first: before });
        Applied { retain_feedback_from: Some(before), ..applied }
    }
}
