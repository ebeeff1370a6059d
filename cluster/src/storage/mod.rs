//! One store a node, shared by all its groups. What is durable when:
//!
//! - [`Storage::write`] makes a batch visible at once, all of it or nothing; it is durable after the next sync.
//! - [`Storage::sync`] answers when everything written before the call is fsynced. Many groups share one fsync, and
//!   answers come in the order of the calls.
//! - The fence is a small file outside the store's own log, written behind: see [`Storage::write_fence`].
//!
//! Any [`Error`] but [`Error::Full`] means that the store cannot be trusted any more: answer nothing, stop, come back by
//! restart. Never retry on the same handle (a failed fsync leaves pages marked clean).
//!
//! Two implementations pass one conformance suite: RocksDB, and a simulated disk.

mod commit;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod damage;
mod db;
mod export;
mod failure;
mod fence;
mod import;
pub mod keys;
pub mod mailbox;
pub mod simulated;
pub mod state;
pub mod stream;
mod tuning;
mod usage;

pub use db::RocksStorage;
pub use tuning::{OPEN_FILES_MAX, Settings};

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use drover_core::ids::GroupId;
use tokio::sync::mpsc;

/// Kinds of records. Keys in each begin with the group's number, four bytes, big-endian, so that a group can be
/// scanned, snapshotted and dropped as a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Raft log entries, vote, purge point. Not part of snapshots.
    Log,
    /// Applied index, membership, the stream's state or the meta state: a few records a group.
    Group,
    /// Identity and presence by device id.
    Device,
    /// Twins by device id.
    Twin,
    /// Chunks of telemetry by first offset.
    Stream,
    /// Where a device's messages are, by device, time and offset.
    History,
    /// Commands and their bodies by device, when mailboxes are due, feedback by offset.
    Mailbox,
}

impl Table {
    pub const ALL: [Self; 7] = [
        Self::Log,
        Self::Group,
        Self::Device,
        Self::Twin,
        Self::Stream,
        Self::History,
        Self::Mailbox,
    ];
    /// What a snapshot of a group consists of.
    pub const APPLIED: [Self; 6] =
        [Self::Group, Self::Device, Self::Twin, Self::Stream, Self::History, Self::Mailbox];
}

/// Writes that become visible together.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub writes: Vec<Write>,
}

#[derive(Debug, Clone)]
pub enum Write {
    Put {
        table: Table,
        key: Vec<u8>,
        value: Bytes,
    },
    Delete {
        table: Table,
        key: Vec<u8>,
    },
    /// `range.start` is in, `range.end` is out.
    DeleteRange {
        table: Table,
        range: Range<Vec<u8>>,
    },
}

/// Which end of a range a scan begins at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// How much a scan returns at the most. It stops after the record that reaches either limit.
#[derive(Debug, Clone, Copy)]
pub struct ScanLimit {
    pub records: usize,
    pub bytes: usize,
}

pub type Record = (Bytes, Bytes);

/// Called once, from the store's own thread or task, when everything written before is durable, or never will be.
pub type OnDurable = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// What is kept of a group outside the store's log, so that a shortened log is noticed: a replica whose log is shorter
/// than its fence has forgotten what it acknowledged, and must not vote (invariant I-33).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fence {
    /// Term and index of the last log entry that this replica has acknowledged.
    pub last_term: u64,
    pub last_index: u64,
    pub vote_term: u64,
    pub vote_node: u64,
}

/// Records of one table in key order, part of a group's snapshot.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub table: Table,
    pub records: Vec<Record>,
}

impl Chunk {
    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// A consistent view of a group's applied records, read by a task or thread of the store's while writes go on.
#[derive(Debug)]
pub struct Export {
    /// The records of `Table::Group` as of the view: the caller decodes the applied index from them.
    pub group: Vec<Record>,
    /// All records of the applied tables, `Table::Group` included, in chunks; ends after the last, or with an error.
    pub chunks: mpsc::Receiver<Result<Chunk, Error>>,
}

/// Replaces a group's applied records by those of a snapshot.
pub trait Import: Send {
    fn add(&mut self, chunk: Chunk) -> Result<(), Error>;
    /// Swaps the new records in and makes them durable. After a crash in the middle the group has its old records or the
    /// new ones when the store is opened again, never half of either. The group must not be read meanwhile.
    fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// How full the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub free_bytes: u64,
    /// Writes of new data are refused below this, so that what must be written still can be.
    pub reserve_bytes: u64,
}

impl Usage {
    pub fn is_full(self) -> bool {
        self.free_bytes < self.reserve_bytes
    }
}

pub trait Storage: fmt::Debug + Send + Sync + 'static {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error>;

    fn scan(
        &self,
        table: Table,
        range: Range<Vec<u8>>,
        order: Order,
        limit: ScanLimit,
    ) -> Result<Vec<Record>, Error>;

    /// Visible on return; durable after the next sync.
    fn write(&self, batch: Batch) -> Result<(), Error>;

    /// `done` is called when everything written before is fsynced. Calls are answered in order.
    fn sync(&self, done: OnDurable);

    /// The fences as they were found when the store was opened, or as they were written since.
    fn fences(&self) -> Result<Vec<(GroupId, Fence)>, Error>;

    /// Notes a new fence. It is written behind, by the store's own pace, and never ahead of what is durable: call it
    /// when a sync was answered.
    fn write_fence(&self, group: GroupId, fence: Fence);

    /// Writes a fence and returns when it is fsynced: before a log is cut back, its fence must be.
    fn write_fence_now(&self, group: GroupId, fence: Fence) -> Result<(), Error>;

    fn export(&self, group: GroupId, chunk_bytes: usize) -> Result<Export, Error>;

    fn import(&self, group: GroupId) -> Result<Box<dyn Import>, Error>;

    fn usage(&self) -> Result<Usage, Error>;
}

/// Why the store failed. All but `Full` are fatal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the disk has {free_bytes} bytes left, {reserve_bytes} are kept in reserve: make room")]
    Full { free_bytes: u64, reserve_bytes: u64 },
    #[error("data is corrupt: {what}")]
    Corrupt { what: String },
    #[error("the store failed: {what}")]
    Io { what: String },
    /// The replica must not vote or acknowledge any more: remove it, and add the node again under a new generation.
    #[error("the log of {group} has lost what it acknowledged: {what}")]
    Amnesia { group: GroupId, what: String },
}
