//! The connections that this node holds: device to epoch and queue.
//!
//! What is delivered to a session goes through `held`, which says whether it goes on. If it lacks something from its
//! mailbox, its shard is announced at once, which makes the leader send what is missing.
//!
//! A delivery can overtake the answer that tells this node its epoch. So a session is announced here before its epoch is
//! asked for, and what arrives in between is kept.
//!
//! What is announced to the leaders is complete (`announce`). A device whose connection is on its way in or out is named as
//! such; if nobody can say what became of that, its shard is announced at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use drover_core::delivery::{Delivery, EndReason};
use drover_core::ids::{DeviceId, SessionEpoch, ShardId, Version};
use tokio::sync::mpsc;

use super::held::{Held, Next};
use super::session::DELIVERIES_MAX;
use crate::metrics;
use crate::wire::delivery::{Coverage, HeldPart, HeldSession};

/// The sessions of a node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<Key, Held>,
    opening: BTreeMap<Key, Opening>,
    /// The newest connection of a device whose end is not recorded yet.
    closing: BTreeMap<Key, SessionEpoch>,
    /// Shards whose leader is to hear at once what is held: something got lost.
    overdue: BTreeSet<ShardId>,
}

/// Sessions of a shard stand together, because they are announced together.
type Key = (ShardId, DeviceId);

#[derive(Debug, Default)]
struct Opening {
    attempts: usize,
    early: Vec<(SessionEpoch, Delivery)>,
}

impl Sessions {
    /// From here until the guard is dropped, deliveries to the device are kept for [`Opened::hold`].
    pub(super) fn opening(&self, shard: ShardId, device: &DeviceId) -> Opened {
        let key = (shard, device.clone());
        self.table().opening.entry(key.clone()).or_default().attempts += 1;
        Opened { sessions: self.clone(), key, is_settled: false }
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
                    table.overdue.insert(shard);
                }
                Next::Ended => table.close(&key, epoch),
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

    /// The session is not held any more. The answer says so for as long as its end is being recorded.
    pub(super) fn close(&self, shard: ShardId, device: &DeviceId, epoch: SessionEpoch) -> Closed {
        let key = (shard, device.clone());
        self.table().close(&key, epoch);
        Closed { sessions: self.clone(), key, epoch, is_settled: false }
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

    /// All that is held of a shard, in parts of at most so many devices. If it is nothing, one part says so.
    pub(super) fn of_shard(&self, shard: ShardId, devices_max: usize) -> Vec<HeldPart> {
        let devices: Vec<_> = self.table().of_shard(shard).into_iter().collect();
        let mut parts = Vec::new();
        let mut rest = &devices[..];
        let mut after = None;
        loop {
            let (some, others) = rest.split_at(devices_max.min(rest.len()));
            let until = if others.is_empty() { None } else { some.last() };
            let until = until.map(|(device, _)| device.clone());
            parts.push(part(Coverage { after, until: until.clone() }, some));
            if until.is_none() {
                return parts;
            }
            (after, rest) = (until, others);
        }
    }

    /// Whether the shard is to be announced at once. Asked again, it is only for what has been found since.
    pub(super) fn take_overdue(&self, shard: ShardId) -> bool {
        self.table().overdue.remove(&shard)
    }

    pub(super) fn count(&self) -> usize {
        self.table().held.len()
    }

    /// Ends a session of a shard, if there is any. Its connection is told, and ends in its own time.
    pub(super) fn end_one(&self, shard: ShardId) -> bool {
        let mut table = self.table();
        let device = of_shard(&table.held, shard).next().map(|(device, _)| device.clone());
        let Some(key) = device.map(|device| (shard, device)) else { return false };
        if let Some(mut held) = table.held.remove(&key) {
            held.take(Delivery::End(EndReason::Stopping));
            table.close(&key, held.epoch);
        }
        metrics::sessions(table.held.len());
        true
    }

    pub(super) fn end_all(&self) {
        let mut table = self.table();
        let held = std::mem::take(&mut table.held);
        for (key, mut held) in held {
            held.take(Delivery::End(EndReason::Stopping));
            table.close(&key, held.epoch);
        }
        metrics::sessions(0);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nobody panics with the table in hand")
    }
}

/// What an announcement says of a device: its session, and whether a connection is being opened or closed.
type Said = (Option<HeldSession>, bool);

impl Table {
    fn close(&mut self, key: &Key, epoch: SessionEpoch) {
        if self.held.get(key).is_some_and(|held| held.epoch == epoch) {
            self.held.remove(key);
            metrics::sessions(self.held.len());
        }
        let newest = self.closing.entry(key.clone()).or_insert(epoch);
        *newest = epoch.max(*newest);
    }

    fn of_shard(&self, shard: ShardId) -> BTreeMap<DeviceId, Said> {
        let mut said: BTreeMap<DeviceId, Said> = BTreeMap::new();
        for (device, held) in of_shard(&self.held, shard) {
            let (epoch, desired, commands) = (held.epoch, held.seen, held.commands);
            let session = HeldSession { device: device.clone(), epoch, desired, commands };
            said.insert(device.clone(), (Some(session), false));
        }
        let opening = of_shard(&self.opening, shard).map(|(device, _)| device);
        let closing = of_shard(&self.closing, shard).map(|(device, _)| device);
        for device in opening.chain(closing) {
            said.entry(device.clone()).or_default().1 = true;
        }
        said
    }
}

fn of_shard<T>(map: &BTreeMap<Key, T>, shard: ShardId) -> impl Iterator<Item = (&DeviceId, &T)> {
    let from_there = map.range((shard, DeviceId::smallest())..);
    let of_shard = from_there.take_while(move |((of, _), _)| *of == shard);
    of_shard.map(|((_, device), value)| (device, value))
}

fn part(covers: Coverage, devices: &[(DeviceId, Said)]) -> HeldPart {
    let sessions = devices.iter().filter_map(|(_, (session, _))| session.clone()).collect();
    let unsettled = devices.iter().filter(|(_, (_, is_unsettled))| *is_unsettled);
    let unsettled = unsettled.map(|(device, _)| device.clone()).collect();
    HeldPart { covers, sessions, unsettled, after: None }
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
    is_settled: bool,
}

impl Opened {
    /// It is certain that no connection was made. Where that is not said, there may be one that nobody holds.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }

    /// Holds the session under its epoch. `false`: it was ended in the meantime.
    pub(super) fn hold(
        mut self,
        epoch: SessionEpoch,
        deliveries: mpsc::Sender<Box<Delivery>>,
    ) -> bool {
        self.is_settled = true;
        let mut table = self.sessions.table();
        if let Some(former) = table.held.get_mut(&self.key) {
            if former.epoch > epoch {
                return false;
            }
            former.end(EndReason::Replaced);
        }
        let mut held = Held::new(epoch, deliveries);
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
            table.overdue.insert(self.key.0);
        }
        table.held.insert(self.key.clone(), held);
        metrics::sessions(table.held.len());
        true
    }
}

/// A session whose end is being recorded. If that is given up, the leader finds out by an announcement.
#[derive(Debug)]
pub(super) struct Closed {
    sessions: Sessions,
    key: Key,
    epoch: SessionEpoch,
    is_settled: bool,
}

impl Closed {
    pub(super) fn device(&self) -> &DeviceId {
        &self.key.1
    }

    pub(super) fn epoch(&self) -> SessionEpoch {
        self.epoch
    }

    /// It is in the record, or there is another connection by now.
    pub(super) fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let mut table = self.sessions.table();
        if table.closing.get(&self.key) == Some(&self.epoch) {
            table.closing.remove(&self.key);
        }
        if !self.is_settled {
            table.overdue.insert(self.key.0);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut table = self.sessions.table();
        if !self.is_settled {
            table.overdue.insert(self.key.0);
        }
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

    /// What is announced of the shard: epochs of sessions, and whether the device is unsettled.
    fn announced(sessions: &Sessions) -> (Vec<u64>, bool) {
        let parts = sessions.of_shard(shard(), 10);
        assert_eq!(parts.len(), 1, "{parts:?}");
        let epochs = parts[0].sessions.iter().map(|session| session.epoch.get()).collect();
        (epochs, parts[0].unsettled.contains(&device()))
    }

    #[test]
    fn a_connection_on_its_way_in_or_out_is_announced_as_such_until_that_is_settled() {
        let sessions = Sessions::default();
        assert_eq!(announced(&sessions), (vec![], false));
        let opened = sessions.opening(shard(), &device());
        assert_eq!(announced(&sessions), (vec![], true));
        let (sender, _queue) = mpsc::channel(DELIVERIES_MAX);
        assert!(opened.hold(SessionEpoch::new(1), sender));
        assert_eq!(announced(&sessions), (vec![1], false));
        let closed = sessions.close(shard(), &device(), SessionEpoch::new(1));
        assert_eq!(announced(&sessions), (vec![], true));
        closed.settle();
        assert_eq!(announced(&sessions), (vec![], false));
        assert!(!sessions.take_overdue(shard()), "all went well");
        deliver_and_end(&sessions);
        assert_eq!(announced(&sessions), (vec![], true), "its connection has not closed it yet");
    }

    fn deliver_and_end(sessions: &Sessions) {
        let _queue = hold(sessions, 2);
        deliver(sessions, 2, Delivery::End(EndReason::Gap));
    }

    #[test]
    fn what_nobody_knows_the_outcome_of_makes_the_shard_be_announced_at_once() {
        let sessions = Sessions::default();
        drop(sessions.opening(shard(), &device()));
        assert!(sessions.take_overdue(shard()), "there may be a connection that nobody holds");
        assert!(!sessions.take_overdue(shard()));
        let mut opened = sessions.opening(shard(), &device());
        opened.settle();
        drop(opened);
        assert!(!sessions.take_overdue(shard()), "it was refused");
        let _queue = hold(&sessions, 1);
        drop(sessions.close(shard(), &device(), SessionEpoch::new(1)));
        assert!(sessions.take_overdue(shard()), "its end may not be recorded");
        assert_eq!(announced(&sessions), (vec![], false));
    }

    #[test]
    fn the_parts_of_an_announcement_cover_every_device_once() {
        let sessions = Sessions::default();
        let mut queues = Vec::new();
        for device in ["a", "b", "c", "d"].map(|text| text.parse().expect("a legal id")) {
            let (sender, queue) = mpsc::channel(1);
            queues.push(queue);
            assert!(sessions.opening(shard(), &device).hold(SessionEpoch::new(1), sender));
        }
        let parts = sessions.of_shard(shard(), 3);
        let bound = |text: &str| Some(text.parse::<DeviceId>().expect("a legal id"));
        let covers: Vec<_> = parts.iter().map(|part| part.covers.clone()).collect();
        let first = Coverage { after: None, until: bound("c") };
        assert_eq!(covers, [first, Coverage { after: bound("c"), until: None }]);
        assert_eq!(parts.iter().map(|part| part.sessions.len()).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(sessions.of_shard(shard(), 4).len(), 1);
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
