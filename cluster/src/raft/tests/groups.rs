//! What a cluster of three does when leaders die, nodes come back and followers lag.

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId};

use super::cluster::{Authority, Cluster, ENTRIES_KEPT, entry, shard, until};
use crate::raft::Error;

fn propose(cluster: &Cluster, group: GroupId, count: u64) {
    for _ in 0..count {
        let leader = cluster.leader_of(group);
        leader.run(leader.group(group).propose(entry())).expect("a majority runs");
    }
}

fn applied(cluster: &Cluster, node: NodeId, group: GroupId) -> Option<u64> {
    Some(cluster.nodes[&node].groups.get(group)?.progress().applied_index)
}

fn all_have_applied(cluster: &Cluster, group: GroupId, index: u64) {
    until("all nodes have applied the entry", || {
        let reached = |id| applied(cluster, id, group).is_some_and(|applied| applied >= index);
        let all = cluster.nodes.keys().all(|id| reached(*id));
        all.then_some(()).ok_or_else(|| cluster.describe(group))
    });
}

#[test]
fn what_is_proposed_at_the_leader_is_applied_at_every_replica() {
    let cluster = Cluster::start(4, None);
    for number in 0..4 {
        propose(&cluster, shard(number), 10);
        let index = cluster.leader_of(shard(number)).group(shard(number)).progress().applied_index;
        all_have_applied(&cluster, shard(number), index);
    }
}

#[test]
fn nodes_that_prove_who_they_are_form_a_cluster() {
    let cluster = Cluster::start(1, Some(Authority::new()));
    propose(&cluster, shard(0), 3);
}

#[test]
fn a_follower_proposes_nothing_and_names_the_leader() {
    let cluster = Cluster::start(1, None);
    let leader = cluster.leader_of(shard(0)).id;
    let follower = cluster.nodes.values().find(|node| node.id != leader).expect("there are three");
    let group = follower.group(shard(0));
    let refused = follower.run(group.propose(entry())).expect_err("only the leader proposes");
    assert_eq!(refused, Error::NotLeader { leader: Some(leader) });
    let refused = follower.run(group.read_barrier()).expect_err("only the leader reads");
    assert_eq!(refused, Error::NotLeader { leader: Some(leader) });
}

#[test]
fn leaders_are_where_the_placement_wants_them() {
    let cluster = Cluster::start(3, None);
    until("each node leads one shard", || {
        let leads = |number| cluster.leader_of(shard(number)).id.number() == number + 1;
        (0..3).all(leads).then_some(()).ok_or_else(|| cluster.describe(shard(0)))
    });
}

#[test]
fn a_killed_leader_is_replaced_and_its_node_comes_back_with_what_it_had() {
    let mut cluster = Cluster::start(1, None);
    propose(&cluster, shard(0), 5);
    let killed = cluster.leader_of(shard(0)).id;
    cluster.kill(killed);

    let leader = cluster.leader_of(shard(0));
    assert_ne!(leader.id, killed);
    leader.run(leader.group(shard(0)).read_barrier()).expect("the new leader has a quorum");
    propose(&cluster, shard(0), 5);
    let index = cluster.leader_of(shard(0)).group(shard(0)).progress().applied_index;
    assert!(index >= 10, "nothing was lost");

    cluster.start_node(killed.number());
    all_have_applied(&cluster, shard(0), index);
}

#[test]
fn a_follower_behind_the_purged_log_gets_a_snapshot() {
    let mut cluster = Cluster::start(1, None);
    let leader = cluster.leader_of(shard(0)).id;
    let away = cluster.nodes.keys().copied().find(|id| *id != leader).expect("there are three");
    cluster.kill(away);
    propose(&cluster, shard(0), 4 * ENTRIES_KEPT);
    let index = cluster.leader_of(shard(0)).group(shard(0)).progress().applied_index;
    until("the beginning of the log is purged", || {
        let progress = cluster.leader_of(shard(0)).group(shard(0)).progress();
        let purged = progress.purged_index > ENTRIES_KEPT;
        purged.then_some(()).ok_or_else(|| format!("{progress:?}"))
    });

    cluster.start_node(away.number());
    all_have_applied(&cluster, shard(0), index);
}

#[test]
fn leadership_is_handed_over_on_request_and_reads_go_on_there() {
    let cluster = Cluster::start(1, None);
    let before = cluster.leader_of(shard(0));
    let to = cluster.nodes.keys().copied().find(|id| *id != before.id).expect("there are three");
    before.run(before.group(shard(0)).transfer_leader(to)).expect("the other is up and has all");
    let after = cluster.leader_of(shard(0));
    after.run(after.group(shard(0)).read_barrier()).expect("it leads with a quorum");
}

#[test]
fn a_leader_without_a_quorum_neither_writes_nor_reads() {
    let mut cluster = Cluster::start(1, None);
    let leader = cluster.leader_of(shard(0)).id;
    let others: Vec<_> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    for id in others {
        cluster.kill(id);
    }
    let alone = &cluster.nodes[&leader];
    let group = alone.group(shard(0));
    alone.run(group.read_barrier()).expect_err("nobody confirms that it leads");
    let copied = alone.run(alone.groups.copy(leader, shard(0))).map(|copy| copy.index);
    copied.expect_err("a copy must have what others may have committed");
    until("it notices that it has no quorum", || {
        let proposed = alone.run(async {
            let write = group.propose(Bytes::new());
            tokio::time::timeout(std::time::Duration::from_millis(100), write).await
        });
        match proposed {
            Ok(Err(Error::NotLeader { .. })) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    });
}
