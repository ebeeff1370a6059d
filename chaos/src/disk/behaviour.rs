//! How a disk misbehaves, and the syncs that wait because of it.

use std::time::Duration;

use fuser::{Errno, ReplyEmpty};
use tokio::time::Instant;

/// What a disk does from now on. The default is a disk in good order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behaviour {
    pub sync: Sync,
    pub writes: Writes,
    /// A write that would make all files together longer than this fails with ENOSPC.
    pub capacity_bytes: Option<u64>,
    /// Some of what is read comes back wrong.
    pub flips: Option<Flips>,
}

/// Bits that come back wrong from one place, however often it is read. What is stored stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flips {
    /// In so many blocks of tables, of those that are read from now on.
    Blocks { blocks: usize, seed: u64 },
    /// In the middle of the log that is the longest now.
    Log { seed: u64 },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sync {
    #[default]
    Prompt,
    /// Each takes so long, and is durable when it ends.
    Slow(Duration),
    /// None ends until the disk behaves in another way. Whoever waits cannot even be killed.
    Hung,
    /// EIO, and what was to be synced will not survive, whatever later syncs say.
    Fails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Writes {
    #[default]
    Taken,
    /// EIO.
    Fail,
    /// EROFS, for changes of names as well: what a file system becomes that has met an error. Reads and syncs go on.
    ReadOnly,
}

/// What was asked of a disk and what came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub syncs: u64,
    /// Syncs that were held back.
    pub delayed: u64,
    pub failed_syncs: u64,
    /// Writes and changes of names that were refused.
    pub failed_writes: u64,
    /// Answers that room is limited, and how much there is.
    pub told_capacity: u64,
    /// Answers in which a bit was wrong.
    pub flipped: u64,
}

/// A sync that waits, and since when.
pub(super) struct Waiting {
    pub(super) inode: u64,
    pub(super) is_directory: bool,
    pub(super) since: Instant,
    pub(super) reply: ReplyEmpty,
}

impl Waiting {
    /// When it ends under `sync`; `None` if it does not.
    pub(super) fn due(&self, sync: Sync) -> Option<Instant> {
        match sync {
            Sync::Prompt | Sync::Fails => Some(self.since),
            Sync::Slow(delay) => Some(self.since + delay),
            Sync::Hung => None,
        }
    }

    pub(super) fn fail(self) {
        self.reply.error(Errno::EIO);
    }
}
