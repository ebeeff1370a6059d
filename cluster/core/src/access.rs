//! Who is asking, and what they may do (P5).

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
