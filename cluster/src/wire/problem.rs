//! Why the leader did not do it, between nodes.
//!
//! A flat message with a kind by name: a node that does not know a kind, because a newer one sent it, takes the outcome
//! to be unknown, which is always true.

use drover_core::change::Refusal;
use drover_core::ids::{DeviceId, Etag, LogTime, NodeId, Offset, SessionEpoch, Version};
use drover_core::level::{FeatureLevel, LevelRefusal};
use drover_core::meta::MetaRefusal;
use drover_core::method::MethodFailure;
use drover_proto::cluster as proto;

use super::{membership, method, record};

/// Why a request was not carried out at the node that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    Refused(Refusal),
    RefusedByMeta(MetaRefusal),
    Method(MethodFailure),
    Invalid {
        field: String,
        problem: String,
    },
    /// Nothing was done: another node leads, or none.
    NotLeader {
        leader: Option<NodeId>,
    },
    /// Nothing was done.
    Busy {
        what: String,
    },
    /// Nothing was done.
    Restarted {
        device: DeviceId,
    },
    /// Nothing was done.
    DiskFull {
        node: String,
        free_bytes: u64,
    },
    /// Nothing was done.
    Stopping,
    /// Nothing was done.
    GroupStopped {
        problem: String,
    },
    NotInitialized,
    /// It may have been done or not.
    Unknown,
}

impl From<Failure> for proto::Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => of_refusal(refusal),
            Failure::RefusedByMeta(refusal) => of_meta_refusal(refusal),
            Failure::Method(failure) => method::of_failure(failure),
            Failure::Invalid { field, problem } => {
                Self { name: field, text: problem, ..of("invalid") }
            }
            Failure::NotLeader { leader } => {
                Self { number: leader.map(NodeId::to_u64), ..of("not_leader") }
            }
            Failure::Busy { what } => Self { name: what, ..of("busy") },
            Failure::Restarted { device } => {
                Self { device: device.as_str().to_owned(), ..of("restarted") }
            }
            Failure::DiskFull { node, free_bytes } => {
                Self { name: node, number: Some(free_bytes), ..of("disk_full") }
            }
            Failure::Stopping => of("stopping"),
            Failure::GroupStopped { problem } => Self { text: problem, ..of("group_stopped") },
            Failure::NotInitialized => of("not_initialized"),
            Failure::Unknown => of("unknown"),
        }
    }
}

impl From<proto::Problem> for Failure {
    fn from(problem: proto::Problem) -> Self {
        failure(&problem).unwrap_or(Self::Unknown)
    }
}

pub(super) fn of(kind: &str) -> proto::Problem {
    proto::Problem { kind: kind.to_owned(), ..proto::Problem::default() }
}

fn of_device(kind: &str, device: &DeviceId) -> proto::Problem {
    proto::Problem { device: device.as_str().to_owned(), ..of(kind) }
}

fn of_refusal(refusal: Refusal) -> proto::Problem {
    match refusal {
        Refusal::DeviceNotFound { device } => of_device("device_not_found", &device),
        Refusal::DeviceAlreadyExists { device } => of_device("device_already_exists", &device),
        Refusal::DeviceDisabled { device } => of_device("device_disabled", &device),
        Refusal::ModuleNotFound { module } => of_device("module_not_found", &module),
        Refusal::ModuleAlreadyExists { module } => of_device("module_already_exists", &module),
        Refusal::TooManyModules { device, limit } => {
            proto::Problem { number: Some(limit as u64), ..of_device("too_many_modules", &device) }
        }
        Refusal::EtagMismatch { current } => {
            proto::Problem { number: Some(current.get()), ..of("etag_mismatch") }
        }
        Refusal::VersionMismatch { current } => {
            proto::Problem { number: Some(current.get()), ..of("version_mismatch") }
        }
        Refusal::StaleSession { given, current } => proto::Problem {
            number: Some(given.get()),
            other: Some(current.get()),
            ..of("stale_session")
        },
        Refusal::CredentialsChanged => of("credentials_changed"),
        Refusal::InvalidTwin { path, problem } => {
            proto::Problem { name: path, text: problem, ..of("invalid_twin") }
        }
        Refusal::CursorBehind { group, current } => {
            proto::Problem { name: group, number: Some(current.get()), ..of("cursor_behind") }
        }
        Refusal::OffsetOutOfRange { given, end } => proto::Problem {
            number: Some(given.get()),
            other: Some(end.get()),
            ..of("offset_out_of_range")
        },
        Refusal::TooManyConsumerGroups { limit } => {
            proto::Problem { number: Some(limit as u64), ..of("too_many_consumer_groups") }
        }
        Refusal::MailboxFull { limit } => {
            proto::Problem { number: Some(limit.into()), ..of("mailbox_full") }
        }
        Refusal::MailboxTooLarge { limit_bytes } => {
            proto::Problem { number: Some(limit_bytes), ..of("mailbox_too_large") }
        }
        Refusal::CommandTooLarge { bytes, limit_bytes } => proto::Problem {
            number: Some(bytes),
            other: Some(limit_bytes),
            ..of("command_too_large")
        },
        Refusal::CommandExpired => of("command_expired"),
        Refusal::CommandExpiryTooFar { limit } => {
            proto::Problem { number: Some(limit.get()), ..of("command_expiry_too_far") }
        }
        Refusal::CommandNotFound { command } => {
            proto::Problem { name: command, ..of("command_not_found") }
        }
        Refusal::CommandEnded { ending } => {
            proto::Problem { number: Some(record::ending_number(ending)), ..of("command_ended") }
        }
        Refusal::CommandNotLocked => of("command_not_locked"),
    }
}

fn of_meta_refusal(refusal: MetaRefusal) -> proto::Problem {
    match refusal {
        MetaRefusal::AlreadyInitialized { cluster_id } => {
            proto::Problem { name: cluster_id, ..of("meta_already_initialized") }
        }
        MetaRefusal::NotInitialized => of("meta_not_initialized"),
        MetaRefusal::VersionMismatch { expected, current } => proto::Problem {
            number: Some(expected),
            other: Some(current),
            ..of("meta_version_mismatch")
        },
        MetaRefusal::PolicyNotFound { name } => {
            proto::Problem { name, ..of("meta_policy_not_found") }
        }
        MetaRefusal::InvalidPolicyName { name } => {
            proto::Problem { name, ..of("meta_invalid_policy_name") }
        }
        MetaRefusal::TooManyPolicies { limit } => {
            proto::Problem { number: Some(limit as u64), ..of("meta_too_many_policies") }
        }
        MetaRefusal::LastAdministrator { name } => {
            proto::Problem { name, ..of("meta_last_administrator") }
        }
        MetaRefusal::AuthorityNotFound { name } => {
            proto::Problem { name, ..of("meta_authority_not_found") }
        }
        MetaRefusal::AuthorityAlreadyExists { name } => {
            proto::Problem { name, ..of("meta_authority_already_exists") }
        }
        MetaRefusal::InvalidAuthorityName { name } => {
            proto::Problem { name, ..of("meta_invalid_authority_name") }
        }
        MetaRefusal::TooManyAuthorities { limit } => {
            proto::Problem { number: Some(limit as u64), ..of("meta_too_many_authorities") }
        }
        MetaRefusal::AuthorityCodeReplaced { name } => {
            proto::Problem { name, ..of("meta_authority_code_replaced") }
        }
        MetaRefusal::AuthorityIsProven { name } => {
            proto::Problem { name, ..of("meta_authority_is_proven") }
        }
        MetaRefusal::Membership(refusal) => membership::of_refusal(refusal),
        MetaRefusal::Level(refusal) => of_level_refusal(refusal),
        MetaRefusal::InvalidClusterName { limit } => {
            proto::Problem { number: Some(limit as u64), ..of("meta_invalid_cluster_name") }
        }
    }
}

fn of_level_refusal(refusal: LevelRefusal) -> proto::Problem {
    let number = |level: FeatureLevel| Some(u64::from(level.get()));
    match refusal {
        LevelRefusal::Outdated { supports, active } => proto::Problem {
            number: number(supports),
            other: number(active),
            ..of("meta_level_outdated")
        },
        LevelRefusal::NotDue { level } => {
            proto::Problem { number: number(level), ..of("meta_level_not_due") }
        }
        LevelRefusal::NotActive { needed, active } => proto::Problem {
            number: number(needed),
            other: number(active),
            ..of("meta_level_not_active")
        },
        LevelRefusal::NoMember { node } => {
            proto::Problem { number: Some(node.to_u64()), ..of("meta_level_no_member") }
        }
    }
}

/// `None`: the kind is not known here, or lacks what its kind needs.
fn failure(problem: &proto::Problem) -> Option<Failure> {
    let name = || problem.name.clone();
    let text = || problem.text.clone();
    Some(match problem.kind.as_str() {
        "invalid" => Failure::Invalid { field: name(), problem: text() },
        "not_leader" => Failure::NotLeader { leader: problem.number.map(NodeId::from_u64) },
        "busy" => Failure::Busy { what: name() },
        "restarted" => Failure::Restarted { device: DeviceId::from_key(&problem.device).ok()? },
        "disk_full" => Failure::DiskFull { node: name(), free_bytes: problem.number? },
        "stopping" => Failure::Stopping,
        "group_stopped" => Failure::GroupStopped { problem: text() },
        "not_initialized" => Failure::NotInitialized,
        kind if kind.starts_with("meta_") => Failure::RefusedByMeta(meta_refusal(problem)?),
        kind if kind.starts_with("method_") => Failure::Method(method::failure(problem)?),
        _ => Failure::Refused(refusal(problem)?),
    })
}

fn refusal(problem: &proto::Problem) -> Option<Refusal> {
    let device = || DeviceId::from_key(&problem.device).ok();
    Some(match problem.kind.as_str() {
        "device_not_found" => Refusal::DeviceNotFound { device: device()? },
        "device_already_exists" => Refusal::DeviceAlreadyExists { device: device()? },
        "device_disabled" => Refusal::DeviceDisabled { device: device()? },
        "module_not_found" => Refusal::ModuleNotFound { module: device()? },
        "module_already_exists" => Refusal::ModuleAlreadyExists { module: device()? },
        "too_many_modules" => Refusal::TooManyModules {
            device: device()?,
            limit: usize::try_from(problem.number?).ok()?,
        },
        "etag_mismatch" => Refusal::EtagMismatch { current: Etag::new(problem.number?) },
        "version_mismatch" => Refusal::VersionMismatch { current: Version::new(problem.number?) },
        "stale_session" => Refusal::StaleSession {
            given: SessionEpoch::new(problem.number?),
            current: SessionEpoch::new(problem.other?),
        },
        "credentials_changed" => Refusal::CredentialsChanged,
        "invalid_twin" => {
            Refusal::InvalidTwin { path: problem.name.clone(), problem: problem.text.clone() }
        }
        "cursor_behind" => Refusal::CursorBehind {
            group: problem.name.clone(),
            current: Offset::new(problem.number?),
        },
        "offset_out_of_range" => Refusal::OffsetOutOfRange {
            given: Offset::new(problem.number?),
            end: Offset::new(problem.other?),
        },
        "too_many_consumer_groups" => {
            Refusal::TooManyConsumerGroups { limit: usize::try_from(problem.number?).ok()? }
        }
        "mailbox_full" => Refusal::MailboxFull { limit: problem.number?.try_into().ok()? },
        "mailbox_too_large" => Refusal::MailboxTooLarge { limit_bytes: problem.number? },
        "command_too_large" => {
            Refusal::CommandTooLarge { bytes: problem.number?, limit_bytes: problem.other? }
        }
        "command_expired" => Refusal::CommandExpired,
        "command_expiry_too_far" => {
            Refusal::CommandExpiryTooFar { limit: LogTime::new(problem.number?) }
        }
        "command_not_found" => Refusal::CommandNotFound { command: problem.name.clone() },
        "command_ended" => {
            Refusal::CommandEnded { ending: record::ending_from_number(problem.number?)? }
        }
        "command_not_locked" => Refusal::CommandNotLocked,
        _ => return None,
    })
}

fn meta_refusal(problem: &proto::Problem) -> Option<MetaRefusal> {
    let name = problem.name.clone();
    Some(match problem.kind.as_str() {
        "meta_already_initialized" => MetaRefusal::AlreadyInitialized { cluster_id: name },
        "meta_not_initialized" => MetaRefusal::NotInitialized,
        "meta_version_mismatch" => {
            MetaRefusal::VersionMismatch { expected: problem.number?, current: problem.other? }
        }
        "meta_policy_not_found" => MetaRefusal::PolicyNotFound { name },
        "meta_invalid_policy_name" => MetaRefusal::InvalidPolicyName { name },
        "meta_too_many_policies" => {
            MetaRefusal::TooManyPolicies { limit: usize::try_from(problem.number?).ok()? }
        }
        "meta_last_administrator" => MetaRefusal::LastAdministrator { name },
        "meta_authority_not_found" => MetaRefusal::AuthorityNotFound { name },
        "meta_authority_already_exists" => MetaRefusal::AuthorityAlreadyExists { name },
        "meta_invalid_authority_name" => MetaRefusal::InvalidAuthorityName { name },
        "meta_too_many_authorities" => {
            MetaRefusal::TooManyAuthorities { limit: usize::try_from(problem.number?).ok()? }
        }
        "meta_authority_code_replaced" => MetaRefusal::AuthorityCodeReplaced { name },
        "meta_authority_is_proven" => MetaRefusal::AuthorityIsProven { name },
        "meta_invalid_cluster_name" => {
            MetaRefusal::InvalidClusterName { limit: usize::try_from(problem.number?).ok()? }
        }
        kind if kind.starts_with(membership::PREFIX) => {
            MetaRefusal::Membership(membership::refusal(problem)?)
        }
        _ => MetaRefusal::Level(level_refusal(problem)?),
    })
}

fn level_refusal(problem: &proto::Problem) -> Option<LevelRefusal> {
    let level = |number: u64| u16::try_from(number).map(FeatureLevel::new).ok();
    Some(match problem.kind.as_str() {
        "meta_level_outdated" => LevelRefusal::Outdated {
            supports: level(problem.number?)?,
            active: level(problem.other?)?,
        },
        "meta_level_not_due" => LevelRefusal::NotDue { level: level(problem.number?)? },
        "meta_level_not_active" => LevelRefusal::NotActive {
            needed: level(problem.number?)?,
            active: level(problem.other?)?,
        },
        "meta_level_no_member" => {
            LevelRefusal::NoMember { node: NodeId::from_u64(problem.number?) }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use drover_core::ids::{GroupId, ShardCount, ShardId};
    use drover_core::mailbox::Ending;
    use drover_core::membership::MembershipRefusal;

    use super::*;

    fn of_members(refusal: MembershipRefusal) -> Failure {
        Failure::RefusedByMeta(MetaRefusal::Membership(refusal))
    }

    #[test]
    fn every_failure_means_the_same_on_the_other_side() {
        let device: DeviceId = "pump-7".parse().expect("a legal id");
        let module = device.module(&"ai".parse().expect("a legal id"));
        let failures = [
            Failure::Refused(Refusal::DeviceNotFound { device: device.clone() }),
            Failure::Refused(Refusal::DeviceAlreadyExists { device: device.clone() }),
            Failure::Refused(Refusal::DeviceDisabled { device: device.clone() }),
            Failure::Refused(Refusal::ModuleNotFound { module: module.clone() }),
            Failure::Refused(Refusal::ModuleAlreadyExists { module }),
            Failure::Refused(Refusal::TooManyModules { device: device.clone(), limit: 50 }),
            Failure::Refused(Refusal::EtagMismatch { current: Etag::new(3) }),
            Failure::Refused(Refusal::VersionMismatch { current: Version::new(4) }),
            Failure::Refused(Refusal::StaleSession {
                given: SessionEpoch::new(1),
                current: SessionEpoch::new(2),
            }),
            Failure::Refused(Refusal::CredentialsChanged),
            Failure::Refused(Refusal::InvalidTwin { path: "a.b".into(), problem: "deep".into() }),
            Failure::Refused(Refusal::CursorBehind { group: "g".into(), current: Offset::new(9) }),
            Failure::Refused(Refusal::OffsetOutOfRange {
                given: Offset::new(1),
                end: Offset::new(0),
            }),
            Failure::Refused(Refusal::TooManyConsumerGroups { limit: 20 }),
            Failure::Refused(Refusal::MailboxFull { limit: 50 }),
            Failure::Refused(Refusal::MailboxTooLarge { limit_bytes: 9 }),
            Failure::Refused(Refusal::CommandTooLarge { bytes: 9, limit_bytes: 8 }),
            Failure::Refused(Refusal::CommandExpired),
            Failure::Refused(Refusal::CommandExpiryTooFar { limit: LogTime::new(5) }),
            Failure::Refused(Refusal::CommandNotFound { command: "c".into() }),
            Failure::Refused(Refusal::CommandEnded { ending: Ending::DeliveryCountExceeded }),
            Failure::Refused(Refusal::CommandNotLocked),
            Failure::RefusedByMeta(MetaRefusal::AlreadyInitialized { cluster_id: "c".into() }),
            Failure::RefusedByMeta(MetaRefusal::NotInitialized),
            Failure::RefusedByMeta(MetaRefusal::VersionMismatch { expected: 1, current: 2 }),
            Failure::RefusedByMeta(MetaRefusal::PolicyNotFound { name: "p".into() }),
            Failure::RefusedByMeta(MetaRefusal::InvalidPolicyName { name: "!".into() }),
            Failure::RefusedByMeta(MetaRefusal::TooManyPolicies { limit: 64 }),
            Failure::RefusedByMeta(MetaRefusal::LastAdministrator { name: "p".into() }),
            Failure::RefusedByMeta(MetaRefusal::AuthorityNotFound { name: "a".into() }),
            Failure::RefusedByMeta(MetaRefusal::AuthorityAlreadyExists { name: "a".into() }),
            Failure::RefusedByMeta(MetaRefusal::InvalidAuthorityName { name: "!".into() }),
            Failure::RefusedByMeta(MetaRefusal::TooManyAuthorities { limit: 25 }),
            Failure::RefusedByMeta(MetaRefusal::AuthorityCodeReplaced { name: "a".into() }),
            Failure::RefusedByMeta(MetaRefusal::AuthorityIsProven { name: "a".into() }),
            Failure::Method(MethodFailure::NotConnected),
            Failure::Method(MethodFailure::NotSubscribed),
            Failure::Method(MethodFailure::Moving),
            Failure::Method(MethodFailure::NoResponse),
            Failure::Method(MethodFailure::ConnectionLost),
            Failure::Method(MethodFailure::BadResponse),
            Failure::Method(MethodFailure::TooManyCalls { limit: 16 }),
            Failure::Invalid { field: "f".into(), problem: "p".into() },
            Failure::NotLeader { leader: Some(NodeId::new(3, 1)) },
            Failure::NotLeader { leader: None },
            Failure::Busy { what: "shard 3".into() },
            Failure::Restarted { device },
            Failure::DiskFull { node: "2".into(), free_bytes: 7 },
            Failure::Stopping,
            Failure::GroupStopped { problem: "corrupt".into() },
            Failure::NotInitialized,
            Failure::Unknown,
        ];
        for failure in failures {
            assert_eq!(Failure::from(proto::Problem::from(failure.clone())), failure);
        }
    }

    #[test]
    fn every_refusal_about_members_means_the_same_on_the_other_side() {
        let node = NodeId::new(7, 2);
        let count = ShardCount::new(16).expect("a legal count");
        let shard = ShardId::new(3, count).expect("a shard of 16");
        let refusals = [
            MembershipRefusal::TokenUnknown,
            MembershipRefusal::TokenUsed { node },
            MembershipRefusal::TokenExpired,
            MembershipRefusal::TooManyTokens { limit: 64 },
            MembershipRefusal::SignerExists,
            MembershipRefusal::NumberTaken { number: 7 },
            MembershipRefusal::AddressTaken { address: "a:1".into() },
            MembershipRefusal::TooManyMembers { limit: 9 },
            MembershipRefusal::MemberNotFound { node },
            MembershipRefusal::TooFewMembers { left: 2, replicas: 3 },
            MembershipRefusal::IsAlive { node },
            MembershipRefusal::LosesQuorum { group: GroupId::Shard(shard), left: 1 },
            MembershipRefusal::StillHolds { node },
            MembershipRefusal::NoSuchMove { shard },
        ];
        for failure in refusals.map(of_members) {
            assert_eq!(Failure::from(proto::Problem::from(failure.clone())), failure);
        }
    }

    #[test]
    fn every_refusal_about_levels_means_the_same_on_the_other_side() {
        let (low, high) = (FeatureLevel::new(1), FeatureLevel::new(2));
        let refusals = [
            MetaRefusal::Level(LevelRefusal::Outdated { supports: low, active: high }),
            MetaRefusal::Level(LevelRefusal::NotDue { level: high }),
            MetaRefusal::Level(LevelRefusal::NotActive { needed: high, active: low }),
            MetaRefusal::Level(LevelRefusal::NoMember { node: NodeId::new(7, 2) }),
            MetaRefusal::InvalidClusterName { limit: 64 },
        ];
        for failure in refusals.map(Failure::RefusedByMeta) {
            assert_eq!(Failure::from(proto::Problem::from(failure.clone())), failure);
        }
    }

    #[test]
    fn a_kind_of_a_newer_node_is_an_unknown_outcome() {
        assert_eq!(Failure::from(of("moved_to_the_moon")), Failure::Unknown);
    }
}
