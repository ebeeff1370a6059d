//! openraft's own storage suite, and ours for logs, on RocksDB and on the simulated disk.

use std::sync::Arc;

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId, ReplicaId};
use futures::StreamExt;
use openraft::StorageError;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::log::{StoreBuilder, Suite};
use prost::Message as _;
use tempfile::TempDir;

use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::types::{
    Entry, EntryPayload, LeaderId, Proposal, TypeConfig, Vote, log_id, vote_to_record,
};
use crate::storage::simulated::{Behaviour, SimulatedDisk};
use crate::storage::{Batch, Error, RocksStorage, Settings, Storage, Table, Write, keys};

const DISK: Behaviour = Behaviour { sync_us_max: 3_000, failing_syncs_per_mille: 0 };

fn group() -> GroupId {
    GroupId::from_number(1).expect("a legal group")
}

fn stores(storage: Arc<dyn Storage>) -> (LogStore, StateMachine) {
    let log = LogStore::open(Arc::clone(&storage), group()).expect("an empty log");
    let (machine, _view) = StateMachine::open(storage, group()).expect("an empty group");
    (log, machine)
}

struct OnRocksDb;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for OnRocksDb {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (log, machine) = stores(Arc::new(rocksdb(&folder)));
        Ok((folder, log, machine))
    }
}

struct OnSimulatedDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, ()> for OnSimulatedDisk {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<TypeConfig>> {
        let (log, machine) = stores(Arc::new(SimulatedDisk::new(1, DISK).open()));
        Ok(((), log, machine))
    }
}

fn rocksdb(folder: &TempDir) -> RocksStorage {
    let settings = Settings { reserve_bytes: Some(0), ..Settings::new(folder.path().to_owned()) };
    RocksStorage::open(settings).expect("the store opens")
}

#[tokio::test]
async fn rocksdb_passes_openrafts_suite() {
    Suite::test_all(OnRocksDb).await.expect("it conforms");
}

#[tokio::test(start_paused = true)]
async fn the_simulated_disk_passes_openrafts_suite() {
    Suite::test_all(OnSimulatedDisk).await.expect("it conforms");
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let proposal = Proposal(Bytes::from(vec![index as u8; bytes]));
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(proposal) }
}

fn vote(term: u64) -> Vote {
    let leader_id = LeaderId { term, voted_for: ReplicaId::first(NodeId::new(1, 0)) };
    Vote { leader_id, committed: true }
}

async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<_> = entries.into_iter().collect();
    log.blocking_append(entries).await.expect("the store works");
}

/// Closes a store. Requests before this one may hold a handle of it until they were answered.
async fn stop(log: LogStore, storage: Arc<RocksStorage>) {
    let (done, answered) = tokio::sync::oneshot::channel();
    storage.sync(Box::new(move |result| drop(done.send(result))));
    answered.await.expect("every sync is answered").expect("the store works");
    drop(log);
    assert_eq!(Arc::strong_count(&storage), 1);
}

/// Opens the log of a store again as a node does that has started again.
fn reopen(storage: &Arc<RocksStorage>) -> Result<LogStore, Error> {
    let storage: Arc<dyn Storage> = Arc::clone(storage) as Arc<dyn Storage>;
    LogStore::open(storage, group())
}

#[tokio::test]
async fn a_log_longer_than_its_tail_is_read_whole_and_in_pieces() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut log = reopen(&Arc::new(rocksdb(&folder))).expect("an empty log");
    for first in (1..=2_000).step_by(50) {
        append(&mut log, (first..first + 50).map(|index| entry(1, index, 4_000))).await;
    }
    log.purge(log_id(1, 100)).await.expect("the store works");
    let read = log.try_get_log_entries(1..=2_000).await.expect("readable");
    assert_eq!(read.len(), 1_900);
    assert_eq!(read.last(), Some(&entry(1, 2_000, 4_000)));
    let limited = log.limited_get_log_entries(150, 2_001).await.expect("readable");
    assert!((1..1_000).contains(&limited.len()), "{} of 8 MB at once", limited.len());
    let streamed: Vec<_> = log.entries_stream(101..2_001).await.collect().await;
    assert_eq!(streamed.len(), 1_900);
    assert!(streamed.into_iter().map(|entry| entry.expect("readable")).eq(read));
}

#[tokio::test]
async fn an_entry_that_the_store_has_lost_is_an_error_and_not_a_short_answer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let storage = Arc::new(rocksdb(&folder));
    let mut log = reopen(&storage).expect("an empty log");
    append(&mut log, (1..=20).map(|index| entry(1, index, 10))).await;
    for index in [1, 10] {
        let mut log = reopen(&storage).expect("the log is as it was");
        let key = [&keys::prefix(group())[..], &[1], &u64::to_be_bytes(index)].concat();
        let before = storage.get(Table::Log, &key).expect("readable").expect("it is there");
        let lost = Write::Delete { table: Table::Log, key: key.clone() };
        storage.write(Batch { writes: vec![lost] }).expect("the store works");
        assert!(log.try_get_log_entries(1..21).await.is_err(), "entry {index}");
        assert!(log.limited_get_log_entries(1, 21).await.is_err(), "entry {index}");
        let back = Write::Put { table: Table::Log, key, value: before };
        storage.write(Batch { writes: vec![back] }).expect("the store works");
        assert_eq!(log.try_get_log_entries(1..21).await.expect("readable").len(), 20);
    }
}

/// The folder as it is after the node was stopped, and what the log held then.
async fn stopped_node() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let storage = Arc::new(rocksdb(&folder));
    let mut log = reopen(&storage).expect("an empty log");
    log.save_vote(&vote(3)).await.expect("the store works");
    append(&mut log, (1..=20).map(|index| entry(3, index, 10))).await;
    stop(log, storage).await;
    folder
}

/// Deletes what a cut write-ahead log would lose, behind the back of the log store.
fn forget(folder: &TempDir, key: &[u8]) -> Result<LogStore, Error> {
    let storage = Arc::new(rocksdb(folder));
    let key = [&keys::prefix(group())[..], key].concat();
    let lost = Write::Delete { table: Table::Log, key };
    storage.write(Batch { writes: vec![lost] })?;
    reopen(&storage)
}

#[tokio::test]
async fn a_log_that_has_lost_an_acknowledged_entry_is_amnesia() {
    let folder = stopped_node().await;
    let last = [&[1][..], &20_u64.to_be_bytes()].concat();
    let opened = forget(&folder, &last);
    assert!(matches!(opened, Err(Error::Amnesia { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_log_that_has_lost_its_vote_is_amnesia() {
    let folder = stopped_node().await;
    let opened = forget(&folder, &[0, 0]);
    assert!(matches!(opened, Err(Error::Amnesia { .. })), "{opened:?}");
}

/// The fence is written behind, so a process may end between the two.
#[tokio::test]
async fn a_vote_that_gave_way_to_the_leader_of_its_term_is_no_amnesia_and_any_other_is() {
    for (committed, is_sound) in [(true, true), (false, false)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Arc::new(rocksdb(&folder));
        let mut log = reopen(&storage).expect("an empty log");
        let stood = Vote { committed: false, ..vote(4) };
        log.save_vote(&stood).await.expect("the store works");
        stop(log, storage).await;
        let storage = Arc::new(rocksdb(&folder));
        let voted_for = ReplicaId::first(NodeId::new(2, 0));
        let found = Vote { leader_id: LeaderId { term: 4, voted_for }, committed };
        let key = [&keys::prefix(group())[..], &[0, 0]].concat();
        let value = vote_to_record(&found).encode_to_vec().into();
        let put = Write::Put { table: Table::Log, key, value };
        storage.write(Batch { writes: vec![put] }).expect("the store works");
        let opened = reopen(&storage);
        assert_eq!(opened.is_ok(), is_sound, "{opened:?}");
    }
}

/// RocksDB opens such a store without complaint, with what was written before the cut.
#[tokio::test]
async fn a_write_ahead_log_that_was_cut_short_is_amnesia() {
    let folder = stopped_node().await;
    let files = std::fs::read_dir(folder.path().join("db")).expect("a folder");
    let files = files.map(|entry| entry.expect("readable").path());
    let log = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let length = |path: &std::path::PathBuf| path.metadata().expect("readable").len();
    let log = log.max_by_key(length).expect("there is one");
    let file = std::fs::OpenOptions::new().write(true).open(&log).expect("writable");
    file.set_len(length(&log) / 2).expect("writable");
    let opened = reopen(&Arc::new(rocksdb(&folder)));
    assert!(matches!(opened, Err(Error::Amnesia { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_log_cut_on_purpose_is_no_amnesia() {
    let folder = stopped_node().await;
    let storage = Arc::new(rocksdb(&folder));
    let mut log = reopen(&storage).expect("the log is as it was");
    log.truncate_after(Some(log_id(3, 5))).await.expect("the store works");
    append(&mut log, [entry(4, 6, 10)]).await;
    let read = log.try_get_log_entries(..).await.expect("readable");
    assert_eq!(read.last(), Some(&entry(4, 6, 10)));
    assert_eq!(read.len(), 6);
    stop(log, storage).await;
    let mut log = reopen(&Arc::new(rocksdb(&folder))).expect("its fence was lowered first");
    let state = log.get_log_state().await.expect("readable");
    assert_eq!(state.last_log_id, Some(log_id(4, 6)));
    assert_eq!(log.read_vote().await.expect("readable"), Some(vote(3)));
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_survives_every_crash() {
    for seed in 0..100 {
        let disk = SimulatedDisk::new(seed, DISK);
        let open = || LogStore::open(Arc::new(disk.open()), group());
        let mut log = open().expect("an empty log");
        log.save_vote(&vote(2)).await.expect("the disk works");
        append(&mut log, (1..=seed).map(|index| entry(2, index, 10))).await;
        let unacknowledged = (seed + 1..seed + 4).map(|index| entry(2, index, 10));
        log.append(unacknowledged, openraft::storage::IOFlushed::noop()).await.expect("it works");
        disk.crash();
        let mut log = open().expect("nothing that was acknowledged is lost");
        let last = log.get_log_state().await.expect("readable").last_log_id;
        assert!(last.map_or(0, |id| id.index) >= seed, "seed {seed}: {last:?}");
        assert_eq!(log.read_vote().await.expect("readable"), Some(vote(2)));
    }
}
