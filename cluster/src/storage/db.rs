//! RocksDB behind the [`Storage`] trait: one a node, shared by all its groups.
//!
//! A write goes into RocksDB's log without an fsync, by its caller's own thread; the [commit thread](super::commit) makes
//! all of them durable together. RocksDB flushes what it replays when it opens, so what a store opens with is durable.
//! This is the only part of the program with threads of its own beside the runtime's.
//!
//! In the folder: `db` is RocksDB's, `fence` the [fence file](super::fence), `imports` has snapshots that are being
//! received.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use drover_core::ids::GroupId;
use rocksdb::{ColumnFamily, DB, ErrorKind, ReadOptions, WriteBatch};

use super::commit::{Commit, Flush};
use super::failure::Failure;
use super::fence::{FenceFile, sync_folder};
use super::tuning::{self, Settings};
use super::usage::FreeSpace;
use super::{
    Batch, Error, Export, Fence, Import, OnDurable, Order, Record, ScanLimit, Storage, Table,
    Usage, Write, export, import,
};

/// A node's store.
pub struct RocksStorage {
    // Dropped in this order: what waits for an fsync is answered while the database is open.
    commit: Commit,
    fence: FenceFile,
    database: Arc<Database>,
    free_space: FreeSpace,
    settings: Settings,
}

/// RocksDB, with errors in our terms.
pub(super) struct Database {
    db: DB,
    failure: Failure,
}

impl fmt::Debug for RocksStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RocksStorage({})", self.settings.folder.display())
    }
}

impl RocksStorage {
    /// Opens the store in `settings.folder`, or makes a new one there.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        Self::open_with(settings, |database| {
            Box::new(move || database.db.flush_wal(true).map_err(|error| of_rocksdb(&error)))
        })
    }

    /// `flush` makes what the commit thread calls; tests put a failing disk there.
    pub(super) fn open_with(
        settings: Settings,
        flush: impl FnOnce(Arc<Database>) -> Flush,
    ) -> Result<Self, Error> {
        let failure = Failure::default();
        let fence_path = settings.folder.join("fence");
        let db_path = settings.folder.join("db");
        create_folder(&settings.folder)?;
        // The fence first: a store without one is taken for damaged.
        if !db_path.join("CURRENT").exists() && !fence_path.exists() {
            FenceFile::create(&fence_path)?;
        }
        let fence = FenceFile::open(&fence_path, failure.clone())?;
        let db = DB::open_cf_descriptors(
            &tuning::database(&settings),
            &db_path,
            tuning::tables(&settings),
        )
        .map_err(|error| of_rocksdb(&error))?;
        let database = Arc::new(Database { db, failure: failure.clone() });
        import::recover(&database, &import::folder(&settings.folder))?;
        let commit = Commit::start(flush(Arc::clone(&database)), failure)?;
        let free_space = FreeSpace::new(settings.folder.clone(), settings.reserve_bytes);
        Ok(Self { commit, fence, database, free_space, settings })
    }

    #[cfg(test)]
    pub(super) fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database)
    }
}

impl Storage for RocksStorage {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.database.failure.check()?;
        let family = self.database.family(table);
        let found = self.database.db.get_cf_opt(family, key, &tuning::checked());
        Ok(found.map_err(|error| of_rocksdb(&error))?.map(Bytes::from))
    }

    fn scan(
        &self,
        table: Table,
        range: Range<Vec<u8>>,
        order: Order,
        limit: ScanLimit,
    ) -> Result<Vec<Record>, Error> {
        self.database.failure.check()?;
        let family = self.database.family(table);
        let options = bounded(range);
        scan(self.database.db.raw_iterator_cf_opt(family, options), order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), Error> {
        self.database.write(batch, &tuning::unsynced())
    }

    fn sync(&self, done: OnDurable) {
        self.commit.sync(done);
    }

    fn fences(&self) -> Result<Vec<(GroupId, Fence)>, Error> {
        self.database.failure.check()?;
        Ok(self.fence.fences())
    }

    fn write_fence(&self, group: GroupId, fence: Fence) {
        self.fence.note(group, fence);
    }

    fn write_fence_now(&self, group: GroupId, fence: Fence) -> Result<(), Error> {
        self.database.failure.check()?;
        self.fence.write_now(group, fence).map_err(|error| self.database.failure.note(error))
    }

    fn export(&self, group: GroupId, chunk_bytes: usize) -> Result<Export, Error> {
        self.database.failure.check()?;
        export::start(Arc::clone(&self.database), group, chunk_bytes)
    }

    /// Refused while the disk is full: a snapshot can be asked for again when there is room.
    fn import(&self, group: GroupId) -> Result<Box<dyn Import>, Error> {
        self.database.failure.check()?;
        let usage = self.free_space.usage()?;
        if usage.is_full() {
            let Usage { free_bytes, reserve_bytes } = usage;
            return Err(Error::Full { free_bytes, reserve_bytes });
        }
        let folder = import::folder(&self.settings.folder);
        let import = import::SstImport::begin(Arc::clone(&self.database), &folder, group)?;
        Ok(Box::new(import))
    }

    fn usage(&self) -> Result<Usage, Error> {
        self.free_space.usage()
    }
}

impl Database {
    pub(super) fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(tuning::name(table)).expect("every table is opened with the database")
    }

    pub(super) fn db(&self) -> &DB {
        &self.db
    }

    pub(super) fn note(&self, error: Error) -> Error {
        self.failure.note(error)
    }

    pub(super) fn write(&self, batch: Batch, options: &rocksdb::WriteOptions) -> Result<(), Error> {
        self.failure.check()?;
        let mut writes = WriteBatch::default();
        for write in batch.writes {
            match write {
                Write::Put { table, key, value } => writes.put_cf(self.family(table), key, value),
                Write::Delete { table, key } => writes.delete_cf(self.family(table), key),
                Write::DeleteRange { table, range } if range.start < range.end => {
                    writes.delete_range_cf(self.family(table), range.start, range.end);
                }
                Write::DeleteRange { .. } => {} // empty: RocksDB would refuse the whole batch
            }
        }
        self.db.write_opt(writes, options).map_err(|error| self.note(of_rocksdb(&error)))
    }
}

/// Reads a range that the iterator is bounded to, and then asks whether it ended for want of records or of a readable
/// block: an iterator that meets a damaged one just ends.
pub(super) fn scan(
    mut records: rocksdb::DBRawIterator<'_>,
    order: Order,
    limit: ScanLimit,
) -> Result<Vec<Record>, Error> {
    match order {
        Order::Ascending => records.seek_to_first(),
        Order::Descending => records.seek_to_last(),
    }
    let mut found = Vec::new();
    let mut bytes = 0;
    while found.len() < limit.records
        && bytes < limit.bytes
        && let Some((key, value)) = records.item()
    {
        bytes += key.len() + value.len();
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        match order {
            Order::Ascending => records.next(),
            Order::Descending => records.prev(),
        }
    }
    records.status().map_err(|error| of_rocksdb(&error))?;
    Ok(found)
}

pub(super) fn bounded(range: Range<Vec<u8>>) -> ReadOptions {
    let mut options = tuning::checked();
    options.set_iterate_lower_bound(range.start);
    options.set_iterate_upper_bound(range.end);
    options
}

pub(super) fn of_rocksdb(error: &rocksdb::Error) -> Error {
    let what = error.to_string();
    match error.kind() {
        ErrorKind::Corruption => Error::Corrupt { what },
        ErrorKind::NotFound
        | ErrorKind::NotSupported
        | ErrorKind::InvalidArgument
        | ErrorKind::IOError
        | ErrorKind::MergeInProgress
        | ErrorKind::Incomplete
        | ErrorKind::ShutdownInProgress
        | ErrorKind::TimedOut
        | ErrorKind::Aborted
        | ErrorKind::Busy
        | ErrorKind::Expired
        | ErrorKind::TryAgain
        | ErrorKind::CompactionTooLarge
        | ErrorKind::ColumnFamilyDropped
        | ErrorKind::Unknown => Error::Io { what },
    }
}

pub(super) fn of_file(path: &Path, error: &io::Error) -> Error {
    Error::Io { what: format!("{}: {error}", path.display()) }
}

fn create_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|error| of_file(folder, &error))?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) => sync_folder(parent).map_err(|error| of_file(parent, &error)),
        None => Ok(()),
    }
}
