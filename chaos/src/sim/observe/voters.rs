//! Who votes in a group, and whether two majorities can decide apart.

use std::collections::BTreeSet;

use drover_cluster::core::ids::{NodeId, ReplicaId};
use drover_cluster::raft::types::Membership;

/// The voters of a group: a majority of each set decides. There are two sets while one takes the place of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sim) struct Voters(pub(in crate::sim) Vec<BTreeSet<ReplicaId>>);

impl Voters {
    pub(super) fn of(membership: &Membership) -> Self {
        Self(membership.get_joint_config().clone())
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeSet<ReplicaId> {
        self.0.iter().flatten().copied().collect()
    }

    /// Whether these can decide.
    pub(super) fn is_quorum(&self, of: &BTreeSet<ReplicaId>) -> bool {
        self.0.iter().all(|voters| 2 * voters.intersection(of).count() > voters.len())
    }

    /// Whether whoever decides here has one in common with whoever decides there, however the voters are parted.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let all: Vec<ReplicaId> = self.all().union(&other.all()).copied().collect();
        (0_u32..1 << all.len()).all(|parted| {
            let side = |wanted| -> BTreeSet<ReplicaId> {
                let of_side =
                    all.iter().enumerate().filter(move |(bit, _)| parted >> bit & 1 == wanted);
                of_side.map(|(_, replica)| *replica).collect()
            };
            !(self.is_quorum(&side(0)) && other.is_quorum(&side(1)))
        })
    }

    /// A node that has two votes in one set: two replicas of the group stand on it.
    pub(super) fn doubled(&self) -> Option<NodeId> {
        self.0.iter().find_map(|voters| {
            let mut nodes = BTreeSet::new();
            voters.iter().map(|replica| replica.node()).find(|node| !nodes.insert(*node))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(sets: &[&[u32]]) -> Voters {
        let replica = |number: &u32| ReplicaId::first(NodeId::new(*number, 0));
        Voters(sets.iter().map(|set| set.iter().map(replica).collect()).collect())
    }

    #[test]
    fn one_voter_may_be_replaced_at_a_time_and_two_only_by_way_of_both_sets() {
        let (before, after) = (voters(&[&[1, 2, 3]]), voters(&[&[1, 4, 5]]));
        assert!(before.overlaps(&voters(&[&[1, 2, 3, 4]])));
        assert!(!before.overlaps(&after), "2 and 3 decide here, 4 and 5 there");
        assert!(!before.overlaps(&voters(&[&[1, 2, 4, 5]])), "1 and 3 here, but 2, 4 and 5 there");
        let both = voters(&[&[1, 2, 3], &[1, 4, 5]]);
        assert!(before.overlaps(&both) && both.overlaps(&after));
    }

    #[test]
    fn a_majority_of_each_set_is_needed() {
        let both = voters(&[&[1, 2, 3], &[1, 4, 5]]);
        assert!(both.is_quorum(&voters(&[&[1, 2, 4]]).all()));
        assert!(!both.is_quorum(&voters(&[&[1, 2, 3]]).all()));
    }

    #[test]
    fn two_replicas_on_one_node_are_found_unless_one_replaces_the_other() {
        let node = NodeId::new(1, 0);
        let (first, second) = (ReplicaId::first(node), ReplicaId::new(node, 1));
        assert_eq!(Voters(vec![BTreeSet::from([first, second])]).doubled(), Some(node));
        let replacing = Voters(vec![BTreeSet::from([first]), BTreeSet::from([second])]);
        assert_eq!(replacing.doubled(), None);
    }
}
