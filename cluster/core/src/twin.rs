//! A device's twin: tags and desired properties that back ends write, reported properties that the device writes (P2).
//!
//! Versions, etags and metadata (`spec/twin-semantics.md` sections 2 to 5). How documents merge and what they may hold
//! is `document`'s; whether the writer may write at all, and who is told of it, is decided in `shard`.

use std::collections::BTreeMap;

use crate::change::{Refusal, TwinUpdate};
use crate::document::{self, Object, Value, Violation};
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
    pub members: BTreeMap<String, Metadata>,
}

/// The parts of a twin that carry content, each with its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Tags,
    Desired,
    Reported,
}

impl Part {
    fn path(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Desired => "properties.desired",
            Self::Reported => "properties.reported",
        }
    }

    /// `spec/twin-semantics.md` section 4.
    fn bytes_max(self) -> usize {
        match self {
            Self::Tags => 8 * 1024,
            Self::Desired | Self::Reported => 32 * 1024,
        }
    }

    fn check(self, document: &Object) -> Result<(), Refusal> {
        document::check_content(document).map_err(|violation| self.refuse(violation))?;
        self.check_size(document)
    }

    fn check_size(self, document: &Object) -> Result<(), Refusal> {
        document::check_size(document, self.bytes_max()).map_err(|violation| self.refuse(violation))
    }

    fn refuse(self, violation: Violation) -> Refusal {
        let Violation { path, problem } = violation.under(self.path());
        Refusal::InvalidTwin { path, problem }
    }

    /// What the part becomes, if both the patch and the result keep the limits.
    fn merged(self, base: &Object, patch: &Object) -> Result<Object, Refusal> {
        self.check(patch)?;
        let result = document::merged(base, patch);
        self.check_size(&result)?; // a merge adds no key, value or level that neither side had
        Ok(result)
    }
}

impl Twin {
    /// A new device's twin. Its sections begin at version 1.
    pub(crate) fn new(
        etag: Etag,
        tags: &Object,
        desired: &Object,
        at: LogTime,
    ) -> Result<Self, Refusal> {
        let empty = Object::new();
        let desired = without_reserved(desired);
        let desired_properties = Part::Desired.merged(&empty, &desired)?;
        Ok(Self {
            etag,
            version: FIRST_VERSION,
            tags: Part::Tags.merged(&empty, tags)?,
            desired: Section::new(desired_properties, FIRST_VERSION, at),
            reported: Section::new(Object::new(), FIRST_VERSION, at),
        })
    }

    /// A back end's write. All or nothing; the answer is the patch that brings a device up to date, if the desired
    /// properties were written at all.
    pub(crate) fn update(
        &mut self,
        mode: TwinUpdate,
        tags: Option<&Object>,
        desired: Option<&Object>,
        at: LogTime,
    ) -> Result<Option<Object>, Refusal> {
        let desired = desired.map(without_reserved);
        let (tags, desired) = match mode {
            TwinUpdate::Merge => (
                tags.map(|tags| Part::Tags.merged(&self.tags, tags)).transpose()?,
                desired.map(|patch| self.desired.patched(Part::Desired, patch, at)).transpose()?,
            ),
            TwinUpdate::Replace => (
                Some(Part::Tags.merged(&Object::new(), tags.unwrap_or(&Object::new()))?),
                Some(self.desired.replaced(&desired.unwrap_or_default(), at)?),
            ),
        };
        if let Some(tags) = tags {
            self.tags = tags;
        }
        self.version = self.version.next();
        self.etag = self.etag.next();
        Ok(desired.map(|(section, patch)| {
            self.desired = section;
            patch
        }))
    }

    /// The device's write. The answer is the new version of the reported properties.
    pub(crate) fn report(
        &mut self,
        expected: Option<Version>,
        patch: &Object,
        at: LogTime,
    ) -> Result<Version, Refusal> {
        self.reported.check_version(expected)?;
        let (section, _) = self.reported.patched(Part::Reported, patch.clone(), at)?;
        self.reported = section;
        Ok(self.reported.version)
    }
}

const FIRST_VERSION: Version = Version::new(1);

impl Section {
    fn new(properties: Object, version: Version, at: LogTime) -> Self {
        let metadata = Metadata::of(&properties, at, version);
        Self { properties, version, metadata }
    }

    pub(crate) fn check_version(&self, expected: Option<Version>) -> Result<(), Refusal> {
        match expected {
            Some(version) if version != self.version => {
                Err(Refusal::VersionMismatch { current: self.version })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The section after a merge, and what was merged.
    fn patched(&self, part: Part, patch: Object, at: LogTime) -> Result<(Self, Object), Refusal> {
        let properties = part.merged(&self.properties, &patch)?;
        let version = self.version.next();
        let mut metadata = self.metadata.clone();
        metadata.record(&patch, at, version);
        Ok((Self { properties, version, metadata }, patch))
    }

    /// The desired properties after a replacement, and the patch that makes the same of the former ones.
    fn replaced(&self, document: &Object, at: LogTime) -> Result<(Self, Object), Refusal> {
        let properties = Part::Desired.merged(&Object::new(), document)?;
        let patch = document::difference(&self.properties, &properties);
        Ok((Self::new(properties, self.version.next(), at), patch))
    }
}

impl Metadata {
    fn of(properties: &Object, at: LogTime, version: Version) -> Self {
        let mut metadata = Self::leaf(at, version);
        metadata.record(properties, at, version);
        metadata
    }

    fn leaf(updated: LogTime, updated_version: Version) -> Self {
        Self { updated, updated_version, members: BTreeMap::new() }
    }

    /// Stamps what `patch` wrote and everything above it. A value written again counts as written.
    fn record(&mut self, patch: &Object, at: LogTime, version: Version) {
        self.updated = at;
        self.updated_version = version;
        for (key, value) in patch {
            match value {
                Value::Null => {
                    self.members.remove(key);
                }
                Value::Object(patch) => self
                    .members
                    .entry(key.clone())
                    .or_insert_with(|| Self::leaf(at, version))
                    .record(patch, at, version),
                Value::Bool(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Array(_) => {
                    self.members.insert(key.clone(), Self::leaf(at, version));
                }
            }
        }
    }
}

/// Desired properties as back ends send them, without `$version`, `$metadata` and the like at the root: Azure's SDKs
/// send back what they have read, and those members are not theirs to set.
fn without_reserved(desired: &Object) -> Object {
    desired
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{object, patch, section};

    fn twin(desired: &str) -> Twin {
        Twin::new(Etag::new(1), &Object::new(), &object(desired), LogTime::new(10))
            .expect("legal content")
    }

    fn merge(twin: &mut Twin, desired: &str, at: u64) -> Result<Option<Object>, Refusal> {
        twin.update(TwinUpdate::Merge, None, Some(&object(desired)), LogTime::new(at))
    }

    #[test]
    fn a_write_stamps_the_leaf_and_everything_above_it_and_nothing_else() {
        let mut twin = twin("{a:{x:1,y:2},b:3}");
        merge(&mut twin, "{a:{x:9}}", 20).expect("legal");
        let Metadata { updated, updated_version, members } = &twin.desired.metadata;
        assert_eq!((*updated, *updated_version), (LogTime::new(20), Version::new(2)));
        assert_eq!(members["a"].updated_version, Version::new(2));
        assert_eq!(members["a"].members["x"].updated, LogTime::new(20));
        assert_eq!(members["a"].members["y"].updated_version, Version::new(1));
        assert_eq!(members["b"].updated, LogTime::new(10));
    }

    #[test]
    fn reported_writes_leave_the_etag_and_the_version_alone() {
        let mut twin = twin("{}");
        let version = twin.report(None, &object("{a:1}"), LogTime::new(11)).expect("legal");
        assert_eq!(
            (version, twin.etag, twin.version),
            (Version::new(2), Etag::new(1), Version::new(1))
        );
    }

    #[test]
    fn a_write_that_changes_nothing_is_a_write() {
        let mut twin = twin("{a:1}");
        merge(&mut twin, "{a:1}", 20).expect("legal");
        assert_eq!((twin.etag, twin.version), (Etag::new(2), Version::new(2)));
        assert_eq!(twin.desired.version, Version::new(2));
    }

    #[test]
    fn a_replacement_without_a_section_empties_it() {
        let mut twin = twin("{a:1,b:{c:1}}");
        let patch =
            twin.update(TwinUpdate::Replace, Some(&object("{t:1}")), None, LogTime::new(20));
        assert_eq!(patch, Ok(Some(object("{a:null,b:null}"))));
        assert_eq!((&twin.tags, &twin.desired.properties), (&object("{t:1}"), &Object::new()));
    }

    #[test]
    fn a_replacement_may_send_back_what_was_read() {
        let mut twin = twin("{a:1}");
        let read = object("{a:1,$version:1,$metadata:{a:{$lastUpdated:x}}}");
        let patch = twin.update(TwinUpdate::Replace, None, Some(&read), LogTime::new(20));
        assert_eq!(patch, Ok(Some(Object::new())));
        assert_eq!(twin.desired.properties, object("{a:1}"));
    }

    #[test]
    fn a_device_may_not_write_reserved_members() {
        let refused = twin("{}").report(None, &object("{$version:3}"), LogTime::new(11));
        let Err(Refusal::InvalidTwin { path, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(path, "properties.reported.$version");
    }

    #[test]
    fn small_patches_cannot_add_up_to_more_than_the_limit() {
        let mut twin = twin("{}");
        let part = |n: u32| {
            (0..4).map(|m| (format!("k{n}{m}"), Value::Text("x".repeat(4000)))).collect::<Object>()
        };
        for n in 0..2 {
            twin.report(None, &part(n), LogTime::new(11)).expect("below 32 KB");
        }
        let before = twin.clone();
        twin.report(None, &part(2), LogTime::new(12)).expect_err("48 KB");
        assert_eq!(twin, before);
    }

    #[test]
    fn tags_hold_eight_kilobytes_and_not_a_byte_more() {
        let tags = |bytes: usize| {
            let texts = [4096, bytes - 4096 - 2].map(|bytes| Value::Text("x".repeat(bytes)));
            ["a", "b"].map(str::to_owned).into_iter().zip(texts).collect::<Object>()
        };
        let create = |bytes| Twin::new(Etag::new(1), &tags(bytes), &Object::new(), LogTime::new(1));
        create(8192).expect("8 KB");
        create(8193).expect_err("one more");
    }

    /// Whether the metadata has a member where the properties have one, and nowhere else.
    fn mirrors(metadata: &Metadata, properties: &Object) -> bool {
        metadata.members.keys().eq(properties.keys())
            && properties.iter().all(|(key, value)| match value {
                Value::Object(members) => mirrors(&metadata.members[key], members),
                Value::Null
                | Value::Bool(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Array(_) => metadata.members[key].members.is_empty(),
            })
    }

    proptest! {
        #[test]
        fn metadata_mirrors_the_properties(start in section(), patches in prop::collection::vec(patch(), 0..8)) {
            let mut twin = Twin::new(Etag::new(1), &Object::new(), &start, LogTime::new(1)).expect("legal");
            for patch in patches {
                twin.update(TwinUpdate::Merge, None, Some(&patch), LogTime::new(2)).expect("legal");
                prop_assert!(mirrors(&twin.desired.metadata, &twin.desired.properties));
            }
        }

        #[test]
        fn what_the_device_is_sent_makes_of_its_copy_what_the_hub_has(
            start in section(), given in section(), replace: bool,
        ) {
            let mode = if replace { TwinUpdate::Replace } else { TwinUpdate::Merge };
            let mut twin = Twin::new(Etag::new(1), &Object::new(), &start, LogTime::new(1)).expect("legal");
            let mut copy = twin.desired.properties.clone();
            let patch = twin.update(mode, None, Some(&given), LogTime::new(2)).expect("legal");
            document::merge(&mut copy, &patch.expect("desired properties were written"));
            prop_assert_eq!(copy, twin.desired.properties);
        }
    }
}
