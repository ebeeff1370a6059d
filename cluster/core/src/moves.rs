//! What should move next, so that replicas and leaders come to where they should be.
//!
//! A pure planner over the meta state. It asks [`placement`] where everything should be in the end and names the moves that
//! are missing, one a shard. They become part of the state, so that a plan outlives whoever made it; which of them may go on
//! at one time is the rule of [`membership`](crate::membership). With other members there is another plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::NodeId;
use crate::leaders::{self, Loads};
use crate::membership::{Departure, Membership, PlannedMove};
use crate::meta::{Member, Meta};
use crate::placement::{self, Placement};

/// Voters of the meta group: five survive two failures, and more only make each write slower.
pub const META_VOTERS_MAX: usize = 5;
/// With fewer no failure is survived: then who is drained votes, too.
const META_VOTERS_MIN: usize = 3;

/// Moves that should be and are not planned yet.
pub fn next(meta: &Meta) -> Vec<PlannedMove> {
    if meta.membership.is_paused {
        return Vec::new();
    }
    let today = under_way(meta);
    let tomorrow = target(meta, &today);
    let mut moves = Vec::new();
    for (shard, wanted) in &tomorrow {
        if meta.membership.moves.contains_key(shard) {
            continue;
        }
        let placed = today.get(shard).map_or(&[][..], Vec::as_slice);
        let Some(to) = wanted.iter().copied().find(|node| !placed.contains(node)) else { continue };
        let going = placed.iter().copied().filter(|node| !wanted.contains(node));
        // Who is removed may be dead, and then nothing is restored until it is replaced.
        let from = going.min_by_key(|node| (!meta.membership.is_leaving(*node), *node));
        moves.push(PlannedMove { shard: *shard, from, to });
    }
    moves
}

/// Shards whose replicas stay where they are, in the order in which they should lead from now on. Who is leaving comes last, and
/// so does whoever has a slow disk; where nothing moves, leaders are spread by what they have to do. `loads`: `None` if
/// that is not known at the moment.
pub fn preferences(meta: &Meta, loads: Option<&Loads>) -> Placement {
    let Membership { moves, departures, .. } = &meta.membership;
    let is_slow = |node: &NodeId| loads.is_some_and(|loads| loads.slow.contains(node));
    let may_lead = |node: &NodeId| !departures.contains_key(node) && !is_slow(node);
    let mut preferred = meta.placement.clone();
    for placed in preferred.values_mut() {
        placed.sort_by_key(|node| !may_lead(node));
    }
    if let Some(loads) = loads.filter(|_| moves.is_empty() && next(meta).is_empty()) {
        let able = meta.members.keys().copied().filter(may_lead).collect();
        preferred.extend(leaders::level(&preferred, &able, loads));
    }
    preferred.retain(|shard, placed| meta.placement.get(shard) != Some(placed));
    preferred
}

/// Who should vote in the meta group. Those who do stay, as far as they can; zones are spread before numbers. Who is drained
/// votes only where too few others are left, who is removed never.
pub fn meta_voters(meta: &Meta, today: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let possible: BTreeSet<NodeId> =
        meta.members.keys().copied().filter(|node| !meta.membership.is_leaving(*node)).collect();
    let departs = |node: &NodeId| !meta.keeps_replicas(*node);
    let staying = possible.iter().filter(|node| !departs(node)).count();
    let count = staying.max(possible.len().min(META_VOTERS_MIN)).min(META_VOTERS_MAX);
    // An even number survives no more failures than the odd one below it.
    let count = if count.is_multiple_of(2) { count.saturating_sub(1) } else { count };
    let mut voters: BTreeSet<NodeId> = BTreeSet::new();
    while voters.len() < count {
        let zone = |node: &NodeId| meta.members.get(node).map_or("", |member| &*member.zone);
        let crowd = |node: &NodeId| voters.iter().filter(|other| zone(other) == zone(node)).count();
        let candidates = possible.iter().filter(|node| !voters.contains(node));
        let best = candidates
            .min_by_key(|node| (departs(node), crowd(node), !today.contains(node), **node));
        let Some(best) = best.copied() else { break };
        voters.insert(best);
    }
    voters
}

/// Where everything should be, for replicas that are where `today` says.
fn target(meta: &Meta, today: &Placement) -> Placement {
    let replicas = usize::from(meta.replication_factor);
    placement::plan(meta.shard_count, replicas, &eligible(meta, replicas), today)
}

/// Members that may hold replicas. One that is drained still does if there are too few others: a replica less would be
/// worse than a drain that waits for the next node.
fn eligible(meta: &Meta, replicas: usize) -> BTreeMap<NodeId, Member> {
    let member = |node: NodeId| Some((node, meta.members.get(&node)?.clone()));
    let keeping = meta.members.keys().copied().filter(|node| meta.keeps_replicas(*node));
    let mut eligible: BTreeMap<NodeId, Member> = keeping.filter_map(member).collect();
    for (node, departure) in &meta.membership.departures {
        if eligible.len() < replicas && *departure == Departure::Drained {
            eligible.extend(member(*node));
        }
    }
    eligible
}

/// The placement as it is once everything that moves has arrived.
fn under_way(meta: &Meta) -> Placement {
    let mut placement = meta.placement.clone();
    for (shard, under_way) in &meta.membership.moves {
        let placed = placement.entry(*shard).or_default();
        if under_way.is_cancelled || placed.contains(&under_way.to) {
            continue;
        }
        under_way.arrive(placed);
    }
    placement
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{LogTime, ShardId};
    use crate::membership::MembershipChange;
    use crate::meta::{self, MetaChange};
    use crate::testing::cluster;

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    fn member(zone: &str) -> Member {
        let address = String::new();
        Member { peer_address: address.clone(), admin_address: address, zone: zone.to_owned() }
    }

    fn change(meta: &mut Meta, change: MembershipChange) {
        let mut state = Some(meta.clone());
        meta::apply(&mut state, &MetaChange::Membership(change), LogTime::new(1))
            .expect("a plan fits the state that it was made from");
        *meta = state.expect("a cluster stays one");
    }

    fn plan(meta: &mut Meta) -> usize {
        let (expected_version, moves) = (meta.version, next(meta));
        let count = moves.len();
        if count > 0 {
            change(meta, MembershipChange::PlanMoves { expected_version, moves });
        }
        count
    }

    fn begun(meta: &Meta) -> Vec<(ShardId, u64)> {
        let moves = meta.membership.moves.iter().filter(|(_, m)| m.began.is_some());
        moves.map(|(shard, m)| (*shard, m.id)).collect()
    }

    fn as_set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    /// No two replicas of a shard on one node, no fewer than there were, and of any two states that follow each other a
    /// majority of the one is a majority of the other but for one.
    fn check_moves(meta: &Meta) -> Result<(), TestCaseError> {
        let mut at_work = BTreeSet::new();
        for under_way in meta.membership.moves.values().filter(|m| m.began.is_some()) {
            let nodes = under_way.from.into_iter().chain([under_way.to]);
            for node in nodes.filter(|node| !meta.membership.is_leaving(*node)) {
                prop_assert!(at_work.insert(node), "node {} takes part in two moves", node);
            }
        }
        for (shard, placed) in &meta.placement {
            prop_assert_eq!(as_set(placed).len(), placed.len(), "shard {}", shard);
            let voters = meta.voters(*shard);
            let nodes: BTreeSet<NodeId> = voters.iter().map(|replica| replica.node()).collect();
            prop_assert_eq!(nodes.len(), voters.len(), "shard {}", shard);
            let lost = as_set(placed).difference(&nodes).count();
            prop_assert!(lost <= 1, "shard {} loses {} at once", shard, lost);
            prop_assert!(nodes.len() >= placed.len(), "shard {}", shard);
        }
        Ok(())
    }

    /// Carries out what is planned, in an order that `pick` chooses, until nothing is left to do. Counts the moves.
    fn settle(meta: &mut Meta, mut pick: usize) -> Result<usize, TestCaseError> {
        let mut count = 0;
        loop {
            count += plan(meta);
            prop_assert!(count < 10_000, "it never ends");
            check_moves(meta)?;
            let under_way = begun(meta);
            if under_way.is_empty() {
                prop_assert!(meta.membership.moves.is_empty(), "something waits for nothing");
                return Ok(count);
            }
            let (shard, id) = under_way[pick % under_way.len()];
            pick = pick.wrapping_mul(31).wrapping_add(7);
            change(meta, MembershipChange::EndMove { shard, id });
        }
    }

    /// Lets leaders be spread until they are.
    fn lead(meta: &mut Meta) {
        for _ in 0..100 {
            let preferred = preferences(meta, Some(&Loads::default()));
            if preferred.is_empty() {
                return;
            }
            meta.placement.extend(preferred);
        }
        panic!("it never ends");
    }

    #[test]
    fn a_node_that_restarts_leads_nothing_and_keeps_its_replicas_and_its_vote() {
        let mut meta = cluster(4);
        let voters = meta_voters(&meta, &BTreeSet::new());
        meta.membership.departures.insert(node(1), Departure::Restarting);
        assert!(next(&meta).is_empty(), "it will be back soon");
        meta.placement.extend(preferences(&meta, None));
        assert!(meta.placement.values().all(|placed| placed[0] != node(1)));
        assert!(meta.holds_replicas(node(1)));
        assert_eq!(meta_voters(&meta, &voters), voters);
    }

    #[test]
    fn whose_disk_is_slow_leads_nothing_until_it_is_well() {
        let mut meta = cluster(3);
        let loads = Loads { slow: BTreeSet::from([node(1)]), ..Loads::default() };
        meta.placement.extend(preferences(&meta, Some(&loads)));
        assert!(meta.placement.values().all(|placed| placed[0] != node(1)));
        assert!(preferences(&meta, None).is_empty(), "nobody knows better at the moment");
        lead(&mut meta);
        assert!(meta.placement.values().any(|placed| placed[0] == node(1)));
    }

    fn moved(before: &Placement, after: &Placement) -> usize {
        let new = |(shard, placed): (&ShardId, &Vec<NodeId>)| {
            as_set(placed).difference(&as_set(&before[shard])).count()
        };
        after.iter().map(new).sum()
    }

    #[test]
    fn a_new_node_gets_its_share_one_move_at_a_time() {
        let mut meta = cluster(3);
        assert!(next(&meta).is_empty(), "a new cluster is as it should be");
        meta.members.insert(node(4), member(""));
        assert_eq!(plan(&mut meta), 12, "a quarter of 48 replicas");
        assert_eq!(begun(&meta).len(), 1, "all of them go to the new node");
        assert_eq!(settle(&mut meta, 0).expect("it settles"), 0, "nothing else had to move");
        let led =
            |meta: &Meta| meta.placement.values().filter(|placed| placed[0] == node(4)).count();
        lead(&mut meta);
        assert_eq!(led(&meta), 4, "and its share of leaders");
    }

    #[test]
    fn paused_nothing_begins() {
        let mut meta = cluster(3);
        meta.members.insert(node(4), member(""));
        meta.membership.is_paused = true;
        assert!(next(&meta).is_empty());
    }

    #[test]
    fn who_is_drained_gives_its_leaders_away_at_once_and_its_replicas_if_there_is_room() {
        let mut meta = cluster(3);
        meta.membership.departures.insert(node(2), Departure::Drained);
        assert!(next(&meta).is_empty(), "there is no other node for them");
        meta.placement.extend(preferences(&meta, None));
        assert!(meta.placement.values().all(|placed| placed[2] == node(2)));
        lead(&mut meta);
        assert!(meta.placement.values().all(|placed| placed[2] == node(2)), "and stays last");
        meta.members.insert(node(4), member(""));
        assert_eq!(settle(&mut meta, 0).expect("it settles"), 16);
        assert!(!meta.holds_replicas(node(2)));
    }

    #[test]
    fn what_a_removed_node_held_is_restored_elsewhere_and_by_many_at_once() {
        let mut meta = cluster(5);
        let before = meta.placement.clone();
        let lost = before.values().filter(|placed| placed.contains(&node(1))).count();
        meta.membership.departures.insert(node(1), Departure::Removed);
        assert_eq!(plan(&mut meta), lost);
        assert!(begun(&meta).len() > 1, "the dead node has nothing to do in a move");
        assert_eq!(settle(&mut meta, 3).expect("it settles"), 0);
        assert_eq!(moved(&before, &meta.placement), lost);
    }

    #[test]
    fn the_meta_group_has_an_odd_number_of_voters_over_zones_that_stay() {
        let voters = |meta: &Meta, today: &[u32]| -> Vec<u32> {
            let today = today.iter().copied().map(node).collect();
            meta_voters(meta, &today).iter().map(|node| node.number()).collect()
        };
        assert_eq!(voters(&cluster(1), &[1]), [1]);
        assert_eq!(voters(&cluster(2), &[1, 2]), [1]);
        assert_eq!(voters(&cluster(4), &[2, 3, 4]), [2, 3, 4]);
        assert_eq!(voters(&cluster(7), &[1, 2, 3]), [1, 2, 3, 4, 5]);
        let mut meta = cluster(4);
        meta.membership.departures.insert(node(2), Departure::Removed);
        assert_eq!(voters(&meta, &[1, 2, 3]), [1, 3, 4]);
        meta.membership.departures.insert(node(3), Departure::Drained);
        assert_eq!(voters(&meta, &[1, 3, 4]), [1, 3, 4], "three are needed");
        let mut drained = cluster(5);
        drained.membership.departures.insert(node(2), Departure::Drained);
        assert_eq!(voters(&drained, &[1, 2, 3, 4, 5]), [1, 3, 4], "and not more than three");
        meta.membership.departures.remove(&node(3));
        meta.members.insert(node(5), member("elsewhere"));
        assert_eq!(voters(&meta, &[1, 3, 4]), [1, 3, 5]);
    }

    proptest! {
        #[test]
        fn whatever_changes_everything_comes_to_rest_and_only_what_must_moves(
            before in 1_u32..6,
            joined in prop::collection::vec(prop::sample::select(vec!["", "a", "b"]), 0..4),
            departing in prop::option::of((1_u32..6, any::<bool>())),
            pick in any::<usize>(),
        ) {
            let mut meta = cluster(before);
            for (number, zone) in (before + 1..).zip(&joined) {
                meta.members.insert(node(number), member(zone));
            }
            if let Some((number, is_removed)) = departing.filter(|(number, _)| *number <= before) {
                let departure = if is_removed { Departure::Removed } else { Departure::Drained };
                let mut state = Some(meta.clone());
                let depart = MembershipChange::Depart { node: node(number), departure };
                // Refused if too few would be left.
                if meta::apply(&mut state, &MetaChange::Membership(depart), LogTime::new(1)).is_ok() {
                    meta = state.expect("a cluster stays one");
                }
            }
            let placed = meta.placement.clone();
            let ideal = moved(&placed, &target(&meta, &placed));
            let count = settle(&mut meta, pick)?;
            // With zones, a plan that is made again half way may find another one that is as good.
            let detours = if joined.iter().all(|zone| zone.is_empty()) { 0 } else { ideal / 4 };
            prop_assert!(count.abs_diff(ideal) <= detours, "{} moves, {} must be", count, ideal);
            lead(&mut meta);
        }
    }
}
