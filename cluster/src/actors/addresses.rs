//! Where the connections of a shard's devices are, as its leader knows them.
//!
//! Memory of one term, filled from three sources: connections that this leader has committed, those that nodes announce,
//! and those that the records say to be live. An address goes when the end of its connection is committed; what is a
//! reason to commit that end is said here, and `departed` does it.
//!
//! A reason must come from after the address was learned, or the end of an old connection would be read out of news that
//! is older than the connection. [`Moments`] puts the two in order without clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use drover_core::ids::{DeviceId, NodeId, SessionEpoch, Version};

use crate::wire::delivery::{Coverage, Moment};

/// Counts what a node learns. Whatever was learned before [`Moments::next`] has a smaller number than its answer.
#[derive(Debug, Default)]
pub(super) struct Moments(AtomicU64);

impl Moments {
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Where the live connection of a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) node: NodeId,
    pub(super) epoch: SessionEpoch,
    /// A desired version that its node had not sent when it last announced the session.
    pub(super) missed: Option<Version>,
    learned: u64,
}

/// A part of what a node holds, as it has announced it.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) node: NodeId,
    pub(super) covers: Coverage,
    /// The connections that are live.
    pub(super) live: BTreeMap<DeviceId, SessionEpoch>,
    /// Devices of which a connection is being opened or closed: nothing follows for them.
    pub(super) unsettled: BTreeSet<DeviceId>,
    /// The node composed its list after this moment, if it knows one of this leader.
    pub(super) after: Option<Moment>,
}

#[derive(Debug, Default)]
pub(super) struct Addresses {
    of_devices: BTreeMap<DeviceId, Address>,
    /// How many are at each node.
    at_nodes: BTreeMap<NodeId, usize>,
}

impl Addresses {
    pub(super) fn get(&self, device: &DeviceId) -> Option<&Address> {
        self.of_devices.get(device)
    }

    pub(super) fn get_mut(&mut self, device: &DeviceId) -> Option<&mut Address> {
        self.of_devices.get_mut(device)
    }

    /// A connection is at the node, unless a newer one of its device is known. Whether that is news.
    pub(super) fn hold(
        &mut self,
        device: DeviceId,
        node: NodeId,
        epoch: SessionEpoch,
        moments: &Moments,
    ) -> bool {
        let is_news = self.get(&device).is_none_or(|known| known.epoch < epoch);
        if is_news {
            self.remove(&device);
            let learned = moments.now();
            self.of_devices.insert(device, Address { node, epoch, missed: None, learned });
            *self.at_nodes.entry(node).or_default() += 1;
        }
        is_news
    }

    /// The connection of this epoch, and all before it, has ended.
    pub(super) fn forget(&mut self, device: &DeviceId, epoch: SessionEpoch) {
        if self.get(device).is_some_and(|known| known.epoch <= epoch) {
            self.remove(device);
        }
    }

    /// Takes the address of a connection that is older than `live`.
    pub(super) fn take_older(&mut self, device: &DeviceId, live: SessionEpoch) -> Option<Address> {
        if self.get(device).is_some_and(|known| known.epoch < live) {
            self.remove(device)
        } else {
            None
        }
    }

    pub(super) fn clear(&mut self) {
        self.of_devices.clear();
        self.at_nodes.clear();
    }

    fn remove(&mut self, device: &DeviceId) -> Option<Address> {
        let address = self.of_devices.remove(device)?;
        if let Some(count) = self.at_nodes.get_mut(&address.node) {
            *count -= 1;
            if *count == 0 {
                self.at_nodes.remove(&address.node);
            }
        }
        Some(address)
    }

    /// Connections that the node would have announced if it held them. `term` is that of this leader.
    pub(super) fn not_announced(
        &self,
        announced: &Announced,
        term: u64,
    ) -> Vec<(DeviceId, SessionEpoch)> {
        let Some(after) = announced.after.filter(|after| after.term == term) else {
            return Vec::new();
        };
        let Coverage { after: begin, until } = &announced.covers;
        let begin = begin.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let until = until.as_ref().map_or(Bound::Unbounded, Bound::Included);
        let is_missing = |(device, known): &(&DeviceId, &Address)| {
            known.node == announced.node
                && known.learned < after.count
                && announced.live.get(*device) != Some(&known.epoch)
                && !announced.unsettled.contains(*device)
        };
        let covered = self.of_devices.range::<DeviceId, _>((begin, until));
        covered.filter(is_missing).map(named).collect()
    }

    /// Connections at nodes that were not there at the moment.
    pub(super) fn at_others(
        &self,
        present: &BTreeSet<NodeId>,
        moment: u64,
    ) -> Vec<(DeviceId, SessionEpoch)> {
        if self.at_nodes.keys().all(|node| present.contains(node)) {
            return Vec::new();
        }
        let is_lost = |(_, known): &(&DeviceId, &Address)| {
            !present.contains(&known.node) && known.learned < moment
        };
        self.of_devices.iter().filter(is_lost).map(named).collect()
    }
}

fn named((device, address): (&DeviceId, &Address)) -> (DeviceId, SessionEpoch) {
    (device.clone(), address.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: u64 = 7;

    fn id(text: &str) -> DeviceId {
        text.parse().expect("a legal id")
    }

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    fn epoch(number: u64) -> SessionEpoch {
        SessionEpoch::new(number)
    }

    /// Connections `a` to `e` of epoch 1 at node 1, learned before the moment that is answered.
    fn five() -> (Addresses, Moments, Moment) {
        let (mut addresses, moments) = (Addresses::default(), Moments::default());
        for device in ["a", "b", "c", "d", "e"] {
            addresses.hold(id(device), node(1), epoch(1), &moments);
        }
        let moment = Moment { term: TERM, count: moments.next() };
        (addresses, moments, moment)
    }

    fn announced(live: &[(&str, u64)], after: Option<Moment>) -> Announced {
        Announced {
            node: node(1),
            covers: Coverage { after: Some(id("a")), until: Some(id("d")) },
            live: live.iter().map(|(device, number)| (id(device), epoch(*number))).collect(),
            unsettled: [id("c")].into(),
            after,
        }
    }

    #[test]
    fn what_a_node_leaves_out_of_its_part_of_the_list_has_ended() {
        let (addresses, _, moment) = five();
        let missing = addresses.not_announced(&announced(&[("b", 1)], Some(moment)), TERM);
        assert_eq!(missing, [(id("d"), epoch(1))], "a and e are not covered, c is unsettled");
        let older = addresses.not_announced(&announced(&[("b", 1), ("d", 0)], Some(moment)), TERM);
        assert_eq!(older, [(id("d"), epoch(1))], "it holds an older one only");
    }

    #[test]
    fn nothing_follows_from_a_list_that_may_be_older_than_the_address() {
        let (mut addresses, moments, moment) = five();
        addresses.hold(id("d"), node(1), epoch(2), &moments);
        let list = |after| announced(&[("b", 1)], after);
        assert!(addresses.not_announced(&list(Some(moment)), TERM).is_empty());
        assert!(addresses.not_announced(&list(None), TERM).is_empty());
        let now = Moment { term: TERM, count: moments.next() };
        assert!(addresses.not_announced(&list(Some(now)), TERM + 1).is_empty(), "another term's");
        assert_eq!(addresses.not_announced(&list(Some(now)), TERM).len(), 1);
    }

    #[test]
    fn what_a_node_leaves_out_says_nothing_about_another_nodes_connections() {
        let (mut addresses, moments, _) = five();
        addresses.hold(id("d"), node(2), epoch(2), &moments);
        let now = Moment { term: TERM, count: moments.next() };
        assert!(addresses.not_announced(&announced(&[("b", 1)], Some(now)), TERM).is_empty());
    }

    #[test]
    fn only_what_was_at_a_node_before_it_went_is_lost_with_it() {
        let (mut addresses, moments, moment) = five();
        addresses.hold(id("b"), node(2), epoch(2), &moments);
        addresses.hold(id("c"), node(1), epoch(2), &moments);
        let lost = addresses.at_others(&[node(2)].into(), moment.count);
        assert_eq!(lost, ["a", "d", "e"].map(|device| (id(device), epoch(1))));
        assert!(addresses.at_others(&[node(1), node(2)].into(), moments.next()).is_empty());
        for device in ["a", "c", "d", "e"] {
            addresses.forget(&id(device), epoch(2));
        }
        assert!(addresses.at_others(&[node(2)].into(), moments.next()).is_empty());
    }

    #[test]
    fn a_newer_connection_replaces_an_older_one_and_never_the_other_way_round() {
        let (mut addresses, moments, _) = five();
        assert!(addresses.hold(id("a"), node(2), epoch(2), &moments));
        assert!(!addresses.hold(id("a"), node(1), epoch(1), &moments));
        assert_eq!(addresses.get(&id("a")).map(|known| known.node), Some(node(2)));
        addresses.forget(&id("a"), epoch(1));
        assert!(addresses.get(&id("a")).is_some(), "the end of an older one");
        assert!(addresses.take_older(&id("a"), epoch(2)).is_none());
        assert!(addresses.take_older(&id("a"), epoch(3)).is_some());
        assert!(addresses.get(&id("a")).is_none());
    }
}
