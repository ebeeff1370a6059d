//! Which connection speaks for a device: take-over and fencing (P4).
//!
//! The epoch is raised and committed before a connection is told that it is one, and every change that a connection
//! causes carries its epoch. What is announced of it, and to whom, is `device`'s and `shard`'s.

use std::collections::BTreeMap;

use crate::change::Refusal;
use crate::ids::{LogTime, NodeId, SessionEpoch};
use crate::mutants::{Mutation, is_planted};

/// Which connection is live, and what it has subscribed to.
///
/// `epoch` is raised by each connect, and by whatever ends the right to speak (disable, delete, new keys): a change
/// that carries another epoch is refused (P4, invariant I-22). Pings and idle time are not in here.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Presence {
    pub epoch: SessionEpoch,
    /// When the connection of `epoch` began; `None` while nobody is connected.
    pub connected_since: Option<LogTime>,
    pub changed: Option<LogTime>,
    /// When the device last connected, changed its subscriptions, reported properties, was sent a command or answered one.
    /// What it sends as telemetry is not written here, because it costs no write of the record: who reads a device adds it
    /// from the stream.
    pub active: Option<LogTime>,
    /// The node that the newest connection came to. History says it; whoever wants to reach the connection asks the leader.
    pub node: Option<NodeId>,
    /// Kept across connections unless the device asks for a clean session (`spec/mqtt.md` section 5).
    pub subscriptions: Subscriptions,
}

/// What a device listens to, with the granted quality of service.
pub type Subscriptions = BTreeMap<Channel, Qos>;

/// The kinds of deliveries that a device may subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Cloud-to-device commands.
    Commands,
    /// Answers to twin requests.
    TwinResponses,
    /// Patches of the desired properties.
    DesiredPatches,
    /// Direct methods.
    Methods,
    /// What other modules send to a module through an edge gateway. Nothing comes over it from a hub; SDKs subscribe to
    /// it all the same.
    Inputs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
}

impl Presence {
    /// Refuses whatever does not come from the live connection.
    pub(crate) fn check_live(&self, given: SessionEpoch) -> Result<(), Refusal> {
        let is_live = given == self.epoch && self.connected_since.is_some();
        if is_live || is_planted(Mutation::NoEpochCheck) {
            return Ok(());
        }
        Err(Refusal::StaleSession { given, current: self.epoch })
    }

    /// Whether somebody is connected who wants what comes over `channel`.
    pub(crate) fn listens_to(&self, channel: Channel) -> bool {
        self.connected_since.is_some() && self.subscriptions.contains_key(&channel)
    }

    /// The connection that commands may go to.
    pub(crate) fn command_session(&self) -> Option<(SessionEpoch, Option<NodeId>)> {
        self.listens_to(Channel::Commands).then_some((self.epoch, self.node))
    }

    /// The connection that is live.
    pub(crate) fn live(&self) -> Option<SessionEpoch> {
        self.connected_since.map(|_| self.epoch)
    }

    /// Raises the epoch, so that nobody is connected. The answer is the epoch of the connection that was live.
    pub(crate) fn revoke(&mut self, at: LogTime) -> Option<SessionEpoch> {
        let former = self.end(at);
        self.epoch = self.epoch.next();
        former
    }

    /// Makes a new connection the live one. The answer is the epoch of the one that was.
    pub(crate) fn connect(
        &mut self,
        clean_session: bool,
        node: Option<NodeId>,
        at: LogTime,
    ) -> Option<SessionEpoch> {
        let former = self.revoke(at);
        self.node = node;
        self.connected_since = Some(at);
        self.changed = Some(at);
        self.active = Some(at);
        if clean_session {
            self.subscriptions.clear();
        }
        former
    }

    /// Nobody is connected any more; the epoch stays. The answer is the epoch of the connection that was live.
    pub(crate) fn end(&mut self, at: LogTime) -> Option<SessionEpoch> {
        self.connected_since.take()?;
        self.changed = Some(at);
        Some(self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> Presence {
        let mut presence = Presence::default();
        presence.connect(false, None, LogTime::new(1));
        presence
    }

    #[test]
    fn only_the_newest_connection_is_live() {
        let mut presence = connected();
        let first = presence.epoch;
        assert_eq!(presence.connect(false, None, LogTime::new(2)), Some(first));
        let current = presence.epoch;
        assert_eq!(
            presence.check_live(first),
            Err(Refusal::StaleSession { given: first, current })
        );
        assert_eq!(presence.check_live(current), Ok(()));
    }

    #[test]
    fn nobody_is_live_after_the_end() {
        let mut presence = connected();
        let epoch = presence.epoch;
        assert_eq!(presence.end(LogTime::new(2)), Some(epoch));
        assert_eq!(presence.end(LogTime::new(3)), None);
        presence.check_live(epoch).expect_err("it has ended");
        assert_eq!(presence.changed, Some(LogTime::new(2)));
        assert_eq!(presence.active, Some(LogTime::new(1)), "an end is nothing that a device does");
    }

    #[test]
    fn subscriptions_outlive_a_connection_but_not_a_clean_one() {
        let mut presence = connected();
        presence.subscriptions.insert(Channel::DesiredPatches, Qos::AtLeastOnce);
        presence.end(LogTime::new(2));
        assert!(!presence.listens_to(Channel::DesiredPatches), "nobody is there to listen");
        presence.connect(false, None, LogTime::new(3));
        assert!(presence.listens_to(Channel::DesiredPatches));
        presence.connect(true, None, LogTime::new(4));
        assert!(!presence.listens_to(Channel::DesiredPatches));
    }
}
