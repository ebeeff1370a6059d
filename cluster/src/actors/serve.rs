//! What the leader of a group does for a request, from here or from a peer: both enter the same way, and a request that
//! came from a peer is never forwarded again.
//!
//! Changes go through the shard's actor to the proposer. Reads run where they are asked: a read barrier, then the applied
//! state. Pages of a stream need no barrier, because what stands at an offset never changes; only the leader answers that
//! a stream has ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drover_core::change::{Change, DeviceChange, StreamChange};
use drover_core::device::Device;
use drover_core::feedback::FeedbackPage;
use drover_core::ids::{CommandSequence, DeviceId, GroupId, NodeId, Offset, ShardId};
use drover_core::message::StreamPage;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::node::Shared;
use super::proposer::{Growth, Proposal};
use super::reply::{Caller, Waiting};
use super::router::{Replica, failure_of};
use super::shard::ShardMsg;
use super::status;
use crate::raft::group::Group;
use crate::storage::stream::{self, PageLimit};
use crate::storage::{self, ScanLimit, Storage, mailbox, state};
use crate::wire::request::{Answer, Failure, Request, Response, decode_change};

/// What the router needs to know of a change, besides its bytes.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) encoded: Bytes,
    pub(super) device: Option<DeviceId>,
    pub(super) connects: bool,
    pub(super) frees: bool,
}

impl Entry {
    pub(super) fn new(encoded: Bytes, change: &Change) -> Self {
        let (device, connects, frees) = match change {
            Change::Device(device, change) => (
                Some(device.clone()),
                matches!(change, DeviceChange::Connect { .. }),
                matches!(
                    change,
                    DeviceChange::Delete { .. }
                        | DeviceChange::Disconnect { will: None, .. }
                        | DeviceChange::SettleCommand { .. }
                        | DeviceChange::CancelCommand { .. }
                        | DeviceChange::PurgeCommands
                        | DeviceChange::RunCommandTimers
                ),
            ),
            Change::Stream(change) => {
                let frees = matches!(
                    change,
                    StreamChange::Retain { .. } | StreamChange::RetainFeedback { .. }
                );
                (None, false, frees)
            }
        };
        Self { encoded, device, connects, frees }
    }
}

/// Puts a change into the shard's actor. The answer comes through `caller`.
pub(super) fn submit(shared: &Shared, shard: ShardId, entry: Entry, from: NodeId, caller: Caller) {
    let entered = serving(shared, shard).and_then(|replica| {
        let permit = replica.gauge.admit(entry.encoded.len(), || format!("shard {shard}"))?;
        Ok((replica, permit))
    });
    let (replica, permit) = match entered {
        Ok(entered) => entered,
        Err(failure) => return caller.answer(Err(failure)),
    };
    let Entry { encoded: change, device, connects, frees } = entry;
    let connects = device.clone().filter(|_| connects).map(|device| (device, from));
    let reply = Waiting::new(caller, device.clone(), permit);
    let proposal = Proposal { change, connects, frees, reply };
    // A message that finds no actor is dropped, and its reply says that it can be asked again.
    drop(replica.actor.send_message(ShardMsg::Change(device, proposal)));
}

/// Carries out a change at this node, for one of its own connections.
pub(super) async fn change_here(shared: &Shared, shard: ShardId, entry: Entry) -> Response {
    let (sender, answer) = oneshot::channel();
    submit(shared, shard, entry, shared.config.node, Caller::Here(sender));
    answer.await.unwrap_or(Err(Failure::Unknown))
}

/// A change of a peer. The bytes will stand in a log that every replica must be able to apply, so they are read first.
pub(super) fn change_of_peer(
    shared: &Shared,
    shard: ShardId,
    encoded: Bytes,
    from: NodeId,
    reply: oneshot::Sender<Bytes>,
) {
    let caller = Caller::Peer(reply);
    match decode_change(&encoded) {
        Ok(change) => submit(shared, shard, Entry::new(encoded, &change), from, caller),
        Err(error) => caller.answer(Err(Failure::Invalid {
            field: "change".to_owned(),
            problem: error.to_string(),
        })),
    }
}

/// Answers a read of a shard at its leader.
pub(super) async fn read_here(
    shared: &Shared,
    shard: ShardId,
    request: &Request,
    deadline: Instant,
) -> Response {
    let replica = serving(shared, shard)?;
    let until = |wait_ms: u32| deadline.min(Instant::now() + Duration::from_millis(wait_ms.into()));
    if let Request::Stream { from, messages_max, bytes_max, wait_ms } = request {
        let limit = PageLimit { messages: *messages_max as usize, bytes: *bytes_max as usize };
        let read = || stream::read(&*shared.storage, shard, *from, limit);
        let (end, is_empty) =
            (|now: &Growth| now.messages, |page: &StreamPage| page.messages.is_empty());
        let page = when_grown(shared, shard, &replica, until(*wait_ms), end, read, is_empty).await;
        return page.map(Answer::Page);
    }
    if let Request::Feedback { from, limit, wait_ms } = request {
        let read = || mailbox::feedback(&*shared.storage, shard, *from, *limit as usize);
        let (end, is_empty) =
            (|now: &Growth| now.feedback, |page: &FeedbackPage| page.records.is_empty());
        let page = when_grown(shared, shard, &replica, until(*wait_ms), end, read, is_empty).await;
        return page.map(Answer::Feedback);
    }
    if !matches!(request, Request::Device { linearizable: false, .. }) {
        replica.group.read_barrier().await.map_err(failure_of)?;
    }
    read(shared, shard, request).map_err(|error| unreadable(&replica.group, error))?
}

/// A replica that has corrupt data must not serve: it is stopped, and another one is elected.
pub(super) fn unreadable(group: &Group, error: storage::Error) -> Failure {
    if matches!(error, storage::Error::Corrupt { .. }) {
        group.condemn(error.to_string());
    }
    failure_of(error.into())
}

fn read(shared: &Shared, shard: ShardId, request: &Request) -> Result<Response, storage::Error> {
    let group = GroupId::Shard(shard);
    let store = &*shared.storage;
    let not_found =
        |device: &DeviceId| Failure::Refused(drover_core::change::Refusal::not_found(device));
    Ok(Ok(match request {
        Request::Device { device, linearizable } => {
            let mut found = state::device(store, group, device)?.map(Box::new);
            // Whoever checks credentials does not ask when the device was active.
            if let Some(found) = found.as_mut().filter(|_| *linearizable) {
                add_activity(store, group, found)?;
            }
            Answer::Device(found)
        }
        Request::Twin(device) => match state::twin(store, group, device)? {
            Some(twin) => Answer::Twin(Box::new(twin)),
            None => return Ok(Err(not_found(device))),
        },
        Request::Devices { after, limit } => {
            let limit = *limit as usize;
            // One more than is asked for tells whether there are more.
            let mut devices = state::devices(store, group, after.as_ref(), limit + 1)?;
            let more = devices.len() > limit;
            devices.truncate(limit);
            devices.iter_mut().try_for_each(|device| add_activity(store, group, device))?;
            Answer::Devices { devices, more }
        }
        Request::Modules(device) => {
            if state::device(store, group, device)?.is_none() {
                return Ok(Err(not_found(device)));
            }
            let mut devices = state::modules(store, group, device)?;
            devices.iter_mut().try_for_each(|module| add_activity(store, group, module))?;
            Answer::Devices { devices, more: false }
        }
        Request::OffsetAt(at) => Answer::Offset(stream::offset_at(store, shard, *at)?),
        Request::History { device, from, until, after, limit } => {
            let limit = PageLimit { messages: *limit as usize, bytes: HISTORY_BYTES_MAX };
            let messages = stream::history(store, shard, device, *from..*until, *after, limit)?;
            let end = Offset::new(0);
            Answer::Page(StreamPage { messages, next: end, first: end })
        }
        Request::StreamState => Answer::Stream(state::stream(store, group)?.into()),
        Request::Commands { device, after, limit, with_bodies } => {
            if state::device(store, group, device)?.is_none() {
                return Ok(Err(not_found(device)));
            }
            commands(store, group, device, *after, *limit as usize, *with_bodies)?
        }
        Request::Change(_)
        | Request::Stream { .. }
        | Request::Feedback { .. }
        | Request::Invoke(_)
        | Request::ReportCall(_)
        | Request::NodeSummary => {
            return Ok(Err(Failure::Invalid {
                field: "request".to_owned(),
                problem: "it is no read of a shard".to_owned(),
            }));
        }
    }))
}

/// Adds to the activity that stands in the record of a device what stands in the stream: its telemetry.
fn add_activity(
    store: &dyn Storage,
    group: GroupId,
    device: &mut Device,
) -> Result<(), storage::Error> {
    let sent = stream::newest_at(store, group, &device.id)?;
    device.presence.active = device.presence.active.max(sent);
    Ok(())
}

/// Commands in order, with the bodies of those that wait if they are wanted.
fn commands(
    store: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    after: CommandSequence,
    limit: usize,
    with_bodies: bool,
) -> Result<Answer, storage::Error> {
    // One more than is asked for tells whether there are more.
    let scan = ScanLimit { records: limit + 1, bytes: HISTORY_BYTES_MAX };
    let mut found = mailbox::commands_after(store, group, device, after, scan)?;
    let mut more = found.len() > limit;
    found.truncate(limit);
    let mut commands = Vec::with_capacity(found.len());
    let mut bytes = 0;
    for command in found {
        if bytes >= HISTORY_BYTES_MAX {
            more = true;
            break;
        }
        let message = if with_bodies && command.is_waiting() {
            mailbox::body(store, group, device, command.sequence)?
        } else {
            None
        };
        bytes += message.as_ref().map_or(0, |message| message.0.len());
        commands.push((command, message));
    }
    Ok(Answer::Commands { commands, more })
}

/// Reads what only grows until it `is_empty` no more, or until `until`. `end` is where it ends.
async fn when_grown<P>(
    shared: &Shared,
    shard: ShardId,
    replica: &Replica,
    until: Instant,
    end: impl Fn(&Growth) -> Offset,
    read: impl Fn() -> Result<P, storage::Error>,
    is_empty: impl Fn(&P) -> bool,
) -> Result<P, Failure> {
    let mut growth = replica.growth.clone();
    let mut leadership = replica.leadership.clone();
    let mut is_confirmed = false;
    loop {
        // Looked up before it is read: what comes in between is no reason to wait.
        let seen = end(&growth.borrow());
        let page = read().map_err(|error| unreadable(&replica.group, error))?;
        if !is_empty(&page) || is_confirmed && Instant::now() >= until {
            return Ok(page);
        }
        // That there is nothing is for a leader to say, and a deposed one does not know that it is none.
        if !is_confirmed {
            replica.group.read_barrier().await.map_err(failure_of)?;
            is_confirmed = true;
            continue;
        }
        let deposed = leadership.wait_for(|now| !now.serving);
        tokio::select! {
            _ = deposed => return Err(not_leader(shared, shard)),
            grown = timeout_at(until, growth.wait_for(|growth| end(growth) > seen)) => {
                if matches!(grown, Ok(Err(_))) {
                    return Err(not_leader(shared, shard));
                }
            }
        }
    }
}

/// What one answer of a device's history may carry.
const HISTORY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A page of the stream from this node's own replica, if it has any message there. Who was removed does not even know any more
/// who may read.
pub(super) fn local_page(
    shared: &Shared,
    shard: ShardId,
    from: Offset,
    limit: PageLimit,
) -> Option<StreamPage> {
    let replica = shared.router.replica(shard).filter(|_| !shared.is_removed())?;
    match stream::read(&*shared.storage, shard, from, limit) {
        Ok(page) => (!page.messages.is_empty()).then_some(page),
        // A replica that cannot read is no reason not to ask the leader.
        Err(error) => {
            unreadable(&replica.group, error);
            None
        }
    }
}

/// Answers a request of a peer that takes time. Runs as a task of its own.
pub(super) async fn read_for_peer(
    shared: Arc<Shared>,
    group: GroupId,
    request: Request,
    caller: Caller,
) {
    let deadline = Instant::now() + shared.config.limits.deadline;
    let response = match (group, request) {
        (_, Request::NodeSummary) => Ok(Answer::Node(status::summary(&shared))),
        (GroupId::Meta, Request::Change(entry)) => shared.change_meta_here(entry).await,
        (GroupId::Meta, _) => Err(Failure::Invalid {
            field: "request".to_owned(),
            problem: "the meta group takes changes only".to_owned(),
        }),
        (GroupId::Shard(shard), request) => read_here(&shared, shard, &request, deadline).await,
    };
    caller.answer(response);
}

pub(super) fn serving(shared: &Shared, shard: ShardId) -> Result<Replica, Failure> {
    let replica = shared.router.replica(shard);
    let serves = |replica: &Replica| replica.leadership.borrow().serving;
    replica.filter(serves).ok_or_else(|| not_leader(shared, shard))
}

fn not_leader(shared: &Shared, shard: ShardId) -> Failure {
    let replica = shared.router.replica(shard);
    let leader = replica.and_then(|replica| replica.leadership.borrow().leader);
    Failure::NotLeader { leader: leader.filter(|leader| *leader != shared.config.node) }
}
