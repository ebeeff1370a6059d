//! Generators of core values, for the round trips of this layer.

mod mail;

use std::collections::BTreeSet;

use drover_core::change::{Batch, Change, Condition, DeviceChange, DeviceSpec, Message};
use drover_core::change::{Sender, StreamChange, TwinUpdate};
use drover_core::device::{
    Authentication, Channel, Device, Key, Presence, Qos, Status, Subscriptions,
};
use drover_core::document::{Object, Value};
use drover_core::ids::{
    DeviceId, Etag, GenerationId, LogTime, ModuleId, NodeId, Offset, SessionEpoch, Version,
};
use drover_core::stream::Stream;
use drover_core::twin::{Metadata, Section, Twin};
use proptest::prelude::*;

pub(crate) fn object() -> impl Strategy<Value = Object> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        (-1e9..1e9).prop_map(Value::Float),
        ".{0,6}".prop_map(Value::Text),
    ];
    let value = leaf.prop_recursive(4, 24, 4, |value| {
        prop_oneof![
            prop::collection::vec(value.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(".{0,4}", value, 0..4).prop_map(Value::Object),
        ]
    });
    prop::collection::btree_map(".{0,4}", value, 0..4)
}

pub(crate) use mail::{command, feedback};

fn node() -> impl Strategy<Value = Option<NodeId>> {
    prop::option::of(any::<u64>().prop_map(NodeId::from_u64))
}

fn device_id() -> impl Strategy<Value = DeviceId> {
    "[a-zA-Z0-9:$%#]{1,8}(/[a-z$#]{1,8})?"
        .prop_map(|id| DeviceId::from_key(&id).expect("a legal id"))
}

fn modules() -> impl Strategy<Value = BTreeSet<ModuleId>> {
    let module = "[a-z$#]{1,8}".prop_map(|id| id.parse().expect("a legal id"));
    prop::collection::btree_set(module, 0..3)
}

fn key() -> impl Strategy<Value = Key> {
    prop::collection::vec(any::<u8>(), Key::BYTES_MIN..=Key::BYTES_MAX)
        .prop_map(|bytes| Key::new(bytes).expect("a legal length"))
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(Status::Enabled), Just(Status::Disabled)]
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of(".{0,4}")
}

fn authentication() -> impl Strategy<Value = Authentication> {
    prop_oneof![
        (key(), key()).prop_map(|(primary, secondary)| Authentication::Sas { primary, secondary }),
        (text(), text())
            .prop_map(|(primary, secondary)| Authentication::SelfSigned { primary, secondary }),
        Just(Authentication::CertificateAuthority),
        Just(Authentication::None),
    ]
}

fn channel() -> impl Strategy<Value = Channel> {
    prop::sample::select(vec![
        Channel::Commands,
        Channel::TwinResponses,
        Channel::DesiredPatches,
        Channel::Methods,
        Channel::Inputs,
    ])
}

fn subscriptions() -> impl Strategy<Value = Subscriptions> {
    let qos = prop::sample::select(vec![Qos::AtMostOnce, Qos::AtLeastOnce]);
    prop::collection::btree_map(channel(), qos, 0..4)
}

fn message() -> impl Strategy<Value = Message> {
    any::<Vec<u8>>().prop_map(|bytes| Message(bytes.into()))
}

fn sender() -> impl Strategy<Value = Sender> {
    prop_oneof![
        any::<u64>().prop_map(|epoch| Sender::Session(SessionEpoch::new(epoch))),
        any::<u64>().prop_map(|etag| Sender::Request(Etag::new(etag))),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop::option::of(any::<u64>())
        .prop_map(|etag| etag.map_or(Condition::Any, |etag| Condition::Match(Etag::new(etag))))
}

fn version() -> impl Strategy<Value = Option<Version>> {
    prop::option::of(any::<u64>().prop_map(Version::new))
}

fn create() -> impl Strategy<Value = DeviceChange> {
    (any::<u64>(), status(), text(), authentication(), object(), object()).prop_map(
        |(generation, status, status_reason, authentication, tags, desired)| {
            let spec = DeviceSpec { status, status_reason, authentication, tags, desired };
            DeviceChange::Create { generation: GenerationId::new(generation), spec }
        },
    )
}

fn update() -> impl Strategy<Value = DeviceChange> {
    let authentication = prop::option::of(authentication());
    (condition(), prop::option::of(status()), prop::option::of(text()), authentication).prop_map(
        |(if_match, status, status_reason, authentication)| DeviceChange::Update {
            if_match,
            status,
            status_reason,
            authentication,
        },
    )
}

fn session_change() -> impl Strategy<Value = DeviceChange> {
    let epoch = || any::<u64>().prop_map(SessionEpoch::new);
    prop_oneof![
        (any::<u64>(), any::<bool>(), node()).prop_map(|(etag, clean_session, node)| {
            DeviceChange::Connect { credentials: Etag::new(etag), clean_session, node }
        }),
        (epoch(), subscriptions())
            .prop_map(|(epoch, subscriptions)| DeviceChange::Subscribe { epoch, subscriptions }),
        (epoch(), prop::collection::vec(channel(), 0..4))
            .prop_map(|(epoch, channels)| DeviceChange::Unsubscribe { epoch, channels }),
        (epoch(), prop::option::of(message()))
            .prop_map(|(epoch, will)| DeviceChange::Disconnect { epoch, will }),
        (sender(), prop::collection::vec(message(), 0..4))
            .prop_map(|(sender, messages)| DeviceChange::Telemetry { sender, messages }),
    ]
}

fn twin_change() -> impl Strategy<Value = DeviceChange> {
    let mode = prop::sample::select(vec![TwinUpdate::Merge, TwinUpdate::Replace]);
    let section = || prop::option::of(object());
    prop_oneof![
        (sender(), version(), object()).prop_map(|(sender, expected, patch)| {
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
    let offset = || any::<u64>().prop_map(Offset::new);
    prop_oneof![
        (".{0,4}", offset()).prop_map(|(group, next)| StreamChange::CommitCursor { group, next }),
        (".{0,4}", offset()).prop_map(|(group, next)| StreamChange::SeekCursor { group, next }),
        ".{0,4}".prop_map(|group| StreamChange::DeleteCursor { group }),
        (offset(), offset(), any::<u64>()).prop_map(|(from, before, bytes)| StreamChange::Retain {
            from,
            before,
            bytes
        }),
        (".{0,4}", offset())
            .prop_map(|(group, next)| StreamChange::CommitFeedbackCursor { group, next }),
        (".{0,4}", offset())
            .prop_map(|(group, next)| StreamChange::SeekFeedbackCursor { group, next }),
        ".{0,4}".prop_map(|group| StreamChange::DeleteFeedbackCursor { group }),
        offset().prop_map(|before| StreamChange::RetainFeedback { before }),
    ]
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let delete = condition().prop_map(|if_match| DeviceChange::Delete { if_match });
    let of_device = prop_oneof![
        create(),
        update(),
        delete,
        session_change(),
        twin_change(),
        mail::mail_change(),
    ];
    prop_oneof![
        4 => (device_id(), of_device).prop_map(|(device, change)| Change::Device(device, change)),
        1 => stream_change().prop_map(Change::Stream),
    ]
}

pub(crate) fn batch() -> impl Strategy<Value = Batch> {
    (any::<u64>(), prop::collection::vec(change(), 0..6))
        .prop_map(|(at, changes)| Batch { at: LogTime::new(at), changes })
}

pub(crate) fn device() -> impl Strategy<Value = Device> {
    let time = || prop::option::of(any::<u64>().prop_map(LogTime::new));
    let presence = (any::<u64>(), time(), time(), time(), node(), subscriptions()).prop_map(
        |(epoch, connected_since, changed, active, node, subscriptions)| Presence {
            epoch: SessionEpoch::new(epoch),
            connected_since,
            changed,
            active,
            node,
            subscriptions,
        },
    );
    let parts = (any::<[u64; 3]>(), status(), text(), authentication(), presence, mail::head());
    (device_id(), parts, modules()).prop_map(|(id, parts, modules)| {
        let ([generation, etag, at], status, status_reason, authentication, presence, mailbox) =
            parts;
        Device {
            id,
            generation: GenerationId::new(generation),
            etag: Etag::new(etag),
            status,
            status_reason,
            status_updated: LogTime::new(at),
            authentication,
            presence,
            mailbox,
            modules,
        }
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let of = |(at, version), members| Metadata {
        updated: LogTime::new(at),
        updated_version: Version::new(version),
        members,
    };
    let leaf = any::<(u64, u64)>().prop_map(move |stamp| of(stamp, [].into()));
    leaf.prop_recursive(4, 16, 4, move |member| {
        (any::<(u64, u64)>(), prop::collection::btree_map(".{0,4}", member, 0..4))
            .prop_map(move |(stamp, members)| of(stamp, members))
    })
}

fn section() -> impl Strategy<Value = Section> {
    (object(), any::<u64>(), metadata()).prop_map(|(properties, version, metadata)| Section {
        properties,
        version: Version::new(version),
        metadata,
    })
}

pub(crate) fn twin() -> impl Strategy<Value = Twin> {
    (any::<[u64; 2]>(), object(), section(), section()).prop_map(
        |([etag, version], tags, desired, reported)| Twin {
            etag: Etag::new(etag),
            version: Version::new(version),
            tags,
            desired,
            reported,
        },
    )
}

pub(crate) fn stream() -> impl Strategy<Value = Stream> {
    let cursors = prop::collection::btree_map(".{0,4}", any::<u64>().prop_map(Offset::new), 0..4);
    (any::<[u64; 7]>(), cursors, mail::feedback_log()).prop_map(
        |([first, next, bytes, at, device_count, disabled_count, retired], cursors, feedback)| {
            Stream {
                first: Offset::new(first),
                next: Offset::new(next),
                bytes,
                cursors,
                at: LogTime::new(at),
                device_count,
                disabled_count,
                retired,
                feedback,
            }
        },
    )
}
