//! What every implementation of [`Storage`] must do. One suite, run on each of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use drover_core::ids::GroupId;

use super::simulated::{Behaviour, SimulatedDisk};
use super::{
    Batch, Chunk, Error, Fence, Order, Record, RocksStorage, ScanLimit, Settings, Storage, Table,
    Write,
};

pub(super) const ALL: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };

pub(super) fn group(number: u32) -> GroupId {
    GroupId::from_number(number).expect("a legal group")
}

pub(super) fn key(group: u32, name: &str) -> Vec<u8> {
    [&group.to_be_bytes(), name.as_bytes()].concat()
}

pub(super) fn put(table: Table, group: u32, name: &str, value: &str) -> Write {
    Write::Put { table, key: key(group, name), value: Bytes::copy_from_slice(value.as_bytes()) }
}

pub(super) fn write(storage: &dyn Storage, writes: Vec<Write>) {
    storage.write(Batch { writes }).expect("the store works");
}

pub(super) fn scan(
    storage: &dyn Storage,
    table: Table,
    range: Range<Vec<u8>>,
) -> Result<Vec<Record>, Error> {
    storage.scan(table, range, Order::Ascending, ALL)
}

/// The names of a group's records in a table.
fn names(storage: &dyn Storage, table: Table, group: u32) -> Vec<String> {
    let records = scan(storage, table, key(group, "")..key(group + 1, "")).expect("readable");
    records.iter().map(|(key, _)| String::from_utf8_lossy(&key[4..]).into_owned()).collect()
}

/// Waits for a sync, which must be answered by the store itself.
pub(super) async fn sync(storage: &dyn Storage) -> Result<(), Error> {
    let (done, answered) = tokio::sync::oneshot::channel();
    storage.sync(Box::new(move |result| drop(done.send(result))));
    answered.await.expect("every sync is answered")
}

fn a_batch_is_visible_at_once_and_replaces_what_was_there(storage: &dyn Storage) {
    write(storage, vec![put(Table::Device, 1, "a", "1"), put(Table::Twin, 1, "a", "2")]);
    write(
        storage,
        vec![
            put(Table::Device, 1, "a", "3"),
            Write::Delete { table: Table::Twin, key: key(1, "a") },
            put(Table::Device, 1, "b", "4"),
        ],
    );
    let get = |table, name| storage.get(table, &key(1, name)).expect("readable");
    assert_eq!(get(Table::Device, "a"), Some(Bytes::from_static(b"3")));
    assert_eq!(get(Table::Device, "b"), Some(Bytes::from_static(b"4")));
    assert_eq!(get(Table::Twin, "a"), None);
    assert_eq!(get(Table::Log, "a"), None, "tables are apart");
}

fn writes_of_a_batch_take_effect_in_order(storage: &dyn Storage) {
    let everything = key(2, "")..key(3, "");
    write(storage, vec![put(Table::Log, 2, "old", "1"), put(Table::Log, 3, "other", "1")]);
    write(
        storage,
        vec![
            put(Table::Log, 2, "before", "1"),
            Write::DeleteRange { table: Table::Log, range: everything },
            put(Table::Log, 2, "after", "1"),
            Write::DeleteRange { table: Table::Log, range: key(2, "z")..key(2, "a") },
        ],
    );
    assert_eq!(names(storage, Table::Log, 2), ["after"]);
    assert_eq!(names(storage, Table::Log, 3), ["other"]);
}

fn a_scan_keeps_to_its_range_its_order_and_its_limits(storage: &dyn Storage) {
    for name in ["a", "b", "c", "d", "e"] {
        write(storage, vec![put(Table::Stream, 4, name, "0123456789")]);
    }
    let scan = |range: Range<&str>, order, limit| -> Vec<String> {
        let range = key(4, range.start)..key(4, range.end);
        let records = storage.scan(Table::Stream, range, order, limit).expect("readable");
        records.iter().map(|(key, _)| String::from_utf8_lossy(&key[4..]).into_owned()).collect()
    };
    assert_eq!(scan("b".."d", Order::Ascending, ALL), ["b", "c"]);
    assert_eq!(scan("b".."d", Order::Descending, ALL), ["c", "b"]);
    assert_eq!(scan("d".."b", Order::Ascending, ALL), [""; 0]);
    let two = ScanLimit { records: 2, bytes: usize::MAX };
    assert_eq!(scan("a".."z", Order::Ascending, two), ["a", "b"]);
    assert_eq!(scan("a".."z", Order::Descending, two), ["e", "d"]);
    // A record has 15 bytes: the second one reaches the limit and is the last.
    let some = ScanLimit { records: usize::MAX, bytes: 16 };
    assert_eq!(scan("a".."z", Order::Ascending, some), ["a", "b"]);
}

async fn syncs_are_answered_in_the_order_of_the_calls(storage: &dyn Storage) {
    let (answer, answers) = mpsc::channel();
    for number in 0..100 {
        write(storage, vec![put(Table::Log, 5, "n", &number.to_string())]);
        let answer = answer.clone();
        storage.sync(Box::new(move |result| {
            result.expect("the store works");
            answer.send(number).expect("the test waits");
        }));
    }
    sync(storage).await.expect("the store works");
    drop(answer);
    assert_eq!(answers.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
}

async fn an_export_is_the_state_of_its_moment_and_an_import_replaces_all_of_a_group(
    storage: &dyn Storage,
) {
    let applied = Table::APPLIED;
    for table in applied {
        write(storage, vec![put(table, 6, "kept", "1"), put(table, 8, "neighbour", "1")]);
        write(storage, vec![put(table, 7, "replaced", "1")]);
    }
    write(storage, vec![put(Table::Log, 6, "log", "1"), put(Table::Log, 7, "log", "1")]);
    for number in 0..500 {
        write(storage, vec![put(Table::Stream, 6, &format!("{number:04}"), "0123456789")]);
    }
    let mut export = storage.export(group(6), 512).expect("the store works");
    for table in applied {
        write(storage, vec![put(table, 6, "later", "1")]);
    }
    assert_eq!(export.group, [(key(6, "kept").into(), Bytes::from_static(b"1"))]);
    let mut import = storage.import(group(7)).expect("there is room");
    let mut chunks = 0;
    while let Some(chunk) = export.chunks.recv().await {
        let Chunk { table, records } = chunk.expect("readable");
        let moved =
            |(key, value): Record| ([&7_u32.to_be_bytes(), &key[4..]].concat().into(), value);
        let records = records.into_iter().map(moved).collect();
        import.add(Chunk { table, records }).expect("in order");
        chunks += 1;
    }
    assert!(chunks > 10, "500 records came in {chunks} chunks of 512 bytes");
    assert_eq!(names(storage, Table::Device, 7), ["replaced"], "visible before it is finished");
    import.finish().expect("the store works");
    for table in applied {
        let found = names(storage, table, 7);
        assert!(!found.contains(&"replaced".into()) && !found.contains(&"later".into()));
        assert_eq!(found.last().map(String::as_str), Some("kept"), "{table:?}");
        assert_eq!(names(storage, table, 8), ["neighbour"], "{table:?}");
    }
    assert_eq!(names(storage, Table::Stream, 7).len(), 501);
    assert_eq!(names(storage, Table::Log, 7), ["log"], "the log is no part of a snapshot");
}

fn an_import_of_another_groups_records_is_refused(storage: &dyn Storage) {
    let mut import = storage.import(group(9)).expect("there is room");
    let records = vec![(key(10, "a").into(), Bytes::new())];
    assert!(import.add(Chunk { table: Table::Device, records }).is_err());
}

fn an_import_that_is_dropped_changes_nothing(storage: &dyn Storage) {
    write(storage, vec![put(Table::Device, 11, "kept", "1")]);
    let mut import = storage.import(group(11)).expect("there is room");
    let records = vec![(key(11, "new").into(), Bytes::new())];
    import.add(Chunk { table: Table::Device, records }).expect("in order");
    drop(import);
    assert_eq!(names(storage, Table::Device, 11), ["kept"]);
}

pub(super) async fn check(storage: &dyn Storage) {
    a_batch_is_visible_at_once_and_replaces_what_was_there(storage);
    writes_of_a_batch_take_effect_in_order(storage);
    a_scan_keeps_to_its_range_its_order_and_its_limits(storage);
    syncs_are_answered_in_the_order_of_the_calls(storage).await;
    an_export_is_the_state_of_its_moment_and_an_import_replaces_all_of_a_group(storage).await;
    an_import_of_another_groups_records_is_refused(storage);
    an_import_that_is_dropped_changes_nothing(storage);
}

/// What must hold when a node comes back: `open` opens the same store again.
async fn check_reopening(open: impl Fn() -> Arc<dyn Storage>) {
    let fence = |last_index| Fence { last_term: 1, last_index, vote_term: 2, vote_node: 3 };
    let storage = open();
    write(&*storage, vec![put(Table::Log, 1, "entry", "1")]);
    sync(&*storage).await.expect("the store works");
    storage.write_fence(group(1), fence(9));
    storage.write_fence_now(group(2), fence(5)).expect("the store works");
    drop(storage);
    let storage = open();
    assert_eq!(names(&*storage, Table::Log, 1), ["entry"]);
    let fences = storage.fences().expect("readable");
    assert!(fences.contains(&(group(2), fence(5))), "{fences:?}");
}

#[tokio::test]
async fn rocksdb_conforms() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings =
        || Settings { reserve_bytes: Some(0), ..Settings::new(folder.path().to_owned()) };
    check(&RocksStorage::open(settings()).expect("a new store")).await;
    check_reopening(|| Arc::new(RocksStorage::open(settings()).expect("the store opens"))).await;
}

#[tokio::test(start_paused = true)]
async fn the_simulated_disk_conforms() {
    let disk = SimulatedDisk::new(7, Behaviour { sync_us_max: 3_000, failing_syncs_per_mille: 0 });
    check(&disk.open()).await;
    check_reopening(|| Arc::new(disk.open())).await;
}
