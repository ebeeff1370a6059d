//! What holds for every log (test builds only): replicas agree, replay equals live, repeats change nothing, nothing
//! panics, and a state is what the accepted changes make of it, by models that share no code with the rules.
//!
//! The shell around apply is modelled as storage and Raft promise it: an entry's records and its index are written
//! together, and an entry at or below the applied index is not applied again.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::change::{
    Batch, Change, Condition, DeviceChange, DeviceSpec, Done, Effect, Message, Outcome, Sender,
    StreamChange, TwinUpdate,
};
use crate::device::{Authentication, Channel, Device, Presence, Qos, Status, Subscriptions};
use crate::document::{Object, Value};
use crate::feedback::FeedbackLog;
use crate::ids::{
    CommandSequence, DeliveryNumber, DeviceId, Etag, GenerationId, LogTime, Offset, SessionEpoch,
    Version,
};
use crate::mailbox::{
    Ack, Command, Commands, DELIVERY_WINDOW, Expiry, Limits, Needs, NewCommand, Settlement, State,
};
use crate::shard::{Applied, Records, Stream, apply_device, apply_stream, needs_commands};
use crate::testing::{apply_all, key, patch, spec};
use crate::twin::Twin;

/// A replica's state, as its storage has it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Replica {
    records: BTreeMap<DeviceId, Records>,
    stream: Stream,
    messages: BTreeMap<Offset, Message>,
    applied: usize,
}

impl Replica {
    /// Applies the entry that stands at `index`, unless it has been applied.
    fn entry(&mut self, index: usize, batch: &Batch) -> Vec<Applied> {
        if index <= self.applied {
            return Vec::new();
        }
        self.applied = index;
        batch.changes.iter().map(|change| self.change(change, batch.at).0).collect()
    }

    /// The answer to the change itself, and to what follows from it.
    fn change(&mut self, change: &Change, at: LogTime) -> (Applied, Vec<(DeviceId, Applied)>) {
        let first = self.stream.next;
        let (applied, follows) = match change {
            Change::Device(device, change) => {
                let mut all = apply_all(&mut self.records, &mut self.stream, device, change, at);
                let (_, applied) = all.remove(0);
                (applied, all)
            }
            Change::Stream(change) => (apply_stream(&mut self.stream, change), Vec::new()),
        };
        for (message, place) in applied.appended.iter().zip(0..) {
            self.messages.insert(first.plus(place), message.clone());
        }
        if let Some(first) = applied.retain_from {
            self.messages.retain(|offset, _| *offset >= first);
        }
        (applied, follows)
    }

    fn replay(&mut self, log: &[Batch]) {
        for (index, batch) in (1..).zip(log) {
            self.entry(index, batch);
        }
    }
}

/// Few values, so that changes meet the state that earlier ones left.
fn small() -> impl Strategy<Value = u64> {
    0_u64..6
}

fn device_id() -> impl Strategy<Value = DeviceId> {
    "[ab](/[mn])?".prop_map(|id| DeviceId::from_key(&id).expect("a legal id"))
}

fn epoch() -> impl Strategy<Value = SessionEpoch> {
    small().prop_map(SessionEpoch::new)
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::Any), small().prop_map(|etag| Condition::Match(Etag::new(etag))),]
}

fn sender() -> impl Strategy<Value = Sender> {
    prop_oneof![
        epoch().prop_map(Sender::Session),
        small().prop_map(|etag| Sender::Request(Etag::new(etag))),
    ]
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![4 => Just(Status::Enabled), 1 => Just(Status::Disabled)]
}

fn authentication() -> impl Strategy<Value = Authentication> {
    (1_u8..3).prop_map(|byte| Authentication::Sas { primary: key(byte), secondary: key(2) })
}

fn subscriptions() -> impl Strategy<Value = Subscriptions> {
    let channel = prop::sample::select(vec![Channel::DesiredPatches, Channel::Commands]);
    prop::collection::btree_map(channel, Just(Qos::AtLeastOnce), 0..3)
}

fn message() -> impl Strategy<Value = Message> {
    "[a-z]{0,3}".prop_map(|text| Message(text.into()))
}

/// Mostly legal patches, and one that no section takes.
fn document() -> impl Strategy<Value = Object> {
    let illegal = Object::from([("a.b".to_owned(), Value::Bool(true))]);
    prop_oneof![9 => patch(), 1 => Just(illegal)]
}

fn identity_change() -> impl Strategy<Value = DeviceChange> {
    let create = (small(), status(), document(), document()).prop_map(
        |(generation, status, tags, desired)| DeviceChange::Create {
            generation: GenerationId::new(generation),
            spec: DeviceSpec { status, tags, desired, ..spec() },
        },
    );
    let update = (condition(), prop::option::of(status()), prop::option::of(authentication()));
    prop_oneof![
        3 => create,
        2 => update.prop_map(|(if_match, status, authentication)| DeviceChange::Update {
            if_match,
            status,
            status_reason: None,
            authentication,
        }),
        1 => condition().prop_map(|if_match| DeviceChange::Delete { if_match }),
    ]
}

fn session_change() -> impl Strategy<Value = DeviceChange> {
    let connect = (small(), any::<bool>()).prop_map(|(etag, clean_session)| {
        DeviceChange::Connect { credentials: Etag::new(etag), clean_session, node: None }
    });
    prop_oneof![
        4 => connect,
        1 => (epoch(), subscriptions())
            .prop_map(|(epoch, subscriptions)| DeviceChange::Subscribe { epoch, subscriptions }),
        1 => epoch().prop_map(|epoch| {
            DeviceChange::Unsubscribe { epoch, channels: vec![Channel::DesiredPatches] }
        }),
        1 => (epoch(), prop::option::of(message()))
            .prop_map(|(epoch, will)| DeviceChange::Disconnect { epoch, will }),
        3 => (sender(), prop::collection::vec(message(), 0..3))
            .prop_map(|(sender, messages)| DeviceChange::Telemetry { sender, messages }),
    ]
}

fn twin_change() -> impl Strategy<Value = DeviceChange> {
    let version = || prop::option::weighted(0.3, small().prop_map(Version::new));
    let mode = prop::sample::select(vec![TwinUpdate::Merge, TwinUpdate::Replace]);
    let section = || prop::option::of(document());
    prop_oneof![
        (sender(), version(), document()).prop_map(|(sender, expected, patch)| {
            DeviceChange::PatchReported { sender, expected, patch }
        }),
        (condition(), version(), mode, section(), section()).prop_map(
            |(if_match, expected_desired, mode, tags, desired)| DeviceChange::UpdateTwin {
                if_match,
                expected_desired,
                mode,
                tags,
                desired,
            },
        ),
    ]
}

fn new_command() -> impl Strategy<Value = NewCommand> {
    let ack = prop::sample::select(vec![Ack::None, Ack::Positive, Ack::Negative, Ack::Full]);
    let time = || 0_u64..120;
    let expiry = prop_oneof![
        time().prop_map(|at| Expiry::At(LogTime::new(at))),
        time().prop_map(|ms| Expiry::After { ms }),
    ];
    let limits = (1_u32..20, 0_u64..60, 1_u32..4, 0_u32..3).prop_map(
        |(depth_max, lock_ms, deliveries_max, ended_max)| Limits {
            depth_max,
            mailbox_bytes_max: 40,
            command_bytes_max: 2,
            ttl_ms_max: 100,
            lock_ms,
            deliveries_max,
            ended_max,
            ended_ms: 50,
        },
    );
    let schedule = prop::option::weighted(0.2, time().prop_map(LogTime::new));
    ("[a-z]", prop::option::of("[kl]"), ack, expiry, schedule, message(), limits).prop_map(
        |(id, key, ack, expiry, not_before, message, limits)| NewCommand {
            id: id.parse().expect("a legal id"),
            key,
            ack,
            expiry,
            not_before,
            message,
            limits,
        },
    )
}

fn mail_change() -> impl Strategy<Value = DeviceChange> {
    let settlement =
        prop::sample::select(vec![Settlement::Complete, Settlement::Reject, Settlement::Abandon]);
    let settle = (epoch(), 1_u64..9, settlement).prop_map(|(epoch, sequence, settlement)| {
        let sequence = CommandSequence::new(sequence);
        DeviceChange::SettleCommand { epoch, sequence, settlement }
    });
    let cancel = "[a-z]"
        .prop_map(|id| DeviceChange::CancelCommand { command: id.parse().expect("a legal id") });
    prop_oneof![
        8 => new_command().prop_map(|new| DeviceChange::SendCommand(Box::new(new))),
        4 => settle,
        1 => cancel,
        1 => Just(DeviceChange::PurgeCommands),
        3 => Just(DeviceChange::RunCommandTimers),
    ]
}

/// What the mailbox of one device that stays registered goes through: few identities, many commands.
fn mail_log() -> impl Strategy<Value = Vec<(LogTime, DeviceChange)>> {
    let connect = any::<bool>().prop_map(|clean_session| DeviceChange::Connect {
        credentials: Etag::new(1),
        clean_session,
        node: None,
    });
    let listen = epoch().prop_map(|epoch| DeviceChange::Subscribe {
        epoch,
        subscriptions: [(Channel::Commands, Qos::AtLeastOnce)].into(),
    });
    let change = prop_oneof![2 => connect, 3 => listen, 1 => session_change(), 9 => mail_change()];
    let steps = prop::collection::vec((0_u64..30, change), 0..60);
    steps.prop_map(|steps| {
        let mut at = 0;
        let later = |(wait, change)| {
            at += wait;
            (LogTime::new(at), change)
        };
        steps.into_iter().map(later).collect()
    })
}

fn stream_change() -> impl Strategy<Value = StreamChange> {
    let offset = || small().prop_map(Offset::new);
    let group = || "[gh]";
    prop_oneof![
        (group(), offset()).prop_map(|(group, next)| StreamChange::CommitCursor { group, next }),
        (group(), offset()).prop_map(|(group, next)| StreamChange::SeekCursor { group, next }),
        group().prop_map(|group| StreamChange::DeleteCursor { group }),
        (offset(), offset(), small()).prop_map(|(from, before, bytes)| StreamChange::Retain {
            from,
            before,
            bytes
        }),
        (group(), offset())
            .prop_map(|(group, next)| StreamChange::CommitFeedbackCursor { group, next }),
        offset().prop_map(|before| StreamChange::RetainFeedback { before }),
    ]
}

fn device_change() -> impl Strategy<Value = DeviceChange> {
    prop_oneof![identity_change(), session_change(), twin_change(), mail_change()]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (device_id(), device_change()).prop_map(|(id, change)| Change::Device(id, change)),
        1 => stream_change().prop_map(Change::Stream),
    ]
}

fn log() -> impl Strategy<Value = Vec<Batch>> {
    let batch = (0_u64..100, prop::collection::vec(change(), 0..6))
        .prop_map(|(at, changes)| Batch { at: LogTime::new(at), changes });
    prop::collection::vec(batch, 0..16)
}

/// Any number, and those at the ends of the range.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![small(), any::<u64>(), Just(u64::MAX)]
}

fn any_stream() -> impl Strategy<Value = Stream> {
    let cursors = prop::collection::btree_map("[gh]", number().prop_map(Offset::new), 0..3);
    (prop::array::uniform7(number()), cursors).prop_map(
        |([first, next, bytes, at, device_count, disabled_count, retired], cursors)| Stream {
            first: Offset::new(first),
            next: Offset::new(next),
            bytes,
            cursors,
            at: LogTime::new(at),
            device_count,
            disabled_count,
            retired,
            feedback: FeedbackLog::default(),
        },
    )
}

/// Records of a device that may have been anything but half written.
fn any_records() -> impl Strategy<Value = Records> {
    let numbers = prop::array::uniform6(number());
    let since = prop::option::of(number().prop_map(LogTime::new));
    let there = (numbers, status(), since, subscriptions(), patch(), patch()).prop_map(
        |([etag, epoch, twin_etag, version, desired, reported], status, since, subs, tags, own)| {
            let spec = DeviceSpec { status, ..spec() };
            let id: DeviceId = "a".parse().expect("a legal id");
            let mut device = Device::new(id, GenerationId::new(1), &spec, 0, LogTime::new(1));
            device.etag = Etag::new(etag);
            device.presence = Presence {
                epoch: SessionEpoch::new(epoch),
                connected_since: since,
                changed: since,
                active: since,
                node: None,
                subscriptions: subs,
            };
            let mut twin = Twin::new(Etag::new(twin_etag), &tags, &own, LogTime::new(1))
                .expect("legal content");
            twin.version = Version::new(version);
            twin.desired.version = Version::new(desired);
            twin.reported.version = Version::new(reported);
            Records { device: Some(device), twin: Some(twin), commands: None, owner: None }
        },
    );
    prop_oneof![1 => Just(Records::default()), 4 => there]
}

/// RFC 7396 as its section 2 writes it, over values and without anything of `document`.
fn merge_patch(target: Option<Value>, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut members =
        if let Some(Value::Object(members)) = target { members } else { Object::new() };
    for (name, value) in patch {
        let former = members.remove(name);
        if *value != Value::Null {
            members.insert(name.clone(), merge_patch(former, value));
        }
    }
    Value::Object(members)
}

fn fold(section: &mut Value, patch: &Object) {
    *section = merge_patch(Some(section.clone()), &Value::Object(patch.clone()));
}

/// The sections and versions of a twin, as accepted changes make them.
#[derive(Debug, Clone, PartialEq)]
struct TwinModel {
    tags: Value,
    desired: Value,
    reported: Value,
    versions: [u64; 3],
}

impl TwinModel {
    fn of(twin: &Twin) -> Self {
        Self {
            tags: Value::Object(twin.tags.clone()),
            desired: Value::Object(twin.desired.properties.clone()),
            reported: Value::Object(twin.reported.properties.clone()),
            versions: [twin.version, twin.desired.version, twin.reported.version].map(Version::get),
        }
    }

    fn created(spec: &DeviceSpec) -> Self {
        let of = |document: &Object| merge_patch(None, &Value::Object(document.clone()));
        Self {
            tags: of(&spec.tags),
            desired: of(&spec.desired),
            reported: of(&Object::new()),
            versions: [1; 3],
        }
    }

    fn accept(&mut self, change: &DeviceChange) {
        match change {
            DeviceChange::PatchReported { patch, .. } => {
                fold(&mut self.reported, patch);
                self.versions[2] += 1;
            }
            DeviceChange::UpdateTwin { mode, tags, desired, .. } => {
                let replace = *mode == TwinUpdate::Replace;
                if replace {
                    self.tags = Value::Object(Object::new());
                    self.desired = Value::Object(Object::new());
                }
                if let Some(tags) = tags {
                    fold(&mut self.tags, tags);
                }
                if let Some(desired) = desired {
                    fold(&mut self.desired, desired);
                }
                self.versions[0] += 1;
                self.versions[1] += u64::from(replace || desired.is_some());
            }
            DeviceChange::Create { .. }
            | DeviceChange::Update { .. }
            | DeviceChange::Delete { .. }
            | DeviceChange::Connect { .. }
            | DeviceChange::Subscribe { .. }
            | DeviceChange::Unsubscribe { .. }
            | DeviceChange::Disconnect { .. }
            | DeviceChange::Telemetry { .. }
            | DeviceChange::SendCommand(_)
            | DeviceChange::SettleCommand { .. }
            | DeviceChange::CancelCommand { .. }
            | DeviceChange::PurgeCommands
            | DeviceChange::RunCommandTimers => {}
        }
    }
}

/// Which connection of a device lives, as the answers have told it.
fn live_after(live: Option<SessionEpoch>, applied: &Applied) -> Option<SessionEpoch> {
    if let Ok(Done::Connected { epoch, .. }) = &applied.outcome {
        return Some(*epoch);
    }
    let ended = matches!(applied.outcome, Ok(Done::Disconnected))
        || applied.effects.iter().any(|effect| matches!(effect, Effect::EndSessions { .. }));
    live.filter(|_| !ended)
}

fn speaks_as(change: &DeviceChange) -> Option<SessionEpoch> {
    match change {
        DeviceChange::Subscribe { epoch, .. }
        | DeviceChange::Unsubscribe { epoch, .. }
        | DeviceChange::Disconnect { epoch, .. }
        | DeviceChange::SettleCommand { epoch, .. }
        | DeviceChange::Telemetry { sender: Sender::Session(epoch), .. }
        | DeviceChange::PatchReported { sender: Sender::Session(epoch), .. } => Some(*epoch),
        DeviceChange::Create { .. }
        | DeviceChange::Update { .. }
        | DeviceChange::Delete { .. }
        | DeviceChange::Connect { .. }
        | DeviceChange::Telemetry { sender: Sender::Request(_), .. }
        | DeviceChange::PatchReported { sender: Sender::Request(_), .. }
        | DeviceChange::UpdateTwin { .. }
        | DeviceChange::SendCommand(_)
        | DeviceChange::CancelCommand { .. }
        | DeviceChange::PurgeCommands
        | DeviceChange::RunCommandTimers => None,
    }
}

/// What nobody proposes: a module's status moves with its device's only.
fn gives_a_module_its_own_status(change: &Change) -> bool {
    matches!(change, Change::Device(id, DeviceChange::Update { status: Some(_), .. }) if id.is_module())
}

proptest! {
    #[test]
    fn replicas_agree_however_the_changes_were_batched(log in log()) {
        let (mut batched, mut single) = (Replica::default(), Replica::default());
        let mut answered = (Vec::new(), Vec::new());
        let mut index = 0;
        for (place, batch) in (1..).zip(&log) {
            answered.0.extend(batched.entry(place, batch));
            for change in &batch.changes {
                index += 1;
                let one = Batch { at: batch.at, changes: vec![change.clone()] };
                answered.1.extend(single.entry(index, &one));
            }
        }
        single.applied = batched.applied;
        prop_assert_eq!(answered.0, answered.1);
        prop_assert_eq!(batched, single);
    }

    #[test]
    fn replay_from_any_earlier_state_equals_live(log in log(), saved_at in any::<prop::sample::Index>()) {
        let saved_at = saved_at.index(log.len() + 1);
        let mut live = Replica::default();
        let mut saved = live.clone();
        for (index, batch) in (1..).zip(&log) {
            live.entry(index, batch);
            if index == saved_at {
                saved = live.clone();
            }
        }
        saved.replay(&log); // from the beginning: what was applied before it was saved is passed over
        prop_assert_eq!(saved, live);
    }

    #[test]
    fn a_repeated_entry_changes_nothing(log in log()) {
        let mut replica = Replica::default();
        replica.replay(&log);
        let before = replica.clone();
        replica.replay(&log);
        prop_assert_eq!(replica, before);
    }

    #[test]
    fn apply_answers_whatever_it_is_given(
        records in any_records(), stream in any_stream(), change in change(), at in number(),
    ) {
        let id: DeviceId = "a".parse().expect("a legal id");
        let records = BTreeMap::from([(id, records)]);
        let mut replica = Replica { records, stream, ..Replica::default() };
        let _answered: Outcome = replica.change(&change, LogTime::new(at)).0.outcome;
    }

    #[test]
    fn a_refusal_changes_nothing_and_an_untouched_record_is_the_same(log in log()) {
        let mut replica = Replica::default();
        for batch in &log {
            for change in &batch.changes {
                let mut before = replica.clone();
                let (applied, follows) = replica.change(change, batch.at);
                before.stream.at = replica.stream.at;
                if let Change::Device(id, _) = change {
                    let was = before.records.entry(id.clone()).or_default();
                    was.commands.get_or_insert_default();
                    let owner = Some(id.owner()).filter(|_| applied.owner_touched);
                    let touched: Vec<&DeviceId> = follows.iter().map(|(id, _)| id).chain(&owner).collect();
                    for (other, now) in replica.records.iter().filter(|(other, _)| *other != id) {
                        prop_assert!(touched.contains(&other) || before.records[other] == *now);
                    }
                    let (was, now) = (&before.records[id], &replica.records[id]);
                    prop_assert!(applied.mailbox.is_some() || was.commands == now.commands);
                    prop_assert!(applied.device_touched || was.device == now.device);
                    prop_assert!(applied.twin_touched || was.twin == now.twin);
                }
                if applied.outcome.is_err() {
                    prop_assert_eq!(&before, &replica);
                    prop_assert!(applied.effects.is_empty() && applied.appended.is_empty());
                    prop_assert!(follows.is_empty() && !applied.owner_touched);
                }
            }
        }
    }

    #[test]
    fn a_twin_is_the_fold_of_the_accepted_changes_and_versions_grow_by_one(log in log()) {
        let mut replica = Replica::default();
        let mut models: BTreeMap<DeviceId, TwinModel> = BTreeMap::new();
        for (batch, change) in log.iter().flat_map(|b| b.changes.iter().map(move |c| (b, c))) {
            let (applied, follows) = replica.change(change, batch.at);
            let Change::Device(id, change) = change else { continue };
            match (change, applied.outcome) {
                (_, Err(_)) => {}
                (DeviceChange::Create { spec, .. }, Ok(_)) => {
                    models.insert(id.clone(), TwinModel::created(spec));
                }
                (DeviceChange::Delete { .. }, Ok(_)) => {
                    models.remove(id);
                    models.retain(|other, _| other.owner() != *id);
                }
                (change, Ok(_)) => models.get_mut(id).expect("it was created").accept(change),
            }
            for id in follows.iter().map(|(id, _)| id).chain([id]) {
                let twin = replica.records[id].twin.as_ref();
                prop_assert_eq!(twin.map(TwinModel::of), models.get(id).cloned());
            }
        }
    }

    #[test]
    fn only_the_live_connection_speaks_and_epochs_never_come_again(log in log()) {
        let mut replica = Replica::default();
        let mut live: BTreeMap<DeviceId, SessionEpoch> = BTreeMap::new();
        let mut newest: BTreeMap<DeviceId, SessionEpoch> = BTreeMap::new();
        for (batch, change) in log.iter().flat_map(|b| b.changes.iter().map(move |c| (b, c))) {
            let (applied, follows) = replica.change(change, batch.at);
            let Change::Device(id, change) = change else { continue };
            let was = live.get(id).copied();
            if let (Some(epoch), Ok(_)) = (speaks_as(change), &applied.outcome) {
                prop_assert_eq!(Some(epoch), was, "not the live one");
            }
            if let Ok(Done::Connected { epoch, .. }) = applied.outcome {
                prop_assert!(newest.insert(id.clone(), epoch).is_none_or(|former| former < epoch));
            }
            for (id, applied) in [(id.clone(), applied)].into_iter().chain(follows) {
                match live_after(live.get(&id).copied(), &applied) {
                    Some(epoch) => live.insert(id, epoch),
                    None => live.remove(&id),
                };
            }
        }
    }

    #[test]
    fn offsets_have_no_holes_and_the_counters_count(log in log()) {
        let mut replica = Replica::default();
        replica.replay(&log);
        let Replica { records, stream, messages, .. } = replica;
        let offsets: Vec<u64> = messages.keys().map(|offset| offset.get()).collect();
        prop_assert_eq!(offsets, (stream.first.get()..stream.next.get()).collect::<Vec<_>>());
        let identities = records.into_values().filter_map(|of| of.device);
        let devices: Vec<Device> = identities.filter(|identity| !identity.id.is_module()).collect();
        prop_assert_eq!(stream.device_count, devices.len() as u64);
        let disabled = devices.iter().filter(|device| device.status == Status::Disabled).count();
        prop_assert_eq!(stream.disabled_count, disabled as u64);
    }

    #[test]
    fn a_module_is_there_while_its_device_is_and_shares_its_status(log in log()) {
        let mut replica = Replica::default();
        for (batch, change) in log.iter().flat_map(|b| b.changes.iter().map(move |c| (b, c))) {
            if gives_a_module_its_own_status(change) {
                continue;
            }
            replica.change(change, batch.at);
            let identities = || replica.records.values().filter_map(|of| of.device.as_ref());
            let modules: Vec<&Device> = identities().filter(|one| one.id.is_module()).collect();
            let mut listed = 0;
            for device in identities() {
                listed += device.modules.len();
            }
            prop_assert_eq!(listed, modules.len());
            for module in modules {
                let owner = replica.records[&module.id.owner()].device.as_ref();
                let owner = owner.expect("its device is there");
                prop_assert!(owner.modules.iter().any(|name| owner.id.module(name) == module.id));
                prop_assert_eq!(owner.status, module.status);
                prop_assert!(module.status == Status::Enabled || module.presence.live().is_none());
            }
        }
    }

    /// P3, as the log tells it: what is sent is locked, in order, alive and not expired; what has ended has ended once and
    /// is never sent again.
    #[test]
    fn commands_are_sent_in_order_until_they_end_and_end_once(log in mail_log()) {
        let mut replica = Replica::default();
        let id: DeviceId = "a".parse().expect("a legal id");
        let create = DeviceChange::Create { generation: GenerationId::new(1), spec: spec() };
        replica.change(&Change::Device(id.clone(), create), LogTime::new(0));
        let mut ledger = Ledger::default();
        for (at, change) in log {
            let (applied, _) = replica.change(&Change::Device(id.clone(), change.clone()), at);
            let records = &replica.records[&id];
            let device = records.device.as_ref().expect("nobody deletes it");
            let commands = records.commands.as_ref().expect("they are loaded");
            check_head(device, commands)?;
            if applied.outcome.is_ok() && applied.mailbox.is_some() {
                for command in commands.loaded.values().filter(|command| command.is_waiting()) {
                    prop_assert!(command.expires > at, "it should have expired");
                }
            }
            ledger.note(&applied, commands, at)?;
        }
    }

    /// A replica that has a mailbox in memory and one that reads of it what a change needs come to the same.
    #[test]
    fn what_a_change_does_not_load_it_could_not_have_moved(log in mail_log()) {
        let (mut whole, mut frugal) = (Replica::default(), Frugal::default());
        let id: DeviceId = "a".parse().expect("a legal id");
        let create = DeviceChange::Create { generation: GenerationId::new(1), spec: spec() };
        for (at, change) in [(LogTime::new(0), create)].into_iter().chain(log) {
            let (applied, _) = whole.change(&Change::Device(id.clone(), change.clone()), at);
            prop_assert_eq!(frugal.change(&id, &change, at), applied);
            let records = &whole.records[&id];
            prop_assert_eq!(&frugal.records.device, &records.device);
            let commands = records.commands.as_ref().expect("they are loaded");
            prop_assert_eq!(&frugal.stored, &commands.loaded);
        }
    }
}

/// A shell that loads no more than [`needs_commands`] says, and writes what the change says.
#[derive(Debug, Default)]
struct Frugal {
    records: Records,
    stream: Stream,
    stored: BTreeMap<CommandSequence, Command>,
}

impl Frugal {
    fn change(&mut self, id: &DeviceId, change: &DeviceChange, at: LogTime) -> Applied {
        let now = self.stream.advance(at);
        let all = || Commands { loaded: self.stored.clone(), others_due: None };
        self.records.commands = match needs_commands(self.records.device.as_ref(), change, now) {
            Needs::None => None,
            Needs::All => Some(all()),
            Needs::One(wanted) => {
                let mut commands = all();
                commands.loaded.retain(|_, command| command.id == *wanted);
                let device = self.records.device.as_ref().expect("it has a mailbox");
                commands.others_due = device.mailbox.due;
                Some(commands)
            }
        };
        let applied = apply_device(&mut self.records, &mut self.stream, id, change, at);
        if let (Some(writes), Some(commands)) = (&applied.mailbox, &self.records.commands) {
            for sequence in &writes.touched {
                self.stored.insert(*sequence, commands.loaded[sequence].clone());
            }
            self.stored.retain(|sequence, _| !writes.forgotten.contains_key(sequence));
        }
        applied
    }
}

/// The counts that the device's record keeps are those of the commands, and only the live connection has any locked.
fn check_head(device: &Device, commands: &Commands) -> Result<(), TestCaseError> {
    let waiting: Vec<_> = commands.loaded.values().filter(|command| command.is_waiting()).collect();
    let locked: Vec<_> = waiting.iter().filter(|command| command.is_locked()).collect();
    let head = &device.mailbox;
    prop_assert_eq!(head.waiting as usize, waiting.len());
    prop_assert_eq!(head.bytes, waiting.iter().map(|command| command.bytes).sum::<u64>());
    prop_assert_eq!(head.ended as usize, commands.loaded.len() - waiting.len());
    prop_assert_eq!(head.locked as usize, locked.len());
    prop_assert!(locked.len() <= DELIVERY_WINDOW);
    for command in locked {
        let attempt = command.attempts.last().expect("a lock is an attempt");
        prop_assert_eq!(Some(attempt.epoch), device.presence.live());
        prop_assert!(command.deliveries <= command.deliveries_max);
    }
    Ok(())
}

/// What was seen of each command.
#[derive(Debug, Default)]
struct Ledger {
    /// The newest command that was sent for the first time; scheduled ones may come later.
    newest: CommandSequence,
    last: (SessionEpoch, DeliveryNumber),
    ended: BTreeMap<CommandSequence, LogTime>,
    feedback: BTreeMap<String, u32>,
    accepted: BTreeMap<String, u32>,
}

impl Ledger {
    fn note(
        &mut self,
        applied: &Applied,
        commands: &Commands,
        at: LogTime,
    ) -> Result<(), TestCaseError> {
        if let Ok(Done::Queued { command, repeated: false, .. }) = &applied.outcome {
            *self.accepted.entry(command.id.to_string()).or_default() += 1;
        }
        for effect in &applied.effects {
            if let Effect::SendCommands { epoch, commands: outgoing, .. } = effect {
                for sent in outgoing {
                    let command = &commands.loaded[&sent.sequence];
                    prop_assert!(command.is_locked() && command.expires > at);
                    prop_assert!(!self.ended.contains_key(&sent.sequence), "it has ended");
                    let before =
                        if self.last.0 == *epoch { self.last.1 } else { DeliveryNumber::new(0) };
                    prop_assert_eq!(sent.number, before.next());
                    self.last = (*epoch, sent.number);
                    if command.deliveries == 1 && command.not_before.is_none() {
                        prop_assert!(sent.sequence > self.newest, "an older one was passed over");
                        self.newest = sent.sequence;
                    }
                }
            }
        }
        for (sequence, command) in &commands.loaded {
            let State::Ended { at, .. } = command.state else { continue };
            prop_assert_eq!(*self.ended.entry(*sequence).or_insert(at), at, "it ended twice");
        }
        for feedback in &applied.feedback {
            let command = feedback.command.to_string();
            let told = self.feedback.entry(command.clone()).or_default();
            *told += 1;
            prop_assert!(*told <= self.accepted[&command], "told twice how it ended");
        }
        Ok(())
    }
}
