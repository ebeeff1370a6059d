//! Which nodes are there: each tells all others that it is, and whoever leads a shard ends the connections at those that
//! are silent.
//!
//! Silence is counted in this node's own beats, not in time: a node that has stalled finds everybody else's last word long
//! ago, and must not blame them. Whatever comes from a node is a word of it.
//!
//! A node that is silent for longer than `gone_after` is gone: its devices count as disconnected from then on, by a
//! committed change that names the epoch, so that a newer connection elsewhere is not touched. It may only be cut off: then
//! it can acknowledge nothing either, and when it is heard again it is asked to announce what it holds, learns which of its
//! connections have ended, and closes those.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use drover_core::ids::{GroupId, LogTime, NodeId};
use futures::future::join_all;
use tokio::time::Instant;
use tracing::warn;

use super::node::Shared;
use super::shard::ShardMsg;
use crate::wire::delivery::{decode_wanted, encode_beat};

/// How often a node is heard before it would be taken to be gone.
const BEATS: u32 = 5;

/// What is known of the other nodes.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// The first number that is asked for, another one in each life of this node.
    first: u64,
    table: Mutex<BTreeMap<NodeId, Neighbour>>,
}

#[derive(Debug)]
struct Neighbour {
    /// Beats of this node since the last word.
    silent: u32,
    /// Counts the reasons for which it is to announce its sessions here once more.
    wanted: u64,
    /// The number that it has asked for of this node's sessions.
    asked: u64,
}

/// The nodes that are there, as of a moment.
#[derive(Debug)]
pub(super) struct Present {
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) moment: u64,
}

impl Neighbours {
    pub(super) fn new(started: LogTime) -> Self {
        Self { first: started.get(), table: Mutex::default() }
    }

    /// Something has come from the node.
    pub(super) fn heard(&self, node: NodeId) {
        self.with(node, |known| known.silent = 0);
    }

    /// The node is to announce what it holds to this one again.
    pub(super) fn want(&self, node: NodeId) {
        self.with(node, |known| known.wanted += 1);
    }

    /// A shard of this node has lost what it knew of sessions: all are to announce them again.
    pub(super) fn want_all(&self, me: NodeId) {
        self.want(me);
        for known in self.table().values_mut() {
            known.wanted += 1;
        }
    }

    /// A number that changes when the node is to announce what it holds.
    pub(super) fn wanted(&self, node: NodeId) -> u64 {
        self.with(node, |known| known.wanted)
    }

    /// The node has asked for this number of announcements.
    fn has_asked(&self, node: NodeId, number: u64) {
        self.with(node, |known| known.asked = number);
    }

    /// A number that changes when this node's sessions are to be announced to the node again.
    pub(super) fn asked(&self, node: NodeId) -> u64 {
        self.with(node, |known| known.asked)
    }

    /// One more beat of this node, `me`. The answer is who is there.
    fn beat(&self, me: NodeId, members: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        for node in members {
            self.with(*node, |known| known.silent += 1);
        }
        let mut table = self.table();
        for (node, known) in table.iter_mut() {
            if *node == me {
                known.silent = 0;
            } else if !members.contains(node) {
                // It is no member yet, or not any more.
                known.silent += 1;
            }
            if known.silent == BEATS + 1 {
                warn!(%node, "a node is silent: its connections have ended");
                // Should it come back, it is to learn that.
                known.wanted += 1;
            }
        }
        table.retain(|node, known| known.is_there() || members.contains(node));
        let there = table.iter().filter(|(_, known)| known.is_there()).map(|(node, _)| *node);
        there.chain([me]).collect()
    }

    fn with<T>(&self, node: NodeId, change: impl FnOnce(&mut Neighbour) -> T) -> T {
        let new = || Neighbour { silent: 0, wanted: self.first, asked: 0 };
        change(self.table().entry(node).or_insert_with(new))
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<NodeId, Neighbour>> {
        self.table.lock().expect("nobody panics with the table in hand")
    }
}

impl Neighbour {
    fn is_there(&self) -> bool {
        self.silent <= BEATS
    }
}

/// Tells the others that this node is there, and the shards which nodes are, until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let beat = shared.config.limits.gone_after / BEATS;
    let me = shared.config.node;
    loop {
        let next = Instant::now() + beat;
        if let Some(meta) = shared.meta() {
            let members: BTreeSet<NodeId> = meta.members.keys().copied().collect();
            let others = members.iter().filter(|node| **node != me);
            join_all(others.map(|node| say(&shared, *node, beat))).await;
            // Who connects from now on came after this look.
            let moment = shared.moments.next();
            let nodes = shared.neighbours.beat(me, &members);
            tell_shards(&shared, &Arc::new(Present { nodes, moment }));
        }
        tokio::time::sleep_until(next).await;
    }
}

async fn say(shared: &Shared, node: NodeId, deadline: Duration) {
    // One that does not answer now does so at a later beat.
    if let Ok(answer) = shared.peers.announce(node, GroupId::Meta, encode_beat(), deadline).await {
        shared.neighbours.heard(node);
        shared.neighbours.has_asked(node, decode_wanted(&answer));
    }
}

fn tell_shards(shared: &Shared, present: &Arc<Present>) {
    for replica in shared.router.replicas().values() {
        if replica.leadership.borrow().serving {
            // A shard that has stopped has another leader.
            drop(replica.actor.send_message(ShardMsg::NodesPresent(Arc::clone(present))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    /// Beats of node 1 in a cluster of 1 and 2: whether 2 is there.
    fn beats(neighbours: &Neighbours, count: u32) -> bool {
        let members = BTreeSet::from([node(1), node(2)]);
        let there = (0..count).map(|_| neighbours.beat(node(1), &members)).last();
        let there = there.expect("at least one beat");
        assert!(there.contains(&node(1)), "this node is always there");
        there.contains(&node(2))
    }

    fn neighbours() -> Neighbours {
        Neighbours::new(LogTime::new(1000))
    }

    #[test]
    fn a_silent_node_is_gone_until_it_is_heard_and_then_asked_to_announce() {
        let neighbours = neighbours();
        assert!(beats(&neighbours, BEATS), "one that was never heard has its time, too");
        neighbours.heard(node(2));
        assert!(beats(&neighbours, BEATS), "some beats may be slow or lost");
        let wanted = neighbours.wanted(node(2));
        assert!(!beats(&neighbours, 1));
        assert!(!beats(&neighbours, 100));
        assert_eq!(neighbours.wanted(node(2)), wanted + 1);
        neighbours.heard(node(2));
        assert!(beats(&neighbours, 1));
    }

    #[test]
    fn a_node_that_is_no_member_is_there_for_as_long_as_it_speaks() {
        let neighbours = neighbours();
        neighbours.heard(node(3));
        let members = BTreeSet::from([node(1)]);
        assert!(neighbours.beat(node(1), &members).contains(&node(3)));
        let there = (0..BEATS).map(|_| neighbours.beat(node(1), &members)).last();
        assert!(!there.expect("some beats").contains(&node(3)));
    }

    #[test]
    fn each_life_of_a_node_asks_for_announcements_anew() {
        let (former, new) = (neighbours(), Neighbours::new(LogTime::new(2000)));
        former.want_all(node(1));
        assert_ne!(former.wanted(node(2)), new.wanted(node(2)));
        assert_ne!(former.wanted(node(1)), new.wanted(node(1)));
    }
}
