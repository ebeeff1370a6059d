//! A group's log as records of `Table::Log`. It is on disk: a change of it is a new format.
//!
//! | key after the group's number | value |
//! |---|---|
//! | `0x00` `0x00` | `record.v1.Vote` |
//! | `0x00` `0x01` | `record.v1.LogId`: everything up to it is purged |
//! | `0x00` `0x02` | two bytes, big-endian: the incarnation of the replica that all of the group's records belong to |
//! | `0x01`, index, big-endian | `record.v1.LogEntry` |

use std::ops::Range;

use bytes::Bytes;
use drover_core::ids::GroupId;
use drover_proto::record;
use prost::Message;

use super::types::{Entry, log_id, payload_from_record, payload_to_record};
use crate::storage::Error;

/// The single records of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Vote,
    Purged,
    Incarnation,
}

pub fn mark_key(group: GroupId, mark: Mark) -> Vec<u8> {
    let number = match mark {
        Mark::Vote => 0,
        Mark::Purged => 1,
        Mark::Incarnation => 2,
    };
    [group.number().to_be_bytes().as_slice(), &[0, number]].concat()
}

pub(super) fn entry_key(group: GroupId, index: u64) -> Vec<u8> {
    [group.number().to_be_bytes().as_slice(), &[1], &index.to_be_bytes()].concat()
}

/// The keys of the entries with these indexes.
pub fn entry_keys(group: GroupId, indexes: Range<u64>) -> Range<Vec<u8>> {
    entry_key(group, indexes.start)..entry_key(group, indexes.end)
}

pub fn entry_index(key: &[u8]) -> Result<u64, Error> {
    let index = key.get(5..).and_then(|index| index.try_into().ok()).map(u64::from_be_bytes);
    index.ok_or_else(|| corrupt(format!("{key:02x?} is not the key of a log entry")))
}

pub(super) fn encode_entry(entry: &Entry) -> Bytes {
    let payload = Some(payload_to_record(&entry.payload));
    record::LogEntry { term: entry.log_id.leader_id.term, payload }.encode_to_vec().into()
}

/// The payload shares the memory of `value`.
pub fn decode_entry(index: u64, value: Bytes) -> Result<Entry, Error> {
    let entry: record::LogEntry = decode("a log entry", value)?;
    let Some(payload) = entry.payload else {
        return Err(corrupt(format!("log entry {index} has a payload of an unknown kind")));
    };
    let payload = payload_from_record(payload)
        .map_err(|error| corrupt(format!("log entry {index}: {error}")))?;
    Ok(Entry { log_id: log_id(entry.term, index), payload })
}

pub(super) fn decode<M: Message + Default>(what: &str, value: Bytes) -> Result<M, Error> {
    M::decode(value).map_err(|error| corrupt(format!("{what} cannot be decoded: {error}")))
}

pub(super) fn corrupt(what: String) -> Error {
    Error::Corrupt { what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{EntryPayload, Proposal};

    #[test]
    fn an_entrys_payload_is_the_bytes_that_were_proposed() {
        let payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"a batch")));
        let entry = Entry { log_id: log_id(3, 7), payload };
        assert_eq!(decode_entry(7, encode_entry(&entry)), Ok(entry));
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_corrupt_and_not_blank() {
        let newer = record::LogEntry { term: 3, payload: None }.encode_to_vec();
        assert!(matches!(decode_entry(7, newer.into()), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn marks_lie_outside_the_range_of_entries() {
        let group = GroupId::from_number(3).expect("a legal group");
        let entries = entry_keys(group, 0..u64::MAX);
        for mark in [Mark::Vote, Mark::Purged, Mark::Incarnation] {
            assert!(!entries.contains(&mark_key(group, mark)));
        }
        assert_eq!(entry_index(&entry_key(group, 9)), Ok(9));
    }
}
