//! What Raft claims, held against what was seen of all replicas (I-32), and that replicas are equal (I-15).
//!
//! An entry that one replica has applied is committed. So from the first sight on, a majority has it durably, every
//! later leader has it, and every replica that applies its index has applied the same one. Entries with the same index
//! and term are equal and follow the same entry, and a term has one leader: the twelve claims of Raft, as far as disks
//! show them. Any two sets of voters that follow each other have a voter in common in all their majorities, and who was
//! removed neither leads nor votes again (I-35). What a replica has applied is equal, byte by byte, on each that has applied as much.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use drover_cluster::core::ids::{GroupId, NodeId, ReplicaId};
use drover_proto::record;

use super::voters::Voters;
use crate::promises::Violation;
use crate::sim::history::History;
use crate::sim::network::Directory;

/// The part of a log that was not applied at the last look: terms by index.
pub(super) type Tail = BTreeMap<u64, u64>;

/// What is known of all groups.
pub(super) struct Claims {
    history: History,
    directory: Directory,
    /// Voters of each group from an index on, as any log has ever had them: by index and term.
    voters: BTreeMap<(GroupId, u64, u64), Voters>,
    /// Those that were committed.
    committed_voters: BTreeMap<(GroupId, u64), Voters>,
    /// Nodes that were members and are none any more.
    removed: BTreeSet<NodeId>,
    /// Committed entries: term and record.
    committed: BTreeMap<(GroupId, u64), (u64, Bytes)>,
    /// Those of them that nobody has counted yet.
    uncounted: Vec<(GroupId, u64)>,
    /// All entries that were ever seen in a log, by index and term.
    entries: BTreeMap<(GroupId, u64, u64), FirstSeen>,
    leaders: BTreeMap<(GroupId, u64), ReplicaId>,
    /// The newest leader of each group, and its term.
    newest: BTreeMap<GroupId, (u64, ReplicaId)>,
    /// The machines that lead, as far as that is certain: who has crashed since it was elected leads no more.
    leading: BTreeMap<GroupId, u32>,
    /// Nodes that have crashed since the last look.
    crashed: BTreeSet<u32>,
    /// The newest durable vote of each replica.
    votes: BTreeMap<(ReplicaId, GroupId), record::Vote>,
    /// The state at an applied index: where it was first seen, and its hash.
    states: BTreeMap<(GroupId, u64), (u32, u64)>,
}

/// A log entry where it was seen first.
#[derive(Debug, Clone, Copy)]
struct FirstSeen {
    node: u32,
    hash: u64,
    /// The term of the entry before it, where that was seen.
    follows: Option<u64>,
}

impl Claims {
    pub(super) fn new(history: History, directory: Directory) -> Self {
        Self {
            history,
            directory,
            voters: BTreeMap::new(),
            committed_voters: BTreeMap::new(),
            removed: BTreeSet::new(),
            committed: BTreeMap::new(),
            uncounted: Vec::new(),
            entries: BTreeMap::new(),
            leaders: BTreeMap::new(),
            newest: BTreeMap::new(),
            leading: BTreeMap::new(),
            crashed: BTreeSet::new(),
            votes: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    pub(super) fn forget(&mut self, node: u32) {
        self.leading.retain(|_, leader| *leader != node);
        self.crashed.insert(node);
    }

    /// What is applied stays so, in one life of a node.
    pub(super) fn see_applied(&self, node: u32, group: GroupId, before: u64, applied: u64) {
        if applied < before {
            let seen = format!("applied fell from {before} to {applied}");
            self.violate("I-32 monotone", node, group, seen);
        }
    }

    /// What is purged was applied, and what is applied is in the log.
    pub(super) fn see_extent(
        &self,
        node: u32,
        group: GroupId,
        purged: u64,
        applied: u64,
        last: u64,
    ) {
        if applied > last || purged > applied {
            let seen = format!("purged {purged}, applied {applied}, and the log ends with {last}");
            self.violate("I-32 purged, applied, last", node, group, seen);
        }
    }

    /// Replicas that have applied as much hold the same.
    pub(super) fn see_state(&mut self, node: u32, group: GroupId, applied: u64, state: u64) {
        let (first, known) = *self.states.entry((group, applied)).or_insert((node, state));
        self.history.lock().counts.checks.equal_states += u64::from(first != node);
        if known != state {
            let seen = format!("another state than that of node {first} after entry {applied}");
            self.violate("I-15 replicas agree", node, group, seen);
        }
    }

    pub(super) fn see_entry(
        &mut self,
        node: u32,
        group: GroupId,
        (index, term): (u64, u64),
        hash: u64,
        follows: Option<u64>,
    ) {
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

    /// The replica has applied the entry.
    pub(super) fn see_committed(
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

    /// A log has this change of voters.
    pub(super) fn see_voters(
        &mut self,
        node: u32,
        group: GroupId,
        (index, term): (u64, u64),
        voters: Voters,
    ) {
        if let Some(doubled) = voters.doubled() {
            let seen = format!("entry {index} gives node {doubled} two votes");
            self.violate("I-32 one replica a node", node, group, seen);
        }
        self.voters.insert((group, index, term), voters);
    }

    /// It was applied.
    pub(super) fn see_committed_voters(&mut self, group: GroupId, index: u64, voters: Voters) {
        if self.committed_voters.contains_key(&(group, index)) {
            return;
        }
        let before = self.committed_voters.range((group, 0)..(group, index)).next_back();
        let before = before.map(|((_, at), before)| (*at, before.clone()));
        self.history.note(format_args!("{group} has from {index} on the voters {voters:?}"));
        self.committed_voters.insert((group, index), voters.clone());
        // If entries between the two were never seen, there may have been other voters in between.
        if let Some((at, before)) = before
            && self.committed.range((group, at)..(group, index)).count() as u64 == index - at
        {
            self.compare_voters(group, index, &before, &voters);
        }
    }

    fn compare_voters(&self, group: GroupId, index: u64, before: &Voters, after: &Voters) {
        let (old, new) = (before.all(), after.all());
        {
            let counts = &mut self.history.lock().counts;
            counts.operator.replicas_promoted += new.difference(&old).count() as u64;
            counts.operator.replicas_demoted += old.difference(&new).count() as u64;
            counts.checks.configurations += 1;
        }
        if !before.overlaps(after) {
            let seen = format!("entry {index} makes {after:?} of {before:?}: both could decide");
            let subject = group.to_string();
            self.history.violate(Violation::new("I-32 quorums overlap", subject, seen));
        }
    }

    /// The voters of a group, as far as they are known to be committed.
    pub(super) fn newest_voters(&self, group: GroupId) -> Option<&Voters> {
        let mut of_group = self.committed_voters.range((group, 0)..=(group, u64::MAX));
        of_group.next_back().map(|(_, voters)| voters)
    }

    /// These are members no more.
    pub(super) fn see_removed(&mut self, removed: &BTreeSet<NodeId>) {
        self.removed.extend(removed);
    }

    /// A term has one leader. `node` is where that is written.
    pub(super) fn see_leader(&mut self, node: u32, group: GroupId, term: u64, leader: ReplicaId) {
        self.history.lock().counts.checks.votes += 1;
        let is_new = !self.leaders.contains_key(&(group, term));
        let known = *self.leaders.entry((group, term)).or_insert(leader);
        if known != leader {
            let seen = format!("term {term} has two leaders, {known} and {leader}");
            self.violate("I-32 election safety", node, group, seen);
        }
        if is_new && self.removed.contains(&leader.node()) {
            let seen = format!("term {term} is led by {leader}, which was removed before");
            self.violate("I-35 removed for good", node, group, seen);
        }
        self.note_leader(group, term, leader);
    }

    fn note_leader(&mut self, group: GroupId, term: u64, leader: ReplicaId) {
        let before = self.newest.get(&group).copied();
        if before.is_some_and(|(newest, _)| newest >= term) {
            return;
        }
        self.newest.insert(group, (term, leader));
        let has_changed = before.is_some_and(|(_, former)| former != leader);
        self.history.lock().counts.faults.leader_changes += u64::from(has_changed);
        let machine = self.directory.machine(leader.node());
        match machine.filter(|machine| !self.crashed.contains(machine)) {
            Some(machine) => self.leading.insert(group, machine),
            None => self.leading.remove(&group),
        };
        self.history.note(format_args!("{group} is led by {leader} in term {term}"));
    }

    /// What a replica has promised durably it never takes back, not even in a crash. One whose node was removed promises
    /// nothing any more.
    pub(super) fn see_durable_vote(
        &mut self,
        replica: ReplicaId,
        group: GroupId,
        vote: record::Vote,
    ) {
        let Some(before) = self.votes.insert((replica, group), vote) else { return };
        self.history.lock().counts.checks.votes += 1;
        // A leader that has won replaces what was promised to another in the same term.
        let is_promise = before.term == vote.term && !vote.committed;
        let seen = format!("the vote {before:?} became {vote:?}");
        if vote.term < before.term || (is_promise && (before.committed || vote != before)) {
            self.violate_of("I-32 monotone votes", replica, group, &seen);
        }
        if vote != before && !vote.committed && self.removed.contains(&replica.node()) {
            self.violate_of("I-35 removed for good", replica, group, &seen);
        }
    }

    /// What was committed since this was asked last, for [`Claims::see_holders`].
    pub(super) fn take_uncounted(&mut self) -> Vec<(GroupId, u64, Bytes)> {
        let uncounted = std::mem::take(&mut self.uncounted).into_iter();
        let with_value = |(group, index)| {
            let (_, value) = self.committed.get(&(group, index))?;
            Some((group, index, value.clone()))
        };
        uncounted.filter_map(with_value).collect()
    }

    /// What is committed is durable on a majority: these have it. Which majority: of those who voted when it was written, or of
    /// those who did later, for a leader counts the voters that its log ends with.
    pub(super) fn see_holders(&self, group: GroupId, index: u64, holders: &BTreeSet<ReplicaId>) {
        let then = self.committed_voters.range((group, 0)..=(group, index)).next_back();
        let Some((_, then)) = then else { return };
        self.history.lock().counts.checks.quorums += 1;
        let mut later = self.voters.range((group, index, 0)..=(group, u64::MAX, u64::MAX));
        if !then.is_quorum(holders) && !later.any(|(_, voters)| voters.is_quorum(holders)) {
            let seen = format!("entry {index} is durable on {holders:?} only, of {then:?}");
            let subject = group.to_string();
            self.history.violate(Violation::new("I-32 committed on a quorum", subject, seen));
        }
    }

    /// The newest leader has everything that is committed: what it had applied was compared before, the rest is here. It
    /// ends a look.
    pub(super) fn see_tails(&mut self, tails: &BTreeMap<(GroupId, u32), Tail>) {
        for (group, node) in &self.leading {
            let Some(tail) = tails.get(&(*group, *node)) else { continue };
            let Some((first, _)) = tail.first_key_value() else { continue };
            let committed = self.committed.range((*group, *first)..=(*group, u64::MAX));
            // A newer leader commits before its disk says that it is one: the one before it need not have that.
            let led = self.newest.get(group).map_or(0, |(term, _)| *term);
            let committed = committed.filter(|(_, (term, _))| *term <= led);
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
        self.crashed.clear();
    }

    pub(super) fn violate(&self, invariant: &'static str, node: u32, group: GroupId, seen: String) {
        self.history.violate(Violation::new(invariant, format!("node {node}, {group}"), seen));
    }

    fn violate_of(&self, invariant: &'static str, replica: ReplicaId, group: GroupId, seen: &str) {
        let subject = format!("replica {replica}, {group}");
        self.history.violate(Violation::new(invariant, subject, seen));
    }

    /// The committed entries of a group, if none was missed: a log that was cut short before it was looked at leaves a
    /// hole.
    pub(super) fn log(&self, group: GroupId) -> Option<Vec<Bytes>> {
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
