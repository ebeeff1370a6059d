//! The calls of one device at the leader of its shard: which wait for a connection, which for an answer, and until when.
//!
//! A call is sent at most once. It goes to the connection that is live in the committed record, and only that connection's
//! answer counts (P4, P5): its epoch and the id of the call must fit. A node that no longer holds the connection says that
//! the call was not sent; then, and only then, it is sent again, to wherever the device has moved. Nothing here survives
//! the leader: a call that was not sent is asked for again at the next one, the outcome of the others is unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use drover_core::delivery::Delivery;
use drover_core::device::Channel;
use drover_core::ids::{CallId, DeviceId, GroupId, NodeId, SessionEpoch};
use drover_core::method::{Call, CallReport, MethodFailure, MethodName};
use ractor::ActorRef;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::device::{DeviceContext, DeviceMsg};
use super::reply::{Proposed, Waiting};
use super::serve;
use super::shard::ShardMsg;
use crate::metrics;
use crate::storage::state;
use crate::wire::request::{Answer, Failure};

/// How long a call whose device is moving waits for it, even if its caller does not wait for devices to connect. A
/// take-over takes some milliseconds; a new leader knows where connections are after about half a second.
const MOVE_MAX: Duration = Duration::from_secs(2);
/// How often to look where the device has moved.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the node of a connection that has ended has to say that it has not sent a call.
const LAST_WORD_MAX: Duration = Duration::from_millis(500);

/// A call as it comes to the device's actor.
#[derive(Debug)]
pub(super) struct Invocation {
    pub(super) name: MethodName,
    pub(super) payload: Bytes,
    /// How long to wait for the device to connect.
    pub(super) connect: Duration,
    /// How long to wait for its answer from then on.
    pub(super) response: Duration,
    pub(super) reply: Waiting,
}

/// Where the live connection is, as the shard's table says.
pub(super) type Address = Option<(NodeId, SessionEpoch)>;

#[derive(Debug, Default)]
pub(super) struct Calls {
    waiting: Vec<Unsent>,
    sent: BTreeMap<CallId, Sent>,
    timer: Option<Timer>,
}

#[derive(Debug)]
struct Unsent {
    invocation: Invocation,
    begun: Instant,
    /// Why it could not be sent when that was tried last.
    problem: MethodFailure,
    /// The device was seen on its way from one connection to another.
    is_moving: bool,
}

#[derive(Debug)]
struct Sent {
    name: MethodName,
    payload: Bytes,
    connect: Duration,
    response: Duration,
    begun: Instant,
    reply: Proposed,
    epoch: SessionEpoch,
    until: Instant,
    /// Its connection has ended: no answer counts any more.
    is_lost: bool,
}

#[derive(Debug)]
struct Timer {
    at: Instant,
    _task: AbortOnDropHandle<()>,
}

/// Whether a call can be sent now.
enum Reach {
    At(NodeId, SessionEpoch),
    NotYet(MethodFailure),
    Never(Failure),
}

impl Unsent {
    fn until(&self) -> Instant {
        let connect = self.invocation.connect;
        self.begun + if self.is_moving { connect.max(MOVE_MAX) } else { connect }
    }
}

impl Calls {
    /// A new call.
    pub(super) fn invoke(
        &mut self,
        device: &DeviceId,
        context: &DeviceContext,
        invocation: Invocation,
        address: Address,
    ) {
        let limit = context.calls_max;
        if self.waiting.len() + self.sent.len() >= limit as usize {
            metrics::refused("busy");
            return invocation.reply.fail(Failure::Method(MethodFailure::TooManyCalls { limit }));
        }
        let (begun, problem) = (Instant::now(), MethodFailure::NotConnected);
        let call = Unsent { invocation, begun, problem, is_moving: false };
        self.attempt(device, context, call, address);
    }

    /// The device may be reachable now.
    pub(super) fn located(&mut self, device: &DeviceId, context: &DeviceContext, address: Address) {
        for call in std::mem::take(&mut self.waiting) {
            self.attempt(device, context, call, address);
        }
    }

    /// What the node of a connection says about a call. Late answers, and those of a connection that has ended, mean
    /// nothing to anybody.
    pub(super) fn reported(
        &mut self,
        device: &DeviceId,
        epoch: SessionEpoch,
        id: CallId,
        report: CallReport,
    ) {
        let counts =
            |sent: &Sent| sent.epoch == epoch && (!sent.is_lost || report == CallReport::NotSent);
        if !self.sent.get(&id).is_some_and(counts) {
            return metrics::call_report_ignored();
        }
        let Some(sent) = self.sent.remove(&id) else { return };
        match report {
            CallReport::Answered(response) => sent.reply.answer(Ok(Answer::Method(response))),
            CallReport::BadResponse => {
                sent.reply.answer(Err(Failure::Method(MethodFailure::BadResponse)));
            }
            CallReport::NotSent => self.waiting.push(sent.withdrawn(device)),
        }
    }

    /// The connection, and all before it, has ended.
    pub(super) fn ended(&mut self, epoch: SessionEpoch) {
        let last_word = Instant::now() + LAST_WORD_MAX;
        for sent in self.sent.values_mut().filter(|sent| sent.epoch <= epoch) {
            sent.is_lost = true;
            sent.until = sent.until.min(last_word);
        }
    }

    /// Answers those whose time is over, and looks for the device if some wait for it to arrive.
    pub(super) fn due(&mut self, device: &DeviceId, context: &DeviceContext) {
        let now = Instant::now();
        self.timer = None;
        let (over, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|call| call.until() <= now);
        self.waiting = waiting;
        for Unsent { invocation, problem, .. } in over {
            invocation.reply.fail(Failure::Method(problem));
        }
        for (_, sent) in self.sent.extract_if(.., |_, sent| sent.until <= now) {
            let failure = if sent.is_lost {
                MethodFailure::ConnectionLost
            } else {
                MethodFailure::NoResponse
            };
            sent.reply.answer(Err(Failure::Method(failure)));
        }
        if self.waiting.iter().any(|call| call.is_moving) {
            // A shard that has stopped takes its devices along.
            drop(context.owner.send_message(ShardMsg::Locate(device.clone())));
        }
    }

    /// Makes sure that [`Calls::due`] is called in time.
    pub(super) fn set_timer(&mut self, me: &ActorRef<DeviceMsg>) {
        if self.waiting.is_empty() && self.sent.is_empty() {
            self.timer = None;
            return;
        }
        let look = Instant::now() + LOOK_EVERY;
        let unsent = self
            .waiting
            .iter()
            .map(|call| if call.is_moving { call.until().min(look) } else { call.until() });
        let next = unsent.chain(self.sent.values().map(|sent| sent.until)).min();
        let Some(at) = next else { return };
        if self.timer.as_ref().is_some_and(|timer| timer.at <= at) {
            return;
        }
        let me = me.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            // An actor that has stopped has answered its calls.
            drop(me.send_message(DeviceMsg::CallsDue));
        });
        self.timer = Some(Timer { at, _task: AbortOnDropHandle::new(task) });
    }

    /// This node does not lead any more. What was not sent can be asked of the next leader; the rest is unknown.
    pub(super) fn give_up(&mut self) {
        for call in self.waiting.drain(..) {
            call.invocation.reply.fail(Failure::NotLeader { leader: None });
        }
        self.sent.clear();
        self.timer = None;
    }

    #[cfg(test)]
    pub(super) fn count_unsent(&self) -> usize {
        self.waiting.len()
    }

    fn attempt(
        &mut self,
        device: &DeviceId,
        context: &DeviceContext,
        mut call: Unsent,
        address: Address,
    ) {
        let problem = match reach(device, context, address) {
            Reach::Never(failure) => return call.invocation.reply.fail(failure),
            Reach::NotYet(problem) => problem,
            Reach::At(node, epoch) => {
                let id = context.next_call();
                let delivery = Delivery::Call(Call {
                    id,
                    name: call.invocation.name.clone(),
                    payload: call.invocation.payload.clone(),
                });
                if context.outbox.deliver(node, context.shard, device, epoch, delivery) {
                    self.sent.insert(id, call.sent(epoch));
                    return;
                }
                MethodFailure::Moving
            }
        };
        call.problem = problem;
        call.is_moving |= problem == MethodFailure::Moving;
        if call.until() <= Instant::now() {
            return call.invocation.reply.fail(Failure::Method(problem));
        }
        self.waiting.push(call);
    }
}

impl Unsent {
    fn sent(self, epoch: SessionEpoch) -> Sent {
        let Invocation { name, payload, connect, response, reply } = self.invocation;
        let until = Instant::now() + response;
        let (begun, reply) = (self.begun, reply.proposed());
        Sent { name, payload, connect, response, begun, reply, epoch, until, is_lost: false }
    }
}

impl Sent {
    /// It is certain that the device has not seen it.
    fn withdrawn(self, device: &DeviceId) -> Unsent {
        let Self { name, payload, connect, response, begun, reply, .. } = self;
        let reply = reply.withdrawn(device.clone());
        let invocation = Invocation { name, payload, connect, response, reply };
        Unsent { invocation, begun, problem: MethodFailure::Moving, is_moving: true }
    }
}

fn reach(device: &DeviceId, context: &DeviceContext, address: Address) -> Reach {
    let group = GroupId::Shard(context.shard);
    let record = match state::device(&*context.storage, group, device) {
        Ok(Some(record)) => record,
        Ok(None) => {
            let refusal = drover_core::change::Refusal::not_found(device);
            return Reach::Never(Failure::Refused(refusal));
        }
        Err(error) => return Reach::Never(serve::unreadable(&context.group, error)),
    };
    let presence = record.presence;
    if presence.connected_since.is_none() {
        return Reach::NotYet(MethodFailure::NotConnected);
    }
    if !presence.subscriptions.contains_key(&Channel::Methods) {
        return Reach::NotYet(MethodFailure::NotSubscribed);
    }
    match address.filter(|(_, epoch)| *epoch == presence.epoch) {
        Some((node, epoch)) => Reach::At(node, epoch),
        // It is being announced, or has just been replaced.
        None => Reach::NotYet(MethodFailure::Moving),
    }
}
