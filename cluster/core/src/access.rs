//! Who is asking, and what they may do (P5).
//!
//! What each request needs is named where the request enters; here is only what a permission is worth.

use std::collections::BTreeSet;

use crate::ids::{DeviceId, Etag};

/// A device's identity as its connection has proved it. Only `drover_node::identity` makes one, from a token or a
/// certificate; everything else passes it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenDevice {
    pub device: DeviceId,
    /// The etag of the identity that the credential was checked against.
    pub credentials: Etag,
}

/// What an access policy allows (`spec/service-rest.md` section 2; cluster administration is Drover's own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    RegistryRead,
    /// Includes reading.
    RegistryWrite,
    ServiceConnect,
    DeviceConnect,
    /// Members, placement, policies with their keys.
    ClusterAdmin,
}

impl Permission {
    pub const ALL: [Self; 5] = [
        Self::RegistryRead,
        Self::RegistryWrite,
        Self::ServiceConnect,
        Self::DeviceConnect,
        Self::ClusterAdmin,
    ];

    /// Whether whoever has this permission may do what asks for `needed`.
    pub fn implies(self, needed: Self) -> bool {
        self == needed || (self == Self::RegistryWrite && needed == Self::RegistryRead)
    }
}

/// Whether one of the permissions that were granted is enough.
pub fn allows(granted: &BTreeSet<Permission>, needed: Permission) -> bool {
    granted.iter().any(|permission| permission.implies(needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_the_registry_includes_reading_it_and_nothing_else_includes_anything() {
        for granted in Permission::ALL {
            for needed in Permission::ALL {
                let expected = granted == needed
                    || (granted, needed) == (Permission::RegistryWrite, Permission::RegistryRead);
                assert_eq!(allows(&BTreeSet::from([granted]), needed), expected, "{granted:?}");
            }
        }
    }

    #[test]
    fn nothing_granted_allows_nothing() {
        assert!(Permission::ALL.iter().all(|needed| !allows(&BTreeSet::new(), *needed)));
    }
}
