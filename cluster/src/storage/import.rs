//! Receives a group's applied records as SST files and swaps them in: the receiver's half of a snapshot.
//!
//! Files are written beside the database. When all are complete and durable, a file `complete` is put beside them: from
//! then on the import happens, if need be at the next start. So after a crash a group has its old records or the new
//! ones, never half of them. Taking over is idempotent: clear the group's range, ingest links to the files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use drover_core::ids::GroupId;
use rocksdb::{IngestExternalFileOptions, SstFileWriter};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use super::db::{Database, bounded, of_file, of_rocksdb, scan};
use super::fence::{replace, sync_folder};
use super::{Batch, Chunk, Error, Import, Order, Record, ScanLimit, Table, Write, keys, tuning};

/// How much is gathered before a file is written; the memory that an import takes.
const FILE_BYTES: usize = 8 << 20;
const COMPLETE: &str = "complete";

/// Tells imports of one process apart. Those of an earlier one are gone or taken over when a store opens.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// An import in progress. Dropping it before it is finished discards what was received.
pub(super) struct SstImport {
    database: Arc<Database>,
    group: GroupId,
    folder: PathBuf,
    table: Table,
    gathered: Vec<Record>,
    gathered_bytes: usize,
    files: u32,
    /// It is complete and not taken over yet: its files must stay.
    is_pending: bool,
}

/// Where a store keeps imports.
pub(super) fn folder(store: &Path) -> PathBuf {
    store.join("imports")
}

/// Takes over the imports that were complete when the store was last open, and removes the others.
pub(super) fn recover(database: &Database, imports: &Path) -> Result<(), Error> {
    let found = match fs::read_dir(imports) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(of_file(imports, &error)),
    };
    let mut folders = Vec::new();
    for entry in found {
        folders.push(entry.map_err(|error| of_file(imports, &error))?.path());
    }
    folders.sort();
    for folder in folders {
        if folder.join(COMPLETE).exists() {
            take_over(database, group_of(&folder)?, &folder)?;
        }
        remove(&folder)?;
    }
    Ok(())
}

impl SstImport {
    pub(super) fn begin(
        database: Arc<Database>,
        imports: &Path,
        group: GroupId,
    ) -> Result<Self, Error> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = imports.join(format!("{:04}-{number}", group.number()));
        fs::create_dir_all(&folder).map_err(|error| of_file(&folder, &error))?;
        let table = Table::Group;
        let gathered = Vec::new();
        Ok(Self {
            database,
            group,
            folder,
            table,
            gathered,
            gathered_bytes: 0,
            files: 0,
            is_pending: false,
        })
    }

    /// A record of another group, or out of order, would damage what others have stored.
    fn check(&self, chunk: &Chunk) -> Result<(), Error> {
        let keys = keys::all(self.group);
        let last = (chunk.table == self.table).then(|| self.gathered.last()).flatten();
        let mut last = last.map(|(key, _)| key);
        for (key, _) in &chunk.records {
            if !keys.contains(&key.to_vec()) || last.is_some_and(|last| last >= key) {
                let what = format!(
                    "a snapshot of {} has the key {key:02x?} out of place in {:?}",
                    self.group, chunk.table
                );
                return Err(Error::Corrupt { what });
            }
            last = Some(key);
        }
        if Table::APPLIED.contains(&chunk.table) && chunk.table >= self.table {
            return Ok(());
        }
        let what = format!("a snapshot of {} has {:?} out of place", self.group, chunk.table);
        Err(Error::Corrupt { what })
    }

    fn write_file(&mut self) -> Result<(), Error> {
        if self.gathered.is_empty() { Ok(()) } else { at_length(|| self.write_gathered()) }
    }

    fn write_gathered(&mut self) -> Result<(), Error> {
        let path = self.folder.join(file_name(self.table, self.files));
        let options = tuning::file(self.table);
        let mut writer = SstFileWriter::create(&options);
        let failed = |error: rocksdb::Error| of_rocksdb(&error);
        writer.open(&path).map_err(failed)?;
        for (key, value) in self.gathered.drain(..) {
            writer.put(key, value).map_err(failed)?;
        }
        writer.finish().map_err(failed)?;
        self.gathered_bytes = 0;
        self.files += 1;
        File::open(&path).and_then(|file| file.sync_all()).map_err(|error| of_file(&path, &error))
    }

    /// From here on the import happens.
    pub(super) fn complete(&mut self) -> Result<(), Error> {
        self.write_file()?;
        let imports = self.folder.parent().unwrap_or(&self.folder);
        sync_folder(&self.folder).map_err(|error| of_file(&self.folder, &error))?;
        sync_folder(imports).map_err(|error| of_file(imports, &error))?;
        replace(&self.folder.join(COMPLETE), &[]).map_err(|error| of_file(&self.folder, &error))
    }
}

impl Import for SstImport {
    fn add(&mut self, chunk: Chunk) -> Result<(), Error> {
        self.check(&chunk)?;
        if chunk.table != self.table {
            self.write_file()?;
            self.table = chunk.table;
        }
        for (key, value) in chunk.records {
            self.gathered_bytes += key.len() + value.len();
            self.gathered.push((key, value));
        }
        if self.gathered_bytes >= FILE_BYTES { self.write_file() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<(), Error> {
        at_length(|| self.complete())?;
        self.is_pending = true;
        at_length(|| take_over(&self.database, self.group, &self.folder))
            .map_err(|error| self.database.note(error))?;
        self.is_pending = false;
        Ok(())
    }
}

impl Drop for SstImport {
    fn drop(&mut self) {
        if self.is_pending {
            return; // the next start takes it over
        }
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(group = %self.group, %error, "a received snapshot was not removed");
        }
    }
}

fn take_over(database: &Database, group: GroupId, folder: &Path) -> Result<(), Error> {
    clear(database, group)?;
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(true);
    // The group's records last: where they are, the others are too.
    for table in Table::APPLIED.into_iter().rev() {
        let links = link_files(table, folder)?;
        if !links.is_empty() {
            database
                .db()
                .ingest_external_file_cf_opts(database.family(table), &options, links)
                .map_err(|error| of_rocksdb(&error))?;
        }
    }
    Ok(())
}

/// Removes the group's records where it has any. A tombstone over nothing would be expensive: what is ingested below one goes to
/// the first level and is compacted, else it goes to the last at once and stays there.
fn clear(database: &Database, group: GroupId) -> Result<(), Error> {
    let one = ScanLimit { records: 1, bytes: usize::MAX };
    let mut writes = Vec::new();
    for table in Table::APPLIED {
        let range = keys::all(group);
        let family = database.family(table);
        let records = database.db().raw_iterator_cf_opt(family, bounded(range.clone()));
        if !scan(records, Order::Ascending, one)?.is_empty() {
            writes.push(Write::DeleteRange { table, range });
        }
    }
    if writes.is_empty() {
        return Ok(());
    }
    database.write(Batch { writes }, &tuning::synced())
}

/// Does what takes the disk and a core for long, so that the other tasks of its worker go on elsewhere.
fn at_length<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // There is no other worker, or no runtime at all.
        _ => work(),
    }
}

/// Links for RocksDB to move away, so that the files stay until everything is taken over.
fn link_files(table: Table, folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut links = Vec::new();
    let prefix = format!("{}-", tuning::name(table));
    for entry in fs::read_dir(folder).map_err(|error| of_file(folder, &error))? {
        let file = entry.map_err(|error| of_file(folder, &error))?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_table = file.extension().is_some_and(|extension| extension == "sst");
        if !name.starts_with(&prefix) || !is_table {
            continue;
        }
        let link = file.with_extension("link");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(of_file(&link, &error));
            }
            _ => fs::hard_link(&file, &link).map_err(|error| of_file(&link, &error))?,
        }
        links.push(link);
    }
    Ok(links)
}

/// The mark that it is complete goes first: half of an import must not be taken over.
fn remove(folder: &Path) -> Result<(), Error> {
    let failed = |error: io::Error| of_file(folder, &error);
    match fs::remove_file(folder.join(COMPLETE)) {
        Ok(()) => sync_folder(folder).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    fs::remove_dir_all(folder).map_err(failed)
}

fn file_name(table: Table, number: u32) -> String {
    format!("{}-{number:06}.sst", tuning::name(table))
}

fn group_of(folder: &Path) -> Result<GroupId, Error> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.split('-').next().and_then(|number| number.parse().ok());
    number.and_then(GroupId::from_number).ok_or_else(|| Error::Corrupt {
        what: format!("{} is not the folder of an import", folder.display()),
    })
}
