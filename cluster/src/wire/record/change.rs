//! What stands in a shard's log.

use bytes::Bytes;
use drover_core::change::{
    Batch, Change, Condition, DeviceChange, DeviceSpec, Message, Sender, StreamChange, TwinUpdate,
};
use drover_core::ids::{Etag, GenerationId, LogTime, NodeId, Offset, SessionEpoch, Version};
use drover_proto::record::{self, change::Kind};

use super::device::{
    authentication_from_record, authentication_to_record, channel_from_record, channel_to_record,
    device_id, status, subscriptions_from_record, subscriptions_to_record,
};
use super::mailbox::{
    cancel_command_from_record, new_command_to_record, send_command_from_record,
    settle_command_from_record, settle_command_to_record,
};
use super::value::{object_from_record, object_to_record};
use super::{decode, encode, required};
use crate::wire::Invalid;

pub fn batch_to_bytes(batch: &Batch) -> Bytes {
    let changes = batch.changes.iter().map(change_to_record).collect();
    encode(&record::Batch { at_ms: batch.at.get(), changes })
}

pub fn batch_from_bytes(bytes: Bytes) -> Result<Batch, Invalid> {
    let batch: record::Batch = decode("batch", bytes)?;
    let changes = batch.changes.into_iter().map(change_from_record).collect::<Result<_, _>>()?;
    Ok(Batch { at: LogTime::new(batch.at_ms), changes })
}

pub fn change_to_bytes(change: &Change) -> Bytes {
    encode(&change_to_record(change))
}

pub fn change_from_bytes(bytes: Bytes) -> Result<Change, Invalid> {
    change_from_record(decode("change", bytes)?)
}

fn change_to_record(change: &Change) -> record::Change {
    match change {
        Change::Device(device, change) => record::Change {
            device: device.as_str().to_owned(),
            kind: Some(device_change_to_record(change)),
        },
        Change::Stream(change) => {
            record::Change { device: String::new(), kind: Some(stream_change_to_record(change)) }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all others are a device's, which are matched one by one"
)]
fn change_from_record(change: record::Change) -> Result<Change, Invalid> {
    match required("change.kind", change.kind)? {
        Kind::CommitCursor(record::Cursor { group, next }) => {
            Ok(Change::Stream(StreamChange::CommitCursor { group, next: Offset::new(next) }))
        }
        Kind::SeekCursor(record::Cursor { group, next }) => {
            Ok(Change::Stream(StreamChange::SeekCursor { group, next: Offset::new(next) }))
        }
        Kind::DeleteCursor(record::Cursor { group, .. }) => {
            Ok(Change::Stream(StreamChange::DeleteCursor { group }))
        }
        Kind::Retain(record::Retain { from, before, bytes }) => {
            let [from, before] = [from, before].map(Offset::new);
            Ok(Change::Stream(StreamChange::Retain { from, before, bytes }))
        }
        Kind::CommitFeedbackCursor(record::Cursor { group, next }) => {
            let next = Offset::new(next);
            Ok(Change::Stream(StreamChange::CommitFeedbackCursor { group, next }))
        }
        Kind::SeekFeedbackCursor(record::Cursor { group, next }) => {
            let next = Offset::new(next);
            Ok(Change::Stream(StreamChange::SeekFeedbackCursor { group, next }))
        }
        Kind::DeleteFeedbackCursor(record::Cursor { group, .. }) => {
            Ok(Change::Stream(StreamChange::DeleteFeedbackCursor { group }))
        }
        Kind::RetainFeedback(before) => {
            Ok(Change::Stream(StreamChange::RetainFeedback { before: Offset::new(before) }))
        }
        kind => {
            let device = device_id(&change.device)?;
            Ok(Change::Device(device, device_change_from_record(kind)?))
        }
    }
}

fn stream_change_to_record(change: &StreamChange) -> Kind {
    let cursor =
        |group: &String, next: Offset| record::Cursor { group: group.clone(), next: next.get() };
    match change {
        StreamChange::CommitCursor { group, next } => Kind::CommitCursor(cursor(group, *next)),
        StreamChange::SeekCursor { group, next } => Kind::SeekCursor(cursor(group, *next)),
        StreamChange::DeleteCursor { group } => {
            Kind::DeleteCursor(cursor(group, Offset::default()))
        }
        StreamChange::Retain { from, before, bytes } => {
            Kind::Retain(record::Retain { from: from.get(), before: before.get(), bytes: *bytes })
        }
        StreamChange::CommitFeedbackCursor { group, next } => {
            Kind::CommitFeedbackCursor(cursor(group, *next))
        }
        StreamChange::SeekFeedbackCursor { group, next } => {
            Kind::SeekFeedbackCursor(cursor(group, *next))
        }
        StreamChange::DeleteFeedbackCursor { group } => {
            Kind::DeleteFeedbackCursor(cursor(group, Offset::default()))
        }
        StreamChange::RetainFeedback { before } => Kind::RetainFeedback(before.get()),
    }
}

fn device_change_to_record(change: &DeviceChange) -> Kind {
    match change {
        DeviceChange::Create { generation, spec } => Kind::Create(record::Create {
            generation: generation.get(),
            disabled: spec.status == status(true),
            status_reason: spec.status_reason.clone(),
            authentication: Some(authentication_to_record(&spec.authentication)),
            tags: Some(object_to_record(&spec.tags)),
            desired: Some(object_to_record(&spec.desired)),
        }),
        DeviceChange::Update { if_match, status: to, status_reason, authentication } => {
            Kind::Update(record::Update {
                if_match: condition_to_record(*if_match),
                disabled: to.map(|to| to == status(true)),
                status_reason: status_reason.clone().map(|text| record::OptionalText { text }),
                authentication: authentication.as_ref().map(authentication_to_record),
            })
        }
        DeviceChange::Delete { if_match } => {
            Kind::Delete(record::Delete { if_match: condition_to_record(*if_match) })
        }
        DeviceChange::Connect { credentials, clean_session, node } => {
            Kind::Connect(record::Connect {
                credentials: credentials.get(),
                clean_session: *clean_session,
                node: node.map(NodeId::to_u64),
            })
        }
        DeviceChange::Subscribe { epoch, subscriptions } => Kind::Subscribe(record::Subscribe {
            epoch: epoch.get(),
            subscriptions: subscriptions_to_record(subscriptions),
        }),
        DeviceChange::Unsubscribe { epoch, channels } => Kind::Unsubscribe(record::Unsubscribe {
            epoch: epoch.get(),
            channels: channels.iter().map(|channel| channel_to_record(*channel).into()).collect(),
        }),
        DeviceChange::Disconnect { epoch, will } => Kind::Disconnect(record::Disconnect {
            epoch: epoch.get(),
            will: will.as_ref().map(|Message(bytes)| bytes.clone()),
        }),
        DeviceChange::Telemetry { sender, messages } => Kind::Telemetry(record::Telemetry {
            sender: Some(sender_to_record(*sender)),
            messages: messages.iter().map(|Message(bytes)| bytes.clone()).collect(),
        }),
        DeviceChange::PatchReported { sender, expected, patch } => {
            Kind::PatchReported(record::PatchReported {
                sender: Some(sender_to_record(*sender)),
                expected: expected.map(Version::get),
                patch: Some(object_to_record(patch)),
            })
        }
        DeviceChange::UpdateTwin { if_match, expected_desired, mode, tags, desired } => {
            Kind::UpdateTwin(record::UpdateTwin {
                if_match: condition_to_record(*if_match),
                expected_desired: expected_desired.map(Version::get),
                replace: *mode == TwinUpdate::Replace,
                tags: tags.as_ref().map(object_to_record),
                desired: desired.as_ref().map(object_to_record),
            })
        }
        DeviceChange::SendCommand(new) => Kind::SendCommand(new_command_to_record(new)),
        DeviceChange::SettleCommand { epoch, sequence, settlement } => {
            Kind::SettleCommand(settle_command_to_record(*epoch, *sequence, *settlement))
        }
        DeviceChange::CancelCommand { command } => {
            Kind::CancelCommand(record::CancelCommand { id: command.as_str().to_owned() })
        }
        DeviceChange::PurgeCommands => Kind::PurgeCommands(true),
        DeviceChange::RunCommandTimers => Kind::RunCommandTimers(true),
    }
}

fn device_change_from_record(kind: Kind) -> Result<DeviceChange, Invalid> {
    Ok(match kind {
        Kind::Create(create) => create_from_record(create)?,
        Kind::Update(update) => DeviceChange::Update {
            if_match: condition_from_record(update.if_match),
            status: update.disabled.map(status),
            status_reason: update.status_reason.map(|reason| reason.text),
            authentication: update.authentication.map(authentication_from_record).transpose()?,
        },
        Kind::Delete(delete) => {
            DeviceChange::Delete { if_match: condition_from_record(delete.if_match) }
        }
        Kind::Connect(connect) => DeviceChange::Connect {
            credentials: Etag::new(connect.credentials),
            clean_session: connect.clean_session,
            node: connect.node.map(NodeId::from_u64),
        },
        Kind::Subscribe(subscribe) => DeviceChange::Subscribe {
            epoch: SessionEpoch::new(subscribe.epoch),
            subscriptions: subscriptions_from_record(subscribe.subscriptions)?,
        },
        Kind::Unsubscribe(unsubscribe) => DeviceChange::Unsubscribe {
            epoch: SessionEpoch::new(unsubscribe.epoch),
            channels: unsubscribe.channels().map(channel_from_record).collect::<Result<_, _>>()?,
        },
        Kind::Disconnect(disconnect) => DeviceChange::Disconnect {
            epoch: SessionEpoch::new(disconnect.epoch),
            will: disconnect.will.map(Message),
        },
        Kind::Telemetry(telemetry) => DeviceChange::Telemetry {
            sender: sender_from_record(telemetry.sender)?,
            messages: telemetry.messages.into_iter().map(Message).collect(),
        },
        Kind::PatchReported(patch) => DeviceChange::PatchReported {
            sender: sender_from_record(patch.sender)?,
            expected: patch.expected.map(Version::new),
            patch: object_from_record(patch.patch.unwrap_or_default())?,
        },
        Kind::UpdateTwin(update) => DeviceChange::UpdateTwin {
            if_match: condition_from_record(update.if_match),
            expected_desired: update.expected_desired.map(Version::new),
            mode: if update.replace { TwinUpdate::Replace } else { TwinUpdate::Merge },
            tags: update.tags.map(object_from_record).transpose()?,
            desired: update.desired.map(object_from_record).transpose()?,
        },
        Kind::SendCommand(send) => send_command_from_record(send)?,
        Kind::SettleCommand(settle) => settle_command_from_record(&settle)?,
        Kind::CancelCommand(cancel) => cancel_command_from_record(&cancel)?,
        Kind::PurgeCommands(_) => DeviceChange::PurgeCommands,
        Kind::RunCommandTimers(_) => DeviceChange::RunCommandTimers,
        Kind::CommitCursor(_)
        | Kind::SeekCursor(_)
        | Kind::DeleteCursor(_)
        | Kind::Retain(_)
        | Kind::CommitFeedbackCursor(_)
        | Kind::SeekFeedbackCursor(_)
        | Kind::DeleteFeedbackCursor(_)
        | Kind::RetainFeedback(_) => {
            return Err(Invalid::new("change.kind", "is not a change of a device"));
        }
    })
}

fn create_from_record(create: record::Create) -> Result<DeviceChange, Invalid> {
    let authentication = required("create.authentication", create.authentication)?;
    let spec = DeviceSpec {
        status: status(create.disabled),
        status_reason: create.status_reason,
        authentication: authentication_from_record(authentication)?,
        tags: object_from_record(create.tags.unwrap_or_default())?,
        desired: object_from_record(create.desired.unwrap_or_default())?,
    };
    Ok(DeviceChange::Create { generation: GenerationId::new(create.generation), spec })
}

fn condition_to_record(condition: Condition) -> Option<u64> {
    match condition {
        Condition::Any => None,
        Condition::Match(etag) => Some(etag.get()),
    }
}

fn condition_from_record(etag: Option<u64>) -> Condition {
    etag.map_or(Condition::Any, |etag| Condition::Match(Etag::new(etag)))
}

fn sender_to_record(sender: Sender) -> record::Sender {
    let kind = match sender {
        Sender::Session(epoch) => record::sender::Kind::Epoch(epoch.get()),
        Sender::Request(etag) => record::sender::Kind::Credentials(etag.get()),
    };
    record::Sender { kind: Some(kind) }
}

fn sender_from_record(sender: Option<record::Sender>) -> Result<Sender, Invalid> {
    Ok(match required("sender", sender.and_then(|sender| sender.kind))? {
        record::sender::Kind::Epoch(epoch) => Sender::Session(SessionEpoch::new(epoch)),
        record::sender::Kind::Credentials(etag) => Sender::Request(Etag::new(etag)),
    })
}
