//! A device's twin: tags and desired properties that back ends write, reported properties that the device writes (P2).

use crate::document::Object;
use crate::ids::{Etag, LogTime, Version};

/// The twin of a device, created and deleted together with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Twin {
    /// Grows by one, together with `version`, when a back end writes. Reported writes leave it alone, so that they
    /// cause a back end no spurious mismatch.
    pub etag: Etag,
    pub version: Version,
    pub tags: Object,
    pub desired: Section,
    pub reported: Section,
}

/// Desired or reported properties with their version and metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    pub properties: Object,
    pub version: Version,
    pub metadata: Metadata,
}

/// When a value, and each object above it, was last written; it mirrors the tree of properties.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    pub updated: LogTime,
    /// The section's version at that write.
    pub updated_version: Version,
    /// One for each member of an object; empty for a leaf. Arrays are leaves.
    pub members: std::collections::BTreeMap<String, Metadata>,
}
