//! What a real store does when its disk lies: flipped bits, cut files, failed fsyncs, no room, crashes in the middle.
//!
//! Each test damages the files of a closed store, or the calls of an open one. Files of an open store that are copied
//! are what a killed process leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tempfile::TempDir;

use super::conformance::{ALL, group, key, put, scan, sync, write};
use super::{
    Batch, Chunk, Error, Fence, Order, RocksStorage, Settings, Storage, Table, Write, import,
};

const RECORDS: u32 = 2_000;

fn settings(folder: &Path) -> Settings {
    Settings { reserve_bytes: Some(0), ..Settings::new(folder.to_owned()) }
}

fn open(folder: &Path) -> Result<RocksStorage, Error> {
    RocksStorage::open(settings(folder))
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// What is in a folder, as a process leaves it that is killed now.
fn killed(from: &Path) -> TempDir {
    let to = temporary();
    copy(from, to.path());
    to
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("a new folder");
            copy(&entry.path(), &target);
        } else if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), target).expect("readable");
        }
    }
}

/// The largest file of a kind.
fn file(folder: &Path, extension: &str) -> PathBuf {
    let files = fs::read_dir(folder.join("db")).expect("a folder");
    let files = files.map(|entry| entry.expect("readable").path());
    let of_kind = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    of_kind.max_by_key(|path| path.metadata().expect("readable").len()).expect("there is one")
}

fn flip_a_bit_in_the_middle(path: &Path) {
    let mut bytes = fs::read(path).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).expect("writable");
}

fn cut(path: &Path, to: impl Fn(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("writable");
    let length = file.metadata().expect("readable").len();
    file.set_len(to(length)).expect("writable");
}

/// A killed store with so many synced records in its write-ahead log.
async fn with_a_full_log() -> TempDir {
    let folder = temporary();
    let storage = open(folder.path()).expect("a new store");
    for number in 0..RECORDS {
        write(
            &storage,
            vec![put(Table::Log, 1, &format!("{number:06}"), "some bytes of an entry")],
        );
    }
    sync(&storage).await.expect("the store works");
    killed(folder.path())
}

fn count(storage: &RocksStorage, table: Table) -> Result<usize, Error> {
    Ok(scan(storage, table, key(1, "")..key(2, ""))?.len())
}

#[tokio::test]
async fn a_killed_store_opens_with_everything() {
    let folder = with_a_full_log().await;
    let storage = open(folder.path()).expect("the store opens");
    assert_eq!(count(&storage, Table::Log), Ok(RECORDS as usize));
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_detected_and_refused() {
    let folder = with_a_full_log().await;
    flip_a_bit_in_the_middle(&file(folder.path(), "log"));
    let opened = open(folder.path());
    assert!(matches!(opened, Err(Error::Corrupt { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_torn_last_record_is_an_ordinary_crash() {
    let folder = with_a_full_log().await;
    cut(&file(folder.path(), "log"), |length| length - 3);
    let storage = open(folder.path()).expect("the store opens");
    assert_eq!(count(&storage, Table::Log), Ok(RECORDS as usize - 1));
}

#[tokio::test]
async fn a_flipped_bit_in_a_file_is_an_error_and_never_a_short_answer() {
    let folder = temporary();
    let storage = open(folder.path()).expect("a new store");
    for number in 0..20_000 {
        let (name, value) = (format!("{number:06}"), format!("{:064}", number * 7919));
        write(&storage, vec![put(Table::Device, 1, &name, &value)]);
    }
    drop(storage);
    // Opening what a crash left behind flushes it into a file.
    drop(open(folder.path()).expect("the store opens"));
    flip_a_bit_in_the_middle(&file(folder.path(), "sst"));

    let storage = open(folder.path()).expect("data is read when it is asked for");
    for order in [Order::Ascending, Order::Descending] {
        let found = storage.scan(Table::Device, key(1, "")..key(2, ""), order, ALL);
        assert!(
            matches!(found, Err(Error::Corrupt { .. })),
            "{} records",
            found.map_or(0, |f| f.len())
        );
    }
    let damaged = (0..20_000)
        .filter(|number| {
            let got = storage.get(Table::Device, &key(1, &format!("{number:06}")));
            assert!(matches!(got, Ok(Some(_)) | Err(Error::Corrupt { .. })), "{got:?}");
            got.is_err()
        })
        .count();
    assert!(damaged > 0);
    let mut export = storage.export(group(1), 4096).expect("its group record is whole");
    let mut failed = false;
    while let Some(chunk) = export.chunks.recv().await {
        failed |= chunk.is_err();
    }
    assert!(failed, "an export left out what it could not read");
}

#[tokio::test]
async fn after_a_failed_fsync_nothing_is_answered_any_more() {
    let folder = temporary();
    let broken = Arc::new(AtomicBool::new(false));
    let storage = {
        let broken = Arc::clone(&broken);
        RocksStorage::open_with(settings(folder.path()), move |_| {
            Box::new(move || {
                if broken.load(Ordering::SeqCst) {
                    Err(Error::Io { what: "fsync: input/output error".into() })
                } else {
                    Ok(())
                }
            })
        })
        .expect("a new store")
    };
    write(&storage, vec![put(Table::Log, 1, "a", "1")]);
    sync(&storage).await.expect("the disk works");
    broken.store(true, Ordering::SeqCst);
    write(&storage, vec![put(Table::Log, 1, "b", "1")]);
    assert!(sync(&storage).await.is_err());
    broken.store(false, Ordering::SeqCst);
    assert!(sync(&storage).await.is_err(), "a second fsync would lie");
    assert!(storage.write(Batch::default()).is_err());
    assert!(storage.get(Table::Log, &key(1, "a")).is_err());
    assert!(storage.write_fence_now(group(1), Fence::default()).is_err());
}

#[test]
fn a_full_disk_is_reported_and_takes_no_snapshot() {
    let folder = temporary();
    let reserve_bytes = Some(u64::MAX);
    let settings = Settings { reserve_bytes, ..Settings::new(folder.path().to_owned()) };
    let storage = RocksStorage::open(settings).expect("a new store");
    assert!(storage.usage().expect("the folder is there").is_full());
    assert!(matches!(storage.import(group(1)).err(), Some(Error::Full { .. })));
    // What is under way must still be stored: whoever proposes new data asks for the usage before.
    write(&storage, vec![put(Table::Log, 1, "a", "1")]);
}

#[tokio::test]
async fn a_store_without_its_fence_is_refused() {
    let folder = with_a_full_log().await;
    fs::remove_file(folder.path().join("fence")).expect("it was there");
    let opened = open(folder.path());
    assert!(matches!(opened, Err(Error::Corrupt { .. })), "{opened:?}");
}

/// A group with old records and a snapshot of new ones that is about to be finished.
fn with_an_import(folder: &Path) -> (RocksStorage, Box<import::SstImport>) {
    let storage = open(folder).expect("a new store");
    for table in Table::APPLIED {
        write(&storage, vec![put(table, 1, "old", "1")]);
    }
    log_to_disk(&storage);
    let folder = import::folder(folder);
    let database = storage.database();
    let mut import = import::SstImport::begin(database, &folder, group(1)).expect("there is room");
    for table in Table::APPLIED {
        let records = vec![(key(1, "new").into(), Bytes::from_static(b"1"))];
        super::Import::add(&mut import, Chunk { table, records }).expect("in order");
    }
    (storage, Box::new(import))
}

fn log_to_disk(storage: &RocksStorage) {
    storage.database().db().flush_wal(true).expect("the disk works");
}

fn names_of_group(storage: &RocksStorage) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for table in Table::APPLIED {
        let found = scan(storage, table, key(1, "")..key(2, "")).expect("readable");
        names.extend(found.into_iter().map(|(key, _)| key[4..].to_vec()));
    }
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_replica_receives_goes_to_the_last_level_and_is_not_compacted_again() {
    let folder = temporary();
    let storage = open(folder.path()).expect("a new store");
    write(&storage, vec![put(Table::Stream, 2, "of a neighbour", "1")]);
    let mut import = storage.import(group(1)).expect("there is room");
    let records = vec![(key(1, "new").into(), Bytes::from_static(b"1"))];
    import.add(Chunk { table: Table::Stream, records }).expect("in order");
    import.finish().expect("the store works");
    let (database, family) = (storage.database(), Table::Stream);
    let files = |level: u32| {
        let name = format!("rocksdb.num-files-at-level{level}");
        let files = database.db().property_int_value_cf(database.family(family), &name);
        files.expect("a property of RocksDB").expect("a number")
    };
    assert_eq!((0..7).map(files).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_crash_before_an_import_is_complete_leaves_the_old_records() {
    let folder = temporary();
    let (_storage, _import) = with_an_import(folder.path());
    let crashed = killed(folder.path());
    let storage = open(crashed.path()).expect("the store opens");
    assert_eq!(names_of_group(&storage), [b"old"]);
    let imports = fs::read_dir(import::folder(crashed.path())).expect("a folder");
    assert_eq!(imports.count(), 0, "what was received stays behind");
}

#[test]
fn a_crash_after_an_import_is_complete_leaves_the_new_records() {
    let folder = temporary();
    let (storage, mut import) = with_an_import(folder.path());
    import.complete().expect("the disk works");
    // It had got as far as clearing some of the old records.
    let range = key(1, "")..key(2, "");
    for table in [Table::Group, Table::Twin] {
        write(&storage, vec![Write::DeleteRange { table, range: range.clone() }]);
    }
    log_to_disk(&storage);
    let crashed = killed(folder.path());
    for _ in 0..2 {
        let storage = open(crashed.path()).expect("the store opens");
        assert_eq!(names_of_group(&storage), [b"new"]);
    }
}
