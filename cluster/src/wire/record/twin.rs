//! Twins.

use bytes::Bytes;
use drover_core::ids::{Etag, LogTime, Version};
use drover_core::twin::{Metadata, Section, Twin};
use drover_proto::record;

use super::value::{object_from_record, object_to_record};
use super::{decode, encode, required};
use crate::wire::Invalid;

pub fn twin_to_bytes(twin: &Twin) -> Bytes {
    encode(&record::Twin {
        etag: twin.etag.get(),
        version: twin.version.get(),
        tags: Some(object_to_record(&twin.tags)),
        desired: Some(section_to_record(&twin.desired)),
        reported: Some(section_to_record(&twin.reported)),
    })
}

pub fn twin_from_bytes(bytes: Bytes) -> Result<Twin, Invalid> {
    let twin: record::Twin = decode("twin", bytes)?;
    Ok(Twin {
        etag: Etag::new(twin.etag),
        version: Version::new(twin.version),
        tags: object_from_record(twin.tags.unwrap_or_default())?,
        desired: section_from_record(required("twin.desired", twin.desired)?)?,
        reported: section_from_record(required("twin.reported", twin.reported)?)?,
    })
}

fn section_to_record(section: &Section) -> record::Section {
    record::Section {
        properties: Some(object_to_record(&section.properties)),
        version: section.version.get(),
        metadata: Some(metadata_to_record(&section.metadata)),
    }
}

fn section_from_record(section: record::Section) -> Result<Section, Invalid> {
    Ok(Section {
        properties: object_from_record(section.properties.unwrap_or_default())?,
        version: Version::new(section.version),
        metadata: metadata_from_record(required("section.metadata", section.metadata)?)?,
    })
}

fn metadata_to_record(metadata: &Metadata) -> record::Metadata {
    let member = |(key, metadata): (&String, &Metadata)| record::MetadataMember {
        key: key.clone(),
        metadata: Some(metadata_to_record(metadata)),
    };
    record::Metadata {
        updated_ms: metadata.updated.get(),
        updated_version: metadata.updated_version.get(),
        members: metadata.members.iter().map(member).collect(),
    }
}

fn metadata_from_record(metadata: record::Metadata) -> Result<Metadata, Invalid> {
    let member = |member: record::MetadataMember| {
        let metadata = required("metadata.member", member.metadata)?;
        Ok((member.key, metadata_from_record(metadata)?))
    };
    Ok(Metadata {
        updated: LogTime::new(metadata.updated_ms),
        updated_version: Version::new(metadata.updated_version),
        members: metadata.members.into_iter().map(member).collect::<Result<_, _>>()?,
    })
}
