//! Our errors as MQTT can say them: return codes of CONNACK, statuses and bodies of twin answers, or a closed connection
//! (`spec/mqtt.md` sections 2, 7.3 and 10).

use drover_cluster::Error;
use drover_core::change::Refusal;
use mqtt_protocol_core::mqtt::result_code::ConnectReturnCode;
use time::OffsetDateTime;
use time::macros::format_description;

use super::close::CloseReason;
use super::session::OpenError;

/// Why a connect was refused. Everything about the identity is one code, so that ids cannot be probed.
pub fn return_code(error: OpenError) -> ConnectReturnCode {
    match error {
        OpenError::Denied => ConnectReturnCode::NotAuthorized,
        OpenError::Unavailable => ConnectReturnCode::ServerUnavailable,
    }
}

/// How a connection ends when the cluster refuses what it asked for.
pub fn open_error(error: &Error) -> OpenError {
    match error {
        // Another connection of the device, or of its administrator, was quicker: the next attempt may succeed.
        Error::Refused(Refusal::StaleSession { .. } | Refusal::CredentialsChanged) => {
            OpenError::Unavailable
        }
        Error::Refused(_) => OpenError::Denied,
        Error::RefusedByMeta(_)
        | Error::Method(_)
        | Error::Invalid { .. }
        | Error::NoLeader { .. }
        | Error::Busy { .. }
        | Error::Restarted { .. }
        | Error::RateLimited
        | Error::Timeout
        | Error::LeaderLost { .. }
        | Error::DiskFull { .. }
        | Error::NotInitialized
        | Error::Restoring
        | Error::NotRestored { .. }
        | Error::Stopping
        | Error::GroupStopped { .. } => OpenError::Unavailable,
    }
}

/// What a failed request means for the connection that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing was changed: ask again later.
    Retry,
    /// Nothing more can be promised on this connection.
    Close(CloseReason),
}

/// MQTT 3.1.1 has no negative PUBACK, so that a message is either delayed or costs the connection.
pub fn remedy(error: &Error) -> Remedy {
    match error {
        Error::Busy { .. }
        | Error::Restarted { .. }
        | Error::RateLimited
        | Error::DiskFull { .. } => Remedy::Retry,
        Error::Refused(refusal) => Remedy::Close(ended_by(refusal).unwrap_or(CloseReason::Refused)),
        Error::RefusedByMeta(_) | Error::Method(_) | Error::Invalid { .. } => {
            Remedy::Close(CloseReason::Refused)
        }
        // The client sends again what has no PUBACK.
        Error::Timeout | Error::LeaderLost { .. } => Remedy::Close(CloseReason::UnknownOutcome),
        Error::NoLeader { .. }
        | Error::NotInitialized
        | Error::Restoring
        | Error::NotRestored { .. }
        | Error::GroupStopped { .. } => Remedy::Close(CloseReason::Unavailable),
        Error::Stopping => Remedy::Close(CloseReason::Stopping),
    }
}

/// Whether a refusal says that this connection has lost its right to speak.
pub fn ended_by(refusal: &Refusal) -> Option<CloseReason> {
    match refusal {
        Refusal::StaleSession { .. } => Some(CloseReason::Replaced),
        Refusal::DeviceNotFound { .. }
        | Refusal::ModuleNotFound { .. }
        | Refusal::DeviceDisabled { .. }
        | Refusal::CredentialsChanged => Some(CloseReason::Revoked),
        Refusal::DeviceAlreadyExists { .. }
        | Refusal::ModuleAlreadyExists { .. }
        | Refusal::TooManyModules { .. }
        | Refusal::EtagMismatch { .. }
        | Refusal::VersionMismatch { .. }
        | Refusal::InvalidTwin { .. }
        | Refusal::CursorBehind { .. }
        | Refusal::OffsetOutOfRange { .. }
        | Refusal::TooManyConsumerGroups { .. }
        | Refusal::MailboxFull { .. }
        | Refusal::MailboxTooLarge { .. }
        | Refusal::CommandTooLarge { .. }
        | Refusal::CommandExpired
        | Refusal::CommandExpiryTooFar { .. }
        | Refusal::CommandNotFound { .. }
        | Refusal::CommandEnded { .. }
        | Refusal::CommandNotLocked => None,
    }
}

/// The status of a failed twin request and the code that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwinStatus {
    pub status: u16,
    pub error_code: u32,
}

pub const INVALID_TWIN: TwinStatus = TwinStatus { status: 400, error_code: 400_004 };
const PRECONDITION_FAILED: TwinStatus = TwinStatus { status: 412, error_code: 412_001 };
const THROTTLED: TwinStatus = TwinStatus { status: 429, error_code: 429_001 };
const UNAVAILABLE: TwinStatus = TwinStatus { status: 503, error_code: 503_001 };

/// How a twin request failed. An unknown outcome is 503, too: the device reads its twin before it repeats.
pub fn twin_status(error: &Error) -> TwinStatus {
    match error {
        Error::Refused(Refusal::VersionMismatch { .. } | Refusal::EtagMismatch { .. }) => {
            PRECONDITION_FAILED
        }
        Error::Refused(_) | Error::RefusedByMeta(_) | Error::Method(_) | Error::Invalid { .. } => {
            INVALID_TWIN
        }
        Error::Busy { .. } | Error::RateLimited => THROTTLED,
        Error::NoLeader { .. }
        | Error::Restarted { .. }
        | Error::Timeout
        | Error::LeaderLost { .. }
        | Error::DiskFull { .. }
        | Error::NotInitialized
        | Error::Restoring
        | Error::NotRestored { .. }
        | Error::Stopping
        | Error::GroupStopped { .. } => UNAVAILABLE,
    }
}

/// The body of a failed twin request. The Node SDK looks at nothing but its `errorCode`.
pub fn twin_error_body(
    status: TwinStatus,
    message: &str,
    tracking_id: &str,
    unix_ms: u64,
) -> Vec<u8> {
    let body = serde_json::json!({
        "errorCode": status.error_code,
        "trackingId": tracking_id,
        "message": message,
        "info": {},
        "timestampUtc": timestamp(unix_ms),
    });
    body.to_string().into_bytes()
}

/// With seven fraction digits, as the C# SDK insists.
pub fn timestamp(unix_ms: u64) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:7]Z");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_has_the_members_that_sdks_read() {
        let body = twin_error_body(INVALID_TWIN, "a.b: too deep", "3-7", 1_767_323_045_006);
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["errorCode"], 400_004);
        assert_eq!(body["trackingId"], "3-7");
        assert_eq!(body["message"], "a.b: too deep");
        assert!(body["info"].is_object());
        assert_eq!(body["timestampUtc"], "2026-01-02T03:04:05.0060000Z");
    }

    #[test]
    fn a_device_that_may_not_connect_is_told_no_more_than_that() {
        let device = "d".parse::<drover_core::ids::DeviceId>().expect("a legal id");
        let code = |refusal| return_code(open_error(&Error::Refused(refusal)));
        for refusal in [
            Refusal::DeviceNotFound { device: device.clone() },
            Refusal::ModuleNotFound { module: device.clone() },
            Refusal::DeviceDisabled { device: device.clone() },
        ] {
            assert_eq!(code(refusal), ConnectReturnCode::NotAuthorized);
        }
        assert_eq!(code(Refusal::CredentialsChanged), ConnectReturnCode::ServerUnavailable);
    }

    #[test]
    fn a_timestamp_beyond_the_calendar_is_empty() {
        assert_eq!(timestamp(u64::MAX), "");
    }
}
