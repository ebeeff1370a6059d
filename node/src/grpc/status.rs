//! Our errors as gRPC statuses: a code, what to do next, and whether to try again.
//!
//! A status carries the text of the error and, in `grpc-status-details-bin`, `google.rpc.ErrorInfo` (a stable reason under
//! the domain `drover`), `RetryInfo` where a repeat makes sense and `BadRequest` where a field is at fault. Retryable
//! statuses also carry `grpc-retry-pushback-ms`, which gRPC clients with a retry policy obey by themselves.
//!
//! | what happened | code |
//! |---|---|
//! | an etag or a version does not match | `ABORTED`: read again, repeat the change on what was read |
//! | the state forbids it (cluster exists already, cursor would go back) | `FAILED_PRECONDITION` |
//! | a full disk, too many of something, a rate limit | `RESOURCE_EXHAUSTED` |
//! | no leader, a full queue, a node that stops | `UNAVAILABLE`: nothing was changed, try again |
//! | a device that is to be called is not connected, or does not listen | `NOT_FOUND`, `FAILED_PRECONDITION` |
//! | a called device has not answered, its connection was lost, its answer is no JSON | `DEADLINE_EXCEEDED`, `UNKNOWN`, `INTERNAL` |
//! | no answer in time, the leader was lost | `DEADLINE_EXCEEDED`, `UNKNOWN`: read before you repeat |

use bytes::Bytes;
use drover_cluster::Error;
use drover_cluster::core::change::Refusal;
use drover_cluster::core::level::LevelRefusal;
use drover_cluster::core::membership::MembershipRefusal;
use drover_cluster::core::meta::MetaRefusal;
use drover_cluster::core::method::MethodFailure;
pub use drover_cluster::wire::Invalid;
use drover_proto::admin::BulkError;
use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The status of one request among many.
pub fn bulk_error(status: &Status) -> BulkError {
    BulkError { code: status.code().into(), message: status.message().to_owned() }
}

/// The status of a request that was not understood.
pub fn invalid(invalid: Invalid) -> Status {
    let violation =
        FieldViolation { field: invalid.field.clone(), description: invalid.problem.clone() };
    let bad_request = BadRequest { field_violations: vec![violation] };
    let details = vec![
        any("google.rpc.ErrorInfo", &ErrorInfo::of("INVALID_ARGUMENT")),
        any("google.rpc.BadRequest", &bad_request),
    ];
    with_details(Code::InvalidArgument, &invalid.to_string(), details, None)
}

/// The status of a request that the cluster did not carry out.
pub fn of(error: Error) -> Status {
    if let Error::Invalid { field, problem } = error {
        return invalid(Invalid { field, problem });
    }
    let Meaning { code, reason, retry_ms } = meaning(&error);
    let mut details = vec![any("google.rpc.ErrorInfo", &ErrorInfo::of(reason))];
    if let Some(ms) = retry_ms {
        details.push(any("google.rpc.RetryInfo", &RetryInfo::after_ms(ms)));
    }
    with_details(code, &error.to_string(), details, retry_ms)
}

/// A status with a stable reason, for refusals that arise at this edge.
pub fn refused(code: Code, reason: &'static str, text: &str) -> Status {
    with_details(code, text, vec![any("google.rpc.ErrorInfo", &ErrorInfo::of(reason))], None)
}

struct Meaning {
    code: Code,
    reason: &'static str,
    /// `None`: the same request will fail again, or must not be repeated blindly.
    retry_ms: Option<u64>,
}

impl Meaning {
    const fn of(code: Code, reason: &'static str) -> Self {
        Self { code, reason, retry_ms: None }
    }

    const fn again(code: Code, reason: &'static str, retry_ms: u64) -> Self {
        Self { code, reason, retry_ms: Some(retry_ms) }
    }
}

/// Waits are about as long as the cause lasts: an election takes some hundred milliseconds, a full queue less, room on
/// a disk needs a person or retention.
fn meaning(error: &Error) -> Meaning {
    match error {
        Error::Refused(refusal) => refusal_meaning(refusal),
        Error::RefusedByMeta(refusal) => meta_meaning(refusal),
        Error::Method(failure) => method_meaning(*failure),
        Error::Invalid { .. } => Meaning::of(Code::InvalidArgument, "INVALID_ARGUMENT"),
        Error::NoLeader { .. } => Meaning::again(Code::Unavailable, "NO_LEADER", 250),
        Error::Busy { .. } => Meaning::again(Code::Unavailable, "BUSY", 100),
        Error::RateLimited => Meaning::again(Code::ResourceExhausted, "RATE_LIMITED", 1_000),
        Error::Timeout => Meaning::of(Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
        Error::LeaderLost { .. } => Meaning::of(Code::Unknown, "OUTCOME_UNKNOWN"),
        Error::Restarted { .. } => Meaning::again(Code::Unavailable, "DEVICE_ACTOR_RESTARTED", 100),
        Error::DiskFull { .. } => Meaning::again(Code::ResourceExhausted, "DISK_FULL", 30_000),
        Error::NotInitialized => Meaning::of(Code::FailedPrecondition, "NOT_INITIALIZED"),
        Error::Restoring => Meaning::again(Code::Unavailable, "RESTORING", 1_000),
        Error::NotRestored { .. } => Meaning::of(Code::FailedPrecondition, "NOT_RESTORED"),
        Error::Stopping => Meaning::again(Code::Unavailable, "NODE_STOPPING", 0),
        Error::GroupStopped { .. } => Meaning::again(Code::Unavailable, "GROUP_STOPPED", 1_000),
    }
}

fn refusal_meaning(refusal: &Refusal) -> Meaning {
    let (code, reason) = match refusal {
        Refusal::DeviceNotFound { .. } => (Code::NotFound, "DEVICE_NOT_FOUND"),
        Refusal::DeviceAlreadyExists { .. } => (Code::AlreadyExists, "DEVICE_ALREADY_EXISTS"),
        Refusal::DeviceDisabled { .. } => (Code::FailedPrecondition, "DEVICE_DISABLED"),
        Refusal::ModuleNotFound { .. } => (Code::NotFound, "MODULE_NOT_FOUND"),
        Refusal::ModuleAlreadyExists { .. } => (Code::AlreadyExists, "MODULE_ALREADY_EXISTS"),
        Refusal::TooManyModules { .. } => (Code::ResourceExhausted, "TOO_MANY_MODULES"),
        Refusal::EtagMismatch { .. } => (Code::Aborted, "ETAG_MISMATCH"),
        Refusal::VersionMismatch { .. } => (Code::Aborted, "VERSION_MISMATCH"),
        Refusal::StaleSession { .. } => (Code::FailedPrecondition, "STALE_SESSION"),
        Refusal::CredentialsChanged => (Code::Unauthenticated, "CREDENTIALS_CHANGED"),
        Refusal::InvalidTwin { .. } => (Code::InvalidArgument, "INVALID_TWIN"),
        Refusal::CursorBehind { .. } => (Code::FailedPrecondition, "CURSOR_BEHIND"),
        Refusal::OffsetOutOfRange { .. } => (Code::OutOfRange, "OFFSET_OUT_OF_RANGE"),
        Refusal::TooManyConsumerGroups { .. } => {
            (Code::ResourceExhausted, "TOO_MANY_CONSUMER_GROUPS")
        }
        Refusal::MailboxFull { .. } | Refusal::MailboxTooLarge { .. } => {
            (Code::ResourceExhausted, "MAILBOX_FULL")
        }
        Refusal::CommandTooLarge { .. } => (Code::InvalidArgument, "COMMAND_TOO_LARGE"),
        Refusal::CommandExpired | Refusal::CommandExpiryTooFar { .. } => {
            (Code::InvalidArgument, "INVALID_EXPIRY")
        }
        Refusal::CommandNotFound { .. } => (Code::NotFound, "COMMAND_NOT_FOUND"),
        Refusal::CommandEnded { .. } => (Code::FailedPrecondition, "COMMAND_ENDED"),
        Refusal::CommandNotLocked => (Code::FailedPrecondition, "COMMAND_NOT_LOCKED"),
    };
    Meaning::of(code, reason)
}

/// A caller that sees `UNAVAILABLE` knows that the device was not called; the other codes leave no doubt about repeating
/// either.
fn method_meaning(failure: MethodFailure) -> Meaning {
    match failure {
        MethodFailure::NotConnected => Meaning::of(Code::NotFound, "DEVICE_NOT_CONNECTED"),
        MethodFailure::NotSubscribed => {
            Meaning::of(Code::FailedPrecondition, "DEVICE_NOT_SUBSCRIBED")
        }
        MethodFailure::Moving => Meaning::again(Code::Unavailable, "DEVICE_MOVING", 250),
        MethodFailure::NoResponse => Meaning::of(Code::DeadlineExceeded, "NO_DEVICE_RESPONSE"),
        MethodFailure::ConnectionLost => Meaning::of(Code::Unknown, "DEVICE_CONNECTION_LOST"),
        MethodFailure::BadResponse => Meaning::of(Code::Internal, "BAD_DEVICE_RESPONSE"),
        MethodFailure::TooManyCalls { .. } => {
            Meaning::again(Code::ResourceExhausted, "TOO_MANY_CALLS", 250)
        }
    }
}

fn meta_meaning(refusal: &MetaRefusal) -> Meaning {
    let (code, reason) = match refusal {
        MetaRefusal::AlreadyInitialized { .. } => (Code::FailedPrecondition, "ALREADY_INITIALIZED"),
        MetaRefusal::NotInitialized => (Code::FailedPrecondition, "NOT_INITIALIZED"),
        MetaRefusal::VersionMismatch { .. } => (Code::Aborted, "VERSION_MISMATCH"),
        MetaRefusal::PolicyNotFound { .. } => (Code::NotFound, "POLICY_NOT_FOUND"),
        MetaRefusal::InvalidPolicyName { .. } => (Code::InvalidArgument, "INVALID_POLICY_NAME"),
        MetaRefusal::TooManyPolicies { .. } => (Code::ResourceExhausted, "TOO_MANY_POLICIES"),
        MetaRefusal::LastAdministrator { .. } => (Code::FailedPrecondition, "LAST_ADMINISTRATOR"),
        MetaRefusal::AuthorityNotFound { .. } => (Code::NotFound, "AUTHORITY_NOT_FOUND"),
        MetaRefusal::AuthorityAlreadyExists { .. } => {
            (Code::AlreadyExists, "AUTHORITY_ALREADY_EXISTS")
        }
        MetaRefusal::InvalidAuthorityName { .. } => {
            (Code::InvalidArgument, "INVALID_AUTHORITY_NAME")
        }
        MetaRefusal::TooManyAuthorities { .. } => (Code::ResourceExhausted, "TOO_MANY_AUTHORITIES"),
        MetaRefusal::AuthorityCodeReplaced { .. } => (Code::Aborted, "AUTHORITY_CODE_REPLACED"),
        MetaRefusal::AuthorityIsProven { .. } => (Code::FailedPrecondition, "AUTHORITY_IS_PROVEN"),
        MetaRefusal::Membership(refusal) => return membership_meaning(refusal),
        MetaRefusal::Level(refusal) => match refusal {
            LevelRefusal::Outdated { .. } => (Code::FailedPrecondition, "BUILD_OUTDATED"),
            LevelRefusal::NotDue { .. } => (Code::FailedPrecondition, "FEATURE_LEVEL_NOT_DUE"),
            LevelRefusal::NotActive { .. } => (Code::FailedPrecondition, "FEATURE_LEVEL_TOO_LOW"),
            LevelRefusal::NoMember { .. } => (Code::NotFound, "MEMBER_NOT_FOUND"),
        },
        MetaRefusal::InvalidClusterName { .. } => (Code::InvalidArgument, "INVALID_CLUSTER_NAME"),
    };
    Meaning::of(code, reason)
}

fn membership_meaning(refusal: &MembershipRefusal) -> Meaning {
    let (code, reason) = match refusal {
        MembershipRefusal::TokenUnknown => (Code::Unauthenticated, "JOIN_TOKEN_UNKNOWN"),
        MembershipRefusal::TokenUsed { .. } => (Code::Unauthenticated, "JOIN_TOKEN_USED"),
        MembershipRefusal::TokenExpired => (Code::Unauthenticated, "JOIN_TOKEN_EXPIRED"),
        MembershipRefusal::TooManyTokens { .. } => {
            (Code::ResourceExhausted, "TOO_MANY_JOIN_TOKENS")
        }
        MembershipRefusal::SignerExists => (Code::Aborted, "SIGNER_EXISTS"),
        MembershipRefusal::NumberTaken { .. } => (Code::AlreadyExists, "NODE_NUMBER_TAKEN"),
        MembershipRefusal::AddressTaken { .. } => (Code::AlreadyExists, "NODE_ADDRESS_TAKEN"),
        MembershipRefusal::TooManyMembers { .. } => (Code::ResourceExhausted, "TOO_MANY_MEMBERS"),
        MembershipRefusal::MemberNotFound { .. } => (Code::NotFound, "MEMBER_NOT_FOUND"),
        MembershipRefusal::TooFewMembers { .. } => (Code::FailedPrecondition, "TOO_FEW_MEMBERS"),
        MembershipRefusal::IsAlive { .. } => (Code::FailedPrecondition, "NODE_IS_ALIVE"),
        MembershipRefusal::LosesQuorum { .. } => (Code::FailedPrecondition, "LOSES_QUORUM"),
        MembershipRefusal::StillHolds { .. } => (Code::FailedPrecondition, "NODE_HOLDS_REPLICAS"),
        MembershipRefusal::NoSuchMove { .. } => (Code::Aborted, "NO_SUCH_MOVE"),
    };
    Meaning::of(code, reason)
}

fn with_details(
    code: Code,
    text: &str,
    details: Vec<prost_types::Any>,
    retry_ms: Option<u64>,
) -> Status {
    let rich = RpcStatus { code: code as i32, message: text.to_owned(), details };
    let mut metadata = MetadataMap::new();
    if let Some(ms) = retry_ms {
        metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(ms));
    }
    Status::with_details_and_metadata(code, text, Bytes::from(rich.encode_to_vec()), metadata)
}

fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    let type_url = format!("type.googleapis.com/{name}");
    prost_types::Any { type_url, value: message.encode_to_vec() }
}

// The four messages of google.rpc that are used here, by hand, because a crate for them would bring thirty more.

#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
}

impl ErrorInfo {
    fn of(reason: &str) -> Self {
        Self { reason: reason.to_owned(), domain: "drover".to_owned() }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

impl RetryInfo {
    fn after_ms(ms: u64) -> Self {
        let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
        let nanos = (ms % 1_000) as i32 * 1_000_000;
        Self { retry_delay: Some(prost_types::Duration { seconds, nanos }) }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

#[cfg(test)]
mod tests {
    use drover_cluster::core::ids::{Etag, GroupId};

    use super::*;

    fn rich(status: &Status) -> RpcStatus {
        RpcStatus::decode(status.details()).expect("details are a google.rpc.Status")
    }

    #[test]
    fn a_stale_etag_is_aborted_and_is_not_to_be_repeated_as_it_is() {
        let status = of(Refusal::EtagMismatch { current: Etag::new(7) }.into());
        assert_eq!(status.code(), Code::Aborted);
        assert!(status.message().contains("read again"), "{}", status.message());
        assert!(status.metadata().get("grpc-retry-pushback-ms").is_none());
        let info = ErrorInfo::decode(rich(&status).details[0].value.as_slice()).expect("ErrorInfo");
        assert_eq!(info, ErrorInfo::of("ETAG_MISMATCH"));
    }

    #[test]
    fn nothing_was_changed_and_try_again_is_unavailable_with_a_wait() {
        let status = of(Error::NoLeader { group: GroupId::Meta });
        assert_eq!(status.code(), Code::Unavailable);
        let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("a wait");
        assert_eq!(pushback.to_str().expect("digits"), "250");
        assert_eq!(rich(&status).details[1].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    }

    #[test]
    fn an_unknown_outcome_never_invites_a_blind_repeat() {
        for (error, code) in [
            (Error::Timeout, Code::DeadlineExceeded),
            (Error::LeaderLost { group: GroupId::Meta }, Code::Unknown),
        ] {
            let status = of(error);
            assert_eq!(status.code(), code);
            assert!(status.message().contains("read before you repeat"), "{}", status.message());
            assert!(status.metadata().get("grpc-retry-pushback-ms").is_none());
        }
    }

    #[test]
    fn a_full_disk_is_resource_exhausted_and_says_what_to_do() {
        let status = of(Error::DiskFull { node: "2".to_owned(), free_bytes: 1 });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("make room"), "{}", status.message());
    }

    #[test]
    fn an_invalid_request_names_its_field() {
        let status = invalid(Invalid::new("page_size", "at most 1000"));
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "page_size: at most 1000")
        );
        assert_eq!(rich(&status).details[1].type_url, "type.googleapis.com/google.rpc.BadRequest");
    }
}
