//! One device as the registry knows it: who it is, how it proves that, and which connection speaks for it.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{DeviceId, Etag, GenerationId, LogTime, SessionEpoch};

/// Whether a device may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Enabled,
    Disabled,
}

/// What a device proves its identity with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Shared access signatures made with either key. A key has 16 to 64 bytes, decoded.
    Sas { primary: Key, secondary: Key },
    /// A certificate with one of these thumbprints (SHA-1 or SHA-256 as lower-case hex).
    SelfSigned { primary: Option<String>, secondary: Option<String> },
    /// A certificate that a registered CA has signed, with the device id as its common name.
    CertificateAuthority,
    /// It cannot connect.
    None,
}

/// A symmetric key, 16 to 64 bytes. It never shows itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    pub const BYTES_MIN: usize = 16;
    pub const BYTES_MAX: usize = 64;

    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (Self::BYTES_MIN..=Self::BYTES_MAX).contains(&bytes.len()).then_some(Self(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A device's identity and presence: the small record that every change of the device reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    pub id: DeviceId,
    pub generation: GenerationId,
    pub etag: Etag,
    pub status: Status,
    pub status_reason: Option<String>,
    pub status_updated: LogTime,
    pub authentication: Authentication,
    pub presence: Presence,
}

/// Which connection is live, and what it has subscribed to.
///
/// `epoch` is raised by each connect, and by whatever ends the right to speak (disable, delete, new keys): a change
/// that carries another epoch is refused (P4, invariant I-22). Pings and idle time are not in here.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Presence {
    pub epoch: SessionEpoch,
    /// When the connection of `epoch` began; `None` while nobody is connected.
    pub connected_since: Option<LogTime>,
    pub changed: Option<LogTime>,
    /// Kept across connections unless the device asks for a clean session (`spec/mqtt.md` section 5).
    pub subscriptions: Subscriptions,
}

/// What a device listens to, with the granted quality of service.
pub type Subscriptions = BTreeMap<Channel, Qos>;

/// The kinds of deliveries that a device may subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Cloud-to-device commands.
    Commands,
    /// Answers to twin requests.
    TwinResponses,
    /// Patches of the desired properties.
    DesiredPatches,
    /// Direct methods.
    Methods,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
}
