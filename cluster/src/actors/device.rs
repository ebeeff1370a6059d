//! One actor an active device: the order of its changes, and what goes to its connection.
//!
//! It holds nothing that must survive; the calls of methods that wait in it are nobody's but their callers'. Records are
//! read from the applied state when they are asked for, the address of the session stands in the shard's table, and
//! callers wait in the proposer. So passivation is free, a restart loses only the requests in the inbox (their callers are
//! told to try again), and an idle connection costs no actor. Commands are read when they are sent: what is not locked any
//! more by then is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use drover_core::change::{Change, DeviceChange};
use drover_core::delivery::{Delivery, SentCommand};
use drover_core::ids::{CallId, DeliveryNumber, DeviceId, GroupId, NodeId, SessionEpoch, ShardId};
use drover_core::mailbox::{Attempt, Command, Outgoing};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::admission::Gauge;
use super::calls::{Address, Calls, Invocation};
use super::clock::Clock;
use super::outbox::Outbox;
use super::proposer::Proposal;
use super::reply::{Caller, Waiting};
use super::serve;
use super::shard::ShardMsg;
use crate::metrics;
use crate::raft::group::Group;
use crate::storage::{self, Storage, mailbox};
use crate::wire::request::{Failure, Reported, Response, encode_change};

/// What a device actor can be told. Each variant says who sends it.
#[derive(Debug)]
pub(super) enum DeviceMsg {
    /// From the shard: a change of this device, to be proposed in the order of arrival.
    Change(Proposal),
    /// From the shard: an applied change asks for this.
    Deliver { to: NodeId, epoch: SessionEpoch, delivery: Delivery },
    /// From the shard: an applied change has locked these commands for the connection.
    SendCommands { to: NodeId, epoch: SessionEpoch, commands: Vec<Outgoing> },
    /// From the shard: the node of the connection lacks what was sent after this delivery.
    ResendCommands { to: NodeId, epoch: SessionEpoch, after: DeliveryNumber },
    /// From the shard: call the device, whose connection is there.
    Invoke(Invocation, Address),
    /// From the shard: the connection of the device is there.
    Located(Address),
    /// From the shard: the connection of this epoch has ended.
    ConnectionEnded(SessionEpoch),
    /// From the shard: what became of a call.
    CallReported(Reported),
    /// From its own timer: a call waits no longer.
    CallsDue,
    /// From the shard, which sends nothing afterwards: there was no work for a while.
    Passivate,
    /// From a test: fail as a bug would.
    #[cfg(test)]
    Panic,
    /// From a test: how many calls have not been sent?
    #[cfg(test)]
    CountUnsent(oneshot::Sender<usize>),
}

/// What all device actors of a shard use.
#[derive(Debug)]
pub(super) struct DeviceContext {
    pub(super) shard: ShardId,
    pub(super) group: Group,
    pub(super) proposer: mpsc::Sender<Proposal>,
    pub(super) outbox: Outbox,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: Arc<dyn Clock>,
    /// The shard's actor.
    pub(super) owner: ActorRef<ShardMsg>,
    /// Calls of one device that may wait.
    pub(super) calls_max: u32,
    /// The id of the newest call.
    pub(super) last_call: AtomicU64,
}

impl DeviceContext {
    /// Proposes a change of the shard's own, past the device's actor. `None`: there is no room in the gauge.
    pub(super) fn propose_own(
        &self,
        gauge: &Arc<Gauge>,
        device: DeviceId,
        change: DeviceChange,
    ) -> Option<oneshot::Receiver<Response>> {
        let permit = gauge.enter(0)?;
        let change = encode_change(&Change::Device(device.clone(), change));
        let (caller, answer) = oneshot::channel();
        let reply = Waiting::new(Caller::Here(caller), Some(device), permit);
        let proposal = Proposal { change, connects: None, frees: true, reply };
        propose(&self.proposer, self.shard, proposal);
        Some(answer)
    }

    /// Ids of calls begin above those of all earlier leaders, so that no late answer fits a newer call.
    pub(super) fn begin_term(&self, term: u64) {
        self.last_call.fetch_max(term << 32, Ordering::Relaxed);
    }

    pub(super) fn next_call(&self) -> CallId {
        CallId::new(self.last_call.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

pub(super) struct DeviceActor;

pub(super) struct DeviceState {
    device: DeviceId,
    context: Arc<DeviceContext>,
    calls: Calls,
    _active: metrics::ActiveDevice,
}

impl Actor for DeviceActor {
    type Msg = DeviceMsg;
    type State = DeviceState;
    type Arguments = (DeviceId, Arc<DeviceContext>);

    async fn pre_start(
        &self,
        _myself: ActorRef<DeviceMsg>,
        (device, context): Self::Arguments,
    ) -> Result<DeviceState, ActorProcessingErr> {
        let calls = Calls::default();
        Ok(DeviceState { device, context, calls, _active: metrics::ActiveDevice::enter() })
    }

    async fn handle(
        &self,
        myself: ActorRef<DeviceMsg>,
        message: DeviceMsg,
        state: &mut DeviceState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeviceMsg::Change(proposal) => state.propose(proposal),
            DeviceMsg::Deliver { to, epoch, delivery } => state.deliver(to, epoch, delivery),
            DeviceMsg::SendCommands { to, epoch, commands } => {
                state.send_commands(to, epoch, &commands);
            }
            DeviceMsg::ResendCommands { to, epoch, after } => {
                state.resend_commands(to, epoch, after);
            }
            DeviceMsg::Invoke(invocation, address) => {
                state.calls.invoke(&state.device, &state.context, invocation, address);
            }
            DeviceMsg::Located(address) => {
                state.calls.located(&state.device, &state.context, address);
            }
            DeviceMsg::ConnectionEnded(epoch) => state.calls.ended(epoch),
            DeviceMsg::CallReported(Reported { epoch, call, report, .. }) => {
                state.calls.reported(&state.device, epoch, call, report);
            }
            DeviceMsg::CallsDue => state.calls.due(&state.device, &state.context),
            DeviceMsg::Passivate => {
                state.calls.give_up();
                myself.stop(None);
            }
            #[cfg(test)]
            DeviceMsg::Panic => panic!("a test asked device {} to panic", state.device),
            #[cfg(test)]
            DeviceMsg::CountUnsent(count) => drop(count.send(state.calls.count_unsent())),
        }
        state.calls.set_timer(&myself);
        Ok(())
    }
}

impl DeviceState {
    fn propose(&self, proposal: Proposal) {
        propose(&self.context.proposer, self.context.shard, proposal);
    }

    fn deliver(&self, to: NodeId, epoch: SessionEpoch, delivery: Delivery) {
        let DeviceContext { shard, outbox, .. } = &*self.context;
        outbox.deliver(to, *shard, &self.device, epoch, delivery);
    }
}

impl DeviceState {
    fn send_commands(&self, to: NodeId, epoch: SessionEpoch, commands: &[Outgoing]) {
        let Some(first) = commands.first() else { return };
        let read = |outgoing: &Outgoing| {
            let DeviceContext { shard, storage, .. } = &*self.context;
            mailbox::command(&**storage, GroupId::Shard(*shard), &self.device, outgoing.sequence)
        };
        let numbers = commands.iter().map(|outgoing| outgoing.number);
        match commands.iter().map(read).collect::<Result<Vec<_>, _>>() {
            Ok(found) => {
                let locked = numbers.zip(found).filter_map(|(number, command)| {
                    command.filter(|command| is_locked_as(command, epoch, number))
                });
                self.deliver_commands(to, epoch, first.number.before(), locked.collect());
            }
            Err(error) => self.unreadable(error),
        }
    }

    /// What was sent after `after` and is locked still. What is not has ended, or will be sent under a new number.
    fn resend_commands(&self, to: NodeId, epoch: SessionEpoch, after: DeliveryNumber) {
        let DeviceContext { shard, storage, .. } = &*self.context;
        match mailbox::commands(&**storage, GroupId::Shard(*shard), &self.device) {
            Ok(commands) => {
                let mut locked: Vec<_> = commands
                    .loaded
                    .into_values()
                    .filter(|command| {
                        let number = number(command);
                        number > after && is_locked_as(command, epoch, number)
                    })
                    .collect();
                locked.sort_by_key(number);
                self.deliver_commands(to, epoch, after, locked);
            }
            Err(error) => self.unreadable(error),
        }
    }

    /// Sends locked commands that are not over, in this order. `follows` is the delivery before the first of them.
    fn deliver_commands(
        &self,
        to: NodeId,
        epoch: SessionEpoch,
        mut follows: DeliveryNumber,
        commands: Vec<Command>,
    ) {
        let DeviceContext { shard, storage, clock, .. } = &*self.context;
        let group = GroupId::Shard(*shard);
        let now = clock.now();
        for command in commands.into_iter().filter(|command| command.expires > now) {
            let number = number(&command);
            match mailbox::body(&**storage, group, &self.device, command.sequence) {
                Ok(Some(message)) => {
                    let sent = SentCommand { number, follows, command, message };
                    self.deliver(to, epoch, Delivery::Command(Box::new(sent)));
                    follows = number;
                }
                // It has ended since it was read.
                Ok(None) => {}
                Err(error) => return self.unreadable(error),
            }
        }
    }

    /// The lock runs out, and the command is sent again by a leader that can read it.
    fn unreadable(&self, error: storage::Error) {
        warn!(shard = %self.context.shard, device = %self.device, %error, "commands cannot be read");
        serve::unreadable(&self.context.group, error);
    }
}

/// The number of a command's last delivery.
fn number(command: &Command) -> DeliveryNumber {
    command.attempts.last().map_or(DeliveryNumber::default(), |attempt| attempt.number)
}

fn is_locked_as(command: &Command, epoch: SessionEpoch, number: DeliveryNumber) -> bool {
    let is_last = |attempt: &Attempt| attempt.epoch == epoch && attempt.number == number;
    command.is_locked() && command.attempts.last().is_some_and(is_last)
}

/// Puts a change into the proposer's queue, or says that it is full.
pub(super) fn propose(queue: &mpsc::Sender<Proposal>, shard: ShardId, proposal: Proposal) {
    match queue.try_send(proposal) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(proposal)) => {
            metrics::refused("busy");
            proposal.reply.fail(Failure::Busy { what: format!("the queue of shard {shard}") });
        }
        // The replica stops: another node leads, or will.
        Err(mpsc::error::TrySendError::Closed(proposal)) => {
            proposal.reply.fail(Failure::NotLeader { leader: None });
        }
    }
}
