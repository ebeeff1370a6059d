//! The way back to whoever waits for a request, here or on a peer.
//!
//! Two types, because a lost reply means two things: before the change was proposed nothing has happened and it can be
//! asked again; after that the outcome is unknown. Neither can be lost in silence: dropping one answers.

use bytes::Bytes;
use drover_core::ids::DeviceId;
use tokio::sync::oneshot;

use super::admission::Permit;
use crate::wire::request::{Failure, Response, encode_response};

/// Who waits.
#[derive(Debug)]
pub(super) enum Caller {
    Here(oneshot::Sender<Response>),
    /// On the node that asked; the answer travels encoded.
    Peer(oneshot::Sender<Bytes>),
}

impl Caller {
    /// A caller that has gone away needs no answer.
    pub(super) fn answer(self, response: Response) {
        match self {
            Self::Here(caller) => drop(caller.send(response)),
            Self::Peer(caller) => drop(caller.send(encode_response(response))),
        }
    }
}

/// A request that has not been proposed: dropping it answers that nothing was done.
#[derive(Debug)]
pub(super) struct Waiting {
    caller: Option<Caller>,
    /// For the answer when the actor of the device fails.
    device: Option<DeviceId>,
    permits: Permits,
}

/// Of the shard and of the device.
type Permits = (Option<Permit>, Option<Permit>);

impl Waiting {
    pub(super) fn new(caller: Caller, device: Option<DeviceId>, permit: Permit) -> Self {
        Self { caller: Some(caller), device, permits: (Some(permit), None) }
    }

    /// Takes the permit of the device along.
    pub(super) fn hold(&mut self, permit: Permit) {
        self.permits.1 = Some(permit);
    }

    pub(super) fn fail(mut self, failure: Failure) {
        self.answer(failure);
    }

    /// For the mutant that acknowledges what is not committed.
    pub(super) fn answer_early(&mut self, response: Response) {
        if let Some(caller) = self.caller.take() {
            caller.answer(response);
        }
    }

    /// From here on the outcome is unknown until Raft says it.
    pub(super) fn proposed(mut self) -> Proposed {
        Proposed { caller: self.caller.take(), permits: std::mem::take(&mut self.permits) }
    }

    fn answer(&mut self, failure: Failure) {
        if let Some(caller) = self.caller.take() {
            caller.answer(Err(failure));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let failure = match self.device.take() {
            Some(device) => Failure::Restarted { device },
            None => Failure::Busy { what: "the shard".to_owned() },
        };
        self.answer(failure);
    }
}

/// A request whose change was proposed: dropping it answers that its outcome is unknown.
#[derive(Debug)]
pub(super) struct Proposed {
    caller: Option<Caller>,
    permits: Permits,
}

impl Proposed {
    /// It has turned out that nothing was done.
    pub(super) fn withdrawn(mut self, device: DeviceId) -> Waiting {
        let permits = std::mem::take(&mut self.permits);
        Waiting { caller: self.caller.take(), device: Some(device), permits }
    }

    pub(super) fn answer(mut self, response: Response) {
        if let Some(caller) = self.caller.take() {
            caller.answer(response);
        }
    }
}

impl Drop for Proposed {
    fn drop(&mut self) {
        if let Some(caller) = self.caller.take() {
            caller.answer(Err(Failure::Unknown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::Gauge;
    use super::*;

    fn waiting() -> (Waiting, oneshot::Receiver<Response>) {
        let (sender, receiver) = oneshot::channel();
        let permit = Gauge::new(1, 1).enter(0).expect("room");
        let device = "pump-7".parse().expect("a legal id");
        (Waiting::new(Caller::Here(sender), Some(device), permit), receiver)
    }

    #[test]
    fn what_is_lost_before_it_was_proposed_can_be_asked_again() {
        let (waiting, mut receiver) = waiting();
        drop(waiting);
        let device = "pump-7".parse().expect("a legal id");
        assert_eq!(receiver.try_recv(), Ok(Err(Failure::Restarted { device })));
    }

    #[test]
    fn what_is_lost_after_it_was_proposed_has_an_unknown_outcome() {
        let (waiting, mut receiver) = waiting();
        drop(waiting.proposed());
        assert_eq!(receiver.try_recv(), Ok(Err(Failure::Unknown)));
    }
}
