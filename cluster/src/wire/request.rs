//! What one node asks of another's shards, and the answers.
//!
//! A change is encoded where it enters, and travels, waits and is logged as those bytes. Everything else is small.

use std::collections::BTreeMap;

use bytes::Bytes;
use drover_core::change::{Change, Done, Message};
use drover_core::device::{Channel, Device, Qos, Subscriptions};
use drover_core::feedback::FeedbackPage;
use drover_core::ids::{
    CommandSequence, DeviceId, GroupId, LogTime, NodeId, Offset, SessionEpoch, Version,
};
use drover_core::mailbox::Command;
use drover_core::message::StreamPage;
use drover_core::meta::{Meta, MetaEntry};
use drover_core::method::MethodResponse;
use drover_core::shard::Stream;
use drover_core::twin::Twin;
use drover_proto::cluster as proto;
use prost::Message as _;
use proto::request::Kind as Asked;
use proto::response::Kind as Answered;

pub use super::method::{Invoke, Reported};
pub use super::problem::Failure;
use super::{events, mail, method, record};

/// What is asked of the leader of a group; `NodeSummary` of any node.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// An encoded `record.v1.Change`; of the meta group, an encoded `record.v1.MetaChange`.
    Change(Bytes),
    /// Unless it is linearizable, the leader's own view is enough, because a later change checks it again.
    Device {
        device: DeviceId,
        linearizable: bool,
    },
    Twin(DeviceId),
    Devices {
        after: Option<DeviceId>,
        limit: u32,
    },
    /// All modules of a device.
    Modules(DeviceId),
    Stream {
        from: Offset,
        messages_max: u32,
        bytes_max: u32,
        wait_ms: u32,
    },
    OffsetAt(LogTime),
    History {
        device: DeviceId,
        from: LogTime,
        until: LogTime,
        after: Option<Offset>,
        limit: u32,
    },
    StreamState,
    /// A device's commands in order, those that have ended included.
    Commands {
        device: DeviceId,
        after: CommandSequence,
        limit: u32,
        with_bodies: bool,
    },
    Feedback {
        from: Offset,
        limit: u32,
        wait_ms: u32,
    },
    /// Call a method of a device. The answer may take as long as the call allows.
    Invoke(Box<Invoke>),
    /// What became of a call, from the node of the device's connection. A repeat changes nothing.
    ReportCall(Box<Reported>),
    NodeSummary,
}

/// What the leader answers when it has done it.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Done(Done),
    Device(Option<Box<Device>>),
    Twin(Box<Twin>),
    Devices { devices: Vec<Device>, more: bool },
    Page(StreamPage),
    Offset(Offset),
    Stream(StreamSummary),
    Commands { commands: Vec<(Command, Option<Message>)>, more: bool },
    Feedback(FeedbackPage),
    Method(MethodResponse),
    CallReported,
    Node(NodeSummary),
    Meta(Box<Meta>),
}

pub type Response = Result<Answer, Failure>;

/// What readers may know of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamSummary {
    pub first: Offset,
    pub next: Offset,
    pub cursors: Vec<(String, Offset)>,
    pub device_count: u64,
    pub first_feedback: Offset,
    pub next_feedback: Offset,
    pub feedback_cursors: Vec<(String, Offset)>,
}

impl From<Stream> for StreamSummary {
    fn from(stream: Stream) -> Self {
        let Stream { first, next, cursors, device_count, feedback, .. } = stream;
        Self {
            first,
            next,
            cursors: cursors.into_iter().collect(),
            device_count,
            first_feedback: feedback.first,
            next_feedback: feedback.next,
            feedback_cursors: feedback.cursors.into_iter().collect(),
        }
    }
}

/// A node as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSummary {
    pub version: String,
    pub sessions: u32,
    pub started: LogTime,
    pub disk_free_bytes: u64,
    pub problems: Vec<String>,
    /// What making something durable takes.
    pub sync_ms: u64,
    /// How late its timers fire.
    pub delay_ms: u64,
    /// Groups of which a snapshot is being received, with the bytes that are there.
    pub receiving: BTreeMap<GroupId, u64>,
    pub groups: Vec<GroupSummary>,
}

/// A replica as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    pub group: GroupId,
    pub leader: Option<NodeId>,
    pub leads: bool,
    pub term: u64,
    pub committed_index: u64,
    pub replicas: Vec<(NodeId, Option<u64>)>,
    /// Those without a vote.
    pub followers: Vec<(NodeId, Option<u64>)>,
    pub first_offset: Offset,
    pub next_offset: Offset,
    pub device_count: u64,
    /// What it has to write, in bytes a second.
    pub load: u64,
}

/// What is wrong with a request that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unreadable {
    problem: String,
}

fn unreadable(problem: impl ToString) -> Unreadable {
    Unreadable { problem: problem.to_string() }
}

/// Encodes a change once, for all that will copy it.
pub fn encode_change(change: &Change) -> Bytes {
    record::change_to_bytes(change)
}

/// The change of a request of a peer, checked before it may enter a log that every replica must be able to apply.
pub fn decode_change(encoded: &Bytes) -> Result<Change, Unreadable> {
    record::change_from_bytes(encoded.clone()).map_err(unreadable)
}

/// Encodes a change of the meta group.
pub fn encode_meta_change(entry: &MetaEntry) -> Bytes {
    record::meta_entry_to_bytes(entry)
}

pub fn encode_request(request: &Request) -> Bytes {
    let text = |device: &DeviceId| device.as_str().to_owned();
    let kind = match request {
        Request::Change(change) => Asked::Change(change.clone()),
        Request::Device { device, linearizable } => Asked::ReadDevice(proto::ReadDevice {
            device: text(device),
            linearizable: *linearizable,
        }),
        Request::Twin(device) => Asked::ReadTwin(proto::ReadTwin { device: text(device) }),
        Request::Devices { after, limit } => Asked::ListDevices(proto::ListDevices {
            after: after.as_ref().map(text).unwrap_or_default(),
            limit: *limit,
        }),
        Request::Modules(device) => Asked::ListModules(proto::ListModules { device: text(device) }),
        Request::Stream { from, messages_max, bytes_max, wait_ms } => {
            Asked::ReadStream(proto::ReadStream {
                from: from.get(),
                messages_max: *messages_max,
                bytes_max: *bytes_max,
                wait_ms: *wait_ms,
            })
        }
        Request::OffsetAt(at) => Asked::OffsetAt(proto::OffsetAt { at_ms: at.get() }),
        Request::History { device, from, until, after, limit } => {
            Asked::ReadHistory(proto::ReadHistory {
                device: text(device),
                from_ms: from.get(),
                until_ms: until.get(),
                after: after.map(Offset::get),
                limit: *limit,
            })
        }
        Request::StreamState => Asked::ReadStreamState(proto::ReadStreamState {}),
        Request::Commands { device, after, limit, with_bodies } => {
            Asked::ReadCommands(proto::ReadCommands {
                device: text(device),
                after: after.get(),
                limit: *limit,
                with_bodies: *with_bodies,
            })
        }
        Request::Feedback { from, limit, wait_ms } => Asked::ReadFeedback(proto::ReadFeedback {
            from: from.get(),
            limit: *limit,
            wait_ms: *wait_ms,
        }),
        Request::Invoke(invoke) => Asked::InvokeMethod(method::of_invoke(invoke)),
        Request::ReportCall(reported) => Asked::ReportCall(method::of_reported(reported)),
        Request::NodeSummary => Asked::ReadNodeStatus(proto::ReadNodeStatus {}),
    };
    proto::Request { kind: Some(kind) }.encode_to_vec().into()
}

pub fn decode_request(encoded: Bytes) -> Result<Request, Unreadable> {
    let request = proto::Request::decode(encoded).map_err(unreadable)?;
    let device = |text: String| DeviceId::from_key(&text).map_err(unreadable);
    Ok(match request.kind.ok_or_else(|| unreadable("a request of an unknown kind"))? {
        Asked::Change(change) => Request::Change(change),
        Asked::ReadDevice(read) => {
            Request::Device { device: device(read.device)?, linearizable: read.linearizable }
        }
        Asked::ReadTwin(read) => Request::Twin(device(read.device)?),
        Asked::ListDevices(list) => Request::Devices {
            after: (!list.after.is_empty()).then(|| device(list.after)).transpose()?,
            limit: list.limit,
        },
        Asked::ListModules(list) => Request::Modules(device(list.device)?),
        Asked::ReadStream(read) => Request::Stream {
            from: Offset::new(read.from),
            messages_max: read.messages_max,
            bytes_max: read.bytes_max,
            wait_ms: read.wait_ms,
        },
        Asked::OffsetAt(read) => Request::OffsetAt(LogTime::new(read.at_ms)),
        Asked::ReadHistory(read) => Request::History {
            device: device(read.device)?,
            from: LogTime::new(read.from_ms),
            until: LogTime::new(read.until_ms),
            after: read.after.map(Offset::new),
            limit: read.limit,
        },
        Asked::ReadStreamState(_) => Request::StreamState,
        Asked::ReadCommands(read) => Request::Commands {
            device: device(read.device)?,
            after: CommandSequence::new(read.after),
            limit: read.limit,
            with_bodies: read.with_bodies,
        },
        Asked::ReadFeedback(read) => Request::Feedback {
            from: Offset::new(read.from),
            limit: read.limit,
            wait_ms: read.wait_ms,
        },
        Asked::InvokeMethod(invoke) => {
            let invoke = method::invoke(invoke);
            Request::Invoke(Box::new(invoke.ok_or_else(|| unreadable("a call that is none"))?))
        }
        Asked::ReportCall(reported) => {
            let reported = method::reported(reported);
            let reported = reported.ok_or_else(|| unreadable("a report of no call"))?;
            Request::ReportCall(Box::new(reported))
        }
        Asked::ReadNodeStatus(_) => Request::NodeSummary,
    })
}

pub fn encode_response(response: Response) -> Bytes {
    let kind = match response {
        Ok(Answer::Done(done)) => of_done(done),
        Ok(Answer::Device(None)) => Answered::NoDevice(true),
        Ok(Answer::Device(Some(device))) => Answered::Device(record::device_to_bytes(&device)),
        Ok(Answer::Twin(twin)) => Answered::Twin(record::twin_to_bytes(&twin)),
        Ok(Answer::Devices { devices, more }) => Answered::Devices(proto::DeviceList {
            devices: devices.iter().map(record::device_to_bytes).collect(),
            more,
        }),
        Ok(Answer::Page(page)) => Answered::Messages(proto::StreamMessages {
            messages: page.messages.iter().map(events::of_stored_message).collect(),
            next: page.next.get(),
            first: page.first.get(),
        }),
        Ok(Answer::Offset(offset)) => Answered::Offset(offset.get()),
        Ok(Answer::Stream(stream)) => Answered::Stream(of_stream(stream)),
        Ok(Answer::Commands { commands, more }) => Answered::Commands(proto::CommandList {
            commands: commands.into_iter().map(mail::of_command).collect(),
            more,
        }),
        Ok(Answer::Feedback(page)) => Answered::Feedback(mail::of_feedback(page)),
        Ok(Answer::Method(response)) => Answered::Method(method::of_response(response)),
        Ok(Answer::CallReported) => Answered::CallReported(true),
        Ok(Answer::Node(node)) => Answered::Node(of_node(node)),
        Ok(Answer::Meta(meta)) => Answered::Meta(record::meta_to_bytes(&meta)),
        Err(failure) => Answered::Problem(failure.into()),
    };
    proto::Response { kind: Some(kind) }.encode_to_vec().into()
}

/// What cannot be read was answered all the same, so what it says is unknown.
pub fn decode_response(encoded: Bytes) -> Response {
    let kind = proto::Response::decode(encoded).ok().and_then(|response| response.kind);
    answer(kind.ok_or(Failure::Unknown)?).unwrap_or(Err(Failure::Unknown))
}

fn answer(kind: Answered) -> Option<Response> {
    Some(Ok(match kind {
        Answered::Problem(problem) => return Some(Err(problem.into())),
        Answered::NoDevice(_) => Answer::Device(None),
        Answered::Device(device) => {
            Answer::Device(Some(Box::new(record::device_from_bytes(device).ok()?)))
        }
        Answered::Twin(twin) => Answer::Twin(Box::new(record::twin_from_bytes(twin).ok()?)),
        Answered::Devices(list) => Answer::Devices {
            devices: list
                .devices
                .into_iter()
                .map(|device| record::device_from_bytes(device).ok())
                .collect::<Option<_>>()?,
            more: list.more,
        },
        Answered::Messages(page) => Answer::Page(StreamPage {
            messages: page
                .messages
                .into_iter()
                .map(events::stored_message)
                .collect::<Option<_>>()?,
            next: Offset::new(page.next),
            first: Offset::new(page.first),
        }),
        Answered::Offset(offset) => Answer::Offset(Offset::new(offset)),
        Answered::Stream(stream) => Answer::Stream(stream_summary(stream)),
        Answered::Commands(list) => Answer::Commands {
            commands: list.commands.into_iter().map(mail::command).collect::<Option<_>>()?,
            more: list.more,
        },
        Answered::Feedback(page) => Answer::Feedback(mail::feedback_page(page)?),
        Answered::Method(response) => Answer::Method(method::response(response)),
        Answered::CallReported(_) => Answer::CallReported,
        Answered::Node(node) => Answer::Node(node_summary(node)?),
        Answered::Meta(meta) => Answer::Meta(Box::new(record::meta_from_bytes(meta).ok()?)),
        done @ (Answered::Deleted(_)
        | Answered::Connected(_)
        | Answered::Subscribed(_)
        | Answered::Disconnected(_)
        | Answered::Appended(_)
        | Answered::Reported(_)
        | Answered::Cursor(_)
        | Answered::Retained(_)
        | Answered::Queued(_)
        | Answered::Settled(_)
        | Answered::Cancelled(_)
        | Answered::Purged(_)
        | Answered::TimersRun(_)) => Answer::Done(self::done(done)?),
    }))
}

/// The device and the twin that a change leaves are told apart from those that were read by who asks: see
/// [`Answer::into_done`].
fn of_done(done: Done) -> Answered {
    match done {
        Done::Device(device) => Answered::Device(record::device_to_bytes(&device)),
        Done::Deleted => Answered::Deleted(true),
        Done::Connected { epoch, session_present, subscriptions } => {
            Answered::Connected(proto::Connected {
                epoch: epoch.get(),
                session_present,
                subscriptions: Some(of_subscriptions(&subscriptions)),
            })
        }
        Done::Subscribed(subscriptions) => Answered::Subscribed(of_subscriptions(&subscriptions)),
        Done::Disconnected => Answered::Disconnected(true),
        Done::Appended { first, count } => {
            Answered::Appended(proto::Appended { first: first.get(), count })
        }
        Done::Reported { version } => Answered::Reported(version.get()),
        Done::Twin(twin) => Answered::Twin(record::twin_to_bytes(&twin)),
        Done::Cursor { next } => Answered::Cursor(next.get()),
        Done::Retained { first } => Answered::Retained(first.get()),
        Done::Queued { command, repeated, superseded } => Answered::Queued(proto::QueuedCommand {
            command: record::command_to_bytes(&command),
            repeated,
            superseded,
        }),
        Done::Settled => Answered::Settled(true),
        Done::Cancelled(command) => Answered::Cancelled(record::command_to_bytes(&command)),
        Done::Purged { count, sent } => Answered::Purged(proto::PurgedCommands { count, sent }),
        Done::TimersRun => Answered::TimersRun(true),
    }
}

fn done(kind: Answered) -> Option<Done> {
    Some(match kind {
        Answered::Deleted(_) => Done::Deleted,
        Answered::Connected(connected) => Done::Connected {
            epoch: SessionEpoch::new(connected.epoch),
            session_present: connected.session_present,
            subscriptions: subscriptions(connected.subscriptions.unwrap_or_default())?,
        },
        Answered::Subscribed(given) => Done::Subscribed(subscriptions(given)?),
        Answered::Disconnected(_) => Done::Disconnected,
        Answered::Appended(appended) => {
            Done::Appended { first: Offset::new(appended.first), count: appended.count }
        }
        Answered::Reported(version) => Done::Reported { version: Version::new(version) },
        Answered::Cursor(next) => Done::Cursor { next: Offset::new(next) },
        Answered::Retained(first) => Done::Retained { first: Offset::new(first) },
        Answered::Queued(queued) => Done::Queued {
            command: Box::new(record::command_from_bytes(queued.command).ok()?),
            repeated: queued.repeated,
            superseded: queued.superseded,
        },
        Answered::Settled(_) => Done::Settled,
        Answered::Cancelled(command) => {
            Done::Cancelled(Box::new(record::command_from_bytes(command).ok()?))
        }
        Answered::Purged(purged) => Done::Purged { count: purged.count, sent: purged.sent },
        Answered::TimersRun(_) => Done::TimersRun,
        Answered::Device(_)
        | Answered::Twin(_)
        | Answered::NoDevice(_)
        | Answered::Devices(_)
        | Answered::Messages(_)
        | Answered::Offset(_)
        | Answered::Stream(_)
        | Answered::Node(_)
        | Answered::Meta(_)
        | Answered::Commands(_)
        | Answered::Feedback(_)
        | Answered::Method(_)
        | Answered::CallReported(_)
        | Answered::Problem(_) => return None,
    })
}

impl Answer {
    /// The answer to a change. `None`: it is none.
    pub fn into_done(self) -> Option<Done> {
        match self {
            Self::Done(done) => Some(done),
            Self::Device(Some(device)) => Some(Done::Device(device)),
            Self::Twin(twin) => Some(Done::Twin(twin)),
            Self::Device(None)
            | Self::Devices { .. }
            | Self::Page(_)
            | Self::Offset(_)
            | Self::Stream(_)
            | Self::Commands { .. }
            | Self::Feedback(_)
            | Self::Method(_)
            | Self::CallReported
            | Self::Node(_)
            | Self::Meta(_) => None,
        }
    }
}

fn of_subscriptions(subscriptions: &Subscriptions) -> proto::Subscriptions {
    let item = |(channel, qos): (&Channel, &Qos)| proto::Subscribed {
        channel: match channel {
            Channel::Commands => 1,
            Channel::TwinResponses => 2,
            Channel::DesiredPatches => 3,
            Channel::Methods => 4,
            Channel::Inputs => 5,
        },
        qos: match qos {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 1,
        },
    };
    proto::Subscriptions { items: subscriptions.iter().map(item).collect() }
}

fn subscriptions(given: proto::Subscriptions) -> Option<Subscriptions> {
    let item = |item: proto::Subscribed| {
        let channel = match item.channel {
            1 => Channel::Commands,
            2 => Channel::TwinResponses,
            3 => Channel::DesiredPatches,
            4 => Channel::Methods,
            5 => Channel::Inputs,
            _ => return None,
        };
        Some((channel, if item.qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce }))
    };
    given.items.into_iter().map(item).collect()
}

fn of_stream(stream: StreamSummary) -> proto::StreamSummary {
    let cursor =
        |(group, next): (String, Offset)| proto::ConsumerCursor { group, next: next.get() };
    proto::StreamSummary {
        first: stream.first.get(),
        next: stream.next.get(),
        cursors: stream.cursors.into_iter().map(cursor).collect(),
        device_count: stream.device_count,
        first_feedback: stream.first_feedback.get(),
        next_feedback: stream.next_feedback.get(),
        feedback_cursors: stream.feedback_cursors.into_iter().map(cursor).collect(),
    }
}

fn stream_summary(stream: proto::StreamSummary) -> StreamSummary {
    let cursor = |cursor: proto::ConsumerCursor| (cursor.group, Offset::new(cursor.next));
    StreamSummary {
        first: Offset::new(stream.first),
        next: Offset::new(stream.next),
        cursors: stream.cursors.into_iter().map(cursor).collect(),
        device_count: stream.device_count,
        first_feedback: Offset::new(stream.first_feedback),
        next_feedback: Offset::new(stream.next_feedback),
        feedback_cursors: stream.feedback_cursors.into_iter().map(cursor).collect(),
    }
}

fn of_node(node: NodeSummary) -> proto::NodeSummary {
    proto::NodeSummary {
        version: node.version,
        sessions: node.sessions,
        started_ms: node.started.get(),
        disk_free_bytes: node.disk_free_bytes,
        problems: node.problems,
        sync_ms: node.sync_ms,
        delay_ms: node.delay_ms,
        receiving: node.receiving.into_iter().map(of_receiving).collect(),
        groups: node.groups.into_iter().map(of_group).collect(),
    }
}

fn of_receiving((group, bytes): (GroupId, u64)) -> proto::ReceivingSnapshot {
    proto::ReceivingSnapshot { group: group.number(), bytes }
}

fn receiving(snapshot: proto::ReceivingSnapshot) -> Option<(GroupId, u64)> {
    Some((GroupId::from_number(snapshot.group)?, snapshot.bytes))
}

fn of_group(group: GroupSummary) -> proto::GroupSummary {
    let replica = |(node, matched): (NodeId, Option<u64>)| proto::ReplicaSummary {
        node: node.to_u64(),
        matched_index: matched,
    };
    proto::GroupSummary {
        group: group.group.number(),
        leads: group.leads,
        leader: group.leader.map(NodeId::to_u64),
        term: group.term,
        committed_index: group.committed_index,
        replicas: group.replicas.into_iter().map(replica).collect(),
        followers: group.followers.into_iter().map(replica).collect(),
        first_offset: group.first_offset.get(),
        next_offset: group.next_offset.get(),
        device_count: group.device_count,
        load: group.load,
    }
}

fn node_summary(node: proto::NodeSummary) -> Option<NodeSummary> {
    Some(NodeSummary {
        version: node.version,
        sessions: node.sessions,
        started: LogTime::new(node.started_ms),
        disk_free_bytes: node.disk_free_bytes,
        problems: node.problems,
        sync_ms: node.sync_ms,
        delay_ms: node.delay_ms,
        receiving: node.receiving.into_iter().map(receiving).collect::<Option<_>>()?,
        groups: node.groups.into_iter().map(group_summary).collect::<Option<_>>()?,
    })
}

fn group_summary(group: proto::GroupSummary) -> Option<GroupSummary> {
    let replica =
        |replica: proto::ReplicaSummary| (NodeId::from_u64(replica.node), replica.matched_index);
    Some(GroupSummary {
        group: GroupId::from_number(group.group)?,
        leader: group.leader.map(NodeId::from_u64),
        leads: group.leads,
        term: group.term,
        committed_index: group.committed_index,
        replicas: group.replicas.into_iter().map(replica).collect(),
        followers: group.followers.into_iter().map(replica).collect(),
        first_offset: Offset::new(group.first_offset),
        next_offset: Offset::new(group.next_offset),
        device_count: group.device_count,
        load: group.load,
    })
}

#[cfg(test)]
mod tests {
    use drover_core::ids::CallId;
    use drover_core::method::CallReport;

    use super::*;

    fn report(report: CallReport) -> Request {
        let device = "pump-8".parse().expect("a legal id");
        let (epoch, call) = (SessionEpoch::new(3), CallId::new(4));
        Request::ReportCall(Box::new(Reported { device, epoch, call, report }))
    }

    #[test]
    fn every_request_arrives_as_it_was_sent() {
        let device: DeviceId = "pump-7".parse().expect("a legal id");
        let requests = [
            Request::Change(Bytes::from_static(b"a change")),
            Request::Device { device: device.clone(), linearizable: true },
            Request::Twin(device.clone()),
            Request::Devices { after: Some(device.clone()), limit: 3 },
            Request::Devices { after: None, limit: 3 },
            Request::Modules(device.clone()),
            Request::Twin(device.module(&"ai".parse().expect("a legal id"))),
            Request::Stream { from: Offset::new(1), messages_max: 2, bytes_max: 3, wait_ms: 4 },
            Request::OffsetAt(LogTime::new(5)),
            Request::History {
                device,
                from: LogTime::new(1),
                until: LogTime::new(2),
                after: Some(Offset::new(0)),
                limit: 9,
            },
            Request::StreamState,
            Request::Commands {
                device: "pump-8".parse().expect("a legal id"),
                after: CommandSequence::new(4),
                limit: 5,
                with_bodies: true,
            },
            Request::Feedback { from: Offset::new(1), limit: 2, wait_ms: 3 },
            Request::Invoke(Box::new(Invoke {
                device: "pump-8".parse().expect("a legal id"),
                name: "reboot".parse().expect("a legal name"),
                payload: Bytes::from_static(b"{}"),
                connect_ms: 1,
                response_ms: 2,
            })),
            report(CallReport::Answered(MethodResponse {
                status: -1,
                payload: Bytes::from_static(b"[]"),
            })),
            report(CallReport::BadResponse),
            report(CallReport::NotSent),
            Request::NodeSummary,
        ];
        for request in requests {
            assert_eq!(decode_request(encode_request(&request)), Ok(request));
        }
    }

    #[test]
    fn an_answer_to_a_change_arrives_as_it_was_given() {
        let subscriptions = Subscriptions::from([
            (Channel::DesiredPatches, Qos::AtLeastOnce),
            (Channel::Methods, Qos::AtMostOnce),
        ]);
        let answers = [
            Done::Deleted,
            Done::Connected {
                epoch: SessionEpoch::new(3),
                session_present: true,
                subscriptions: subscriptions.clone(),
            },
            Done::Subscribed(subscriptions),
            Done::Disconnected,
            Done::Appended { first: Offset::new(7), count: 2 },
            Done::Reported { version: Version::new(5) },
            Done::Cursor { next: Offset::new(8) },
            Done::Retained { first: Offset::new(9) },
            Done::Settled,
            Done::Purged { count: 4, sent: 1 },
            Done::TimersRun,
        ];
        for done in answers {
            let response = decode_response(encode_response(Ok(Answer::Done(done.clone()))));
            assert_eq!(response.map(Answer::into_done), Ok(Some(done)));
        }
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_an_unknown_outcome() {
        assert_eq!(decode_response(Bytes::from_static(b"\xff")), Err(Failure::Unknown));
        assert_eq!(decode_response(Bytes::new()), Err(Failure::Unknown));
    }
}
