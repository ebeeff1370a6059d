//! The state of the meta group, and what changes it.

use std::collections::BTreeMap;

use bytes::Bytes;
use drover_core::access::Permission;
use drover_core::authority::{Authority, AuthorityChange, Possession};
use drover_core::device::Status;
use drover_core::ids::{LogTime, NodeId, ShardCount, ShardId};
use drover_core::level;
use drover_core::meta::{Member, Meta, MetaChange, MetaEntry, Policy};
use drover_core::placement::Placement;
use drover_proto::record::{self, authority_change, meta_change::Kind};

use super::device::{key_from_record, key_to_record, status};
use super::{decode, encode, levels, membership, required};
use crate::wire::Invalid;

pub fn meta_to_bytes(meta: &Meta) -> Bytes {
    encode(&meta_to_record(meta))
}

pub fn meta_from_bytes(bytes: Bytes) -> Result<Meta, Invalid> {
    meta_from_record(decode("meta", bytes)?)
}

pub fn meta_entry_to_bytes(entry: &MetaEntry) -> Bytes {
    let mut expected_version = None;
    let kind = match &entry.change {
        MetaChange::Initialize(meta) => Kind::Initialize(meta_to_record(meta)),
        MetaChange::PutPolicy { name, policy, expected_version: expected } => {
            expected_version = *expected;
            Kind::PutPolicy(policy_to_record(name, policy))
        }
        MetaChange::DeletePolicy { name } => Kind::DeletePolicy(name.clone()),
        MetaChange::Authority { name, change } => {
            Kind::Authority(authority_change_to_record(name, change))
        }
        MetaChange::Membership(change) => Kind::Members(membership::change_to_record(change)),
        MetaChange::Level(change) => Kind::Level(levels::change_to_record(*change)),
        MetaChange::Rename { name } => Kind::Rename(name.clone()),
        MetaChange::EndRestore => Kind::EndRestore(true),
        MetaChange::Place { expected_version, placement } => Kind::Place(record::PlaceShards {
            expected_version: *expected_version,
            placements: placement_to_record(placement),
        }),
    };
    encode(&record::MetaChange { at_ms: entry.at.get(), expected_version, kind: Some(kind) })
}

pub fn meta_entry_from_bytes(bytes: Bytes) -> Result<MetaEntry, Invalid> {
    let entry: record::MetaChange = decode("meta change", bytes)?;
    let change = match required("meta_change.kind", entry.kind)? {
        Kind::Initialize(meta) => MetaChange::Initialize(Box::new(meta_from_record(meta)?)),
        Kind::PutPolicy(policy) => {
            let (name, policy) = policy_from_record(policy)?;
            MetaChange::PutPolicy { name, policy, expected_version: entry.expected_version }
        }
        Kind::DeletePolicy(name) => MetaChange::DeletePolicy { name },
        Kind::Place(place) => MetaChange::Place {
            expected_version: place.expected_version,
            placement: placement_from_record(place.placements)?,
        },
        Kind::Authority(change) => {
            let (name, change) = authority_change_from_record(change)?;
            MetaChange::Authority { name, change }
        }
        Kind::Members(change) => MetaChange::Membership(membership::change_from_record(change)?),
        Kind::Level(change) => MetaChange::Level(levels::change_from_record(change)?),
        Kind::Rename(name) => MetaChange::Rename { name },
        Kind::EndRestore(_) => MetaChange::EndRestore,
        Kind::PutSetting(_) => return Err(Invalid::new("meta_change.kind", "is not known")),
    };
    // Nobody proposes it while this node is a member; it is here for a node that was put back to an older build since.
    if change.feature().is_some_and(|feature| feature.level() > level::supported()) {
        return Err(Invalid::new("meta_change.kind", "is of a newer build"));
    }
    Ok(MetaEntry { at: LogTime::new(entry.at_ms), change })
}

fn meta_to_record(meta: &Meta) -> record::Meta {
    let member = |(node, member): (&NodeId, &Member)| member_to_record(*node, member);
    let policy = |(name, policy): (&String, &Policy)| policy_to_record(name, policy);
    record::Meta {
        cluster_id: meta.cluster_id.clone(),
        shard_count: meta.shard_count.get(),
        replication_factor: u32::from(meta.replication_factor),
        members: meta.members.iter().map(member).collect(),
        placements: placement_to_record(&meta.placement),
        policies: meta.policies.iter().map(policy).collect(),
        version: meta.version,
        settings: Vec::new(),
        authorities: meta.authorities.iter().map(authority_to_record).collect(),
        changing: Some(membership::to_record(&meta.membership)),
        levels: Some(levels::to_record(&meta.levels)),
        name: meta.name.clone(),
        restoring: meta.restoring.clone(),
    }
}

fn meta_from_record(meta: record::Meta) -> Result<Meta, Invalid> {
    let shard_count = ShardCount::new(meta.shard_count);
    let replication_factor = u8::try_from(meta.replication_factor).ok();
    Ok(Meta {
        cluster_id: meta.cluster_id,
        name: meta.name,
        shard_count: required("meta.shard_count", shard_count)?,
        replication_factor: required("meta.replication_factor", replication_factor)?,
        members: meta.members.into_iter().map(member_from_record).collect(),
        placement: placement_from_record(meta.placements)?,
        policies: meta
            .policies
            .into_iter()
            .map(policy_from_record)
            .collect::<Result<BTreeMap<_, _>, _>>()?,
        authorities: meta.authorities.into_iter().map(authority_from_record).collect(),
        membership: membership::from_record(meta.changing.unwrap_or_default())?,
        levels: levels::from_record(meta.levels.unwrap_or_default())?,
        restoring: meta.restoring,
        version: meta.version,
    })
}

pub(super) fn member_to_record(node: NodeId, member: &Member) -> record::NodeMember {
    record::NodeMember {
        node_id: node.to_u64(),
        peer_address: member.peer_address.clone(),
        admin_address: member.admin_address.clone(),
        zone: member.zone.clone(),
    }
}

pub(super) fn member_from_record(member: record::NodeMember) -> (NodeId, Member) {
    let record::NodeMember { node_id, peer_address, admin_address, zone } = member;
    (NodeId::from_u64(node_id), Member { peer_address, admin_address, zone })
}

/// Any number that a shard can have: how many the cluster has is known elsewhere.
pub(super) fn shard_from_record(number: u32) -> Result<ShardId, Invalid> {
    let most = ShardCount::new(ShardCount::MAX).expect("the limit itself is a legal count");
    required("shard", ShardId::new(number, most))
}

fn placement_to_record(placement: &Placement) -> Vec<record::Placement> {
    let shard = |(shard, replicas): (&ShardId, &Vec<NodeId>)| record::Placement {
        shard: shard.number(),
        replicas: replicas.iter().map(|node| node.to_u64()).collect(),
    };
    placement.iter().map(shard).collect()
}

fn placement_from_record(placements: Vec<record::Placement>) -> Result<Placement, Invalid> {
    let shard = |placement: record::Placement| {
        let shard = shard_from_record(placement.shard)?;
        Ok((shard, placement.replicas.into_iter().map(NodeId::from_u64).collect()))
    };
    placements.into_iter().map(shard).collect()
}

fn policy_to_record(name: &str, policy: &Policy) -> record::Policy {
    record::Policy {
        name: name.to_owned(),
        primary_key: key_to_record(&policy.primary),
        secondary_key: key_to_record(&policy.secondary),
        permissions: policy.permissions.iter().map(|p| permission_to_record(*p).into()).collect(),
    }
}

fn policy_from_record(policy: record::Policy) -> Result<(String, Policy), Invalid> {
    let permissions = policy.permissions().map(permission_from_record).collect::<Result<_, _>>()?;
    let primary = key_from_record("policy.primary_key", &policy.primary_key)?;
    let secondary = key_from_record("policy.secondary_key", &policy.secondary_key)?;
    Ok((policy.name, Policy { primary, secondary, permissions }))
}

fn authority_to_record((name, authority): (&String, &Authority)) -> record::Authority {
    let code = match &authority.possession {
        Possession::Unproven { code } => Some(code.clone()),
        Possession::Proven => None,
    };
    record::Authority {
        name: name.clone(),
        certificate: authority.certificate.clone(),
        code,
        disabled: authority.status == Status::Disabled,
    }
}

fn authority_from_record(authority: record::Authority) -> (String, Authority) {
    let record::Authority { name, certificate, code, disabled } = authority;
    let possession = code.map_or(Possession::Proven, |code| Possession::Unproven { code });
    (name, Authority { certificate, possession, status: status(disabled) })
}

fn authority_change_to_record(name: &str, change: &AuthorityChange) -> record::AuthorityChange {
    use authority_change::Kind;
    let kind = match change {
        AuthorityChange::Create { certificate, code } => Kind::Create(record::AuthorityCreation {
            certificate: certificate.clone(),
            code: code.clone(),
        }),
        AuthorityChange::ReplaceCode { code } => Kind::ReplaceCode(code.clone()),
        AuthorityChange::Prove { code } => Kind::Prove(code.clone()),
        AuthorityChange::SetStatus(status) => Kind::Disable(*status == Status::Disabled),
        AuthorityChange::Delete => Kind::Delete(true),
    };
    record::AuthorityChange { name: name.to_owned(), kind: Some(kind) }
}

fn authority_change_from_record(
    change: record::AuthorityChange,
) -> Result<(String, AuthorityChange), Invalid> {
    use authority_change::Kind;
    let kind = match required("authority_change.kind", change.kind)? {
        Kind::Create(record::AuthorityCreation { certificate, code }) => {
            AuthorityChange::Create { certificate, code }
        }
        Kind::ReplaceCode(code) => AuthorityChange::ReplaceCode { code },
        Kind::Prove(code) => AuthorityChange::Prove { code },
        Kind::Disable(disabled) => AuthorityChange::SetStatus(status(disabled)),
        Kind::Delete(_) => AuthorityChange::Delete,
    };
    Ok((change.name, kind))
}

fn permission_to_record(permission: Permission) -> record::Permission {
    match permission {
        Permission::RegistryRead => record::Permission::RegistryRead,
        Permission::RegistryWrite => record::Permission::RegistryWrite,
        Permission::ServiceConnect => record::Permission::ServiceConnect,
        Permission::DeviceConnect => record::Permission::DeviceConnect,
        Permission::ClusterAdmin => record::Permission::ClusterAdmin,
    }
}

fn permission_from_record(permission: record::Permission) -> Result<Permission, Invalid> {
    match permission {
        record::Permission::RegistryRead => Ok(Permission::RegistryRead),
        record::Permission::RegistryWrite => Ok(Permission::RegistryWrite),
        record::Permission::ServiceConnect => Ok(Permission::ServiceConnect),
        record::Permission::DeviceConnect => Ok(Permission::DeviceConnect),
        record::Permission::ClusterAdmin => Ok(Permission::ClusterAdmin),
        record::Permission::Unspecified => Err(Invalid::new("permission", "is not known")),
    }
}
