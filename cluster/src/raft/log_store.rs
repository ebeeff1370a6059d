//! A group's log and vote, as openraft asks for them.
//!
//! An entry is readable when `append` returns and reported as flushed after the covering fsync, which it shares with
//! all groups of the node. What is committed is not stored: a leader of a new term finds it out, and what was applied is
//! stored with the state. Calls that write come from one task (openraft's core), one after the other; readers run
//! beside them. What was acknowledged is noted in the store's fence, so that a log that comes back shorter is found out
//! (I-33).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use drover_core::ids::GroupId;
use drover_core::mutants::{Mutation, is_planted};
use futures::Stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prost::Message as _;
use tokio::sync::oneshot;

use super::log_record::{
    Mark, corrupt, decode, decode_entry, encode_entry, entry_index, entry_key, entry_keys, mark_key,
};
use super::log_tail::Tail;
use super::types::{
    Entry, LogId, TypeConfig, Vote, log_id_from_record, log_id_to_record, vote_from_record,
    vote_to_record,
};
use crate::storage::{Batch, Error, Fence, Order, ScanLimit, Storage, Table, Write};

/// What one read takes from the store at once when it may return less than it was asked for.
const PIECE: ScanLimit = ScanLimit { records: 512, bytes: 1024 * 1024 };
const EVERYTHING: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };
/// A read starts again when the log was cut back meanwhile; that takes a change of leader each time.
const READ_ATTEMPTS_MAX: usize = 16;

/// The log of one group. Clones are readers of the same log.
#[derive(Debug, Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    group: GroupId,
    storage: Arc<dyn Storage>,
    log: Mutex<Log>,
}

/// What is known of the log without reading it. Never locked during an fsync or a scan.
#[derive(Debug, Default)]
struct Log {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// The indexes of the entries that are stored.
    indexes: Range<u64>,
    /// The last entry, or where the log was purged.
    last: Option<LogId>,
    /// The last entry, and the vote, that an fsync covers: what this replica has acknowledged.
    flushed: Option<LogId>,
    flushed_vote: Option<Vote>,
    /// Grows when the log is cut back: what was read or appended before may not be there any more.
    cuts: u64,
    tail: Tail,
}

impl Log {
    fn fence(&self) -> Fence {
        Fence {
            last_term: self.flushed.map_or(0, |id| id.leader_id.term),
            last_index: self.flushed.map_or(0, |id| id.index),
            vote_term: self.flushed_vote.map_or(0, |vote| vote.leader_id.term),
            vote_node: self.flushed_vote.map_or(0, |vote| vote.leader_id.voted_for.to_u64()),
        }
    }

    fn push(&mut self, id: LogId, value: Bytes) {
        if self.indexes.is_empty() {
            self.indexes = id.index..id.index;
        }
        self.indexes.end = id.index + 1;
        self.last = Some(id);
        self.tail.push(id.index, value);
    }
}

impl LogStore {
    /// Reads where the log stands. `Error::Amnesia` means that it has forgotten what this replica acknowledged.
    pub fn open(storage: Arc<dyn Storage>, group: GroupId) -> Result<Self, Error> {
        let mut inner = Inner { group, storage, log: Mutex::default() };
        let log = inner.load()?;
        inner.check_fence(&log)?;
        inner.log = Mutex::new(log);
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("nothing panics while the log is locked")
    }

    /// What a store opens with is durable, so everything that is found counts as flushed.
    fn load(&self) -> Result<Log, Error> {
        let vote = self.mark(Mark::Vote, "a vote")?.map(vote_from_record);
        let purged = self.mark(Mark::Purged, "a purge point")?.map(log_id_from_record);
        let first = self.edge(Order::Ascending)?;
        let last = self.edge(Order::Descending)?;
        let indexes = match (first, last) {
            (Some(first), Some(last)) => first.index..last.index + 1,
            _ => 0..0,
        };
        let last = last.max(purged);
        let (flushed, flushed_vote) = (last, vote);
        Ok(Log { vote, purged, indexes, last, flushed, flushed_vote, ..Log::default() })
    }

    fn mark<M: prost::Message + Default>(
        &self,
        mark: Mark,
        what: &str,
    ) -> Result<Option<M>, Error> {
        let value = self.storage.get(Table::Log, &mark_key(self.group, mark))?;
        value.map(|value| decode(what, value)).transpose()
    }

    fn edge(&self, order: Order) -> Result<Option<LogId>, Error> {
        let one = ScanLimit { records: 1, bytes: usize::MAX };
        let keys = entry_keys(self.group, 0..u64::MAX);
        let found = self.storage.scan(Table::Log, keys, order, one)?;
        let Some((key, value)) = found.into_iter().next() else { return Ok(None) };
        Ok(Some(decode_entry(entry_index(&key)?, value)?.log_id))
    }

    fn check_fence(&self, log: &Log) -> Result<(), Error> {
        let fences = self.storage.fences()?;
        let Some((_, fence)) = fences.into_iter().find(|(group, _)| *group == self.group) else {
            return Ok(());
        };
        let found = log.fence();
        // Who stood in a term and lost it gives way to its leader, for good; the fence may be from before that.
        let gave_way = log.vote.is_some_and(|vote| vote.committed);
        let is_other = found.vote_node != fence.vote_node && !gave_way;
        let what = if found.last_index < fence.last_index || found.last_term < fence.last_term {
            format!(
                "it ends with entry {} of term {}, but entry {} of term {} was acknowledged",
                found.last_index, found.last_term, fence.last_index, fence.last_term
            )
        } else if found.vote_term < fence.vote_term
            || (found.vote_term == fence.vote_term && is_other)
        {
            format!(
                "its vote is of term {} for {}, but one of term {} for {} was given",
                found.vote_term, found.vote_node, fence.vote_term, fence.vote_node
            )
        } else {
            return Ok(());
        };
        Err(Error::Amnesia { group: self.group, what })
    }

    fn put(&self, mark: Mark, value: Vec<u8>) -> Write {
        let key = mark_key(self.group, mark);
        Write::Put { table: Table::Log, key, value: value.into() }
    }

    fn delete(&self, indexes: Range<u64>) -> Write {
        Write::DeleteRange { table: Table::Log, range: entry_keys(self.group, indexes) }
    }

    /// Everything of `indexes` that the log has, or the beginning of it if a limit is reached.
    fn read(&self, indexes: Range<u64>, limit: ScanLimit) -> Result<Vec<Entry>, Error> {
        for _ in 0..READ_ATTEMPTS_MAX {
            if let Some(values) = self.read_once(&indexes, limit)? {
                return values
                    .into_iter()
                    .map(|(index, value)| decode_entry(index, value))
                    .collect();
            }
        }
        Err(Error::Io { what: format!("the log of {} was cut back again and again", self.group) })
    }

    /// `None` if the log was cut back meanwhile.
    fn read_once(
        &self,
        indexes: &Range<u64>,
        limit: ScanLimit,
    ) -> Result<Option<Vec<(u64, Bytes)>>, Error> {
        let (cuts, wanted, held, tail) = {
            let log = self.lock();
            let start = indexes.start.max(log.indexes.start);
            let wanted = start..indexes.end.min(log.indexes.end).max(start);
            let tail = log.tail.read(wanted.clone(), limit);
            (log.cuts, wanted, log.tail.indexes(), tail)
        };
        // After a restart the tail is empty, and all is stored.
        let stored_end = if held.is_empty() { wanted.end } else { wanted.end.min(held.start) };
        let stored = wanted.start..stored_end;
        let mut values = if stored.is_empty() { Vec::new() } else { self.scan(stored, limit)? };
        if self.lock().cuts != cuts {
            return Ok(None);
        }
        let key_bytes = entry_key(self.group, 0).len();
        let size = |value: &Bytes| key_bytes + value.len();
        let mut bytes: usize = values.iter().map(|(_, value)| size(value)).sum();
        for (index, value) in tail {
            if values.len() >= limit.records || bytes >= limit.bytes {
                break;
            }
            bytes += size(&value);
            values.push((index, value));
        }
        let limited = values.len() >= limit.records || bytes >= limit.bytes;
        self.check_complete(&wanted, &values, limited)?;
        Ok(Some(values))
    }

    fn scan(&self, indexes: Range<u64>, limit: ScanLimit) -> Result<Vec<(u64, Bytes)>, Error> {
        let keys = entry_keys(self.group, indexes);
        let records = self.storage.scan(Table::Log, keys, Order::Ascending, limit)?;
        records.into_iter().map(|(key, value)| Ok((entry_index(&key)?, value))).collect()
    }

    /// A read is never shorter than the log says without an error, unless the log was purged meanwhile.
    fn check_complete(
        &self,
        wanted: &Range<u64>,
        values: &[(u64, Bytes)],
        limited: bool,
    ) -> Result<(), Error> {
        let start = wanted.start.max(self.lock().indexes.start);
        let expected = start..wanted.end;
        let mut next = values.first().map_or(wanted.end, |(index, _)| *index).min(start);
        for (index, _) in values {
            if *index != next {
                break;
            }
            next += 1;
        }
        let holes = next != values.last().map_or(next, |(index, _)| index + 1);
        if holes || (next < expected.end && !limited && !expected.is_empty()) {
            return Err(corrupt(format!(
                "the log of {} has no entry {next} though it has {}..{}",
                self.group, expected.start, expected.end
            )));
        }
        Ok(())
    }

    /// Notes what an fsync has covered, unless the log was cut back since it was written.
    fn note_flushed(&self, last: LogId, cuts: u64) {
        let mut log = self.lock();
        if log.cuts == cuts {
            log.flushed = Some(last);
            self.storage.write_fence(self.group, log.fence());
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        self.inner.read(indexes(&range), EVERYTHING).map_err(io::Error::other)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.inner.read(start..end, PIECE).map_err(io::Error::other)
    }

    /// Reads piece by piece: what is to be applied after a restart may be more than fits into memory.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (inner, rest) = (Arc::clone(&self.inner), indexes(&range));
        futures::stream::iter(Pieces { inner, rest, ready: Vec::new().into_iter() })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.inner.lock().vote)
    }
}

/// Iterates over entries, reading ahead by one piece.
struct Pieces {
    inner: Arc<Inner>,
    rest: Range<u64>,
    ready: std::vec::IntoIter<Entry>,
}

impl Iterator for Pieces {
    type Item = Result<Entry, io::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.len() == 0 && !self.rest.is_empty() {
            match self.inner.read(self.rest.clone(), PIECE) {
                Ok(piece) => self.ready = piece.into_iter(),
                Err(error) => {
                    self.rest = 0..0;
                    return Some(Err(io::Error::other(error)));
                }
            }
        }
        let entry = self.ready.next()?;
        self.rest.start = entry.log_id.index + 1;
        Some(Ok(entry))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = self.inner.lock();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let inner = &self.inner;
        let write = inner.put(Mark::Vote, vote_to_record(vote).encode_to_vec());
        inner.storage.write(Batch { writes: vec![write] }).map_err(io::Error::other)?;
        // Readers see it at once: one that reads entries for an older leader must stop.
        inner.lock().vote = Some(*vote);
        let (done, flushed) = oneshot::channel();
        inner.storage.sync(Box::new(move |result| {
            // Nobody waits any more if the group was stopped.
            drop(done.send(result));
        }));
        let lost = |_| io::Error::other("the store was closed before the vote was durable");
        flushed.await.map_err(lost)?.map_err(io::Error::other)?;
        let mut log = inner.lock();
        log.flushed_vote = Some(*vote);
        inner.storage.write_fence(inner.group, log.fence());
        Ok(())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(LogId, Bytes)> =
            entries.into_iter().map(|entry| (entry.log_id, encode_entry(&entry))).collect();
        let Some(last) = entries.last().map(|(id, _)| *id) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let put = |(id, value): &(LogId, Bytes)| Write::Put {
            table: Table::Log,
            key: entry_key(self.inner.group, id.index),
            value: value.clone(),
        };
        let batch = Batch { writes: entries.iter().map(put).collect() };
        self.inner.storage.write(batch).map_err(io::Error::other)?;
        let cuts = {
            let mut log = self.inner.lock();
            for (id, value) in entries {
                log.push(id, value);
            }
            log.cuts
        };
        if is_planted(Mutation::CommitBeforeFsync) {
            callback.io_completed(Ok(()));
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        self.inner.storage.sync(Box::new(move |result| {
            if result.is_ok() {
                inner.note_flushed(last, cuts);
            }
            callback.io_completed(result.map_err(io::Error::other));
        }));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let inner = &self.inner;
        let from = last.map_or(0, |id| id.index + 1);
        // From here on no callback of an earlier append raises the fence, and no reader trusts what it scanned.
        let (fence, end) = {
            let mut log = inner.lock();
            log.cuts += 1;
            log.flushed = log.flushed.min(last);
            (log.fence(), log.indexes.end)
        };
        // The fence first: a crash between the two must not make a log that was cut on purpose look forgetful.
        inner.storage.write_fence_now(inner.group, fence).map_err(io::Error::other)?;
        if from < end {
            let batch = Batch { writes: vec![inner.delete(from..end)] };
            inner.storage.write(batch).map_err(io::Error::other)?;
        }
        let mut log = inner.lock();
        log.cuts += 1;
        log.tail.cut(from);
        log.indexes.end = log.indexes.end.min(from).max(log.indexes.start);
        if from < end {
            log.last = last.max(log.purged);
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let inner = &self.inner;
        let first = inner.lock().indexes.start;
        let mut writes = vec![inner.put(Mark::Purged, log_id_to_record(&upto).encode_to_vec())];
        if first <= upto.index {
            writes.push(inner.delete(first..upto.index + 1));
        }
        inner.storage.write(Batch { writes }).map_err(io::Error::other)?;
        let mut log = inner.lock();
        log.purged = log.purged.max(Some(upto));
        log.last = log.last.max(log.purged);
        log.tail.purge(upto.index + 1);
        let start = log.indexes.start.max(upto.index + 1);
        log.indexes = start..log.indexes.end.max(start);
        Ok(())
    }
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}
