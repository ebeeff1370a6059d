//! Where each shard's replicas live.
//!
//! A pure planner: members and today's placement in, tomorrow's out. It moves as few replicas as it can, because a move
//! copies every record of the shard; it spreads replicas over zones first, then evenly over members, and preferred leaders
//! evenly over the replicas. Carrying the moves out, one at a time, is the mover's work.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{NodeId, ShardCount, ShardId};
use crate::meta::Member;

/// The replicas of each shard; the first is where the leader should be.
pub type Placement = BTreeMap<ShardId, Vec<NodeId>>;

/// Plans where the replicas of every shard should be. The same input gives the same plan at every node.
pub fn plan(
    shards: ShardCount,
    replication_factor: usize,
    members: &BTreeMap<NodeId, Member>,
    today: &Placement,
) -> Placement {
    let mut plan = Plan::keep(shards, replication_factor.min(members.len()), members, today);
    plan.fill();
    plan.spread_over_zones();
    plan.level_replicas();
    plan.level_leaders();
    plan.placement
}

/// A placement in the making.
#[derive(Debug)]
struct Plan<'a> {
    replicas: usize,
    members: &'a BTreeMap<NodeId, Member>,
    placement: Placement,
    /// How many replicas each member has.
    load: BTreeMap<NodeId, usize>,
}

impl<'a> Plan<'a> {
    /// What can stay of today's placement: replicas on members, no more than are wanted.
    fn keep(
        shards: ShardCount,
        replicas: usize,
        members: &'a BTreeMap<NodeId, Member>,
        today: &Placement,
    ) -> Self {
        let mut plan = Self {
            replicas,
            members,
            placement: Placement::new(),
            load: members.keys().map(|node| (*node, 0)).collect(),
        };
        for shard in shards.shards() {
            plan.placement.insert(shard, Vec::new());
            for node in today.get(&shard).into_iter().flatten() {
                let placed = &plan.placement[&shard];
                if members.contains_key(node) && !placed.contains(node) && placed.len() < replicas {
                    plan.add(shard, *node);
                }
            }
        }
        plan
    }

    fn add(&mut self, shard: ShardId, node: NodeId) {
        self.placement.entry(shard).or_default().push(node);
        *self.load.entry(node).or_default() += 1;
    }

    /// Puts the replica on `to` in the place of the one on `from`.
    fn replace(&mut self, shard: ShardId, from: NodeId, to: NodeId) {
        for node in
            self.placement.entry(shard).or_default().iter_mut().filter(|node| **node == from)
        {
            *node = to;
        }
        self.load.entry(from).and_modify(|load| *load -= 1);
        *self.load.entry(to).or_default() += 1;
    }

    fn zone(&self, node: NodeId) -> &'a str {
        self.members.get(&node).map_or("", |member| &member.zone)
    }

    /// How many replicas of the shard stand in the zone of `node`, not counting one on `except`.
    fn crowd(&self, shard: ShardId, node: NodeId, except: Option<NodeId>) -> usize {
        let zone = self.zone(node);
        let others = self.placement[&shard].iter().filter(|other| Some(**other) != except);
        others.filter(|other| self.zone(**other) == zone).count()
    }

    /// Members without a replica of the shard.
    fn strangers(&self, shard: ShardId) -> impl Iterator<Item = NodeId> {
        self.members.keys().copied().filter(move |node| !self.placement[&shard].contains(node))
    }

    /// Adds what is missing: in the emptiest zone, on the member with the least to do.
    fn fill(&mut self) {
        let shards: Vec<ShardId> = self.placement.keys().copied().collect();
        for shard in shards {
            while self.placement[&shard].len() < self.replicas {
                let best = self
                    .strangers(shard)
                    .min_by_key(|node| (self.crowd(shard, *node, None), self.load[node], *node));
                let Some(node) = best else { break };
                self.add(shard, node);
            }
        }
    }

    /// Moves a replica that shares its zone with another of its shard to a zone with fewer of them.
    fn spread_over_zones(&mut self) {
        let shards: Vec<ShardId> = self.placement.keys().copied().collect();
        for shard in shards {
            // Each move lowers the crowding of one replica for good, so there are no more than replicas.
            for _ in 0..self.replicas {
                let Some((from, to)) = self.crowded(shard) else { break };
                self.replace(shard, from, to);
            }
        }
    }

    fn crowded(&self, shard: ShardId) -> Option<(NodeId, NodeId)> {
        let crowd = |node: &NodeId| self.crowd(shard, *node, Some(*node));
        let placed = &self.placement[&shard];
        let from = *placed.iter().max_by_key(|node| (crowd(node), self.load[*node], **node))?;
        let to = self
            .strangers(shard)
            .min_by_key(|node| (self.crowd(shard, *node, Some(from)), self.load[node], *node))?;
        (self.crowd(shard, to, Some(from)) < crowd(&from)).then_some((from, to))
    }

    /// Moves replicas from busy members to idle ones while that makes the load more even.
    fn level_replicas(&mut self) {
        while let Some((shard, from, to)) = self.next_move() {
            self.replace(shard, from, to); // the sum of squares of the loads falls, so this ends
        }
    }

    /// A move between members whose loads are two or more apart, the widest gap first, that crowds no zone.
    fn next_move(&self) -> Option<(ShardId, NodeId, NodeId)> {
        let mut by_load: Vec<NodeId> = self.members.keys().copied().collect();
        by_load.sort_by_key(|node| (self.load[node], *node));
        by_load.iter().rev().find_map(|from| {
            let to = by_load.iter().take_while(|to| self.load[*to] + 1 < self.load[from]);
            to.into_iter().find_map(|to| Some((self.movable(*from, *to)?, *from, *to)))
        })
    }

    fn movable(&self, from: NodeId, to: NodeId) -> Option<ShardId> {
        self.placement.iter().find_map(|(shard, placed)| {
            let fits = placed.contains(&from)
                && !placed.contains(&to)
                && self.crowd(*shard, to, Some(from)) <= self.crowd(*shard, from, Some(from));
            fits.then_some(*shard)
        })
    }

    /// Hands preferred leaders on until no chain of hand-overs leads from a member to one with two fewer.
    fn level_leaders(&mut self) {
        while let Some(chain) = self.hand_overs() {
            for (shard, to) in chain {
                let placed = self.placement.entry(shard).or_default();
                if let Some(place) = placed.iter().position(|node| *node == to) {
                    placed.swap(0, place);
                }
            }
        }
    }

    /// The shortest chain of hand-overs (which shard to whom) from the member that leads most to any that leads at
    /// least two fewer: a breadth-first search over "leads a shard that the other has a replica of".
    fn hand_overs(&self) -> Option<Vec<(ShardId, NodeId)>> {
        let mut leads: BTreeMap<NodeId, usize> =
            self.members.keys().map(|node| (*node, 0)).collect();
        for leader in self.placement.values().filter_map(|placed| placed.first()) {
            *leads.entry(*leader).or_default() += 1;
        }
        let busiest =
            leads.iter().max_by_key(|(node, leads)| (**leads, **node)).map(|(node, _)| *node)?;
        let mut came_by: BTreeMap<NodeId, (ShardId, NodeId)> = BTreeMap::new();
        let mut seen = BTreeSet::from([busiest]);
        let mut queue = VecDeque::from([busiest]);
        while let Some(node) = queue.pop_front() {
            if leads[&node] + 1 < leads[&busiest] {
                return Some(chain_to(node, busiest, &came_by));
            }
            let led = self.placement.iter().filter(|(_, placed)| placed.first() == Some(&node));
            for (shard, other) in
                led.flat_map(|(shard, placed)| placed.iter().map(|n| (*shard, *n)))
            {
                if seen.insert(other) {
                    came_by.insert(other, (shard, node));
                    queue.push_back(other);
                }
            }
        }
        None
    }
}

fn chain_to(
    end: NodeId,
    start: NodeId,
    came_by: &BTreeMap<NodeId, (ShardId, NodeId)>,
) -> Vec<(ShardId, NodeId)> {
    let mut chain = Vec::new();
    let mut node = end;
    while node != start {
        let (shard, before) = came_by[&node];
        chain.push((shard, node));
        node = before;
    }
    chain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(zones: &[&str]) -> BTreeMap<NodeId, Member> {
        let member = |zone: &&str| Member {
            peer_address: "127.0.0.1:1".to_owned(),
            admin_address: "127.0.0.1:2".to_owned(),
            zone: (*zone).to_owned(),
        };
        (1..).map(|n| NodeId::new(n, 0)).zip(zones.iter().map(member)).collect()
    }

    fn count(shards: u32) -> ShardCount {
        ShardCount::new(shards).expect("a legal count")
    }

    fn spread(counts: &BTreeMap<NodeId, usize>) -> usize {
        counts.values().max().unwrap_or(&0) - counts.values().min().unwrap_or(&0)
    }

    fn tally<'a>(
        members: &BTreeMap<NodeId, Member>,
        nodes: impl Iterator<Item = &'a NodeId>,
    ) -> BTreeMap<NodeId, usize> {
        let mut counts: BTreeMap<NodeId, usize> = members.keys().map(|node| (*node, 0)).collect();
        for node in nodes {
            *counts.get_mut(node).expect("replicas are on members") += 1;
        }
        counts
    }

    fn moves(today: &Placement, tomorrow: &Placement) -> usize {
        let added = |(shard, placed): (&ShardId, &Vec<NodeId>)| {
            placed.iter().filter(|node| !today[shard].contains(node)).count()
        };
        tomorrow.iter().map(added).sum()
    }

    #[test]
    fn replicas_stand_in_different_zones_where_there_are_enough() {
        let members = members(&["a", "a", "b", "b", "c"]);
        let plan = plan(count(16), 3, &members, &Placement::new());
        for (shard, placed) in &plan {
            let zones: BTreeSet<&str> = placed.iter().map(|node| &*members[node].zone).collect();
            assert_eq!(zones.len(), 3, "shard {shard}");
        }
    }

    #[test]
    fn a_new_zone_takes_a_replica_of_each_shard() {
        let before = members(&["a", "a", "a"]);
        let after = members(&["a", "a", "a", "b"]);
        let today = plan(count(8), 3, &before, &Placement::new());
        let tomorrow = plan(count(8), 3, &after, &today);
        assert!(tomorrow.values().all(|placed| placed.contains(&NodeId::new(4, 0))));
        assert_eq!(moves(&today, &tomorrow), 8);
    }

    #[test]
    fn a_fourth_member_costs_only_its_share() {
        let today = plan(count(16), 3, &members(&["", "", ""]), &Placement::new());
        let tomorrow = plan(count(16), 3, &members(&["", "", "", ""]), &today);
        assert_eq!(moves(&today, &tomorrow), 12, "48 replicas over four members");
    }

    #[test]
    fn a_lost_member_costs_only_what_it_had() {
        let mut members = members(&["", "", "", ""]);
        let today = plan(count(16), 3, &members, &Placement::new());
        members.remove(&NodeId::new(2, 0));
        let tomorrow = plan(count(16), 3, &members, &today);
        assert_eq!(moves(&today, &tomorrow), 12);
    }

    #[test]
    fn no_members_have_no_replicas() {
        let plan = plan(count(2), 3, &BTreeMap::new(), &Placement::new());
        assert!(plan.values().all(Vec::is_empty));
    }

    fn clusters() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..7)
            .prop_map(|zones| members(&zones))
    }

    /// Any placement that a shard may have had, with replicas on nodes that are gone or that stand twice.
    fn placements() -> impl Strategy<Value = Placement> {
        let nodes = prop::collection::vec((1_u32..9).prop_map(|n| NodeId::new(n, 0)), 0..5);
        prop::collection::vec(nodes, 16).prop_map(|placed| count(16).shards().zip(placed).collect())
    }

    proptest! {
        #[test]
        fn whatever_it_was_the_plan_is_complete_and_keeps_its_own_result(
            members in clusters(), today in placements(), factor in 1_usize..6,
        ) {
            let tomorrow = plan(count(16), factor, &members, &today);
            prop_assert_eq!(tomorrow.len(), 16);
            for placed in tomorrow.values() {
                let distinct: BTreeSet<&NodeId> = placed.iter().collect();
                prop_assert_eq!(distinct.len(), factor.min(members.len()));
                prop_assert_eq!(distinct.len(), placed.len());
                prop_assert!(placed.iter().all(|node| members.contains_key(node)));
            }
            prop_assert_eq!(&plan(count(16), factor, &members, &tomorrow), &tomorrow);
        }

        #[test]
        fn without_zones_replicas_and_leaders_are_even(
            nodes in 1_usize..7, today in placements(), factor in 1_usize..6,
        ) {
            let members = members(&vec![""; nodes]);
            let plan = plan(count(16), factor, &members, &today);
            let replicas = tally(&members, plan.values().flatten());
            prop_assert!(spread(&replicas) <= 1, "replicas {:?}", replicas);
            let leaders = tally(&members, plan.values().filter_map(|placed| placed.first()));
            prop_assert!(spread(&leaders) <= 1, "leaders {:?}", leaders);
        }
    }
}
