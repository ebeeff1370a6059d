//! Looks at the disks of all nodes while they run: what is in their logs, what they have applied, who was voted for.
//!
//! An entry that one replica has applied is committed. So from the first sight on, every replica that applies its index
//! must have applied the same entry (I-32: state machine safety, committed entries never change), entries with the same
//! index and term must be equal and follow the same entry (log matching), and a term has one leader (election safety).
//! What a replica has applied must be equal, byte by byte, on each replica that has applied as much (I-15).

use std::collections::BTreeMap;
use std::hash::Hasher;

use bytes::Bytes;
use drover_cluster::core::ids::{GroupId, Offset, ShardCount, ShardId};
use drover_cluster::core::message::StoredMessage;
use drover_cluster::raft::log_record::{self, Mark};
use drover_cluster::storage::simulated::{SimulatedDisk, SimulatedStorage};
use drover_cluster::storage::stream::{self, PageLimit};
use drover_cluster::storage::{self, Order, ScanLimit, Storage, Table, keys, state};
use drover_proto::record;
use prost::Message as _;

use super::history::History;
use crate::promises::Violation;

const EVERYTHING: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };
const PAGE: PageLimit = PageLimit { messages: usize::MAX, bytes: usize::MAX };

/// What is known of all groups.
pub(super) struct Observer {
    history: History,
    shards: u32,
    /// Committed entries: term and record.
    committed: BTreeMap<(GroupId, u64), (u64, Bytes)>,
    /// All entries that were ever seen in a log: hash of the record, term of the entry before.
    entries: BTreeMap<(GroupId, u64, u64), (u64, Option<u64>)>,
    leaders: BTreeMap<(GroupId, u64), u64>,
    /// The newest leader of each group.
    newest: BTreeMap<GroupId, (u64, u64)>,
    /// State hash at an applied index.
    states: BTreeMap<(GroupId, u64), u64>,
    seen: BTreeMap<(u32, GroupId), Seen>,
}

/// How far a replica's life was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    applied: u64,
    offset: u64,
}

/// A replica as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) applied: u64,
    pub(super) last: u64,
    pub(super) state: u64,
}

impl Observer {
    pub(super) fn new(history: History, shards: u32) -> Self {
        Self {
            history,
            shards,
            committed: BTreeMap::new(),
            entries: BTreeMap::new(),
            leaders: BTreeMap::new(),
            newest: BTreeMap::new(),
            states: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.shards).filter_map(GroupId::from_number)
    }

    /// The node has crashed: what it had applied and not synced is gone, and that is allowed.
    pub(super) fn forget(&mut self, node: u32) {
        self.seen.retain(|(seen, _), _| *seen != node);
    }

    /// Looks at a node. A disk that has failed shows nothing.
    pub(super) fn look(&mut self, node: u32, disk: &SimulatedDisk) -> BTreeMap<GroupId, Standing> {
        let storage = disk.open();
        let mut found = BTreeMap::new();
        for group in self.groups() {
            match self.look_at(node, &storage, group) {
                Ok(standing) => drop(found.insert(group, standing)),
                Err(storage::Error::Io { .. }) => return BTreeMap::new(),
                Err(error) => self.violate("I-34 readable", node, group, error.to_string()),
            }
        }
        found
    }

    fn look_at(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
    ) -> Result<Standing, storage::Error> {
        let applied = applied(storage, group)?;
        let before = self.seen.get(&(node, group)).copied().unwrap_or_default();
        if applied < before.applied {
            let seen = format!("applied fell from {} to {applied}", before.applied);
            self.violate("I-32 monotone", node, group, seen);
        }
        let last = self.look_at_log(node, storage, group, before.applied, applied)?;
        self.look_at_vote(node, storage, group)?;
        let state = state_hash(storage, group)?;
        let first = *self.states.entry((group, applied)).or_insert(state);
        if first != state {
            let seen = format!("another state than elsewhere after entry {applied}");
            self.violate("I-15 replicas agree", node, group, seen);
        }
        let offset = self.look_at_stream(node, storage, group, before.offset)?;
        self.seen.insert((node, group), Seen { applied, offset });
        Ok(Standing { applied, last, state })
    }

    fn look_at_log(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
        from: u64,
        applied: u64,
    ) -> Result<u64, storage::Error> {
        // The entry before the first new one is needed for what the first one follows.
        let range = log_record::entry_keys(group, from..u64::MAX);
        let records = storage.scan(Table::Log, range, Order::Ascending, EVERYTHING)?;
        let mut previous: Option<(u64, u64)> = None;
        let mut last = 0;
        for (key, value) in records {
            let index = log_record::entry_index(&key)?;
            let term = log_record::decode_entry(index, value.clone())?.log_id.leader_id.term;
            let follows = previous.filter(|(before, _)| before + 1 == index).map(|(_, term)| term);
            self.see_entry(node, group, (index, term), &value, follows);
            if index <= applied {
                self.see_committed(node, group, (index, term), value);
            }
            previous = Some((index, term));
            last = index;
        }
        let purged = mark::<record::LogId>(storage, group, Mark::Purged)?.map_or(0, |id| id.index);
        if applied > last.max(purged).max(from) {
            let seen = format!("applied {applied}, but the log ends with {last}");
            self.violate("I-32 applied is in the log", node, group, seen);
        }
        Ok(last.max(purged))
    }

    fn see_entry(
        &mut self,
        node: u32,
        group: GroupId,
        (index, term): (u64, u64),
        value: &Bytes,
        follows: Option<u64>,
    ) {
        let hash = hash([value.as_ref()]);
        let known = *self.entries.entry((group, index, term)).or_insert((hash, follows));
        let follows_another = known.1.zip(follows).is_some_and(|(one, other)| one != other);
        if known.0 != hash || follows_another {
            let seen = format!("entry {index} of term {term} is another one elsewhere");
            self.violate("I-32 log matching", node, group, seen);
        }
        if known.1.is_none() {
            self.entries.insert((group, index, term), (hash, follows));
        }
    }

    fn see_committed(
        &mut self,
        node: u32,
        group: GroupId,
        (index, term): (u64, u64),
        value: Bytes,
    ) {
        let known = self.committed.entry((group, index)).or_insert_with(|| (term, value.clone()));
        if known.0 != term || known.1 != value {
            let seen = format!(
                "entry {index} of term {term} was applied, elsewhere one of term {}",
                known.0
            );
            self.violate("I-32 state machine safety", node, group, seen);
        }
    }

    fn look_at_vote(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
    ) -> Result<(), storage::Error> {
        let Some(vote) = mark::<record::Vote>(storage, group, Mark::Vote)? else { return Ok(()) };
        if !vote.committed {
            return Ok(());
        }
        let leader = *self.leaders.entry((group, vote.term)).or_insert(vote.node);
        if leader != vote.node {
            let seen = format!("term {} has two leaders, {leader} and {}", vote.term, vote.node);
            self.violate("I-32 election safety", node, group, seen);
        }
        let newest = self.newest.entry(group).or_insert((vote.term, vote.node));
        if newest.0 < vote.term {
            if newest.1 != vote.node {
                self.history.lock().counts.leader_changes += 1;
            }
            *newest = (vote.term, vote.node);
            let (term, to) = (vote.term, vote.node);
            self.history.note(format_args!("{group} is led by {to} in term {term}"));
        }
        Ok(())
    }

    /// What is new in the stream; the answer is where it ends.
    fn look_at_stream(
        &self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
        from: u64,
    ) -> Result<u64, storage::Error> {
        let GroupId::Shard(shard) = group else { return Ok(0) };
        let page = stream::read(storage, shard, Offset::new(from), PAGE)?;
        let mut history = self.history.lock();
        let reader = format!("node {node}");
        for stored in &page.messages {
            let hash = message_hash(stored);
            history.read_offset(shard.number(), stored.offset.get(), hash, &reader);
        }
        Ok(page.next.get())
    }

    fn violate(&self, invariant: &'static str, node: u32, group: GroupId, seen: String) {
        self.history.violate(Violation::new(invariant, format!("node {node}, {group}"), seen));
    }

    /// The committed entries of a shard, if none was missed: a log that was cut short before it was looked at leaves a
    /// hole.
    pub(super) fn log(&self, shard: u32) -> Option<Vec<Bytes>> {
        let group = GroupId::from_number(shard + 1)?;
        let entries = self.committed.range((group, 0)..=(group, u64::MAX));
        let mut log = Vec::new();
        let mut expected = None;
        for ((_, index), (_, value)) in entries {
            if expected.is_some_and(|expected| expected != *index) {
                return None;
            }
            expected = Some(index + 1);
            log.push(value.clone());
        }
        Some(log)
    }
}

/// The whole stream of a shard, as a node has it.
pub(super) fn stream_of(
    disk: &SimulatedDisk,
    shard: u32,
    shards: u32,
) -> Result<Vec<StoredMessage>, storage::Error> {
    let shard = ShardCount::new(shards).and_then(|count| ShardId::new(shard, count));
    let shard = shard.expect("a plan has a few shards");
    stream::read(&disk.open(), shard, Offset::new(0), PAGE).map(|page| page.messages)
}

fn applied(storage: &SimulatedStorage, group: GroupId) -> Result<u64, storage::Error> {
    let Some(bytes) = state::applied(storage, group)? else { return Ok(0) };
    let applied = record::Applied::decode(bytes)
        .map_err(|error| storage::Error::Corrupt { what: error.to_string() })?;
    Ok(applied.last.map_or(0, |last| last.index))
}

fn mark<M: prost::Message + Default>(
    storage: &SimulatedStorage,
    group: GroupId,
    mark: Mark,
) -> Result<Option<M>, storage::Error> {
    let value = storage.get(Table::Log, &log_record::mark_key(group, mark))?;
    let decoded = value.map(|value| M::decode(value)).transpose();
    decoded.map_err(|error| storage::Error::Corrupt { what: error.to_string() })
}

/// Of everything that a replica has applied.
fn state_hash(storage: &SimulatedStorage, group: GroupId) -> Result<u64, storage::Error> {
    let mut records = Vec::new();
    for table in Table::APPLIED {
        records.extend(storage.scan(table, keys::all(group), Order::Ascending, EVERYTHING)?);
    }
    Ok(hash(records.iter().flat_map(|(key, value)| [key.as_ref(), value.as_ref()])))
}

/// Of a message with all that the stream says about it.
pub(super) fn message_hash(stored: &StoredMessage) -> u64 {
    hash([format!("{stored:?}").as_bytes()])
}

fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    // `DefaultHasher::new` has fixed keys: the same in every run.
    let mut hasher = std::hash::DefaultHasher::new();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish()
}
