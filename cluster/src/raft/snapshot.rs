//! A snapshot as it travels: chunks of records, never one blob.
//!
//! The sender streams an [`Outgoing`], a consistent view that the store reads while writes go on. The receiver collects
//! an [`Incoming`] completely, outside of Raft, and only then hands it over: a connection that breaks in the middle
//! costs a retry and does not stop the group.

use std::fmt;

use drover_core::ids::GroupId;
use drover_core::mutants::{Mutation, is_planted};
use futures::stream::{self, Stream};
use tokio::sync::mpsc;

use crate::storage::{Chunk, Error, Import, Storage, Table};

/// How many bytes a chunk has, give or take a record: small enough to be sent between heartbeats.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Either half of a snapshot.
pub enum SnapshotData {
    Outgoing(Outgoing),
    Incoming(Incoming),
}

impl SnapshotData {
    /// What Raft is given to install has been received already, except where it hands over one of its own.
    pub(super) async fn receive(
        self,
        storage: &dyn Storage,
        group: GroupId,
    ) -> Result<Incoming, Error> {
        let mut outgoing = match self {
            Self::Incoming(incoming) => return Ok(incoming),
            Self::Outgoing(outgoing) => outgoing,
        };
        let mut incoming = Incoming::begin(storage, group)?;
        while let Some(chunk) = outgoing.chunks.recv().await {
            incoming.add(chunk?)?;
        }
        Ok(incoming)
    }
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outgoing(_) => "SnapshotData::Outgoing",
            Self::Incoming(_) => "SnapshotData::Incoming",
        })
    }
}

/// To be sent: chunks until the channel ends, or an error, after which nothing that was sent may be used.
#[derive(Debug)]
pub struct Outgoing {
    pub chunks: mpsc::Receiver<Result<Chunk, Error>>,
}

impl Outgoing {
    pub(super) fn into_stream(
        mut self,
    ) -> impl Stream<Item = Result<Chunk, Error>> + Send + Unpin + 'static {
        stream::poll_fn(move |context| self.chunks.poll_recv(context))
    }
}

/// Being received. Nothing of it is visible until Raft installs it.
pub struct Incoming {
    group: GroupId,
    import: Box<dyn Import>,
    checksum: Checksum,
}

impl Incoming {
    pub fn begin(storage: &dyn Storage, group: GroupId) -> Result<Self, Error> {
        Ok(Self { group, import: storage.import(group)?, checksum: Checksum::default() })
    }

    pub fn add(&mut self, chunk: Chunk) -> Result<(), Error> {
        self.checksum.add(&chunk);
        if chunk.table == Table::Mailbox && is_planted(Mutation::SnapshotWithoutMailbox) {
            return Ok(());
        }
        self.import.add(chunk)
    }

    /// To be compared with the sender's before Raft is given this.
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Makes the records visible and durable.
    pub(super) fn install(self, group: GroupId) -> Result<(), Error> {
        if group != self.group {
            let what = format!("a snapshot of {} was received for {group}", self.group);
            return Err(Error::Corrupt { what });
        }
        self.import.finish()
    }
}

/// What sender and receiver compare at the end: the number of records, and a CRC-32 over all of them in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum {
    pub records: u64,
    pub crc32: u32,
}

impl Checksum {
    pub fn add(&mut self, chunk: &Chunk) {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.crc32);
        hasher.update(&[table_number(chunk.table)]);
        for (key, value) in &chunk.records {
            hasher.update(&(key.len() as u64).to_be_bytes());
            hasher.update(key);
            hasher.update(&(value.len() as u64).to_be_bytes());
            hasher.update(value);
        }
        self.records += chunk.records.len() as u64;
        self.crc32 = hasher.finalize();
    }
}

/// The number of a table on the wire.
pub fn table_number(table: Table) -> u8 {
    match table {
        Table::Log => 0,
        Table::Group => 1,
        Table::Device => 2,
        Table::Twin => 3,
        Table::Stream => 4,
        Table::History => 5,
        Table::Mailbox => 6,
    }
}

pub fn table_from_number(number: u32) -> Option<Table> {
    Table::ALL.into_iter().find(|table| u32::from(table_number(*table)) == number)
}
