//! Why a connection ends.

use drover_cluster::actors::session::EndReason;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// DISCONNECT. This end and [`CloseReason::Revoked`] send no will.
    Disconnected,
    /// The socket was closed without it.
    Lost,
    /// A packet that breaks the rules of MQTT, or comes when it may not.
    Protocol,
    /// A topic, or a message, that this device may not publish.
    IllegalPublish,
    HandshakeFailed,
    ConnectTimeout,
    ConnectRefused,
    KeepAlive,
    /// Or the certificate.
    TokenExpired,
    Replaced,
    Revoked,
    Stopping,
    /// A desired patch may have been missed, so the device has to connect and read its twin again.
    Gap,
    /// The device leaves unread what it is sent.
    Unread,
    Throttled,
    /// The cluster refused a message.
    Refused,
    /// A message may be stored or not: the device sends it again.
    UnknownOutcome,
    Unavailable,
}

impl CloseReason {
    /// The label of the reason in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
            Self::IllegalPublish => "illegal_publish",
            Self::HandshakeFailed => "handshake_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectRefused => "connect_refused",
            Self::KeepAlive => "keep_alive",
            Self::TokenExpired => "token_expired",
            Self::Replaced => "replaced",
            Self::Revoked => "revoked",
            Self::Stopping => "stopping",
            Self::Gap => "gap",
            Self::Unread => "unread",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::UnknownOutcome => "unknown_outcome",
            Self::Unavailable => "unavailable",
        }
    }
}

impl From<EndReason> for CloseReason {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Replaced => Self::Replaced,
            EndReason::Revoked => Self::Revoked,
            EndReason::Stopping => Self::Stopping,
            EndReason::Gap => Self::Gap,
        }
    }
}
