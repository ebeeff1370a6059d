//! The newest entries of a log, encoded, so that replication and apply seldom ask the store.
//!
//! Bounded in count and in bytes: a node holds many groups, and most are idle.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::storage::ScanLimit;

/// With 256 shards on a node, all of which were busy once, tails hold 64 MiB at the most.
const BYTES_MAX: usize = 256 * 1024;
const ENTRIES_MAX: usize = 512;

/// Consecutive entries that end with the last of the log.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The index of the first entry in `values`.
    first: u64,
    values: VecDeque<Bytes>,
    bytes: usize,
}

impl Tail {
    /// The indexes that are held.
    pub(super) fn indexes(&self) -> Range<u64> {
        self.first..self.first + self.values.len() as u64
    }

    /// Adds the entry that follows. One that does not follow begins a new tail.
    pub(super) fn push(&mut self, index: u64, value: Bytes) {
        if self.indexes().end != index {
            *self = Self { first: index, ..Self::default() };
        }
        self.bytes += value.len();
        self.values.push_back(value);
        while self.values.len() > ENTRIES_MAX || (self.bytes > BYTES_MAX && self.values.len() > 1) {
            self.drop_first();
        }
    }

    /// Forgets the entries from `index` on.
    pub(super) fn cut(&mut self, index: u64) {
        while self.indexes().end > index
            && let Some(value) = self.values.pop_back()
        {
            self.bytes -= value.len();
        }
    }

    /// Forgets the entries before `index`.
    pub(super) fn purge(&mut self, index: u64) {
        while self.first < index && !self.values.is_empty() {
            self.drop_first();
        }
    }

    /// The entries of `indexes` that are held, up to the one that reaches a limit.
    pub(super) fn read(&self, indexes: Range<u64>, limit: ScanLimit) -> Vec<(u64, Bytes)> {
        let held = self.indexes();
        let start = indexes.start.clamp(held.start, held.end);
        let end = indexes.end.clamp(start, held.end);
        let mut read = Vec::new();
        let mut bytes = 0;
        for index in start..end {
            if read.len() >= limit.records || bytes >= limit.bytes {
                break;
            }
            let value = &self.values[(index - self.first) as usize];
            bytes += value.len();
            read.push((index, value.clone()));
        }
        read
    }

    fn drop_first(&mut self) {
        if let Some(value) = self.values.pop_front() {
            self.bytes -= value.len();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };

    fn tail(indexes: Range<u64>, bytes: usize) -> Tail {
        let mut tail = Tail::default();
        for index in indexes {
            tail.push(index, Bytes::from(vec![0; bytes]));
        }
        tail
    }

    #[test]
    fn a_tail_keeps_the_newest_entries_within_its_limits() {
        assert_eq!(tail(5..5_000, 1).indexes(), 5_000 - ENTRIES_MAX as u64..5_000);
        assert_eq!(tail(5..100, BYTES_MAX / 4).indexes(), 96..100);
        assert_eq!(tail(5..100, BYTES_MAX * 2).indexes(), 99..100);
    }

    #[test]
    fn what_was_cut_or_purged_is_not_read() {
        let mut tail = tail(10..20, 1);
        tail.cut(15);
        tail.purge(12);
        let read: Vec<_> = tail.read(0..100, ALL).into_iter().map(|(index, _)| index).collect();
        assert_eq!(read, [12, 13, 14]);
        tail.push(15, Bytes::new());
        assert_eq!(tail.indexes(), 12..16);
    }

    #[test]
    fn an_entry_that_does_not_follow_begins_anew() {
        let mut tail = tail(10..20, 1);
        tail.push(30, Bytes::new());
        assert_eq!(tail.indexes(), 30..31);
    }

    #[test]
    fn a_read_stops_after_the_entry_that_reaches_the_limit() {
        let tail = tail(0..10, 100);
        assert_eq!(tail.read(0..10, ScanLimit { records: usize::MAX, bytes: 150 }).len(), 2);
        assert_eq!(tail.read(0..10, ScanLimit { records: 3, bytes: usize::MAX }).len(), 3);
    }
}
