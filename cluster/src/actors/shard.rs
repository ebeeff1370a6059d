//! One actor a local replica, active while this node leads it: device actors on demand, effects after commit, and where
//! the sessions of its devices are.
//!
//! Where sessions are is memory of the leader (`addresses`). A new leader fills it from what the nodes announce; until a
//! session is announced its deliveries are not sent, which the announcement then shows as a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use drover_core::change::{Effect, Event};
use drover_core::delivery::{Delivery, EndReason};
use drover_core::ids::{DeviceId, LogTime, NodeId, SessionEpoch, ShardId};
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorRuntime, SupervisionEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::addresses::{Address, Addresses, Announced, Moments};
use super::admission::{Gauge, Permit};
use super::announce::Judged;
use super::calls::Invocation;
use super::clock::Clock;
use super::config::Limits;
use super::departed::Departed;
use super::device::{DeviceActor, DeviceContext, DeviceMsg, propose};
use super::due::DueTimer;
use super::live::LiveHub;
use super::neighbours::{Neighbours, Present};
use super::outbox::Outbox;
use super::proposer::{Connected, Proposal, Proposer};
use crate::metrics;
use crate::raft::Leadership;
use crate::raft::group::Group;
use crate::storage::Storage;
use crate::wire::request::{Failure, Reported};

/// What a shard actor can be told. Each variant says who sends it.
#[derive(Debug)]
pub(super) enum ShardMsg {
    /// From the router, here or on a peer. Without a device it changes the stream.
    Change(Option<DeviceId>, Proposal),
    /// From the proposer: an entry was applied.
    Committed { connected: Vec<Connected>, effects: Vec<Effect> },
    /// From the router, here or on a peer: call a device.
    Invoke(DeviceId, Invocation),
    /// From the router, here or on a peer: what became of a call.
    CallReported(Reported),
    /// From a device that has calls for a connection which is moving.
    Locate(DeviceId),
    /// From the node: what a node holds, of which these sessions are live.
    Announced { announced: Announced, sessions: Vec<Judged> },
    /// From the node: who is there.
    NodesPresent(Arc<Present>),
    /// From its own look at the records: these are connected, by what was committed some time ago.
    Recorded(Vec<Connected>),
    /// From its own proposal to end it: there is no such connection any more.
    NotLive(DeviceId, SessionEpoch),
    /// From its own timer: a mailbox may be due.
    CommandsDue,
    /// From its own watch on the group.
    Leadership(Leadership),
    /// From its own timer: stop device actors that have been idle.
    Sweep,
    /// From a test: make a device's actor fail.
    #[cfg(test)]
    PanicDevice(DeviceId),
    /// From a test: how many calls of the device have not been sent?
    #[cfg(test)]
    CountUnsent(DeviceId, tokio::sync::oneshot::Sender<usize>),
}

/// What a shard actor is started with.
pub(super) struct ShardArguments {
    pub(super) shard: ShardId,
    pub(super) group: Group,
    pub(super) outbox: Outbox,
    pub(super) live: LiveHub,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) moments: Arc<Moments>,
    pub(super) limits: Limits,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: Arc<dyn Clock>,
    /// What makes the proposer, once the actor that it reports to is known.
    pub(super) proposer:
        Box<dyn FnOnce(ActorRef<ShardMsg>, mpsc::Receiver<Proposal>) -> Proposer + Send>,
}

pub(super) struct ShardActor;

pub(super) struct ShardState {
    shard: ShardId,
    limits: Limits,
    live: LiveHub,
    context: Arc<DeviceContext>,
    leadership: Leadership,
    active: BTreeMap<DeviceId, Active>,
    addresses: Addresses,
    moments: Arc<Moments>,
    neighbours: Arc<Neighbours>,
    due: DueTimer,
    departed: Departed,
    _tasks: [AbortOnDropHandle<()>; 3],
}

/// A device with an actor.
struct Active {
    actor: ActorRef<DeviceMsg>,
    gauge: Arc<Gauge>,
    used: Instant,
}

impl Actor for ShardActor {
    type Msg = ShardMsg;
    type State = ShardState;
    type Arguments = ShardArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMsg>,
        arguments: ShardArguments,
    ) -> Result<ShardState, ActorProcessingErr> {
        Ok(ShardState::start(myself, arguments))
    }

    async fn handle(
        &self,
        myself: ActorRef<ShardMsg>,
        message: ShardMsg,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMsg::Change(Some(device), proposal) => state.change(&myself, device, proposal),
            ShardMsg::Change(None, proposal) => {
                propose(&state.context.proposer, state.shard, proposal);
            }
            ShardMsg::Committed { connected, effects } => {
                state.committed(&myself, connected, effects);
            }
            ShardMsg::Invoke(device, invocation) => state.invoke(&myself, device, invocation),
            ShardMsg::CallReported(reported) => {
                let device = reported.device.clone();
                state.tell_active(&device, DeviceMsg::CallReported(reported));
            }
            ShardMsg::Locate(device) => state.locate(&device),
            ShardMsg::Announced { announced, sessions } => {
                state.announced(&myself, &announced, sessions);
            }
            ShardMsg::NodesPresent(present) => state.nodes_present(&present),
            ShardMsg::Recorded(connected) => state.recorded(connected),
            ShardMsg::NotLive(device, epoch) => state.addresses.forget(&device, epoch),
            ShardMsg::CommandsDue => state.due.run(&myself, &state.context),
            ShardMsg::Leadership(leadership) => state.led(&myself, leadership),
            ShardMsg::Sweep => state.sweep(Instant::now()),
            #[cfg(test)]
            ShardMsg::PanicDevice(device) => state.tell(&myself, &device, DeviceMsg::Panic),
            #[cfg(test)]
            ShardMsg::CountUnsent(device, count) => {
                state.tell(&myself, &device, DeviceMsg::CountUnsent(count));
            }
        }
        Ok(())
    }

    /// A device actor that fails is started again; its shard and the other devices go on (P6).
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ShardMsg>,
        event: SupervisionEvent,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, error) = event {
            let failed = |active: &Active| active.actor.get_id() == actor.get_id();
            let device = state.active.iter().find(|(_, active)| failed(active));
            if let Some(device) = device.map(|(device, _)| device.clone()) {
                warn!(shard = %state.shard, %device, %error, "a device actor failed and is restarted");
                metrics::device_restarted();
                state.active.remove(&device);
                state.activate(&myself, &device);
            }
        }
        Ok(())
    }
}

impl ShardState {
    fn start(myself: ActorRef<ShardMsg>, arguments: ShardArguments) -> Self {
        let ShardArguments { shard, group, outbox, live, limits, storage, clock, .. } = arguments;
        let ShardArguments { neighbours, moments, proposer, .. } = arguments;
        let (queue, proposals) = mpsc::channel(limits.shard_requests_max);
        let tasks = [
            tokio::spawn(proposer(myself.clone(), proposals).run()),
            tokio::spawn(follow(group.leadership(), myself.clone())),
            tokio::spawn(tick(limits.idle / 2, myself.clone())),
        ];
        let context = DeviceContext {
            shard,
            group,
            proposer: queue,
            outbox,
            storage,
            clock,
            owner: myself,
            calls_max: limits.device_calls_max,
            last_call: AtomicU64::new(0),
        };
        Self {
            shard,
            limits,
            live,
            context: Arc::new(context),
            leadership: Leadership::default(),
            active: BTreeMap::new(),
            addresses: Addresses::default(),
            moments,
            neighbours,
            due: DueTimer::default(),
            departed: Departed::default(),
            _tasks: tasks.map(AbortOnDropHandle::new),
        }
    }

    fn change(&mut self, myself: &ActorRef<ShardMsg>, device: DeviceId, mut proposal: Proposal) {
        match self.enter(myself, device, proposal.change.len()) {
            Ok((actor, permit)) => {
                proposal.reply.hold(permit);
                // A message that finds no actor is dropped, and its reply says that it can be asked again.
                drop(actor.send_message(DeviceMsg::Change(proposal)));
            }
            Err(failure) => proposal.reply.fail(failure),
        }
    }

    /// A device's actor, and the right to a place in its inbox.
    fn enter(
        &mut self,
        myself: &ActorRef<ShardMsg>,
        device: DeviceId,
        bytes: usize,
    ) -> Result<(&ActorRef<DeviceMsg>, Permit), Failure> {
        let Some(active) = self.activate(myself, &device) else {
            return Err(Failure::Restarted { device });
        };
        let permit = active.gauge.admit(bytes, || format!("the inbox of {device}"))?;
        Ok((&active.actor, permit))
    }

    /// The actor of a device; started if there is none. It has no name: a name would cost each device a registry entry.
    fn activate(&mut self, myself: &ActorRef<ShardMsg>, device: &DeviceId) -> Option<&Active> {
        let now = Instant::now();
        if !self.active.contains_key(device) {
            let arguments = (device.clone(), Arc::clone(&self.context));
            let cell = myself.get_cell();
            let started =
                ActorRuntime::spawn_linked_instant(None, DeviceActor, arguments, cell).ok()?;
            let (actor, _) = started;
            let gauge = Gauge::new(self.limits.device_requests_max, self.limits.node_bytes_max);
            self.active.insert(device.clone(), Active { actor, gauge, used: now });
        }
        let active = self.active.get_mut(device)?;
        active.used = now;
        Some(active)
    }

    fn tell(&mut self, myself: &ActorRef<ShardMsg>, device: &DeviceId, message: DeviceMsg) {
        if let Some(active) = self.activate(myself, device) {
            drop(active.actor.send_message(message));
        }
    }

    /// Tells a device that has an actor; to one that has none it means nothing.
    fn tell_active(&self, device: &DeviceId, message: DeviceMsg) {
        if let Some(active) = self.active.get(device) {
            drop(active.actor.send_message(message));
        }
    }

    fn invoke(&mut self, myself: &ActorRef<ShardMsg>, device: DeviceId, mut call: Invocation) {
        let address = self.address(&device);
        match self.enter(myself, device, call.payload.len()) {
            Ok((actor, permit)) => {
                call.reply.hold(permit);
                drop(actor.send_message(DeviceMsg::Invoke(call, address)));
            }
            Err(failure) => call.reply.fail(failure),
        }
    }

    fn address(&self, device: &DeviceId) -> Option<(NodeId, SessionEpoch)> {
        self.addresses.get(device).map(|address| (address.node, address.epoch))
    }

    fn locate(&self, device: &DeviceId) {
        self.tell_active(device, DeviceMsg::Located(self.address(device)));
    }

    fn committed(
        &mut self,
        myself: &ActorRef<ShardMsg>,
        connected: Vec<Connected>,
        effects: Vec<Effect>,
    ) {
        let mut sends = Vec::new();
        let mut reachable = Vec::new();
        for effect in effects {
            match effect {
                Effect::SendCommands { device, epoch, commands } => {
                    sends.push((device, epoch, commands));
                }
                Effect::Reachable { device, .. } => reachable.push(device),
                Effect::CommandsDue { at } => self.due.set(myself, &self.context, at),
                // The proposer has told those who wait for it, and has counted.
                Effect::FeedbackAppended { .. } | Effect::MailboxMoved { .. } => {}
                Effect::EndSessions { device, live } => {
                    self.end_older(&device, live, &connected);
                }
                Effect::SendDesired { device, epoch, version, patch } => {
                    self.send_desired(myself, &device, epoch, Delivery::Desired { version, patch });
                }
                Effect::Appended { first, count } => self.live.appended(self.shard, first, count),
                Effect::Notify(event) => {
                    if let Event::Disconnected { device, epoch, .. } = &event {
                        // The connection that was replaced has been told already.
                        self.addresses.forget(device, *epoch);
                        self.tell_active(device, DeviceMsg::ConnectionEnded(*epoch));
                    }
                    self.live.happened(event);
                }
            }
        }
        for Connected { device, node, epoch } in connected {
            self.addresses.hold(device, node, epoch, &self.moments);
        }
        // Now that it is known where the new connections are.
        for device in reachable {
            self.locate(&device);
        }
        for (device, epoch, commands) in sends {
            if let Some(to) = self.node_of(&device, epoch) {
                let message = DeviceMsg::SendCommands { to, epoch, commands };
                self.tell(myself, &device, message);
            }
        }
    }

    /// The node that holds the connection. `None`: it has not been announced, and what it is not sent now the announcement
    /// will show to be missing.
    fn node_of(&self, device: &DeviceId, epoch: SessionEpoch) -> Option<NodeId> {
        self.addresses.get(device).filter(|address| address.epoch == epoch).map(|to| to.node)
    }

    /// Ends the session of a device if it is older than `live`. Sent from here, because it must not wait for an actor
    /// that is failing.
    fn end_older(&mut self, device: &DeviceId, live: SessionEpoch, connected: &[Connected]) {
        if let Some(Address { node, epoch, .. }) = self.addresses.take_older(device, live) {
            // Most connections replace none: only here it is worth a search.
            let replaced = connected.iter().any(|connected| connected.device == *device);
            let reason = if replaced { EndReason::Replaced } else { EndReason::Revoked };
            self.context.outbox.deliver(node, self.shard, device, epoch, Delivery::End(reason));
        }
    }

    fn send_desired(
        &mut self,
        myself: &ActorRef<ShardMsg>,
        device: &DeviceId,
        epoch: SessionEpoch,
        delivery: Delivery,
    ) {
        if let Some(to) = self.node_of(device, epoch) {
            self.tell(myself, device, DeviceMsg::Deliver { to, epoch, delivery });
        }
    }

    fn nodes_present(&self, present: &Present) {
        for (device, epoch) in self.addresses.at_others(&present.nodes, present.moment) {
            self.departed.end(&self.context, &device, epoch);
        }
    }

    /// What has not been announced may never be: its node is asked whether it holds it.
    fn recorded(&mut self, connected: Vec<Connected>) {
        let mut asked = BTreeSet::new();
        for Connected { device, node, epoch } in connected {
            if self.addresses.hold(device, node, epoch, &self.moments) {
                asked.insert(node);
            }
        }
        for node in asked {
            self.neighbours.want(node);
        }
    }

    /// A version that was missing in an announcement may have been on its way; one that is still missing in the next
    /// was lost.
    fn announced(
        &mut self,
        myself: &ActorRef<ShardMsg>,
        announced: &Announced,
        sessions: Vec<Judged>,
    ) {
        for (device, epoch) in self.addresses.not_announced(announced, self.leadership.term) {
            debug!(shard = %self.shard, %device, %epoch, "no node holds the connection: it has ended");
            self.departed.end(&self.context, &device, epoch);
        }
        let node = announced.node;
        for Judged { device, epoch, missed, commands_after } in sessions {
            self.addresses.hold(device.clone(), node, epoch, &self.moments);
            let Some(address) = self.addresses.get_mut(&device) else { continue };
            if address.epoch != epoch {
                continue;
            }
            let lost = address.missed.is_some() && address.missed == missed;
            address.missed = missed;
            if lost {
                debug!(shard = %self.shard, %device, %epoch, "a desired patch was lost: the session is ended");
                let end = Delivery::End(EndReason::Gap);
                self.context.outbox.deliver(node, self.shard, &device, epoch, end);
            } else if let Some(after) = commands_after {
                let message = DeviceMsg::ResendCommands { to: node, epoch, after };
                self.tell(myself, &device, message);
            }
        }
    }

    fn led(&mut self, myself: &ActorRef<ShardMsg>, leadership: Leadership) {
        let was = std::mem::replace(&mut self.leadership, leadership);
        if was.serving && (!leadership.serving || was.term != leadership.term) {
            // What other terms knew of sessions is stale; the actors have nothing of their own to lose.
            self.addresses.clear();
            for (_, active) in std::mem::take(&mut self.active) {
                drop(active.actor.send_message(DeviceMsg::Passivate));
            }
        }
        if was.serving != leadership.serving {
            info!(shard = %self.shard, term = leadership.term, serving = leadership.serving, "leadership");
        }
        if leadership.serving {
            self.context.begin_term(leadership.term);
            if !was.serving || was.term != leadership.term {
                self.departed.look(&self.context);
            }
            self.due.set(myself, &self.context, LogTime::default());
        } else {
            self.departed.stop();
            self.due.stop();
        }
    }

    fn sweep(&mut self, now: Instant) {
        let idle = self.limits.idle;
        self.active.retain(|_, active| {
            let stays =
                now.saturating_duration_since(active.used) < idle || !active.gauge.is_empty();
            if !stays {
                drop(active.actor.send_message(DeviceMsg::Passivate));
            }
            stays
        });
    }
}

/// Tells the shard who leads, until the group stops.
async fn follow(mut leadership: watch::Receiver<Leadership>, shard: ActorRef<ShardMsg>) {
    loop {
        let now = *leadership.borrow_and_update();
        if shard.send_message(ShardMsg::Leadership(now)).is_err()
            || leadership.changed().await.is_err()
        {
            return;
        }
    }
}

async fn tick(every: Duration, shard: ActorRef<ShardMsg>) {
    loop {
        tokio::time::sleep(every).await;
        if shard.send_message(ShardMsg::Sweep).is_err() {
            return;
        }
    }
}
