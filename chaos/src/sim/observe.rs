//! Looks at the disks of all nodes while they run: what is in their logs, what they have applied, who was voted for.
//!
//! It reads, and [`claims`] judges. The simulation stands still while it is looked at, so all nodes are seen at the same
//! instant.

mod claims;
mod voters;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use bytes::Bytes;
use drover_cluster::core::ids::{GroupId, NodeId, Offset, ReplicaId, ShardCount, ShardId};
use drover_cluster::core::message::StoredMessage;
use drover_cluster::core::meta::Meta;
use drover_cluster::raft::log_record::{self, Mark};
use drover_cluster::raft::types::{EntryPayload, membership_from_record};
use drover_cluster::storage::simulated::{SimulatedDisk, SimulatedStorage};
use drover_cluster::storage::stream::{self, PageLimit};
use drover_cluster::storage::{self, Order, ScanLimit, Storage, Table, keys, state};
use drover_proto::record;

use self::claims::{Claims, Tail};
use self::voters::Voters;
use super::history::History;
use super::network::Directory;
use super::node::Machine;
use super::plan::{Plan, REPLICATION_FACTOR};
use crate::promises::Violation;

const EVERYTHING: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };
const PAGE: PageLimit = PageLimit { messages: usize::MAX, bytes: usize::MAX };

/// Looks, and remembers what it saw.
pub(super) struct Observer {
    history: History,
    plan: Plan,
    directory: Directory,
    claims: Claims,
    seen: BTreeMap<(ReplicaId, GroupId), Seen>,
    /// Replicas that came later than their group.
    arrived: BTreeSet<(ReplicaId, GroupId)>,
    /// As they were when they were first seen to be stopped.
    stopped: BTreeMap<(ReplicaId, GroupId), Standing>,
    /// The newest state of the cluster that any node has applied.
    meta: Option<Meta>,
}

/// How far a replica's life was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    applied: u64,
    offset: u64,
}

/// The replica of a group that a machine's disk holds, or is to hold.
#[derive(Debug, Clone, Copy)]
struct Place {
    machine: u32,
    replica: ReplicaId,
    group: GroupId,
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
    pub(super) fn new(history: History, plan: &Plan, directory: Directory) -> Self {
        let claims = Claims::new(history.clone(), directory.clone());
        let (plan, seen, arrived) = (plan.clone(), BTreeMap::new(), BTreeSet::new());
        let stopped = BTreeMap::new();
        Self { history, plan, directory, claims, seen, arrived, stopped, meta: None }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.plan.shards).filter_map(GroupId::from_number)
    }

    /// The machines that hold the replicas of a group, as the newest state of the cluster has it.
    pub(super) fn hosts(&self, group: GroupId) -> BTreeSet<u32> {
        let Some(meta) = &self.meta else { return BTreeSet::new() };
        let nodes: Vec<NodeId> = match group {
            GroupId::Meta => meta.members.keys().copied().collect(),
            GroupId::Shard(shard) => meta.placement.get(&shard).cloned().unwrap_or_default(),
        };
        nodes.into_iter().filter_map(|node| self.directory.machine(node)).collect()
    }

    /// Whether these machines are the members, nothing moves, and every shard has all its replicas, which are its voters.
    pub(super) fn is_settled(&self, machines: &BTreeSet<u32>) -> bool {
        let Some(meta) = &self.meta else { return false };
        let membership = &meta.membership;
        let is_at_rest = membership.moves.is_empty()
            && membership.departures.is_empty()
            && !membership.is_paused
            && self.hosts(GroupId::Meta) == *machines;
        is_at_rest
            && meta.placement.iter().all(|(shard, placed)| {
                let voters = self.claims.newest_voters(GroupId::Shard(*shard));
                placed.len() == usize::from(REPLICATION_FACTOR)
                    && voters == Some(&Voters(vec![meta.voters(*shard)]))
            })
    }

    /// The node has crashed: what it had applied and not synced is gone, and that is allowed.
    pub(super) fn forget(&mut self, machine: u32) {
        let node = self.directory.node(machine);
        self.seen.retain(|(seen, _), _| Some(seen.node()) != node);
        // When it starts again, it has to find out anew.
        self.stopped.retain(|(stopped, _), _| Some(stopped.node()) != node);
        self.history.lock().stopped.retain(|(stopped, _)| Some(stopped.node()) != node);
        self.claims.forget(machine);
    }

    /// Looks at all nodes. A disk that has failed shows only what is durable on it.
    pub(super) fn look(&mut self, machines: &[Machine]) -> Standings {
        let mut standings = Standings::new();
        let mut tails: BTreeMap<(GroupId, u32), Tail> = BTreeMap::new();
        for machine in machines {
            let Some(node) = self.directory.node(machine.number) else { continue };
            let storage = machine.disk.inspect();
            self.look_at_meta(&storage);
            for group in self.groups() {
                match self.look_at(machine.number, node, &storage, group) {
                    Ok((standing, tail)) => {
                        tails.insert((group, machine.number), tail);
                        standings.entry(group).or_default().insert(machine.number, standing);
                    }
                    Err(storage::Error::Io { .. }) => {}
                    Err(error) => {
                        let seen = error.to_string();
                        self.claims.violate("I-34 readable", machine.number, group, seen);
                    }
                }
                self.look_at_durable_vote(node, &machine.disk, group);
            }
        }
        self.count_quorums(machines);
        self.claims.see_tails(&tails);
        standings
    }

    /// Keeps the newest, and holds it against what no state of a cluster may be.
    fn look_at_meta(&mut self, storage: &SimulatedStorage) {
        let Ok(Some(meta)) = state::meta(storage) else { return };
        if self.meta.as_ref().is_some_and(|known| known.version >= meta.version) {
            return;
        }
        for (shard, placed) in &meta.placement {
            let nodes: BTreeSet<NodeId> = placed.iter().copied().collect();
            let is_sound = nodes.len() == placed.len()
                && nodes.iter().all(|node| meta.members.contains_key(node));
            if !is_sound {
                let seen = format!("its replicas are to stand on {placed:?}");
                let violation = Violation::new("I-38 placement", format!("shard {shard}"), seen);
                self.history.violate(violation);
            }
        }
        let removed = &meta.membership.removed;
        if let Some(node) = meta.members.keys().find(|node| removed.contains(node)) {
            let seen = "it is a member, and was removed before";
            self.history.violate(Violation::new("I-35 no id twice", format!("node {node}"), seen));
        }
        self.claims.see_removed(removed);
        self.history.lock().counts.checks.placements += 1;
        self.history.note(format_args!(
            "the cluster is at version {} with {} members, {} moves and the placement {:?}",
            meta.version,
            meta.members.len(),
            meta.membership.moves.len(),
            meta.placement
        ));
        self.meta = Some(meta);
    }

    fn look_at(
        &mut self,
        machine: u32,
        node: NodeId,
        storage: &SimulatedStorage,
        group: GroupId,
    ) -> Result<(Standing, Tail), storage::Error> {
        let incarnation = log_record::mark_key(group, Mark::Incarnation);
        let replica = replica(node, storage.get(Table::Log, &incarnation)?.as_ref());
        let place = Place { machine, replica, group };
        let stored = decoded::<record::Applied>(state::applied(storage, group)?)?;
        let stored = stored.unwrap_or_default();
        let applied = stored.last.as_ref().map_or(0, |last| last.index);
        let before = self.seen.get(&(replica, group)).copied().unwrap_or_default();
        self.claims.see_applied(machine, group, before.applied, applied);
        let (last, tail) = self.look_at_log(place, storage, before.applied, applied)?;
        self.look_at_voters(place, stored)?;
        self.look_at_leadership(machine, storage, group)?;
        let state = state_hash(storage, group)?;
        self.history.lock().mix(&state.to_be_bytes());
        self.claims.see_state(machine, group, applied, state);
        let offset = self.look_at_stream(machine, storage, group, before.offset)?;
        self.seen.insert((replica, group), Seen { applied, offset });
        let standing = Standing { applied, last, state };
        self.look_at_stopped(place, &standing);
        Ok((standing, tail))
    }

    /// Whoever was stopped takes nothing on any more (I-34).
    fn look_at_stopped(&mut self, Place { machine, replica, group }: Place, now: &Standing) {
        let mut history = self.history.lock();
        if !history.stopped.contains(&(replica, group)) {
            return;
        }
        let Some(then) = self.stopped.get(&(replica, group)) else {
            self.stopped.insert((replica, group), now.clone());
            return;
        };
        history.counts.checks.stopped_replicas += 1;
        if then != now {
            let seen = format!("it was stopped at {then:?} and is at {now:?}");
            drop(history);
            self.claims.violate("I-34 stopped", machine, group, seen);
        }
    }

    /// The voters that the applied state tells of are committed, even if their entry is gone.
    fn look_at_voters(
        &mut self,
        Place { machine, group, .. }: Place,
        applied: record::Applied,
    ) -> Result<(), storage::Error> {
        let (Some(at), Some(membership)) = (applied.membership_at, applied.membership) else {
            return Ok(());
        };
        let membership = membership_from_record(membership)
            .map_err(|error| storage::Error::Corrupt { what: error.to_string() })?;
        let voters = Voters::of(&membership);
        self.claims.see_committed_voters(group, at.index, voters.clone());
        self.claims.see_voters(machine, group, (at.index, at.term), voters);
        Ok(())
    }

    fn look_at_log(
        &mut self,
        place: Place,
        storage: &SimulatedStorage,
        from: u64,
        applied: u64,
    ) -> Result<(u64, Tail), storage::Error> {
        let Place { machine, group, .. } = place;
        // The last entry that was looked at before is needed for what the first new one follows.
        let range = log_record::entry_keys(group, from..u64::MAX);
        let records = storage.scan(Table::Log, range, Order::Ascending, EVERYTHING)?;
        let mut previous: Option<(u64, u64)> = None;
        let mut tail = Tail::new();
        for (key, value) in records {
            let index = log_record::entry_index(&key)?;
            let entry = log_record::decode_entry(index, value.clone())?;
            let term = entry.log_id.leader_id.term;
            let follows = previous.filter(|(before, _)| before + 1 == index).map(|(_, term)| term);
            self.claims.see_entry(machine, group, (index, term), hash([value.as_ref()]), follows);
            if index <= applied {
                self.claims.see_committed(machine, group, (index, term), value);
            }
            if let EntryPayload::Membership(membership) = entry.payload {
                let voters = Voters::of(&membership);
                if index <= applied {
                    self.claims.see_committed_voters(group, index, voters.clone());
                }
                self.claims.see_voters(machine, group, (index, term), voters);
            }
            previous = Some((index, term));
            tail.insert(index, term);
        }
        let purged = storage.get(Table::Log, &log_record::mark_key(group, Mark::Purged))?;
        let purged = decoded::<record::LogId>(purged)?.map_or(0, |id| id.index);
        self.note_arrival(place, purged);
        let last = previous.map_or(0, |(index, _)| index).max(purged);
        // What was looked at before may have been purged since.
        self.claims.see_extent(machine, group, purged, applied, last.max(from));
        Ok((last, tail))
    }

    /// A replica that was not there from the beginning and knows the beginning of its log from a snapshot only.
    fn note_arrival(&mut self, place: Place, purged: u64) {
        let is_founder = place.replica.incarnation() == 0 && place.machine <= self.plan.nodes;
        if !is_founder && self.arrived.insert((place.replica, place.group)) && purged > 0 {
            self.history.lock().counts.operator.replicas_by_snapshot += 1;
        }
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
            self.claims.see_leader(node, group, vote.term, ReplicaId::from_u64(vote.node));
        }
        Ok(())
    }

    fn look_at_durable_vote(&mut self, node: NodeId, disk: &SimulatedDisk, group: GroupId) {
        let stored = disk.durable(Table::Log, &log_record::mark_key(group, Mark::Vote));
        if let Ok(Some(vote)) = decoded::<record::Vote>(stored) {
            self.claims.see_durable_vote(durable_replica(node, disk, group), group, vote);
        }
    }

    /// What was committed since the last look.
    fn count_quorums(&mut self, machines: &[Machine]) {
        for (group, index, value) in self.claims.take_uncounted() {
            let holding =
                machines.iter().filter(|machine| holds(&machine.disk, group, index, &value));
            let holders = holding.filter_map(|machine| {
                let node = self.directory.node(machine.number)?;
                Some(durable_replica(node, &machine.disk, group))
            });
            self.claims.see_holders(group, index, &holders.collect());
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

/// The replica that a node has by what is noted beside its log.
fn replica(node: NodeId, incarnation: Option<&Bytes>) -> ReplicaId {
    let noted = incarnation.and_then(|value| value.as_ref().try_into().ok());
    ReplicaId::new(node, noted.map_or(0, u16::from_be_bytes))
}

fn durable_replica(node: NodeId, disk: &SimulatedDisk, group: GroupId) -> ReplicaId {
    let noted = disk.durable(Table::Log, &log_record::mark_key(group, Mark::Incarnation));
    replica(node, noted.as_ref())
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
    stream::read(&disk.inspect(), shard, Offset::new(0), PAGE).map(|page| page.messages)
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
