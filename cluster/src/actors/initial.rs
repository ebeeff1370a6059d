//! The first state of a cluster: an id, where the shards live, and the policies that clients of Azure IoT Hub expect
//! (`spec/service-rest.md` section 2), each with two keys of its own.

use std::collections::{BTreeMap, BTreeSet};

use drover_core::access::Permission;
use drover_core::authority::Authorities;
use drover_core::device::Key;
use drover_core::ids::{NodeId, ShardCount};
use drover_core::level::{self, LevelRefusal, Levels};
use drover_core::membership::Membership;
use drover_core::meta::{Member, Meta, MetaRefusal, Policy};
use drover_core::placement::{self, Placement};
use rand::RngCore;

use super::backups::Restoration;
use super::cluster::Initialization;
use super::error::Error;

/// As long as a SHA-256 key can usefully be.
const KEY_BYTES: usize = 32;

const POLICIES: [(&str, &[Permission]); 5] = [
    // The owner also administers the cluster, which Azure IoT Hub has no name for.
    ("iothubowner", &Permission::ALL),
    ("service", &[Permission::ServiceConnect]),
    ("device", &[Permission::DeviceConnect]),
    ("registryRead", &[Permission::RegistryRead]),
    ("registryReadWrite", &[Permission::RegistryRead, Permission::RegistryWrite]),
];

pub(super) fn meta(
    initialization: Initialization,
    random: &mut impl RngCore,
) -> Result<Meta, Error> {
    let Initialization { members, shard_count, replication_factor } = initialization;
    let shard_count = ShardCount::new(shard_count)
        .ok_or_else(|| invalid("shard_count", "use 1 to 4096 shards"))?;
    let (members, placement) = placed(members, shard_count, replication_factor)?;
    let policies = POLICIES.iter().map(|(name, permissions)| {
        let permissions: BTreeSet<_> = permissions.iter().copied().collect();
        let policy = Policy { primary: key(random), secondary: key(random), permissions };
        ((*name).to_owned(), policy)
    });
    Ok(Meta {
        policies: policies.collect(),
        cluster_id: cluster_id(random),
        name: String::new(),
        levels: levels(&members),
        shard_count,
        replication_factor,
        members,
        placement,
        authorities: Authorities::new(),
        membership: Membership::default(),
        restoring: None,
        version: 0,
    })
}

/// What the backup says about devices, who may do what and whom to trust; nodes, and what is between them, are the new
/// cluster's own. The number of shards stays: it decides where each device belongs.
pub(super) fn restored(
    restoration: Restoration,
    backed_up: Meta,
    random: &mut impl RngCore,
) -> Result<Meta, Error> {
    let Restoration { backup, members, replication_factor, .. } = restoration;
    let replication_factor = replication_factor.unwrap_or(backed_up.replication_factor);
    let shard_count = backed_up.shard_count;
    let (members, placement) = placed(members, shard_count, replication_factor)?;
    let (supports, active) = (level::supported(), backed_up.levels.active);
    if supports < active {
        return Err(MetaRefusal::from(LevelRefusal::Outdated { supports, active }).into());
    }
    Ok(Meta {
        cluster_id: cluster_id(random),
        levels: levels(&members),
        replication_factor,
        members,
        placement,
        membership: Membership::default(),
        restoring: Some(backup),
        version: 0,
        ..backed_up
    })
}

fn placed(
    members: Vec<(NodeId, Member)>,
    shard_count: ShardCount,
    replication_factor: u8,
) -> Result<(BTreeMap<NodeId, Member>, Placement), Error> {
    if ![1, 3, 5].contains(&replication_factor) {
        return Err(invalid("replication_factor", "use 1, 3 or 5 replicas"));
    }
    let members: BTreeMap<_, _> = members.into_iter().collect();
    if members.is_empty() {
        return Err(invalid("members", "name at least one node"));
    }
    let factor = usize::from(replication_factor);
    let placement = placement::plan(shard_count, factor, &members, &BTreeMap::new());
    Ok((members, placement))
}

/// Who cannot do what this node can may not found a cluster with it: it ends and says so.
fn levels(members: &BTreeMap<NodeId, Member>) -> Levels {
    let active = level::supported();
    let supported = members.keys().map(|node| (*node, active)).collect();
    Levels { active, is_held: false, supported }
}

fn cluster_id(random: &mut impl RngCore) -> String {
    format!("{:016x}{:016x}", random.next_u64(), random.next_u64())
}

fn key(random: &mut impl RngCore) -> Key {
    let mut bytes = vec![0; KEY_BYTES];
    random.fill_bytes(&mut bytes);
    Key::new(bytes).expect("32 bytes are a legal key")
}

fn invalid(field: &str, problem: &str) -> Error {
    Error::Invalid { field: field.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_new_cluster_has_the_built_in_policies_with_different_keys() {
        let member = Member {
            peer_address: "127.0.0.1:1".to_owned(),
            admin_address: "127.0.0.1:2".to_owned(),
            zone: String::new(),
        };
        let members = vec![(NodeId::new(1, 0), member)];
        let initialization = Initialization { members, shard_count: 4, replication_factor: 3 };
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        let meta = meta(initialization, &mut random).expect("a legal cluster");
        let names: Vec<_> = meta.policies.keys().map(String::as_str).collect();
        let expected = ["device", "iothubowner", "registryRead", "registryReadWrite", "service"];
        assert_eq!(names, expected);
        let keys = meta.policies.values().flat_map(|policy| [&policy.primary, &policy.secondary]);
        let different: BTreeSet<_> = keys.map(|key| key.as_bytes().to_vec()).collect();
        assert_eq!(different.len(), 10);
        assert_eq!(meta.placement.len(), 4);
    }
}
