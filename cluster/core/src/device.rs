//! One device as the registry knows it: who it is, how it proves that, and which connection speaks for it.
//!
//! What may change an identity, and whose changes it lets through. The order of these checks against a device's other
//! records, and what is announced, is `shard`'s; commands stand in `mailbox`.

use std::collections::BTreeSet;
use std::fmt;

use crate::change::{Condition, DeviceSpec, Refusal, Sender};
use crate::ids::{DeviceId, Etag, GenerationId, LogTime, ModuleId, SessionEpoch};
use crate::mailbox;
pub use crate::presence::{Channel, Presence, Qos, Subscriptions};

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

/// The identity and presence of a device or of a module: the small record that every change of it reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    pub id: DeviceId,
    pub generation: GenerationId,
    pub etag: Etag,
    /// That of a module is its device's: [`crate::module`] keeps it so.
    pub status: Status,
    pub status_reason: Option<String>,
    pub status_updated: LogTime,
    pub authentication: Authentication,
    pub presence: Presence,
    /// What the mailbox holds; the commands have records of their own.
    pub mailbox: mailbox::Head,
    /// The modules that the device has, each with records of its own. A module has none.
    pub modules: BTreeSet<ModuleId>,
}

/// What a back end sets of an identity; what is absent stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) status: Option<Status>,
    pub(crate) status_reason: Option<&'a Option<String>>,
    pub(crate) authentication: Option<&'a Authentication>,
}

/// Whether an update ended the right to speak of whoever was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revoked {
    /// The connection stays what it is.
    No,
    /// The epoch was raised; `former` was the live connection.
    Yes { former: Option<SessionEpoch> },
}

impl Device {
    /// A new identity. `retired` is at least every etag and epoch of a former device of this id.
    pub(crate) fn new(
        id: DeviceId,
        generation: GenerationId,
        spec: &DeviceSpec,
        retired: u64,
        at: LogTime,
    ) -> Self {
        Self {
            id,
            generation,
            etag: Etag::new(retired).next(),
            status: spec.status,
            status_reason: spec.status_reason.clone(),
            status_updated: at,
            authentication: spec.authentication.clone(),
            presence: Presence { epoch: SessionEpoch::new(retired), ..Presence::default() },
            mailbox: mailbox::Head::default(),
            modules: BTreeSet::new(),
        }
    }

    /// A back end's change of the identity. New credentials and `Disabled` end the live connection.
    pub(crate) fn update(&mut self, update: Update<'_>, at: LogTime) -> Revoked {
        let mut revokes = false;
        if let Some(status) = update.status.filter(|status| *status != self.status) {
            self.status = status;
            self.status_updated = at;
            revokes |= status == Status::Disabled;
        }
        if let Some(reason) = update.status_reason {
            self.status_reason.clone_from(reason);
        }
        if let Some(given) = update.authentication.filter(|given| **given != self.authentication) {
            self.authentication = given.clone();
            revokes = true;
        }
        self.etag = self.etag.next();
        if revokes { Revoked::Yes { former: self.presence.revoke(at) } } else { Revoked::No }
    }

    /// Whether a credential that was checked against the identity of this etag still counts (I-28).
    pub(crate) fn check_credentials(&self, credentials: Etag) -> Result<(), Refusal> {
        match self.status {
            Status::Disabled => Err(Refusal::DeviceDisabled { device: self.id.owner() }),
            Status::Enabled if credentials != self.etag => Err(Refusal::CredentialsChanged),
            Status::Enabled => Ok(()),
        }
    }

    pub(crate) fn check_sender(&self, sender: Sender) -> Result<(), Refusal> {
        match sender {
            Sender::Session(epoch) => self.presence.check_live(epoch),
            Sender::Request(credentials) => self.check_credentials(credentials),
        }
    }
}

/// Refuses a change that was made from another state than the current one.
pub(crate) fn check_etag(condition: Condition, current: Etag) -> Result<(), Refusal> {
    match condition {
        Condition::Match(etag) if etag != current => Err(Refusal::EtagMismatch { current }),
        Condition::Match(_) | Condition::Any => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{key, spec};

    fn device() -> Device {
        let id = "pump".parse().expect("a legal id");
        let mut device = Device::new(id, GenerationId::new(1), &spec(), 0, LogTime::new(1));
        device.presence.connect(false, None, LogTime::new(2));
        device
    }

    fn update(status: Option<Status>, authentication: Option<&Authentication>) -> Update<'_> {
        Update { status, status_reason: None, authentication }
    }

    #[test]
    fn each_update_moves_the_etag_and_presence_does_not() {
        let mut device = device();
        assert_eq!(device.etag, Etag::new(1));
        assert_eq!(device.update(update(None, None), LogTime::new(3)), Revoked::No);
        assert_eq!(device.etag, Etag::new(2));
    }

    #[test]
    fn new_keys_and_disabling_end_the_connection_and_the_same_keys_do_not() {
        let same = spec().authentication;
        let other = Authentication::Sas { primary: key(8), secondary: key(9) };
        let revoked = |status, authentication| {
            let mut device = device();
            let revoked = device.update(update(status, authentication), LogTime::new(3));
            assert_eq!(device.presence.connected_since.is_none(), revoked != Revoked::No);
            revoked
        };
        let yes = Revoked::Yes { former: Some(SessionEpoch::new(1)) };
        assert_eq!(revoked(None, Some(&same)), Revoked::No);
        assert_eq!(revoked(Some(Status::Enabled), None), Revoked::No);
        assert_eq!(revoked(None, Some(&other)), yes);
        assert_eq!(revoked(None, Some(&Authentication::None)), yes);
        assert_eq!(revoked(Some(Status::Disabled), None), yes);
    }

    #[test]
    fn a_device_made_anew_begins_above_all_that_a_former_one_had() {
        let id = "pump".parse().expect("a legal id");
        let device = Device::new(id, GenerationId::new(2), &spec(), 7, LogTime::new(1));
        assert_eq!((device.etag, device.presence.epoch), (Etag::new(8), SessionEpoch::new(7)));
    }

    #[test]
    fn a_key_never_shows_itself() {
        assert!(!format!("{:?}", key(77)).contains("77"));
    }
}
