//! Reading a shard's stream: by offset, by time, by device, and what retention may drop.
//!
//! Messages are stored in chunks, one a log entry (`docs/decisions/0002`). A chunk is found by the first offset in its
//! key and holds runs of messages, each of one device.

use bytes::Bytes;
use drover_core::ids::{DeviceId, GroupId, LogTime, Offset, ShardId};
use drover_core::message::{StoredMessage, StreamPage};
use drover_core::stream::{ChunkSummary, Stream};
use drover_proto::record;
use prost::Message as _;

use super::state::decoded;
use super::{Error, Order, Record, ScanLimit, Storage, Table, keys};
use crate::wire;

/// Chunks read at once: a chunk is at most about a megabyte.
const CHUNKS_AT_ONCE: usize = 16;
const BYTES_AT_ONCE: usize = 1024 * 1024;

/// How much one read answers at the most. It stops after the message that reaches either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    pub messages: usize,
    pub bytes: usize,
}

/// Messages from an offset on, in order, without holes. What retention took is skipped: the page then begins at its
/// `first`.
pub fn read(
    storage: &dyn Storage,
    shard: ShardId,
    from: Offset,
    limit: PageLimit,
) -> Result<StreamPage, Error> {
    let group = GroupId::Shard(shard);
    let Stream { first, next: end, .. } = super::state::stream(storage, group)?;
    let mut page = StreamPage { messages: Vec::new(), next: from.max(first).min(end), first };
    let mut bytes = 0;
    while page.next < end && page.messages.len() < limit.messages && bytes < limit.bytes {
        let chunks = chunks_from(storage, group, page.next)?;
        let before = page.next;
        for chunk in chunks {
            for message in wire::record::messages(shard, chunk) {
                let message = decoded("a message", message)?;
                if message.offset < page.next {
                    continue;
                }
                expect_offset(group, page.next, message.offset)?;
                if page.messages.len() >= limit.messages || bytes >= limit.bytes {
                    return Ok(page);
                }
                page.next = message.offset.next();
                bytes += message.message.0.len();
                page.messages.push(message);
            }
        }
        if page.next == before {
            return Err(hole(group, before));
        }
    }
    Ok(page)
}

fn expect_offset(group: GroupId, expected: Offset, found: Offset) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(hole(group, expected)) }
}

fn hole(group: GroupId, offset: Offset) -> Error {
    Error::Corrupt { what: format!("the stream of {group} has no message at offset {offset}") }
}

/// Some chunks in order, the first of them the one that contains `offset`.
fn chunks_from(
    storage: &dyn Storage,
    group: GroupId,
    offset: Offset,
) -> Result<Vec<record::Chunk>, Error> {
    let all = keys::all(group);
    let up_to = all.start.clone()..keys::chunk(group, offset.next());
    let one = ScanLimit { records: 1, bytes: BYTES_AT_ONCE };
    let containing = storage.scan(Table::Stream, up_to, Order::Descending, one)?;
    let after = keys::chunk(group, offset.next())..all.end;
    let more = ScanLimit { records: CHUNKS_AT_ONCE, bytes: BYTES_AT_ONCE };
    let following = storage.scan(Table::Stream, after, Order::Ascending, more)?;
    containing.into_iter().chain(following).map(chunk).collect()
}

fn chunk((_, value): Record) -> Result<record::Chunk, Error> {
    decode_chunk(value)
}

pub(crate) fn decode_chunk(value: Bytes) -> Result<record::Chunk, Error> {
    record::Chunk::decode(value)
        .map_err(|error| Error::Corrupt { what: format!("a chunk cannot be decoded: {error}") })
}

/// The first offset whose message was appended at `at` or later; the end of the stream if there is none. A binary
/// search over chunks: log time never falls.
pub fn offset_at(storage: &dyn Storage, shard: ShardId, at: LogTime) -> Result<Offset, Error> {
    let group = GroupId::Shard(shard);
    let stream = super::state::stream(storage, group)?;
    let (mut low, mut high) = (stream.first, stream.next);
    while low < high {
        let middle = Offset::new(low.get().midpoint(high.get()));
        let Some(chunk) = chunks_from(storage, group, middle)?.into_iter().next() else {
            return Err(hole(group, middle));
        };
        let end = Offset::new(chunk.first_offset).plus(messages_in(&chunk));
        if chunk.at_ms < at.get() {
            low = low.max(end);
        } else {
            high = high.min(Offset::new(chunk.first_offset)).max(low);
        }
    }
    Ok(low)
}

fn messages_in(chunk: &record::Chunk) -> u64 {
    chunk.runs.iter().map(|run| run.messages.len() as u64).sum()
}

/// A device's messages from one time to before another, oldest first, after `after` if it is given.
pub fn history(
    storage: &dyn Storage,
    shard: ShardId,
    device: &DeviceId,
    times: std::ops::Range<LogTime>,
    after: Option<Offset>,
    limit: PageLimit,
) -> Result<Vec<StoredMessage>, Error> {
    let group = GroupId::Shard(shard);
    let stream = super::state::stream(storage, group)?;
    let first = after.map_or(stream.first, Offset::next).max(stream.first);
    let mut range = keys::history_between(group, device, times.start, times.end);
    let mut messages = Vec::new();
    let mut bytes = 0;
    loop {
        let some = ScanLimit { records: 256, bytes: BYTES_AT_ONCE };
        let runs = storage.scan(Table::History, range.clone(), Order::Ascending, some)?;
        let Some((last, _)) = runs.last() else { return Ok(messages) };
        range.start = [last, &[0][..]].concat();
        for run in runs {
            for message in run_messages(storage, shard, device, run, first)? {
                bytes += message.message.0.len();
                messages.push(message);
                if messages.len() >= limit.messages || bytes >= limit.bytes {
                    return Ok(messages);
                }
            }
        }
    }
}

/// When the newest message of a device was appended. Retention may have taken it.
pub fn newest_at(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
) -> Result<Option<LogTime>, Error> {
    let ever = keys::history_between(group, device, LogTime::default(), LogTime::new(u64::MAX));
    let one = ScanLimit { records: 1, bytes: BYTES_AT_ONCE };
    let newest = storage.scan(Table::History, ever, Order::Descending, one)?;
    newest.first().map(|(key, _)| Ok(history_place(device, key)?.0)).transpose()
}

fn history_place(device: &DeviceId, key: &[u8]) -> Result<(LogTime, Offset), Error> {
    keys::history_place(key)
        .ok_or_else(|| Error::Corrupt { what: format!("history of {device}: a key is malformed") })
}

/// The messages of one run whose offsets are `first` or later.
fn run_messages(
    storage: &dyn Storage,
    shard: ShardId,
    device: &DeviceId,
    (key, value): Record,
    first: Offset,
) -> Result<Vec<StoredMessage>, Error> {
    let group = GroupId::Shard(shard);
    let corrupt = |what: &str| Error::Corrupt { what: format!("history of {device}: {what}") };
    let (_, begin) = history_place(device, &key)?;
    let run = record::HistoryRun::decode(value).map_err(|error| corrupt(&error.to_string()))?;
    let end = begin.plus(run.count);
    if end <= first {
        return Ok(Vec::new());
    }
    let key = keys::chunk(group, Offset::new(run.chunk));
    let value = storage.get(Table::Stream, &key)?.ok_or_else(|| corrupt("its chunk is missing"))?;
    let wanted = first.max(begin)..end;
    wire::record::messages(shard, decode_chunk(value)?)
        .filter(|message| message.as_ref().map_or(true, |message| wanted.contains(&message.offset)))
        .map(|message| decoded("a message", message))
        .collect()
}

/// The stream's oldest chunks, for the planner of retention. At most [`CHUNKS_AT_ONCE`]: a plan is carried out in
/// steps, so that no step holds up the shard.
pub fn oldest_chunks(storage: &dyn Storage, group: GroupId) -> Result<Vec<ChunkSummary>, Error> {
    let limit = ScanLimit { records: CHUNKS_AT_ONCE, bytes: BYTES_AT_ONCE };
    let records = storage.scan(Table::Stream, keys::all(group), Order::Ascending, limit)?;
    let summary = |record| {
        let chunk = chunk(record)?;
        let bytes = chunk.runs.iter().flat_map(|run| &run.messages).map(|m| m.len() as u64).sum();
        let end = Offset::new(chunk.first_offset).plus(messages_in(&chunk));
        Ok(ChunkSummary { end, at: LogTime::new(chunk.at_ms), bytes })
    };
    records.into_iter().map(summary).collect()
}
