//! Which replica of each shard should lead, so that no node has much more to do than another.
//!
//! A pure planner: where replicas are and what their shards have to do in, hand-overs out. A hand-over pauses the writes of
//! its shard for the time of an election, so there are few at a time and none for little. Who may not lead, because it is to be
//! emptied or its disk stalls, takes no part. Measuring is the work of the layers above.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{NodeId, ShardId};
use crate::placement::Placement;

/// What the shards have to do, and which nodes should not do it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loads {
    /// Bytes a second that the leader writes. A shard that nobody has spoken of is at rest.
    pub shards: BTreeMap<ShardId, u64>,
    /// Nodes whose disks stall.
    pub slow: BTreeSet<NodeId>,
}

/// What a shard at rest counts: below this, differences are noise, and leaders are spread by their number.
const AT_REST: u64 = 16 * 1024;
/// Hand-overs, or chains of them, that are planned at one time.
const STEPS_MAX: usize = 8;
/// How many nodes with little to do are looked at for an exchange of shards.
const EXCHANGES_MAX: usize = 4;
/// One part in so many of the mean's square is what a step must gain at least.
const GAIN_PARTS: u128 = 20;

/// Shards that should be led by another of their replicas, with the order of these from now on. `able`: who may lead.
pub fn level(placement: &Placement, able: &BTreeSet<NodeId>, loads: &Loads) -> Placement {
    let mut plan = Plan { placement: placement.clone(), able, loads };
    for _ in 0..STEPS_MAX {
        let Some(step) = plan.best() else { break };
        for HandOver { shard, to, .. } in step {
            plan.lead(shard, to);
        }
    }
    let is_new = |(shard, placed): &(ShardId, Vec<NodeId>)| placement.get(shard) != Some(placed);
    plan.placement.into_iter().filter(is_new).collect()
}

#[derive(Debug)]
struct Plan<'a> {
    placement: Placement,
    able: &'a BTreeSet<NodeId>,
    loads: &'a Loads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HandOver {
    shard: ShardId,
    from: NodeId,
    to: NodeId,
    weight: u64,
}

impl Plan<'_> {
    fn lead(&mut self, shard: ShardId, leader: NodeId) {
        let placed = self.placement.entry(shard).or_default();
        if let Some(place) = placed.iter().position(|node| *node == leader) {
            placed.swap(0, place);
        }
    }

    fn weight(&self, shard: ShardId) -> u64 {
        self.loads.shards.get(&shard).copied().unwrap_or(0).saturating_add(AT_REST)
    }

    /// What each node that may lead has to do.
    fn weights(&self) -> BTreeMap<NodeId, u64> {
        let mut weights: BTreeMap<NodeId, u64> = self.able.iter().map(|node| (*node, 0)).collect();
        for (shard, placed) in &self.placement {
            if let Some(weight) = placed.first().and_then(|leader| weights.get_mut(leader)) {
                *weight = weight.saturating_add(self.weight(*shard));
            }
        }
        weights
    }

    /// Hand-overs away from a node, by whom they are to.
    fn offers(&self, from: NodeId) -> BTreeMap<NodeId, Vec<HandOver>> {
        let mut offers: BTreeMap<NodeId, Vec<HandOver>> = BTreeMap::new();
        for (shard, placed) in self.placement.iter().filter(|(_, p)| p.first() == Some(&from)) {
            let weight = self.weight(*shard);
            for to in placed.iter().skip(1).filter(|node| self.able.contains(node)) {
                let offer = HandOver { shard: *shard, from, to: *to, weight };
                offers.entry(*to).or_default().push(offer);
            }
        }
        offers
    }

    /// The step that takes most from the busiest node and puts it where there is least, if it is worth an interruption.
    fn best(&self) -> Option<Vec<HandOver>> {
        let weights = self.weights();
        let (busiest, most) = weights.iter().max_by_key(|(node, weight)| (**weight, **node))?;
        let mut idle: Vec<(NodeId, u64)> = weights.iter().map(|(node, w)| (*node, *w)).collect();
        idle.sort_by_key(|(node, weight)| (*weight, *node));
        let wanted = (most - idle.first()?.1) / 2;
        let chains = self.chains(*busiest, wanted);
        let chains = idle.iter().filter_map(|(node, _)| chain_to(*node, *busiest, &chains));
        let exchanges = idle
            .iter()
            .take(EXCHANGES_MAX)
            .filter_map(|(node, weight)| self.exchange(*busiest, *node, (most - weight) / 2));
        let total: u128 = weights.values().map(|weight| u128::from(*weight)).sum();
        let mean = total / weights.len() as u128;
        let steps = chains.chain(exchanges).map(|step| (gain(&weights, &step), step));
        let (gain, step) = steps.max_by_key(|(gain, _)| *gain)?;
        (gain > 0 && gain.saturating_mul(GAIN_PARTS) >= mean.saturating_mul(mean)).then_some(step)
    }

    /// By which hand-over each node is reached from the busiest one, on a shortest way.
    fn chains(&self, busiest: NodeId, wanted: u64) -> BTreeMap<NodeId, HandOver> {
        let mut came_by = BTreeMap::new();
        let mut queue = VecDeque::from([busiest]);
        while let Some(node) = queue.pop_front() {
            for (to, offers) in self.offers(node) {
                let offer = offers.into_iter().min_by_key(|o| (o.weight.abs_diff(wanted), o.shard));
                if let Some(offer) = offer.filter(|_| to != busiest && !came_by.contains_key(&to)) {
                    came_by.insert(to, offer);
                    queue.push_back(to);
                }
            }
        }
        came_by
    }

    /// A shard of the busiest node for one of another node with less to do: the pair whose difference is nearest to `wanted`.
    fn exchange(&self, busiest: NodeId, other: NodeId, wanted: u64) -> Option<Vec<HandOver>> {
        let given = self.offers(busiest).remove(&other)?;
        let taken = self.offers(other).remove(&busiest)?;
        let by_weight: BTreeMap<u64, HandOver> =
            taken.into_iter().map(|offer| (offer.weight, offer)).collect();
        let nearest = |give: HandOver| {
            let ideal = give.weight.saturating_sub(wanted);
            let below = by_weight.range(..=ideal).next_back();
            let above = by_weight.range(ideal..).next();
            let take = below.into_iter().chain(above).min_by_key(|(w, _)| w.abs_diff(ideal))?.1;
            Some((give.weight.checked_sub(take.weight)?.abs_diff(wanted), vec![give, *take]))
        };
        let pairs = given.into_iter().filter_map(nearest);
        pairs.min_by_key(|(distance, _)| *distance).map(|(_, pair)| pair)
    }
}

/// By how much the sum of the squares of what nodes have to do falls: the more even, the smaller it is. 0 if it rises.
fn gain(weights: &BTreeMap<NodeId, u64>, step: &[HandOver]) -> u128 {
    let mut changed: BTreeMap<NodeId, u64> = BTreeMap::new();
    for HandOver { from, to, weight, .. } in step {
        let before = |node: &NodeId| weights.get(node).copied().unwrap_or(0);
        let less = changed.entry(*from).or_insert_with(|| before(from));
        *less = less.saturating_sub(*weight);
        let more = changed.entry(*to).or_insert_with(|| before(to));
        *more = more.saturating_add(*weight);
    }
    let square = |weight: u64| u128::from(weight).saturating_mul(weight.into());
    let sum = |a: u128, b: u128| a.saturating_add(b);
    let after = changed.values().map(|weight| square(*weight)).fold(0, sum);
    let before = changed.keys().filter_map(|node| weights.get(node));
    before.map(|weight| square(*weight)).fold(0, sum).saturating_sub(after)
}

fn chain_to(
    end: NodeId,
    start: NodeId,
    came_by: &BTreeMap<NodeId, HandOver>,
) -> Option<Vec<HandOver>> {
    let mut chain = Vec::new();
    let mut node = end;
    while node != start {
        let offer = came_by.get(&node)?;
        chain.push(*offer);
        node = offer.from;
    }
    (!chain.is_empty()).then_some(chain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::cluster;

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    fn all(nodes: u32) -> BTreeSet<NodeId> {
        (1..=nodes).map(node).collect()
    }

    /// Plans until nothing is left to do; answers how often.
    fn settle(placement: &mut Placement, able: &BTreeSet<NodeId>, loads: &Loads) -> usize {
        for round in 0..1_000 {
            let changed = level(placement, able, loads);
            if changed.is_empty() {
                return round;
            }
            placement.extend(changed);
        }
        panic!("it never ends");
    }

    fn led(placement: &Placement, leader: NodeId) -> Vec<ShardId> {
        let is_led = |(shard, placed): (&ShardId, &Vec<NodeId>)| {
            (placed.first() == Some(&leader)).then_some(*shard)
        };
        placement.iter().filter_map(is_led).collect()
    }

    #[test]
    fn who_leads_a_busy_shard_leads_fewer() {
        let mut placement = cluster(3).placement;
        assert_eq!(settle(&mut placement, &all(3), &Loads::default()), 0, "a new cluster is even");
        let busy = led(&placement, node(1))[0];
        let mut shards: BTreeMap<ShardId, u64> =
            placement.keys().map(|shard| (*shard, 100_000)).collect();
        shards.insert(busy, 400_000);
        let loads = Loads { shards, slow: BTreeSet::new() };
        settle(&mut placement, &all(3), &loads);
        let of = |number| led(&placement, node(number)).iter().map(|s| loads.shards[s]).sum();
        let of: [u64; 3] = [1, 2, 3].map(of);
        assert!(of.iter().all(|load| (600_000..=700_000).contains(load)), "{of:?}");
    }

    #[test]
    fn two_busy_shards_of_one_node_part() {
        let mut placement = cluster(3).placement;
        let busy = led(&placement, node(2))[..2].to_vec();
        let shards = busy.iter().map(|shard| (*shard, 1_000_000)).collect();
        let loads = Loads { shards, slow: BTreeSet::new() };
        settle(&mut placement, &all(3), &loads);
        assert_ne!(placement[&busy[0]][0], placement[&busy[1]][0]);
    }

    #[test]
    fn shards_are_exchanged_where_one_alone_would_be_too_much() {
        let pair = |first, second| vec![node(first), node(second)];
        let mut shards = cluster(3).shard_count.shards();
        let [a, b, c, d] = [(); 4].map(|()| shards.next().expect("there are sixteen"));
        let mut placement =
            Placement::from([(a, pair(1, 2)), (b, pair(1, 2)), (c, pair(2, 1)), (d, pair(2, 1))]);
        let loads = [(a, 10_000_000), (b, 10_000_000), (c, 7_000_000), (d, 2_000_000)];
        let loads = Loads { shards: loads.into(), slow: BTreeSet::new() };
        settle(&mut placement, &all(2), &loads);
        let of = |leader| led(&placement, leader).iter().map(|s| loads.shards[s]).sum::<u64>();
        assert_eq!(of(node(1)).abs_diff(of(node(2))), 5_000_000, "17 and 12 is the best there is");
    }

    #[test]
    fn a_little_more_moves_nothing() {
        let placement = cluster(3).placement;
        let busy = led(&placement, node(1))[0];
        let loads = Loads { shards: BTreeMap::from([(busy, 10_000)]), slow: BTreeSet::new() };
        assert!(level(&placement, &all(3), &loads).is_empty());
    }

    #[test]
    fn who_may_not_lead_is_not_given_anything() {
        let mut placement = cluster(4).placement;
        let able = BTreeSet::from([node(1), node(2), node(3)]);
        for placed in placement.values_mut() {
            placed.sort_by_key(|replica| !able.contains(replica));
        }
        settle(&mut placement, &able, &Loads::default());
        assert!(led(&placement, node(4)).is_empty());
        let counts = able.iter().map(|leader| led(&placement, *leader).len());
        assert!(
            counts.clone().all(|count| (5..=6).contains(&count)),
            "{:?}",
            counts.collect::<Vec<_>>()
        );
    }

    proptest! {
        #[test]
        fn whatever_the_loads_it_comes_to_rest_and_no_replica_moves(
            nodes in 1_u32..8,
            loads in prop::collection::vec(0_u64..5_000_000, 16),
            first in prop::collection::vec(0_usize..3, 16),
        ) {
            let before = cluster(nodes).placement;
            let mut placement = before.clone();
            for (placed, first) in placement.values_mut().zip(first) {
                let first = first % placed.len();
                placed.swap(0, first);
            }
            let shards = placement.keys().copied().zip(loads).collect();
            settle(&mut placement, &all(nodes), &Loads { shards, slow: BTreeSet::new() });
            for (shard, placed) in &placement {
                let set = |placed: &Vec<NodeId>| placed.iter().copied().collect::<BTreeSet<_>>();
                prop_assert_eq!(set(placed), set(&before[shard]));
            }
        }

        #[test]
        fn at_rest_leaders_are_even_wherever_they_were(
            nodes in 3_u32..8, first in prop::collection::vec(0_usize..3, 16),
        ) {
            let mut placement = cluster(nodes).placement;
            for (placed, first) in placement.values_mut().zip(first) {
                placed.swap(0, first);
            }
            settle(&mut placement, &all(nodes), &Loads::default());
            let counts: Vec<usize> = all(nodes).iter().map(|n| led(&placement, *n).len()).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{:?}", counts);
        }
    }
}
