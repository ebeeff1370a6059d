//! The connections that this node holds: device to epoch and queue.
//!
//! What is delivered to a session is checked here for order: a desired patch that skips a version ends the session,
//! because the device must read its twin again; a delivery from the mailbox that skips one is dropped, and its shard is
//! announced at once, which makes the leader send what is missing. A session whose queue is full is ended too: its queue is dropped, which
//! its connection sees as the end.
//!
//! A delivery can overtake the answer that tells this node its epoch. So a session is announced here before its epoch is
//! asked for, and what arrives in between is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use drover_core::delivery::{Delivery, EndReason, SentCommand};
use drover_core::ids::{DeliveryNumber, DeviceId, SessionEpoch, ShardId, Version};
use tokio::sync::mpsc;

use super::session::DELIVERIES_MAX;
use crate::metrics;
use crate::wire::delivery::HeldSession;

/// The sessions of a node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<Key, Held>,
    opening: BTreeMap<Key, Opening>,
    /// Shards of which a session lacks a delivery from its mailbox.
    behind: BTreeSet<ShardId>,
}

/// Sessions of a shard stand together, because they are announced together.
type Key = (ShardId, DeviceId);

#[derive(Debug)]
struct Held {
    epoch: SessionEpoch,
    deliveries: mpsc::Sender<Box<Delivery>>,
    /// The newest desired version that was put into the queue.
    sent: Option<Version>,
    /// The newest desired version that the device has been sent or has read.
    seen: Option<Version>,
    /// The newest delivery from the mailbox that was put into the queue.
    commands: DeliveryNumber,
}

#[derive(Debug, Default)]
struct Opening {
    attempts: usize,
    early: Vec<(SessionEpoch, Delivery)>,
}

/// Whether a session goes on after a delivery.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stays,
    /// It stays, and lacks a delivery from its mailbox.
    IsBehind,
    /// It stays, and has not taken the delivery, which is lost to it.
    Refuses,
    Ended,
}

impl Sessions {
    /// From here until the guard is dropped, deliveries to the device are kept for [`Opened::hold`].
    pub(super) fn opening(&self, shard: ShardId, device: &DeviceId) -> Opened {
        let key = (shard, device.clone());
        self.table().opening.entry(key.clone()).or_default().attempts += 1;
        Opened { sessions: self.clone(), key }
    }

    /// Whoever is not here any more needs nothing. `false`: nobody has taken it, nor will.
    pub(super) fn deliver(
        &self,
        shard: ShardId,
        device: &DeviceId,
        epoch: SessionEpoch,
        delivery: Delivery,
    ) -> bool {
        let key = (shard, device.clone());
        let mut table = self.table();
        match table.held.get_mut(&key) {
            Some(held) if held.epoch == epoch => match held.take(delivery) {
                Next::Stays => {}
                Next::Refuses => return false,
                Next::IsBehind => {
                    table.behind.insert(shard);
                }
                Next::Ended => {
                    table.held.remove(&key);
                    metrics::sessions(table.held.len());
                }
            },
            // A call is given back: it is not worth keeping for a connection that may never be.
            Some(_) | None if matches!(delivery, Delivery::Call(_)) => return false,
            Some(_) | None => {
                if let Some(opening) = table.opening.get_mut(&key) {
                    opening.keep(epoch, delivery);
                }
            }
        }
        true
    }

    pub(super) fn remove(&self, shard: ShardId, device: &DeviceId, epoch: SessionEpoch) {
        let key = (shard, device.clone());
        let mut table = self.table();
        if table.held.get(&key).is_some_and(|held| held.epoch == epoch) {
            table.held.remove(&key);
            metrics::sessions(table.held.len());
        }
    }

    /// The device has read its twin over this connection.
    pub(super) fn has_read(
        &self,
        shard: ShardId,
        device: &DeviceId,
        epoch: SessionEpoch,
        desired: Version,
    ) {
        if let Some(held) = self.table().held.get_mut(&(shard, device.clone()))
            && held.epoch == epoch
        {
            held.seen = held.seen.max(Some(desired));
        }
    }

    /// The device does not listen to desired patches any more, so it misses none.
    pub(super) fn stops_listening(&self, shard: ShardId, device: &DeviceId, epoch: SessionEpoch) {
        if let Some(held) = self.table().held.get_mut(&(shard, device.clone()))
            && held.epoch == epoch
        {
            held.seen = None;
        }
    }

    pub(super) fn of_shard(&self, shard: ShardId) -> Vec<HeldSession> {
        let table = self.table();
        // No id sorts before its own beginning: the range is every device of the shard.
        let of_shard = table.held.iter().skip_while(|((s, _), _)| *s < shard);
        of_shard
            .take_while(|((s, _), _)| *s == shard)
            .map(|((_, device), held)| HeldSession {
                device: device.clone(),
                epoch: held.epoch,
                desired: held.seen,
                commands: held.commands,
            })
            .collect()
    }

    /// Whether a session of the shard lacks a delivery. Asked again, it is only for one that was found since.
    pub(super) fn take_behind(&self, shard: ShardId) -> bool {
        self.table().behind.remove(&shard)
    }

    pub(super) fn count(&self) -> usize {
        self.table().held.len()
    }

    pub(super) fn end_all(&self) {
        let held = std::mem::take(&mut self.table().held);
        for (_, mut held) in held {
            held.take(Delivery::End(EndReason::Stopping));
        }
        metrics::sessions(0);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nobody panics with the table in hand")
    }
}

impl Held {
    fn take(&mut self, delivery: Delivery) -> Next {
        match delivery {
            Delivery::End(reason) => self.end(reason),
            Delivery::Desired { version, patch } => self.desired(version, patch),
            Delivery::Command(sent) => self.command(sent),
            Delivery::Call(call) => {
                match self.deliveries.try_send(Box::new(Delivery::Call(call))) {
                    Ok(()) => Next::Stays,
                    Err(_) => Next::Refuses,
                }
            }
        }
    }

    /// A full queue ends with its sender, so the connection learns of it either way.
    fn end(&mut self, reason: EndReason) -> Next {
        drop(self.deliveries.try_send(Box::new(Delivery::End(reason))));
        Next::Ended
    }

    fn desired(&mut self, version: Version, patch: drover_core::document::Object) -> Next {
        if self.sent.is_some_and(|sent| version <= sent) {
            // Receivers expect repeats.
            return Next::Stays;
        }
        if self.seen.is_some_and(|seen| version > seen.next()) {
            return self.end(EndReason::Gap);
        }
        if self.deliveries.try_send(Box::new(Delivery::Desired { version, patch })).is_err() {
            return self.end(EndReason::Gap);
        }
        self.sent = Some(version);
        self.seen = self.seen.max(self.sent);
        Next::Stays
    }

    fn command(&mut self, sent: Box<SentCommand>) -> Next {
        let number = sent.number;
        if number <= self.commands {
            // Receivers expect repeats.
            return Next::Stays;
        }
        if sent.follows > self.commands {
            return Next::IsBehind;
        }
        if self.deliveries.try_send(Box::new(Delivery::Command(sent))).is_err() {
            return self.end(EndReason::Gap);
        }
        self.commands = number;
        Next::Stays
    }
}

impl Opening {
    fn keep(&mut self, epoch: SessionEpoch, delivery: Delivery) {
        // Beyond the queue's length the session would be ended anyway.
        let delivery = if self.early.len() < DELIVERIES_MAX {
            delivery
        } else if self.early.len() < 2 * DELIVERIES_MAX {
            Delivery::End(EndReason::Gap)
        } else {
            return;
        };
        self.early.push((epoch, delivery));
    }
}

/// A session whose epoch is being asked for.
#[derive(Debug)]
pub(super) struct Opened {
    sessions: Sessions,
    key: Key,
}

impl Opened {
    /// Holds the session under its epoch. `false`: it was ended in the meantime.
    pub(super) fn hold(self, epoch: SessionEpoch, deliveries: mpsc::Sender<Box<Delivery>>) -> bool {
        let mut table = self.sessions.table();
        if let Some(former) = table.held.get_mut(&self.key) {
            if former.epoch > epoch {
                return false;
            }
            former.end(EndReason::Replaced);
        }
        let commands = DeliveryNumber::default();
        let mut held = Held { epoch, deliveries, sent: None, seen: None, commands };
        let early = table.opening.get(&self.key).map_or(&[][..], |opening| &opening.early);
        let mut is_behind = false;
        for (_, delivery) in early.iter().filter(|(of, _)| *of == epoch) {
            match held.take(delivery.clone()) {
                Next::Stays | Next::Refuses => {}
                Next::IsBehind => is_behind = true,
                Next::Ended => {
                    table.held.remove(&self.key);
                    return false;
                }
            }
        }
        if is_behind {
            table.behind.insert(self.key.0);
        }
        table.held.insert(self.key.clone(), held);
        metrics::sessions(table.held.len());
        true
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut table = self.sessions.table();
        let Some(opening) = table.opening.get_mut(&self.key) else { return };
        opening.attempts -= 1;
        if opening.attempts == 0 {
            table.opening.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_core::ids::ShardCount;

    use super::*;

    type Queue = mpsc::Receiver<Box<Delivery>>;

    fn device() -> DeviceId {
        "pump-7".parse().expect("a legal id")
    }

    fn shard() -> ShardId {
        ShardId::of(&device(), ShardCount::new(4).expect("legal"))
    }

    fn hold(sessions: &Sessions, epoch: u64) -> Queue {
        let (sender, queue) = mpsc::channel(DELIVERIES_MAX);
        let opened = sessions.opening(shard(), &device());
        assert!(opened.hold(SessionEpoch::new(epoch), sender));
        queue
    }

    fn deliver(sessions: &Sessions, epoch: u64, delivery: Delivery) {
        sessions.deliver(shard(), &device(), SessionEpoch::new(epoch), delivery);
    }

    fn desired(version: u64) -> Delivery {
        Delivery::Desired { version: Version::new(version), patch: [].into() }
    }

    fn received(queue: &mut Queue) -> Vec<Delivery> {
        std::iter::from_fn(|| queue.try_recv().ok().map(|delivery| *delivery)).collect()
    }

    #[test]
    fn a_newer_session_ends_the_older_one_and_an_older_one_is_not_held() {
        let sessions = Sessions::default();
        let mut first = hold(&sessions, 1);
        let mut third = hold(&sessions, 3);
        assert_eq!(received(&mut first), [Delivery::End(EndReason::Replaced)]);
        let (sender, _queue) = mpsc::channel(1);
        let late = sessions.opening(shard(), &device());
        assert!(!late.hold(SessionEpoch::new(2), sender));
        assert!(received(&mut third).is_empty());
        assert_eq!(sessions.count(), 1);
    }

    #[test]
    fn repeated_patches_are_sent_once_and_a_skipped_version_ends_the_session() {
        let sessions = Sessions::default();
        let mut queue = hold(&sessions, 1);
        for version in [4, 5, 5, 4, 6, 8] {
            deliver(&sessions, 1, desired(version));
        }
        let gap = Delivery::End(EndReason::Gap);
        assert_eq!(received(&mut queue), [desired(4), desired(5), desired(6), gap]);
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn a_patch_that_follows_what_the_device_has_read_is_no_gap() {
        let sessions = Sessions::default();
        let mut queue = hold(&sessions, 1);
        deliver(&sessions, 1, desired(4));
        sessions.has_read(shard(), &device(), SessionEpoch::new(1), Version::new(6));
        deliver(&sessions, 1, desired(7));
        assert_eq!(received(&mut queue), [desired(4), desired(7)]);
    }

    #[test]
    fn what_is_delivered_before_the_epoch_is_known_is_not_lost() {
        let sessions = Sessions::default();
        let opened = sessions.opening(shard(), &device());
        deliver(&sessions, 2, desired(9));
        let (sender, mut queue) = mpsc::channel(DELIVERIES_MAX);
        assert!(opened.hold(SessionEpoch::new(2), sender));
        assert_eq!(received(&mut queue), [desired(9)]);

        let opened = sessions.opening(shard(), &device());
        deliver(&sessions, 3, Delivery::End(EndReason::Replaced));
        let (sender, _queue) = mpsc::channel(DELIVERIES_MAX);
        assert!(!opened.hold(SessionEpoch::new(3), sender), "it was replaced before it began");
    }

    #[test]
    fn a_session_that_does_not_read_is_ended_and_costs_no_more() {
        let sessions = Sessions::default();
        let mut queue = hold(&sessions, 1);
        for version in 1..=DELIVERIES_MAX as u64 + 1 {
            deliver(&sessions, 1, desired(version));
        }
        assert_eq!(sessions.count(), 0);
        assert_eq!(received(&mut queue).len(), DELIVERIES_MAX);
        assert_eq!(queue.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
