//! What the clients of a run did and saw, in the order in which it happened.
//!
//! All hosts share one thread, so one counter orders every event of the run: that order is what "before" means to the
//! checkers. An operation that never ended has an unknown outcome: its node was lost with it, or answered so. Everything
//! that is recorded goes into a running hash, by which two runs of a seed are compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_cluster::core::ids::{GroupId, ReplicaId};
use sha2::{Digest, Sha256};

use super::counts::Counts;
use super::mailboxes::Mailboxes;
use crate::promises::Violation;
use crate::promises::linearizable::Timed;
use crate::promises::twin_section::{SectionOperation, SectionState};

/// Events that a failing run prints.
const RECENT_MAX: usize = 4_000;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The cluster is being made.
    Start,
    /// Clients work, faults happen.
    Load,
    /// No faults any more; clients finish what they began.
    Heal,
    /// Every node writes to every device, and reads everything.
    Final,
}

/// Messages that were handed over together.
#[derive(Debug, Clone)]
pub(super) struct Append {
    pub(super) device: String,
    pub(super) epoch: u64,
    /// The places of the messages in their connection.
    pub(super) positions: std::ops::Range<u32>,
    /// The device's count of messages.
    pub(super) first_sequence: u64,
    pub(super) begun: u64,
    pub(super) end: AppendEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AppendEnd {
    Stored {
        offset: u64,
        at: u64,
    },
    /// As MQTT says it: without an offset.
    Acknowledged {
        at: u64,
    },
    /// Nothing was done.
    Refused,
    Unknown,
}

/// A connection that was told that it is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opened {
    pub(super) epoch: u64,
    pub(super) at: u64,
}

/// Desired or reported properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Desired,
    Reported,
}

/// The record of a run. Cheap to clone.
#[derive(Clone)]
pub(super) struct History {
    inner: Arc<Mutex<Inner>>,
}

pub(super) struct Inner {
    /// The simulated time when the hosts had their last turn.
    pub(super) now: Duration,
    events: u64,
    hash: Sha256,
    recent: VecDeque<String>,
    pub(super) phase: Phase,
    pub(super) appends: Vec<Append>,
    pub(super) opened: BTreeMap<String, Vec<Opened>>,
    pub(super) twins: BTreeMap<(String, Section), Vec<Timed<SectionOperation>>>,
    pub(super) initial: BTreeMap<(String, Section), SectionState>,
    /// The last number that was written to a section, or sent by a device.
    numbers: BTreeMap<(String, Section), u64>,
    sequences: BTreeMap<String, u64>,
    /// Hash of the message at (shard, offset), as it was first read.
    offsets: BTreeMap<(u32, u64), u64>,
    pub(super) mailboxes: Mailboxes,
    pub(super) counts: Counts,
    pub(super) violations: Vec<Violation>,
    /// Which nodes have done their final work.
    pub(super) finished: BTreeMap<u32, bool>,
    /// Nodes whose store has failed: the process ends itself.
    pub(super) failed: BTreeMap<u32, String>,
    /// Replicas that were stopped, as an operator has seen.
    pub(super) stopped: BTreeSet<(ReplicaId, GroupId)>,
}

/// An operation that has begun: where its end is recorded.
pub(super) struct Begun<T> {
    pub(super) place: T,
}

impl History {
    pub(super) fn new() -> Self {
        let inner = Inner {
            now: Duration::ZERO,
            events: 0,
            hash: Sha256::new(),
            recent: VecDeque::new(),
            phase: Phase::Start,
            appends: Vec::new(),
            opened: BTreeMap::new(),
            twins: BTreeMap::new(),
            initial: BTreeMap::new(),
            numbers: BTreeMap::new(),
            sequences: BTreeMap::new(),
            offsets: BTreeMap::new(),
            mailboxes: Mailboxes::default(),
            counts: Counts::default(),
            violations: Vec::new(),
            finished: BTreeMap::new(),
            failed: BTreeMap::new(),
            stopped: BTreeSet::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Records an event; the answer is its place in the order of all.
    pub(super) fn note(&self, event: impl Display) -> u64 {
        self.lock().note(event)
    }

    pub(super) fn violate(&self, violation: Violation) {
        let mut inner = self.lock();
        inner.note(format_args!("VIOLATION {violation}"));
        inner.violations.push(violation);
    }
}

impl Inner {
    pub(super) fn note(&mut self, event: impl Display) -> u64 {
        // Outside of a host there is no simulated clock to ask.
        let now = turmoil::sim_elapsed().unwrap_or(self.now);
        let line = format!("{:>10.4} {event}", now.as_secs_f64());
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        tracing::debug!(target: "drover_chaos::sim", "{line}");
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
        self.events += 1;
        self.events
    }

    /// Takes something that no line tells into the trace.
    pub(super) fn mix(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    pub(super) fn trace(&self) -> String {
        let digest = self.hash.clone().finalize();
        let shown: [u8; 8] = *digest.first_chunk().expect("a digest is longer");
        format!("{:016x}", u64::from_be_bytes(shown))
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// The last events that name `subject`.
    pub(super) fn recent(&self, subject: &str, count: usize) -> Vec<String> {
        let named: Vec<_> =
            self.recent.iter().filter(|line| line.contains(subject)).cloned().collect();
        named[named.len().saturating_sub(count)..].to_vec()
    }

    /// The number of the next write to a section. Each is used once.
    pub(super) fn next_number(&mut self, device: &str, section: Section) -> u64 {
        let number = self.numbers.entry((device.to_owned(), section)).or_default();
        *number += 1;
        *number
    }

    pub(super) fn take_sequences(&mut self, device: &str, count: u32) -> u64 {
        let next = self.sequences.entry(device.to_owned()).or_default();
        let first = *next;
        *next += u64::from(count);
        first
    }

    pub(super) fn begin_append(&mut self, append: Append) -> Begun<usize> {
        self.appends.push(append);
        Begun { place: self.appends.len() - 1 }
    }

    pub(super) fn end_append(&mut self, begun: Begun<usize>, end: AppendEnd) {
        match end {
            AppendEnd::Stored { .. } => self.counts.operations.appends_acknowledged += 1,
            AppendEnd::Acknowledged { .. } => self.counts.sockets.acknowledged += 1,
            AppendEnd::Refused => {}
            AppendEnd::Unknown => self.counts.operations.unknown += 1,
        }
        self.appends[begun.place].end = end;
    }

    pub(super) fn begin_twin(
        &mut self,
        device: &str,
        section: Section,
        operation: SectionOperation,
        begun: u64,
    ) -> Begun<(String, Section, usize)> {
        let key = (device.to_owned(), section);
        let operations = self.twins.entry(key.clone()).or_default();
        operations.push(Timed { operation, begun, ended: None });
        Begun { place: (key.0, key.1, operations.len() - 1) }
    }

    /// `None` takes the operation out: it had no effect and told nothing.
    pub(super) fn end_twin(
        &mut self,
        begun: Begun<(String, Section, usize)>,
        answered: Option<(SectionOperation, u64)>,
    ) {
        let (device, section, place) = begun.place;
        let operations = self.twins.entry((device, section)).or_default();
        match answered {
            Some((operation, at)) => {
                match operation.condition() {
                    Some(true) => self.counts.operations.conditions_met += 1,
                    Some(false) => self.counts.operations.conditions_refused += 1,
                    None => {}
                }
                operations[place].operation = operation;
                operations[place].ended = Some(at);
            }
            None => operations[place].begun = NEVER,
        }
    }

    pub(super) fn opened(&mut self, device: &str, epoch: u64, at: u64) {
        let is_takeover = self.opened.get(device).is_some_and(|opened| !opened.is_empty());
        let is_under_way = self.appends.iter().rev().take(200).any(|append| {
            append.device == device && append.epoch < epoch && append.end == AppendEnd::Unknown
        });
        self.counts.operations.takeovers += u64::from(is_takeover);
        self.counts.operations.takeovers_in_flight += u64::from(is_takeover && is_under_way);
        self.opened.entry(device.to_owned()).or_default().push(Opened { epoch, at });
    }

    /// Whether a newer connection of the device was told that it is connected before `begun`.
    pub(super) fn is_replaced(&self, device: &str, epoch: u64, begun: u64) -> bool {
        let mut opened = self.opened.get(device).into_iter().flatten();
        opened.any(|newer| newer.epoch > epoch && newer.at < begun)
    }

    /// Two reads of an offset are equal, whoever reads and whenever (I-2).
    pub(super) fn read_offset(&mut self, shard: u32, offset: u64, hash: u64, by: &dyn Display) {
        let Some(first) = self.offsets.insert((shard, offset), hash) else { return };
        self.counts.checks.repeated_offsets += 1;
        if first != hash {
            let seen = format!("{by} reads another message than was read before");
            let subject = format!("shard {shard} offset {offset}");
            self.violations.push(Violation::new("I-2 stable reads", subject, seen));
        }
    }
}

/// The begin of an operation that is to be left out.
pub(super) const NEVER: u64 = u64::MAX;
