//! Reads a group's applied records as of one moment, while writes go on: the sender's half of a snapshot.
//!
//! A thread of its own holds RocksDB's snapshot and waits with the channel: a slow receiver costs no memory, and an
//! export that is dropped ends it.

use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;

use drover_core::ids::GroupId;
use rocksdb::Snapshot;
use tokio::sync::mpsc;

use super::db::{Database, bounded, scan};
use super::{Chunk, Error, Export, Order, Record, ScanLimit, Table, keys};

/// Chunks that are read ahead of the network.
const CHUNKS_AHEAD: usize = 4;
/// Most exports wait for the network; their threads need little.
const STACK_BYTES: usize = 256 * 1024;

type GroupRecords = Result<Vec<Record>, Error>;

/// Returns when the view is taken.
pub(super) fn start(
    database: Arc<Database>,
    group: GroupId,
    chunk_bytes: usize,
) -> Result<Export, Error> {
    let (chunks_sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let (taken, view) = std_mpsc::sync_channel(1);
    thread::Builder::new()
        .name("drover-export".into())
        .stack_size(STACK_BYTES)
        .spawn(move || run(&database, group, chunk_bytes, &taken, &chunks_sender))
        .map_err(|error| Error::Io { what: format!("no thread for an export: {error}") })?;
    let lost = |_| Error::Io { what: "the thread of an export panicked".into() };
    let group = view.recv().map_err(lost)??;
    Ok(Export { group, chunks })
}

fn run(
    database: &Database,
    group: GroupId,
    chunk_bytes: usize,
    taken: &std_mpsc::SyncSender<GroupRecords>,
    chunks: &mpsc::Sender<Result<Chunk, Error>>,
) {
    let view = database.db().snapshot();
    let everything = ScanLimit { records: usize::MAX, bytes: usize::MAX };
    let records = read(database, &view, Table::Group, keys::all(group).start, group, everything);
    let is_readable = records.is_ok();
    if taken.send(records).is_err() || !is_readable {
        return;
    }
    let limit = ScanLimit { records: usize::MAX, bytes: chunk_bytes };
    for table in Table::APPLIED {
        let mut from = keys::all(group).start;
        loop {
            let read = read(database, &view, table, from, group, limit);
            let last = read.as_ref().map(|records| records.last().map(|(key, _)| key.to_vec()));
            let last = last.unwrap_or_default();
            let failed = read.is_err();
            let chunk = read.map(|records| Chunk { table, records });
            if last.is_none() && !failed {
                break; // the table has ended, and its last chunk is empty
            }
            let unwanted = chunks.blocking_send(chunk).is_err();
            let Some(mut last) = last.filter(|_| !unwanted) else { return };
            last.push(0);
            from = last;
        }
    }
}

fn read(
    database: &Database,
    view: &Snapshot<'_>,
    table: Table,
    from: Vec<u8>,
    group: GroupId,
    limit: ScanLimit,
) -> GroupRecords {
    let mut options = bounded(from..keys::all(group).end);
    // What is sent once is not worth a place in the cache.
    options.fill_cache(false);
    let records = view.raw_iterator_cf_opt(database.family(table), options);
    scan(records, Order::Ascending, limit)
}
