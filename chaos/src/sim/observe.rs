//! Looks at the disks of all nodes while they run: what is in their logs, what they have applied, who was voted for.
//!
//! An entry that one replica has applied is committed. So from the first sight on, a majority has it durably, every
//! later leader has it, and every replica that applies its index has applied the same one. Entries with the same index
//! and term are equal and follow the same entry, and a term has one leader: the twelve claims of Raft, as far as disks
//! show them (I-32). What a replica has applied is equal, byte by byte, on each that has applied as much (I-15).
//!
//! The simulation stands still while it is looked at, so all nodes are seen at the same instant.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use drover_cluster::core::ids::{GroupId, NodeId, Offset, ShardCount, ShardId};
use drover_cluster::core::message::StoredMessage;
use drover_cluster::raft::log_record::{self, Mark};
use drover_cluster::storage::simulated::{SimulatedDisk, SimulatedStorage};
use drover_cluster::storage::stream::{self, PageLimit};
use drover_cluster::storage::{self, Order, ScanLimit, Storage, Table, keys, state};
use drover_proto::record;

use super::history::History;
use super::node::Machine;
use super::plan::Plan;
use crate::promises::Violation;

const EVERYTHING: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };
const PAGE: PageLimit = PageLimit { messages: usize::MAX, bytes: usize::MAX };

/// What is known of all groups.
pub(super) struct Observer {
    history: History,
    plan: Plan,
    /// Committed entries: term and record.
    committed: BTreeMap<(GroupId, u64), (u64, Bytes)>,
    /// Those of them that nobody has counted yet.
    uncounted: Vec<(GroupId, u64)>,
    /// All entries that were ever seen in a log, by index and term.
    entries: BTreeMap<(GroupId, u64, u64), FirstSeen>,
    leaders: BTreeMap<(GroupId, u64), u64>,
    /// The newest leader of each group: term and node.
    newest: BTreeMap<GroupId, (u64, NodeId)>,
    /// The nodes that lead, as far as that is certain: who has crashed since it was elected leads no more.
    leading: BTreeMap<GroupId, u32>,
    /// Nodes that have crashed since the last look.
    crashed: BTreeSet<u32>,
    /// The newest durable vote of each replica.
    votes: BTreeMap<(u32, GroupId), record::Vote>,
    /// The state at an applied index: where it was first seen, and its hash.
    states: BTreeMap<(GroupId, u64), (u32, u64)>,
    seen: BTreeMap<(u32, GroupId), Seen>,
}

/// How far a replica's life was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    applied: u64,
    offset: u64,
}

/// A log entry where it was seen first.
#[derive(Debug, Clone, Copy)]
struct FirstSeen {
    node: u32,
    hash: u64,
    /// The term of the entry before it, where that was seen.
    follows: Option<u64>,
}

/// A replica as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) applied: u64,
    pub(super) last: u64,
    pub(super) state: u64,
}

/// The replicas of each group, by node.
pub(super) type Standings = BTreeMap<GroupId, BTreeMap<u32, Standing>>;

/// The part of a log that was not applied at the last look: terms by index.
type Tail = BTreeMap<u64, u64>;

impl Observer {
    pub(super) fn new(history: History, plan: &Plan) -> Self {
        Self {
            history,
            plan: plan.clone(),
            committed: BTreeMap::new(),
            uncounted: Vec::new(),
            entries: BTreeMap::new(),
            leaders: BTreeMap::new(),
            newest: BTreeMap::new(),
            leading: BTreeMap::new(),
            crashed: BTreeSet::new(),
            votes: BTreeMap::new(),
            states: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.plan.shards).filter_map(GroupId::from_number)
    }

    /// The node has crashed: what it had applied and not synced is gone, and that is allowed.
    pub(super) fn forget(&mut self, node: u32) {
        self.seen.retain(|(seen, _), _| *seen != node);
        self.leading.retain(|_, leader| *leader != node);
        self.crashed.insert(node);
    }

    /// Looks at all nodes. A disk that has failed shows only what is durable on it.
    pub(super) fn look(&mut self, machines: &[Machine]) -> Standings {
        let mut standings = Standings::new();
        let mut tails: BTreeMap<(GroupId, u32), Tail> = BTreeMap::new();
        for machine in machines {
            let node = machine.number;
            let storage = machine.disk.open();
            for group in self.groups() {
                match self.look_at(node, &storage, group) {
                    Ok((standing, tail)) => {
                        tails.insert((group, node), tail);
                        standings.entry(group).or_default().insert(node, standing);
                    }
                    Err(storage::Error::Io { .. }) => {}
                    Err(error) => self.violate("I-34 readable", node, group, error.to_string()),
                }
                self.look_at_durable_vote(node, &machine.disk, group);
            }
        }
        self.count_quorums(machines);
        self.look_at_leaders(&tails);
        self.crashed.clear();
        standings
    }

    fn look_at(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
    ) -> Result<(Standing, Tail), storage::Error> {
        let applied = applied(state::applied(storage, group)?)?;
        let before = self.seen.get(&(node, group)).copied().unwrap_or_default();
        if applied < before.applied {
            let seen = format!("applied fell from {} to {applied}", before.applied);
            self.violate("I-32 monotone", node, group, seen);
        }
        let (last, tail) = self.look_at_log(node, storage, group, before.applied, applied)?;
        self.look_at_leadership(node, storage, group)?;
        let state = state_hash(storage, group)?;
        self.history.lock().mix(&state.to_be_bytes());
        let (first, known) = *self.states.entry((group, applied)).or_insert((node, state));
        self.history.lock().counts.checks.equal_states += u64::from(first != node);
        if known != state {
            let seen = format!("another state than that of node {first} after entry {applied}");
            self.violate("I-15 replicas agree", node, group, seen);
        }
        let offset = self.look_at_stream(node, storage, group, before.offset)?;
        self.seen.insert((node, group), Seen { applied, offset });
        Ok((Standing { applied, last, state }, tail))
    }

    fn look_at_log(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
        from: u64,
        applied: u64,
    ) -> Result<(u64, Tail), storage::Error> {
        // The last entry that was looked at before is needed for what the first new one follows.
        let range = log_record::entry_keys(group, from..u64::MAX);
        let records = storage.scan(Table::Log, range, Order::Ascending, EVERYTHING)?;
        let mut previous: Option<(u64, u64)> = None;
        let mut tail = Tail::new();
        for (key, value) in records {
            let index = log_record::entry_index(&key)?;
            let term = log_record::decode_entry(index, value.clone())?.log_id.leader_id.term;
            let follows = previous.filter(|(before, _)| before + 1 == index).map(|(_, term)| term);
            self.see_entry(node, group, (index, term), &value, follows);
            if index <= applied {
                self.see_committed(node, group, (index, term), value);
            }
            previous = Some((index, term));
            tail.insert(index, term);
        }
        let purged = storage.get(Table::Log, &log_record::mark_key(group, Mark::Purged))?;
        let purged = decoded::<record::LogId>(purged)?.map_or(0, |id| id.index);
        let last = previous.map_or(0, |(index, _)| index).max(purged);
        if applied > last.max(from) || purged > applied {
            let seen = format!("purged {purged}, applied {applied}, and the log ends with {last}");
            self.violate("I-32 purged, applied, last", node, group, seen);
        }
        Ok((last, tail))
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
        let seen_now = FirstSeen { node, hash, follows };
        let known = self.entries.entry((group, index, term)).or_insert(seen_now);
        let follows_another = known.follows.zip(follows).is_some_and(|(one, other)| one != other);
        let is_another = known.hash != hash || follows_another;
        known.follows = known.follows.or(follows);
        let first = known.node;
        self.history.lock().counts.checks.equal_entries += u64::from(first != node);
        if is_another {
            let seen = format!("entry {index} of term {term} is another one at node {first}");
            self.violate("I-32 log matching", node, group, seen);
        }
    }

    fn see_committed(
        &mut self,
        node: u32,
        group: GroupId,
        (index, term): (u64, u64),
        value: Bytes,
    ) {
        let Some((known, record)) = self.committed.get(&(group, index)) else {
            self.committed.insert((group, index), (term, value));
            self.uncounted.push((group, index));
            return;
        };
        self.history.lock().counts.checks.applied_entries += 1;
        if *known != term || *record != value {
            let seen = format!("entry {index} of term {term} was applied, elsewhere of {known}");
            self.violate("I-32 state machine safety", node, group, seen);
        }
    }

    /// A term has one leader.
    fn look_at_leadership(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
    ) -> Result<(), storage::Error> {
        let vote = storage.get(Table::Log, &log_record::mark_key(group, Mark::Vote))?;
        let Some(vote) = decoded::<record::Vote>(vote)?.filter(|vote| vote.committed) else {
            return Ok(());
        };
        self.history.lock().counts.checks.votes += 1;
        let leader = *self.leaders.entry((group, vote.term)).or_insert(vote.node);
        if leader != vote.node {
            let seen = format!("term {} has two leaders, {leader} and {}", vote.term, vote.node);
            self.violate("I-32 election safety", node, group, seen);
        }
        self.see_leader(group, vote.term, NodeId::from_u64(vote.node));
        Ok(())
    }

    fn see_leader(&mut self, group: GroupId, term: u64, leader: NodeId) {
        let before = self.newest.get(&group).copied();
        if before.is_some_and(|(newest, _)| newest >= term) {
            return;
        }
        self.newest.insert(group, (term, leader));
        let has_changed = before.is_some_and(|(_, former)| former != leader);
        self.history.lock().counts.faults.leader_changes += u64::from(has_changed);
        let number = leader.number();
        if self.crashed.contains(&number) {
            self.leading.remove(&group);
        } else {
            self.leading.insert(group, number);
        }
        self.history.note(format_args!("{group} is led by node {number} in term {term}"));
    }

    /// What a replica has promised durably it never takes back, not even in a crash.
    fn look_at_durable_vote(&mut self, node: u32, disk: &SimulatedDisk, group: GroupId) {
        let stored = disk.durable(Table::Log, &log_record::mark_key(group, Mark::Vote));
        let Ok(Some(vote)) = decoded::<record::Vote>(stored) else { return };
        let Some(before) = self.votes.insert((node, group), vote) else { return };
        self.history.lock().counts.checks.votes += 1;
        // A leader that has won replaces what was promised to another in the same term.
        let is_promise = before.term == vote.term && !vote.committed;
        if vote.term < before.term || (is_promise && (before.committed || vote != before)) {
            let seen = format!("the vote {before:?} became {vote:?}");
            self.violate("I-32 monotone votes", node, group, seen);
        }
    }

    /// What was committed since the last look is durable on a majority.
    fn count_quorums(&mut self, machines: &[Machine]) {
        for (group, index) in std::mem::take(&mut self.uncounted) {
            let Some((_, value)) = self.committed.get(&(group, index)) else { continue };
            let holders =
                machines.iter().filter(|machine| holds(&machine.disk, group, index, value));
            let (holders, needed) = (holders.count(), self.plan.replicas(group) / 2 + 1);
            self.history.lock().counts.checks.quorums += 1;
            if holders < needed {
                let seen = format!("entry {index} is durable on {holders} nodes, not on {needed}");
                let subject = group.to_string();
                self.history.violate(Violation::new("I-32 committed on a quorum", subject, seen));
            }
        }
    }

    /// The newest leader has everything that is committed: what it had applied was compared before, the rest is here.
    fn look_at_leaders(&self, tails: &BTreeMap<(GroupId, u32), Tail>) {
        for (group, node) in &self.leading {
            let Some(tail) = tails.get(&(*group, *node)) else { continue };
            let Some((first, _)) = tail.first_key_value() else { continue };
            let committed = self.committed.range((*group, *first)..=(*group, u64::MAX));
            let mut checked = 0;
            for ((_, index), (committed, _)) in committed {
                checked += 1;
                if tail.get(index) != Some(committed) {
                    let seen = format!("it leads, and entry {index} is missing");
                    self.violate("I-32 leader completeness", *node, *group, seen);
                }
            }
            self.history.lock().counts.checks.leader_entries += checked;
        }
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

/// Whether a node would still have an entry, or what came of it, if its power were lost now.
fn holds(disk: &SimulatedDisk, group: GroupId, index: u64, value: &Bytes) -> bool {
    let range = log_record::entry_keys(group, index..index + 1);
    if disk.durable(Table::Log, &range.start).as_ref() == Some(value) {
        return true;
    }
    // A snapshot carries the entry into the applied state, and no log may have it any more.
    applied(disk.durable(Table::Group, &keys::applied(group))).is_ok_and(|applied| applied >= index)
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

fn applied(stored: Option<Bytes>) -> Result<u64, storage::Error> {
    let applied = decoded::<record::Applied>(stored)?.and_then(|applied| applied.last);
    Ok(applied.map_or(0, |last| last.index))
}

fn decoded<M: prost::Message + Default>(
    stored: Option<Bytes>,
) -> Result<Option<M>, storage::Error> {
    let decoded = stored.map(|value| M::decode(value)).transpose();
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
