//! Nodes that come and go, and replicas on their way: part of the meta state, and what changes it.

use drover_core::ids::{LogTime, NodeId, ReplicaId, ShardId};
use drover_core::membership::{
    Departure, JoinToken, Joined, Joining, Membership, MembershipChange, Move, PlannedMove,
    PrivateKey, Signer,
};
use drover_proto::record::{self, members_change::Kind};

use super::meta::{member_from_record, member_to_record, shard_from_record};
use super::{levels, required};
use crate::wire::Invalid;

pub(super) fn to_record(membership: &Membership) -> record::MembersChanging {
    let departure =
        |(node, departure): (&NodeId, &Departure)| departure_to_record(*node, *departure);
    let retired = |((shard, node), count): (&(ShardId, NodeId), &u16)| record::RetiredReplicas {
        shard: shard.number(),
        node: node.to_u64(),
        count: (*count).into(),
    };
    record::MembersChanging {
        signer: membership.signer.as_ref().map(signer_to_record),
        tokens: membership.tokens.iter().map(|(id, token)| token_to_record(id, token)).collect(),
        departures: membership.departures.iter().map(departure).collect(),
        removed: membership.removed.iter().map(|node| node.to_u64()).collect(),
        moves: membership.moves.iter().map(|(shard, m)| move_to_record(*shard, m)).collect(),
        paused: membership.is_paused,
        retired: membership.retired.iter().map(retired).collect(),
    }
}

pub(super) fn from_record(record: record::MembersChanging) -> Result<Membership, Invalid> {
    let retired = |retired: record::RetiredReplicas| {
        let count = required("retired.count", u16::try_from(retired.count).ok())?;
        let shard = shard_from_record(retired.shard)?;
        Ok(((shard, NodeId::from_u64(retired.node)), count))
    };
    Ok(Membership {
        signer: record.signer.map(signer_from_record),
        tokens: record.tokens.into_iter().map(token_from_record).collect(),
        departures: record
            .departures
            .into_iter()
            .map(departure_from_record)
            .collect::<Result<_, _>>()?,
        removed: record.removed.into_iter().map(NodeId::from_u64).collect(),
        moves: record.moves.into_iter().map(move_from_record).collect::<Result<_, _>>()?,
        is_paused: record.paused,
        retired: record.retired.into_iter().map(retired).collect::<Result<_, _>>()?,
    })
}

pub(super) fn change_to_record(change: &MembershipChange) -> record::MembersChange {
    let kind = match change {
        MembershipChange::SetSigner(signer) => Kind::SetSigner(signer_to_record(signer)),
        MembershipChange::AddToken { id, token } => Kind::AddToken(token_to_record(id, token)),
        MembershipChange::Join(joining) => Kind::Join(record::NodeJoin {
            token: joining.token.clone(),
            number: joining.number,
            key_digest: joining.key_digest.clone(),
            member: Some(member_to_record(NodeId::default(), &joining.member)),
            feature_level: joining.supports.get().into(),
        }),
        MembershipChange::Depart { node, departure } => {
            Kind::Depart(departure_to_record(*node, *departure))
        }
        MembershipChange::Return { node } => Kind::Return(node.to_u64()),
        MembershipChange::Forget { node } => Kind::Forget(node.to_u64()),
        MembershipChange::PlanMoves { expected_version, moves } => {
            let planned = |planned: &PlannedMove| record::ReplicaMove {
                shard: planned.shard.number(),
                from: planned.from.map(NodeId::to_u64),
                to: planned.to.to_u64(),
                ..record::ReplicaMove::default()
            };
            Kind::PlanMoves(record::PlannedMoves {
                expected_version: *expected_version,
                moves: moves.iter().map(planned).collect(),
            })
        }
        MembershipChange::EndMove { shard, id } => Kind::EndMove(record::ReplicaMove {
            shard: shard.number(),
            id: *id,
            ..record::ReplicaMove::default()
        }),
        MembershipChange::PauseMoves(is_paused) => Kind::PauseMoves(*is_paused),
        MembershipChange::CancelMoves => Kind::CancelMoves(true),
        MembershipChange::Recover { survivor } => Kind::Recover(survivor.to_u64()),
        MembershipChange::Rebuild { shard, replica } => Kind::Rebuild(record::RebuiltReplica {
            shard: shard.number(),
            replica: replica.to_u64(),
        }),
    };
    record::MembersChange { kind: Some(kind) }
}

pub(super) fn change_from_record(
    change: record::MembersChange,
) -> Result<MembershipChange, Invalid> {
    Ok(match required("members_change.kind", change.kind)? {
        Kind::SetSigner(signer) => MembershipChange::SetSigner(signer_from_record(signer)),
        Kind::AddToken(token) => {
            let (id, token) = token_from_record(token);
            MembershipChange::AddToken { id, token }
        }
        Kind::Join(joining) => MembershipChange::Join(Joining {
            token: joining.token,
            number: joining.number,
            key_digest: joining.key_digest,
            member: member_from_record(required("join.member", joining.member)?).1,
            supports: levels::from_number(joining.feature_level)?,
        }),
        Kind::Depart(departure) => {
            let (node, departure) = departure_from_record(departure)?;
            MembershipChange::Depart { node, departure }
        }
        Kind::Return(node) => MembershipChange::Return { node: NodeId::from_u64(node) },
        Kind::Forget(node) => MembershipChange::Forget { node: NodeId::from_u64(node) },
        Kind::PlanMoves(planned) => MembershipChange::PlanMoves {
            expected_version: planned.expected_version,
            moves: planned.moves.into_iter().map(planned_move).collect::<Result<_, _>>()?,
        },
        Kind::EndMove(ended) => {
            MembershipChange::EndMove { shard: shard_from_record(ended.shard)?, id: ended.id }
        }
        Kind::PauseMoves(is_paused) => MembershipChange::PauseMoves(is_paused),
        Kind::CancelMoves(_) => MembershipChange::CancelMoves,
        Kind::Recover(node) => MembershipChange::Recover { survivor: NodeId::from_u64(node) },
        Kind::Rebuild(rebuilt) => MembershipChange::Rebuild {
            shard: shard_from_record(rebuilt.shard)?,
            replica: ReplicaId::from_u64(rebuilt.replica),
        },
    })
}

fn signer_to_record(signer: &Signer) -> record::Signer {
    record::Signer { certificate: signer.certificate.clone(), key: signer.key.0.clone() }
}

fn signer_from_record(signer: record::Signer) -> Signer {
    Signer { certificate: signer.certificate, key: PrivateKey(signer.key) }
}

fn token_to_record(id: &str, token: &JoinToken) -> record::JoinToken {
    let used = |used: &Joined| record::JoinedNode {
        node: used.node.to_u64(),
        key_digest: used.key_digest.clone(),
    };
    record::JoinToken {
        id: id.to_owned(),
        digest: token.digest.clone(),
        expires_ms: token.expires.get(),
        used: token.used.as_ref().map(used),
    }
}

fn token_from_record(token: record::JoinToken) -> (String, JoinToken) {
    let used = |used: record::JoinedNode| Joined {
        node: NodeId::from_u64(used.node),
        key_digest: used.key_digest,
    };
    let expires = LogTime::new(token.expires_ms);
    (token.id, JoinToken { digest: token.digest, expires, used: token.used.map(used) })
}

fn departure_to_record(node: NodeId, departure: Departure) -> record::NodeDeparture {
    let departure = match departure {
        Departure::Drained => record::Departure::Drained,
        Departure::Removed => record::Departure::Removed,
        Departure::Restarting => record::Departure::Restarting,
    };
    record::NodeDeparture { node: node.to_u64(), departure: departure.into() }
}

fn departure_from_record(record: record::NodeDeparture) -> Result<(NodeId, Departure), Invalid> {
    let departure = match record.departure() {
        record::Departure::Drained => Departure::Drained,
        record::Departure::Removed => Departure::Removed,
        record::Departure::Restarting => Departure::Restarting,
        record::Departure::Unspecified => return Err(Invalid::new("departure", "is not known")),
    };
    Ok((NodeId::from_u64(record.node), departure))
}

fn move_to_record(shard: ShardId, m: &Move) -> record::ReplicaMove {
    record::ReplicaMove {
        shard: shard.number(),
        id: m.id,
        from: m.from.map(NodeId::to_u64),
        to: m.to.to_u64(),
        cancelled: m.is_cancelled,
        began_ms: m.began.map(LogTime::get),
    }
}

fn move_from_record(record: record::ReplicaMove) -> Result<(ShardId, Move), Invalid> {
    let moved = Move {
        id: record.id,
        from: record.from.map(NodeId::from_u64),
        to: NodeId::from_u64(record.to),
        is_cancelled: record.cancelled,
        began: record.began_ms.map(LogTime::new),
    };
    Ok((shard_from_record(record.shard)?, moved))
}

fn planned_move(record: record::ReplicaMove) -> Result<PlannedMove, Invalid> {
    Ok(PlannedMove {
        shard: shard_from_record(record.shard)?,
        from: record.from.map(NodeId::from_u64),
        to: NodeId::from_u64(record.to),
    })
}
