//! Why a change of the members was refused, between nodes.

use drover_core::ids::{GroupId, NodeId, ShardCount, ShardId};
use drover_core::membership::MembershipRefusal;
use drover_proto::cluster as proto;

use super::problem::of;

/// What all kinds begin with.
pub(super) const PREFIX: &str = "meta_member_";

pub(super) fn of_refusal(refusal: MembershipRefusal) -> proto::Problem {
    let of_node = |kind, node: NodeId| proto::Problem { number: Some(node.to_u64()), ..of(kind) };
    let of_number = |kind, number: u64| proto::Problem { number: Some(number), ..of(kind) };
    match refusal {
        MembershipRefusal::TokenUnknown => of("meta_member_token_unknown"),
        MembershipRefusal::TokenUsed { node } => of_node("meta_member_token_used", node),
        MembershipRefusal::TokenExpired => of("meta_member_token_expired"),
        MembershipRefusal::TooManyTokens { limit } => {
            of_number("meta_member_too_many_tokens", limit as u64)
        }
        MembershipRefusal::SignerExists => of("meta_member_signer_exists"),
        MembershipRefusal::NumberTaken { number } => {
            of_number("meta_member_number_taken", number.into())
        }
        MembershipRefusal::AddressTaken { address } => {
            proto::Problem { name: address, ..of("meta_member_address_taken") }
        }
        MembershipRefusal::TooManyMembers { limit } => {
            of_number("meta_member_too_many", limit as u64)
        }
        MembershipRefusal::MemberNotFound { node } => of_node("meta_member_not_found", node),
        MembershipRefusal::TooFewMembers { left, replicas } => proto::Problem {
            other: Some(replicas as u64),
            ..of_number("meta_member_too_few", left as u64)
        },
        MembershipRefusal::IsAlive { node } => of_node("meta_member_is_alive", node),
        MembershipRefusal::LosesQuorum { group, left } => proto::Problem {
            other: Some(left as u64),
            ..of_number("meta_member_loses_quorum", group.number().into())
        },
        MembershipRefusal::StillHolds { node } => of_node("meta_member_still_holds", node),
        MembershipRefusal::NoSuchMove { shard } => {
            of_number("meta_member_no_such_move", shard.number().into())
        }
    }
}

pub(super) fn refusal(problem: &proto::Problem) -> Option<MembershipRefusal> {
    let node = || problem.number.map(NodeId::from_u64);
    let count = || usize::try_from(problem.number?).ok();
    Some(match problem.kind.as_str() {
        "meta_member_token_unknown" => MembershipRefusal::TokenUnknown,
        "meta_member_token_used" => MembershipRefusal::TokenUsed { node: node()? },
        "meta_member_token_expired" => MembershipRefusal::TokenExpired,
        "meta_member_too_many_tokens" => MembershipRefusal::TooManyTokens { limit: count()? },
        "meta_member_signer_exists" => MembershipRefusal::SignerExists,
        "meta_member_number_taken" => {
            MembershipRefusal::NumberTaken { number: u32::try_from(problem.number?).ok()? }
        }
        "meta_member_address_taken" => {
            MembershipRefusal::AddressTaken { address: problem.name.clone() }
        }
        "meta_member_too_many" => MembershipRefusal::TooManyMembers { limit: count()? },
        "meta_member_not_found" => MembershipRefusal::MemberNotFound { node: node()? },
        "meta_member_too_few" => MembershipRefusal::TooFewMembers {
            left: count()?,
            replicas: usize::try_from(problem.other?).ok()?,
        },
        "meta_member_is_alive" => MembershipRefusal::IsAlive { node: node()? },
        "meta_member_loses_quorum" => MembershipRefusal::LosesQuorum {
            group: GroupId::from_number(u32::try_from(problem.number?).ok()?)?,
            left: usize::try_from(problem.other?).ok()?,
        },
        "meta_member_still_holds" => MembershipRefusal::StillHolds { node: node()? },
        "meta_member_no_such_move" => {
            let most = ShardCount::new(ShardCount::MAX)?;
            let number = u32::try_from(problem.number?).ok()?;
            MembershipRefusal::NoSuchMove { shard: ShardId::new(number, most)? }
        }
        _ => return None,
    })
}
