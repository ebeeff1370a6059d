//! One actor an active device: the order of its changes, and what goes to its connection.
//!
//! It holds nothing that must survive. Records are read from the applied state when they are asked for, the address of
//! the session stands in the shard's table, and callers wait in the proposer. So passivation is free, a restart loses
//! only the requests in the inbox (their callers are told to try again), and an idle connection costs no actor. Timers
//! of commands and methods will live here.

use std::sync::Arc;

use drover_core::delivery::Delivery;
use drover_core::ids::{DeviceId, NodeId, SessionEpoch, ShardId};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use super::outbox::Outbox;
use super::proposer::Proposal;
use crate::metrics;
use crate::wire::request::Failure;

/// What a device actor can be told. Each variant says who sends it.
#[derive(Debug)]
pub(super) enum DeviceMsg {
    /// From the shard: a change of this device, to be proposed in the order of arrival.
    Change(Proposal),
    /// From the shard: an applied change asks for this.
    Deliver { to: NodeId, epoch: SessionEpoch, delivery: Delivery },
    /// From the shard, which sends nothing afterwards: there was no work for a while.
    Passivate,
    /// From a test: fail as a bug would.
    #[cfg(test)]
    Panic,
}

/// What all device actors of a shard use.
#[derive(Debug)]
pub(super) struct DeviceContext {
    pub(super) shard: ShardId,
    pub(super) proposer: mpsc::Sender<Proposal>,
    pub(super) outbox: Outbox,
}

pub(super) struct DeviceActor;

pub(super) struct DeviceState {
    device: DeviceId,
    context: Arc<DeviceContext>,
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
        Ok(DeviceState { device, context, _active: metrics::ActiveDevice::enter() })
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
            DeviceMsg::Passivate => myself.stop(None),
            #[cfg(test)]
            DeviceMsg::Panic => panic!("a test asked device {} to panic", state.device),
        }
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
