//! The cluster itself: protobuf to typed requests and back.

use std::collections::BTreeSet;

use drover_cluster::actors::cluster::{ClusterStatus, Initialization, NodeStatus, ShardStatus};
use drover_cluster::core::access::Permission;
use drover_cluster::core::ids::{GroupId, NodeId, ShardCount, ShardId};
use drover_cluster::core::membership::{Departure, Move};
use drover_cluster::core::meta::{Member, Policy};
use drover_proto::admin;

use super::devices::{key, key_text};
use crate::grpc::status::Invalid;

const SHARD_COUNT_DEFAULT: u32 = 16;
const MEMBERS_MAX: usize = 1_000;

pub(crate) fn initialization(request: admin::InitializeRequest) -> Result<Initialization, Invalid> {
    let members = members(request.members)?;
    let shard_count = match request.shard_count {
        0 => SHARD_COUNT_DEFAULT,
        count => ShardCount::new(count)
            .map(ShardCount::get)
            .ok_or_else(|| Invalid::new("shard_count", "1 to 4096 shards are possible"))?,
    };
    let replication_factor = replication_factor(request.replication_factor, members.len())?;
    Ok(Initialization { members, shard_count, replication_factor })
}

/// The nodes that make up a new cluster.
pub(crate) fn members(given: Vec<admin::Member>) -> Result<Vec<(NodeId, Member)>, Invalid> {
    if given.is_empty() || given.len() > MEMBERS_MAX {
        return Err(Invalid::new("members", "name the nodes that make up the cluster, 1 to 1000"));
    }
    let members: Vec<_> = given.into_iter().map(member).collect::<Result<_, _>>()?;
    let distinct: BTreeSet<_> = members.iter().map(|(node, _)| node.number()).collect();
    if distinct.len() != members.len() {
        return Err(Invalid::new("members", "two members have the same number"));
    }
    Ok(members)
}

fn replication_factor(given: u32, members: usize) -> Result<u8, Invalid> {
    let factor: u8 = match given {
        0 if members < 3 => 1,
        0 => 3,
        1 | 3 | 5 => given as u8,
        _ => return Err(Invalid::new("replication_factor", "1, 3 or 5 replicas are possible")),
    };
    if usize::from(factor) > members {
        let problem = format!("{factor} replicas need as many members, and there are {members}");
        return Err(Invalid::new("replication_factor", problem));
    }
    Ok(factor)
}

fn member(member: admin::Member) -> Result<(NodeId, Member), Invalid> {
    if member.number == 0 {
        return Err(Invalid::new("members.number", "nodes are numbered from 1"));
    }
    let generation = u16::try_from(member.generation)
        .map_err(|_| Invalid::new("members.generation", "at most 65535 are possible"))?;
    for (field, address) in [
        ("members.peer_address", &member.peer_address),
        ("members.admin_address", &member.admin_address),
    ] {
        check_address(field, address)?;
    }
    let node = NodeId::new(member.number, generation);
    let member = Member {
        peer_address: member.peer_address,
        admin_address: member.admin_address,
        zone: member.zone,
    };
    Ok((node, member))
}

pub(crate) fn check_address(field: &str, address: &str) -> Result<(), Invalid> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    port.map(drop).ok_or_else(|| Invalid::new(field, format!("{address:?} is not host:port")))
}

/// A policy to be stored; empty keys are those of `current`, or made.
pub(crate) fn policy(
    given: &admin::Policy,
    current: Option<&Policy>,
) -> Result<(String, Policy), Invalid> {
    let permissions: BTreeSet<_> = given
        .permissions
        .iter()
        .map(|permission| self::permission(*permission))
        .collect::<Result<_, _>>()?;
    if permissions.is_empty() {
        return Err(Invalid::new("policy.permissions", "a policy needs at least one permission"));
    }
    let policy = Policy {
        primary: key("policy.primary_key", &given.primary_key, current.map(|p| &p.primary))?,
        secondary: key(
            "policy.secondary_key",
            &given.secondary_key,
            current.map(|p| &p.secondary),
        )?,
        permissions,
    };
    Ok((given.name.clone(), policy))
}

fn permission(permission: i32) -> Result<Permission, Invalid> {
    match admin::Permission::try_from(permission) {
        Ok(admin::Permission::RegistryRead) => Ok(Permission::RegistryRead),
        Ok(admin::Permission::RegistryWrite) => Ok(Permission::RegistryWrite),
        Ok(admin::Permission::ServiceConnect) => Ok(Permission::ServiceConnect),
        Ok(admin::Permission::DeviceConnect) => Ok(Permission::DeviceConnect),
        Ok(admin::Permission::ClusterAdmin) => Ok(Permission::ClusterAdmin),
        Ok(admin::Permission::Unspecified) | Err(_) => {
            Err(Invalid::new("policy.permissions", format!("{permission} is not a permission")))
        }
    }
}

pub(crate) fn policy_answer(name: &str, policy: &Policy) -> admin::Policy {
    let permission = |permission: &Permission| match permission {
        Permission::RegistryRead => admin::Permission::RegistryRead.into(),
        Permission::RegistryWrite => admin::Permission::RegistryWrite.into(),
        Permission::ServiceConnect => admin::Permission::ServiceConnect.into(),
        Permission::DeviceConnect => admin::Permission::DeviceConnect.into(),
        Permission::ClusterAdmin => admin::Permission::ClusterAdmin.into(),
    };
    admin::Policy {
        name: name.to_owned(),
        primary_key: key_text(&policy.primary),
        secondary_key: key_text(&policy.secondary),
        permissions: policy.permissions.iter().map(permission).collect(),
    }
}

pub(crate) fn status(status: &ClusterStatus) -> admin::ClusterStatus {
    admin::ClusterStatus {
        cluster_id: status.meta.cluster_id.clone(),
        answered_by: status.answered_by.number(),
        nodes: status.nodes.iter().map(|node| node_status(node, status)).collect(),
        shards: status.shards.iter().map(shard_status).collect(),
        device_count: status.shards.iter().map(|shard| shard.device_count).sum(),
        moves: status.meta.membership.moves.iter().map(|m| move_status(m, status)).collect(),
        moves_paused: status.meta.membership.is_paused,
        name: status.meta.name.clone(),
        active_level: status.meta.levels.active.get().into(),
        restoring: status.meta.restoring.clone().unwrap_or_default(),
        upgrade_held: status.meta.levels.is_held,
    }
}

fn move_status((id, m): (&ShardId, &Move), status: &ClusterStatus) -> admin::MoveStatus {
    let shard = status.shards.iter().find(|shard| shard.shard == Some(*id));
    let follower = shard.and_then(|s| s.followers.iter().find(|(node, _)| *node == m.to));
    let receiver = status.nodes.iter().find(|node| node.node == m.to);
    admin::MoveStatus {
        shard: id.number(),
        from: m.from.map(NodeId::number),
        to: m.to.number(),
        began: m.began.map(super::timestamp),
        cancelled: m.is_cancelled,
        matched_index: follower.and_then(|(_, matched)| *matched),
        last_index: shard.map(|shard| shard.committed_index),
        received_bytes: receiver.and_then(|node| node.receiving.get(&GroupId::Shard(*id))).copied(),
    }
}

fn member_state(node: NodeId, status: &ClusterStatus) -> admin::MemberState {
    match status.meta.membership.departures.get(&node) {
        None => admin::MemberState::Active,
        Some(Departure::Drained) => admin::MemberState::Drained,
        Some(Departure::Removed) => admin::MemberState::Removed,
        Some(Departure::Restarting) => admin::MemberState::Restarting,
    }
}

fn node_status(node: &NodeStatus, status: &ClusterStatus) -> admin::NodeStatus {
    let hosts = |shard: &&ShardStatus| shard.replicas.iter().any(|(host, ..)| *host == node.node);
    let leads = |shard: &&ShardStatus| shard.leader == Some(node.node);
    let member = status.meta.members.get(&node.node);
    admin::NodeStatus {
        member: Some(admin::Member {
            number: node.node.number(),
            generation: node.node.generation().into(),
            peer_address: member.map(|member| member.peer_address.clone()).unwrap_or_default(),
            admin_address: member.map(|member| member.admin_address.clone()).unwrap_or_default(),
            zone: member.map(|member| member.zone.clone()).unwrap_or_default(),
        }),
        reachable: node.reachable,
        version: node.version.clone(),
        replicas: status.shards.iter().filter(hosts).count() as u32,
        leaders: status.shards.iter().filter(leads).count() as u32,
        sessions: node.sessions,
        started: Some(super::timestamp(node.started)),
        disk_free_bytes: node.disk_free_bytes,
        problems: node.problems.clone(),
        state: member_state(node.node, status).into(),
        sync_ms: node.sync_ms,
        delay_ms: node.delay_ms,
        feature_level: status.meta.supported_by(node.node).get().into(),
    }
}

fn shard_status(shard: &ShardStatus) -> admin::ShardStatus {
    let replica = |(node, matched, problem): &(NodeId, Option<u64>, String)| admin::ReplicaStatus {
        node: node.number(),
        matched_index: *matched,
        lag: matched.map(|matched| shard.committed_index.saturating_sub(matched)),
        problem: problem.clone(),
    };
    admin::ShardStatus {
        shard: shard.shard.map(ShardId::number),
        leader: shard.leader.map(NodeId::number),
        term: shard.term,
        committed_index: shard.committed_index,
        replicas: shard.replicas.iter().map(replica).collect(),
        first_offset: shard.first_offset.get(),
        next_offset: shard.next_offset.get(),
        device_count: shard.device_count,
        load: shard.load,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32) -> admin::Member {
        admin::Member {
            number,
            peer_address: "127.0.0.1:1".to_owned(),
            admin_address: "[::1]:2".to_owned(),
            ..Default::default()
        }
    }

    fn request(members: u32, replication_factor: u32) -> admin::InitializeRequest {
        let members = (1..=members).map(node).collect();
        admin::InitializeRequest { members, shard_count: 0, replication_factor }
    }

    #[test]
    fn a_cluster_has_three_replicas_if_it_can_and_sixteen_shards() {
        let factor =
            |members, given| initialization(request(members, given)).map(|i| i.replication_factor);
        assert_eq!(factor(1, 0), Ok(1));
        assert_eq!(factor(2, 0), Ok(1));
        assert_eq!(factor(3, 0), Ok(3));
        assert_eq!(factor(5, 5), Ok(5));
        assert!(factor(2, 3).is_err());
        assert!(factor(5, 2).is_err());
        assert_eq!(initialization(request(1, 0)).map(|i| i.shard_count), Ok(16));
    }

    #[test]
    fn members_must_be_distinct_and_reachable_by_address() {
        let mut twice = request(2, 0);
        twice.members[1].number = 1;
        assert!(initialization(twice).is_err());
        let mut nowhere = request(1, 0);
        nowhere.members[0].peer_address = "localhost".to_owned();
        assert!(initialization(nowhere).is_err());
        assert!(initialization(request(0, 0)).is_err());
    }

    #[test]
    fn a_policy_keeps_the_keys_that_a_change_leaves_empty() {
        let given = admin::Policy {
            name: "reader".to_owned(),
            permissions: vec![admin::Permission::RegistryRead.into()],
            ..Default::default()
        };
        let (_, made) = policy(&given, None).expect("it is valid");
        assert_ne!(made.primary, made.secondary);
        let (_, kept) = policy(&given, Some(&made)).expect("it is valid");
        assert_eq!(kept, made);
        let nothing = admin::Policy { permissions: vec![], ..given.clone() };
        assert!(policy(&nothing, None).is_err());
        let unknown = admin::Policy { permissions: vec![0], ..given };
        assert!(policy(&unknown, None).is_err());
    }
}
