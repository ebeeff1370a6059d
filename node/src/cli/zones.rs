//! Whether the replicas of each shard stand in different zones, as far as there are zones.

use std::collections::{BTreeMap, BTreeSet};

use drover_proto::admin::{ClusterStatus, MemberState, ShardStatus};

use super::output::counted;

/// The zone of each node by its number; empty where nobody has named any.
pub(super) struct Zones(BTreeMap<u32, String>);

impl Zones {
    pub(super) fn of(status: &ClusterStatus) -> Self {
        let stays = [MemberState::Active, MemberState::Restarting];
        let staying = status.nodes.iter().filter(|node| stays.contains(&node.state()));
        let members = staying.filter_map(|node| node.member.as_ref());
        let zones = members.map(|member| (member.number, member.zone.clone()));
        let zones: BTreeMap<u32, String> = zones.collect();
        if zones.values().all(String::is_empty) { Self(BTreeMap::new()) } else { Self(zones) }
    }

    /// Where the replicas of a shard stand.
    pub(super) fn of_shard(&self, shard: &ShardStatus) -> BTreeSet<&str> {
        shard
            .replicas
            .iter()
            .filter_map(|replica| self.0.get(&replica.node))
            .map(|z| &**z)
            .collect()
    }

    /// What is wrong with them: the loss of one zone would cost these shards more than it has to.
    pub(super) fn problem(&self, status: &ClusterStatus) -> Option<String> {
        let all: BTreeSet<&str> = self.0.values().map(|zone| &**zone).collect();
        let is_crowded =
            |shard: &&ShardStatus| self.of_shard(shard).len() < all.len().min(shard.replicas.len());
        let shards = status.shards.iter().filter(|shard| shard.shard.is_some());
        let crowded = shards.filter(is_crowded).count();
        let shards = counted(crowded as u64, "shard");
        (crowded > 0).then(|| format!("{shards} with replicas in fewer zones than there could be"))
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::admin::{Member, NodeStatus, ReplicaStatus};

    use super::*;

    fn status(zones: &[&str], replicas: &[u32]) -> ClusterStatus {
        let node = |(number, zone): (u32, &&str)| {
            let member = Member { number, zone: (*zone).to_owned(), ..Member::default() };
            let state = MemberState::Active.into();
            NodeStatus { member: Some(member), state, ..NodeStatus::default() }
        };
        let replica = |node: &u32| ReplicaStatus { node: *node, ..ReplicaStatus::default() };
        let replicas = replicas.iter().map(replica).collect();
        let shard = ShardStatus { shard: Some(0), replicas, ..ShardStatus::default() };
        let nodes = (1..).zip(zones).map(node).collect();
        ClusterStatus { nodes, shards: vec![shard], ..ClusterStatus::default() }
    }

    fn problem(zones: &[&str], replicas: &[u32]) -> Option<String> {
        let status = status(zones, replicas);
        Zones::of(&status).problem(&status)
    }

    #[test]
    fn replicas_that_share_a_zone_are_told_where_another_is_free() {
        assert_eq!(problem(&["a", "b", "c", "c"], &[1, 2, 4]), None);
        let crowded = Some("1 shard with replicas in fewer zones than there could be".to_owned());
        assert_eq!(problem(&["a", "b", "c", "c"], &[1, 3, 4]), crowded);
        assert_eq!(problem(&["a", "a", "b"], &[1, 2, 3]), None, "there are only two zones");
        assert_eq!(problem(&["", "", ""], &[1, 2, 3]), None, "nobody has named any");
    }
}
