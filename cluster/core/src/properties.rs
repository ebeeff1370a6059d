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
use crate::ids::{DeviceId, Etag, GenerationId, LogTime, Offset, SessionEpoch, Version};
use crate::shard::{Applied, Records, Stream, apply_device, apply_stream};
use crate::testing::{key, patch, spec};
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
        batch.changes.iter().map(|change| self.change(change, batch.at)).collect()
    }

    fn change(&mut self, change: &Change, at: LogTime) -> Applied {
        let first = self.stream.next;
        let applied = match change {
            Change::Device(device, change) => {
                let records = self.records.entry(device.clone()).or_default();
                apply_device(records, &mut self.stream, device, change, at)
            }
            Change::Stream(change) => apply_stream(&mut self.stream, change),
        };
        for (message, place) in applied.appended.iter().zip(0..) {
            self.messages.insert(first.plus(place), message.clone());
        }
        if let Some(first) = applied.retain_from {
            self.messages.retain(|offset, _| *offset >= first);
        }
        applied
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
    "[ab]".prop_map(|id| id.parse().expect("a legal id"))
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
        DeviceChange::Connect { credentials: Etag::new(etag), clean_session }
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
    ]
}

fn device_change() -> impl Strategy<Value = DeviceChange> {
    prop_oneof![identity_change(), session_change(), twin_change()]
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
                subscriptions: subs,
            };
            let mut twin = Twin::new(Etag::new(twin_etag), &tags, &own, LogTime::new(1))
                .expect("legal content");
            twin.version = Version::new(version);
            twin.desired.version = Version::new(desired);
            twin.reported.version = Version::new(reported);
            Records { device: Some(device), twin: Some(twin) }
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
            | DeviceChange::Telemetry { .. } => {}
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
        | DeviceChange::Telemetry { sender: Sender::Session(epoch), .. }
        | DeviceChange::PatchReported { sender: Sender::Session(epoch), .. } => Some(*epoch),
        DeviceChange::Create { .. }
        | DeviceChange::Update { .. }
        | DeviceChange::Delete { .. }
        | DeviceChange::Connect { .. }
        | DeviceChange::Telemetry { sender: Sender::Request(_), .. }
        | DeviceChange::PatchReported { sender: Sender::Request(_), .. }
        | DeviceChange::UpdateTwin { .. } => None,
    }
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
        let _answered: Outcome = replica.change(&change, LogTime::new(at)).outcome;
    }

    #[test]
    fn a_refusal_changes_nothing_and_an_untouched_record_is_the_same(log in log()) {
        let mut replica = Replica::default();
        for batch in &log {
            for change in &batch.changes {
                let mut before = replica.clone();
                let applied = replica.change(change, batch.at);
                before.stream.at = replica.stream.at;
                if let Change::Device(id, _) = change {
                    let now = &replica.records[id];
                    let was = before.records.entry(id.clone()).or_default();
                    prop_assert!(applied.device_touched || was.device == now.device);
                    prop_assert!(applied.twin_touched || was.twin == now.twin);
                }
                if applied.outcome.is_err() {
                    prop_assert_eq!(&before, &replica);
                    prop_assert!(applied.effects.is_empty() && applied.appended.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_twin_is_the_fold_of_the_accepted_changes_and_versions_grow_by_one(log in log()) {
        let mut replica = Replica::default();
        let mut models: BTreeMap<DeviceId, TwinModel> = BTreeMap::new();
        for (batch, change) in log.iter().flat_map(|b| b.changes.iter().map(move |c| (b, c))) {
            let applied = replica.change(change, batch.at);
            let Change::Device(id, change) = change else { continue };
            match (change, applied.outcome) {
                (_, Err(_)) => {}
                (DeviceChange::Create { spec, .. }, Ok(_)) => {
                    models.insert(id.clone(), TwinModel::created(spec));
                }
                (DeviceChange::Delete { .. }, Ok(_)) => {
                    models.remove(id);
                }
                (change, Ok(_)) => models.get_mut(id).expect("it was created").accept(change),
            }
            let twin = replica.records[id].twin.as_ref();
            prop_assert_eq!(twin.map(TwinModel::of), models.get(id).cloned());
        }
    }

    #[test]
    fn only_the_live_connection_speaks_and_epochs_never_come_again(log in log()) {
        let mut replica = Replica::default();
        let mut live: BTreeMap<DeviceId, SessionEpoch> = BTreeMap::new();
        let mut newest: BTreeMap<DeviceId, SessionEpoch> = BTreeMap::new();
        for (batch, change) in log.iter().flat_map(|b| b.changes.iter().map(move |c| (b, c))) {
            let applied = replica.change(change, batch.at);
            let Change::Device(id, change) = change else { continue };
            let was = live.get(id).copied();
            if let (Some(epoch), Ok(_)) = (speaks_as(change), &applied.outcome) {
                prop_assert_eq!(Some(epoch), was, "not the live one");
            }
            if let Ok(Done::Connected { epoch, .. }) = applied.outcome {
                prop_assert!(newest.insert(id.clone(), epoch).is_none_or(|former| former < epoch));
            }
            match live_after(was, &applied) {
                Some(epoch) => live.insert(id.clone(), epoch),
                None => live.remove(id),
            };
        }
    }

    #[test]
    fn offsets_have_no_holes_and_the_counters_count(log in log()) {
        let mut replica = Replica::default();
        replica.replay(&log);
        let Replica { records, stream, messages, .. } = replica;
        let offsets: Vec<u64> = messages.keys().map(|offset| offset.get()).collect();
        prop_assert_eq!(offsets, (stream.first.get()..stream.next.get()).collect::<Vec<_>>());
        let devices: Vec<Device> = records.into_values().filter_map(|of| of.device).collect();
        prop_assert_eq!(stream.device_count, devices.len() as u64);
        let disabled = devices.iter().filter(|device| device.status == Status::Disabled).count();
        prop_assert_eq!(stream.disabled_count, disabled as u64);
    }
}
