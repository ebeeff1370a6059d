//! Looks at the disks of all nodes while they run: what is in their logs, what they have applied, who was voted for.
//!
//! It reads, and [`claims`] judges. The simulation stands still while it is looked at, so all nodes are seen at the same
//! instant.

mod claims;

use std::collections::BTreeMap;
use std::hash::Hasher;

use bytes::Bytes;
use drover_cluster::core::ids::{GroupId, NodeId, Offset, ShardCount, ShardId};
use drover_cluster::core::message::StoredMessage;
use drover_cluster::raft::log_record::{self, Mark};
use drover_cluster::storage::simulated::{SimulatedDisk, SimulatedStorage};
use drover_cluster::storage::stream::{self, PageLimit};
use drover_cluster::storage::{self, Order, ScanLimit, Storage, Table, keys, state};
use drover_proto::record;

use self::claims::{Claims, Tail};
use super::history::History;
use super::node::Machine;
use super::plan::Plan;

const EVERYTHING: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };
const PAGE: PageLimit = PageLimit { messages: usize::MAX, bytes: usize::MAX };

/// Looks, and remembers what it saw.
pub(super) struct Observer {
    history: History,
    plan: Plan,
    claims: Claims,
    seen: BTreeMap<(u32, GroupId), Seen>,
}

/// How far a replica's life was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    applied: u64,
    offset: u64,
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

impl Observer {
    pub(super) fn new(history: History, plan: &Plan) -> Self {
        let replicas = plan.clone();
        let claims = Claims::new(history.clone(), move |group| replicas.replicas(group));
        Self { history, plan: plan.clone(), claims, seen: BTreeMap::new() }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.plan.shards).filter_map(GroupId::from_number)
    }

    /// The node has crashed: what it had applied and not synced is gone, and that is allowed.
    pub(super) fn forget(&mut self, node: u32) {
        self.seen.retain(|(seen, _), _| *seen != node);
        self.claims.forget(node);
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
                    Err(error) => {
                        self.claims.violate("I-34 readable", node, group, error.to_string());
                    }
                }
                self.look_at_durable_vote(node, &machine.disk, group);
            }
        }
        self.count_quorums(machines);
        self.claims.see_tails(&tails);
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
        self.claims.see_applied(node, group, before.applied, applied);
        let (last, tail) = self.look_at_log(node, storage, group, before.applied, applied)?;
        self.look_at_leadership(node, storage, group)?;
        let state = state_hash(storage, group)?;
        self.history.lock().mix(&state.to_be_bytes());
        self.claims.see_state(node, group, applied, state);
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
            self.claims.see_entry(node, group, (index, term), hash([value.as_ref()]), follows);
            if index <= applied {
                self.claims.see_committed(node, group, (index, term), value);
            }
            previous = Some((index, term));
            tail.insert(index, term);
        }
        let purged = storage.get(Table::Log, &log_record::mark_key(group, Mark::Purged))?;
        let purged = decoded::<record::LogId>(purged)?.map_or(0, |id| id.index);
        let last = previous.map_or(0, |(index, _)| index).max(purged);
        // What was looked at before may have been purged since.
        self.claims.see_extent(node, group, purged, applied, last.max(from));
        Ok((last, tail))
    }

    /// A vote that was granted by a majority makes a leader.
    fn look_at_leadership(
        &mut self,
        node: u32,
        storage: &SimulatedStorage,
        group: GroupId,
    ) -> Result<(), storage::Error> {
        let vote = storage.get(Table::Log, &log_record::mark_key(group, Mark::Vote))?;
        if let Some(vote) = decoded::<record::Vote>(vote)?.filter(|vote| vote.committed) {
            self.claims.see_leader(node, group, vote.term, NodeId::from_u64(vote.node));
        }
        Ok(())
    }

    fn look_at_durable_vote(&mut self, node: u32, disk: &SimulatedDisk, group: GroupId) {
        let stored = disk.durable(Table::Log, &log_record::mark_key(group, Mark::Vote));
        if let Ok(Some(vote)) = decoded::<record::Vote>(stored) {
            self.claims.see_durable_vote(node, group, vote);
        }
    }

    /// What was committed since the last look.
    fn count_quorums(&mut self, machines: &[Machine]) {
        for (group, index, value) in self.claims.take_uncounted() {
            let holders =
                machines.iter().filter(|machine| holds(&machine.disk, group, index, &value));
            self.claims.see_holders(group, index, holders.count());
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

    /// The committed entries of a shard, if none was missed: a log that was cut short before it was looked at leaves a
    /// hole.
    pub(super) fn log(&self, shard: u32) -> Option<Vec<Bytes>> {
        let group = GroupId::from_number(shard + 1)?;
        self.claims.log(group)
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
