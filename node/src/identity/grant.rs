//! What of the meta state a proof rests on, so that a connection can end when it is taken back.
//!
//! A device's own keys and thumbprints stand in its record, where apply refuses whatever comes after a change of them.
//! Policies and authorities stand in another group: every node learns of a change by itself, and ends what relied on it.

use bytes::Bytes;
use drover_core::access::Permission;
use drover_core::device::Key;
use drover_core::meta::Meta;

/// On whose word a device was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// A policy's, whose key has signed the token.
    Policy { name: String, key: Key },
    /// An authority's, which has signed the certificate, or one above it.
    Authority { name: String, certificate: Bytes },
}

impl Grant {
    /// Whether it is still given: policies may lose the key or the permission, authorities be switched off, and both
    /// be deleted or replaced.
    pub fn holds(&self, meta: &Meta) -> bool {
        match self {
            Self::Policy { name, key } => meta.policies.get(name).is_some_and(|policy| {
                policy.permissions.contains(&Permission::DeviceConnect)
                    && [&policy.primary, &policy.secondary].contains(&key)
            }),
            Self::Authority { name, certificate } => {
                meta.authorities.get(name).is_some_and(|authority| {
                    authority.vouches() && authority.certificate == *certificate
                })
            }
        }
    }
}
