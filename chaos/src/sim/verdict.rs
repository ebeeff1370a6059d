//! A run judged: what clients saw against what the disks hold, and whether enough happened.

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster::actors::config::Commands;
use drover_cluster::core::change::{Change, DeviceChange};
use drover_cluster::core::document::{Object, Value};
use drover_cluster::core::ids::{DeviceId, SessionEpoch, ShardCount, ShardId};
use drover_cluster::core::message::StoredMessage;
use drover_cluster::raft::log_record;
use drover_cluster::raft::types::{EntryPayload, Proposal};
use drover_cluster::wire::message::Content;
use drover_cluster::wire::record::batch_from_bytes;
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::history::{AppendEnd, Inner, NEVER, Section};
use super::mailboxes;
use super::node::Machine;
use super::observe::{self, Observer};
use super::panics;
use super::plan::Plan;
use super::sockets::speaks_mqtt;
use crate::history::{DeviceHistory, StoredCopy, Transmission};
use crate::promises::Violation;
use crate::promises::linearizable::{Judgement, Timed, check};
use crate::promises::p1_telemetry::{self, Streams};
use crate::promises::p3_commands::{self, Terms};
use crate::promises::twin_section::{SectionOperation, TwinSection, WriteAnswer};

/// Events that are printed of whoever a violation is about.
const EVENTS_SHOWN: usize = 40;

/// What became of a seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    pub seed: u64,
    /// What went wrong, each in a line. A run that was given up is no pass either.
    pub problems: Vec<String>,
    pub counts: Counts,
    /// A hash of everything that happened, in order.
    pub trace: String,
    pub events: u64,
    pub simulated_ms: u64,
    /// What happened last to those whom the first problem is about.
    pub recent: Vec<String>,
}

impl Verdict {
    pub fn is_valid(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Everything that the checks need.
pub(super) struct Evidence<'a> {
    pub(super) plan: &'a Plan,
    pub(super) history: &'a mut Inner,
    pub(super) observer: &'a Observer,
    pub(super) machines: &'a [Machine],
    pub(super) devices: &'a [DeviceId],
}

pub(super) fn judge(evidence: Evidence<'_>, simulated_ms: u64) -> Verdict {
    let Evidence { plan, history, observer, machines, devices } = evidence;
    let mut problems = std::mem::take(&mut history.violations);
    let streams = streams(plan, machines, &mut problems);
    let histories = device_histories(plan, history, devices);
    let telemetry = p1_telemetry::check(&histories, &copies(&streams));
    history.counts.operations.messages_stored = telemetry.stored;
    history.counts.operations.snapshots_installed =
        machines.iter().map(|machine| machine.disk.snapshots_imported()).sum();
    history.counts.checks.stored_messages = telemetry.stored;
    history.counts.checks.streams = streams.len() as u64;
    problems.extend(telemetry.violations);
    problems.extend(check_offsets(plan, history, &streams));
    problems.extend(check_fencing(history, &streams));
    problems.extend(check_epochs(&streams));
    let logged = logged(plan, observer);
    problems.extend(check_twins(history, logged.as_ref()));
    problems.extend(check_commands(plan, history, observer, machines, devices));
    problems.extend(panics::violations());
    let subject = problems.first().map(|first| first.subject.clone());
    let recent = subject.map_or_else(Vec::new, |subject| {
        let named = subject.split_whitespace().find(|word| word.starts_with("device-"));
        history.recent(named.unwrap_or(""), EVENTS_SHOWN)
    });
    Verdict {
        seed: plan.seed,
        problems: problems.iter().map(ToString::to_string).collect(),
        counts: history.counts,
        trace: history.trace(),
        events: history.events(),
        simulated_ms,
        recent,
    }
}

fn streams(
    plan: &Plan,
    machines: &[Machine],
    problems: &mut Vec<Violation>,
) -> BTreeMap<u32, Vec<StoredMessage>> {
    let mut longest = BTreeMap::new();
    for shard in 0..plan.shards {
        for machine in machines {
            match observe::stream_of(&machine.disk, shard, plan.shards) {
                Ok(stream) => {
                    let known: &mut Vec<StoredMessage> = longest.entry(shard).or_default();
                    if known.len() < stream.len() {
                        *known = stream;
                    }
                }
                Err(error) => {
                    let subject = format!("node {}, shard {shard}", machine.number);
                    problems.push(Violation::new("I-6 readable", subject, error.to_string()));
                }
            }
        }
    }
    longest
}

fn copies(streams: &BTreeMap<u32, Vec<StoredMessage>>) -> Streams {
    let copy = |stored: &StoredMessage| {
        let offset = stored.offset.get();
        copy_of(stored).ok_or_else(|| (offset, "nobody sent this".to_owned()))
    };
    streams.iter().map(|(shard, stream)| (*shard, stream.iter().map(copy).collect())).collect()
}

fn copy_of(stored: &StoredMessage) -> Option<StoredCopy> {
    let content = Content::decode(stored.message.clone()).ok()?;
    let text = std::str::from_utf8(&content.body).ok()?;
    let mut words = text.split(' ');
    let (device, epoch) = (words.next()?, words.next()?.parse::<u32>().ok()?);
    let position = words.next()?.parse().ok()?;
    let sequence = words.next()?.parse().ok()?;
    // No device that speaks MQTT is told its epoch: it counts its connections.
    let is_stamped = |stamped: SessionEpoch| stamped.get() == u64::from(epoch);
    let is_its_own = stored.device.as_str() == device
        && stored.epoch.is_some_and(|stamped| speaks_mqtt(device) || is_stamped(stamped));
    let copy = StoredCopy {
        offset: stored.offset.get(),
        device: device.to_owned(),
        sequence,
        connection: epoch,
        position,
    };
    is_its_own.then_some(copy)
}

fn shard_of(plan: &Plan, device: &DeviceId) -> u32 {
    let shards = ShardCount::new(plan.shards).expect("a plan has a few shards");
    ShardId::of(device, shards).number()
}

fn device_histories(plan: &Plan, history: &Inner, devices: &[DeviceId]) -> Vec<DeviceHistory> {
    let mut histories: BTreeMap<&str, DeviceHistory> = BTreeMap::new();
    for device in devices {
        let empty = DeviceHistory {
            device: device.to_string(),
            shard: shard_of(plan, device),
            ..DeviceHistory::default()
        };
        histories.insert(device.as_str(), empty);
    }
    for append in &history.appends {
        let acked_ms = match append.end {
            AppendEnd::Stored { at, .. } | AppendEnd::Acknowledged { at } => Some(at),
            AppendEnd::Unknown => None,
            // What was refused was not sent: if it is there, it is a phantom.
            AppendEnd::Refused => continue,
        };
        let Some(device) = histories.get_mut(append.device.as_str()) else { continue };
        let sent = append.positions.clone().zip(append.first_sequence..);
        device.transmissions.extend(sent.map(|(position, sequence)| Transmission {
            sequence,
            connection: append.epoch as u32,
            position,
            sent_ms: append.begun,
            acked_ms,
        }));
    }
    histories.into_values().collect()
}

/// An acknowledged message stands where its acknowledgement said (I-1), and its group stands together.
fn check_offsets(
    plan: &Plan,
    history: &mut Inner,
    streams: &BTreeMap<u32, Vec<StoredMessage>>,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    for append in &history.appends {
        let AppendEnd::Stored { offset, .. } = append.end else { continue };
        let Ok(device) = append.device.parse::<DeviceId>() else { continue };
        let stream = streams.get(&shard_of(plan, &device));
        for (sequence, offset) in
            (append.first_sequence..).zip(offset..).take(append.positions.len())
        {
            let stored = stream.and_then(|stream| stream.get(offset as usize)).and_then(copy_of);
            let is_it = stored
                .is_some_and(|copy| copy.device == append.device && copy.sequence == sequence);
            history.counts.checks.acknowledged_messages += 1;
            if !is_it {
                let seen = format!("message {sequence} is not at its offset {offset}");
                violations.push(Violation::new("I-1 at its offset", &append.device, seen));
            }
        }
    }
    violations
}

/// What a connection sends after a newer one was told that it is connected is not stored (I-22).
fn check_fencing(
    history: &mut Inner,
    streams: &BTreeMap<u32, Vec<StoredMessage>>,
) -> Vec<Violation> {
    let stored: BTreeSet<(String, u64, u64)> = streams
        .values()
        .flatten()
        .filter_map(copy_of)
        .map(|copy| (copy.device, u64::from(copy.connection), copy.sequence))
        .collect();
    let mut violations = Vec::new();
    let mut fences = 0;
    for append in &history.appends {
        if !history.is_replaced(&append.device, append.epoch, append.begun) {
            continue;
        }
        fences += 1;
        let sequences = (append.first_sequence..).take(append.positions.len());
        for sequence in sequences {
            if stored.contains(&(append.device.clone(), append.epoch, sequence)) {
                let seen = format!(
                    "message {sequence} of connection {} is stored, and was sent after a newer one was connected",
                    append.epoch
                );
                violations.push(Violation::new("I-22 fenced", &append.device, seen));
            }
        }
    }
    history.counts.checks.fences += fences;
    violations
}

/// A connection of a device that speaks MQTT has one epoch, and a newer one a higher (I-22).
fn check_epochs(streams: &BTreeMap<u32, Vec<StoredMessage>>) -> Vec<Violation> {
    let mut epochs: BTreeMap<(String, u32), u64> = BTreeMap::new();
    let mut violations = Vec::new();
    for stored in streams.values().flatten() {
        let (Some(copy), Some(stamped)) = (copy_of(stored), stored.epoch) else { continue };
        let (device, connection, stamped) = (copy.device, copy.connection, stamped.get());
        let older = epochs.range((device.clone(), 0)..(device.clone(), connection)).next_back();
        let is_older_higher = older.is_some_and(|(_, epoch)| *epoch >= stamped);
        let known = *epochs.entry((device.clone(), connection)).or_insert(stamped);
        if is_older_higher || known != stamped {
            let seen =
                format!("connection {connection} has the epoch {stamped}, which is another's");
            violations.push(Violation::new("I-22 one epoch a connection", device, seen));
        }
    }
    violations
}

/// The numbered writes that are in the committed logs; `None` if a log was not seen whole.
type Logged = BTreeSet<(String, Section, u64)>;

fn logged(plan: &Plan, observer: &Observer) -> Option<Logged> {
    let mut logged = Logged::new();
    for shard in 0..plan.shards {
        for value in observer.log(shard)? {
            let entry = log_record::decode_entry(0, value).ok()?;
            let EntryPayload::Normal(Proposal(bytes)) = entry.payload else { continue };
            logged.extend(batch_from_bytes(bytes).ok()?.changes.into_iter().filter_map(written));
        }
    }
    Some(logged)
}

fn written(change: Change) -> Option<(String, Section, u64)> {
    let Change::Device(device, change) = change else { return None };
    let number = |patch: &Object| match patch.get("last") {
        Some(Value::Integer(number)) => Some(*number as u64),
        Some(_) | None => None,
    };
    let (section, number) = match &change {
        DeviceChange::PatchReported { patch, .. } => (Section::Reported, number(patch)?),
        DeviceChange::UpdateTwin { desired: Some(desired), .. } => {
            (Section::Desired, number(desired)?)
        }
        DeviceChange::UpdateTwin { desired: None, .. }
        | DeviceChange::Create { .. }
        | DeviceChange::Update { .. }
        | DeviceChange::Delete { .. }
        | DeviceChange::Connect { .. }
        | DeviceChange::Subscribe { .. }
        | DeviceChange::Unsubscribe { .. }
        | DeviceChange::Disconnect { .. }
        | DeviceChange::SendCommand(_)
        | DeviceChange::SettleCommand { .. }
        | DeviceChange::CancelCommand { .. }
        | DeviceChange::PurgeCommands
        | DeviceChange::RunCommandTimers
        | DeviceChange::Telemetry { .. } => return None,
    };
    Some((device.to_string(), section, number))
}

/// Everything about commands (I-16 to I-20), from what clients saw and what the disks say.
fn check_commands(
    plan: &Plan,
    history: &mut Inner,
    observer: &Observer,
    machines: &[Machine],
    devices: &[DeviceId],
) -> Vec<Violation> {
    let ledgers = match mailboxes::ledgers(plan, observer, machines, devices) {
        Ok(ledgers) => ledgers,
        Err(error) => {
            return vec![Violation::new("I-34 readable", "the mailboxes", error.to_string())];
        }
    };
    let terms = Terms { deliveries_max: Commands::default().limits.deliveries_max, skew_ms: 0 };
    let found = p3_commands::check(&history.mailboxes.histories(), &ledgers, terms);
    let Counts { operations, checks, .. } = &mut history.counts;
    operations.commands_accepted = found.accepted;
    operations.commands_repeated = found.repeated;
    operations.commands_delivered = found.delivered;
    operations.commands_redelivered = found.redelivered;
    operations.commands_completed = found.completed;
    operations.commands_rejected = found.rejected;
    operations.commands_cancelled = found.cancelled;
    operations.commands_cancelled_unsent = found.cancelled_unsent;
    operations.commands_superseded = found.superseded;
    operations.commands_expired = found.expired;
    operations.unknown += found.unknown;
    checks.command_stories = found.accepted;
    checks.command_deliveries = found.delivered;
    found.violations
}

fn check_twins(history: &mut Inner, logged: Option<&Logged>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for ((device, section), operations) in &history.twins {
        let key = (device.clone(), *section);
        let Some(initial) = history.initial.get(&key) else { continue };
        // A write of unknown outcome that is in no log never happened; without it the search is short.
        let matters = |timed: &&Timed<SectionOperation>| {
            let is_dropped = match &timed.operation {
                SectionOperation::Write { value, answer: WriteAnswer::Unknown, .. } => logged
                    .is_some_and(|logged| !logged.contains(&(device.clone(), *section, *value))),
                SectionOperation::Write { .. } | SectionOperation::Read(_) => false,
            };
            timed.begun != NEVER && !is_dropped
        };
        let operations: Vec<_> = operations.iter().filter(matters).cloned().collect();
        history.counts.checks.twin_histories += 1;
        history.counts.checks.twin_operations += operations.len() as u64;
        let seen = match check(&TwinSection, initial.clone(), &operations) {
            Judgement::Linearizable => continue,
            Judgement::Violated { stuck, fitted } => format!(
                "{section:?}: {fitted} of {} operations fit, then not {:?}",
                operations.len(),
                operations[stuck]
            ),
            Judgement::Undecided => {
                format!("{section:?}: {} operations were not decided", operations.len())
            }
        };
        violations.push(Violation::new("I-10 to I-13 linearizable", device, seen));
    }
    violations
}
