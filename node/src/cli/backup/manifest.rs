//! What a backup says about itself: which groups, as of when, in which objects, with which sums.
//!
//! It is written last, and its own sum just before it: a backup without a manifest was not finished, and one whose manifest is not
//! what its sum says is not to be trusted. Both are files that people can read, and `sha256sum --check` understands.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::target::Target;
use crate::cli::Failure;

/// What this program writes, and the newest that it understands.
pub(super) const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const SUM: &str = "manifest.sha256";
/// A line for each object of some terabytes.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
const SUM_BYTES_MAX: u64 = 1 << 10;
/// What a cluster may have (`ShardCount`).
const SHARDS: std::ops::RangeInclusive<u32> = 1..=4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// An id of its own.
    pub(super) backup: String,
    pub(super) cluster: String,
    /// The version of the program that wrote it.
    pub(super) drover: String,
    /// Everything that was acknowledged before this time is in it.
    pub(super) began: String,
    pub(super) ended: String,
    pub(super) shards: u32,
    /// The meta group, then each shard.
    pub(super) groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    /// Nothing for the meta group.
    pub(super) shard: Option<u32>,
    /// The last log entry that is in it.
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) records: u64,
    pub(super) objects: Vec<Object>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Manifest {
    pub(super) fn records(&self) -> u64 {
        self.groups.iter().map(|group| group.records).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.groups.iter().flat_map(|group| &group.objects).map(|object| object.bytes).sum()
    }

    /// Whether it can be a backup at all. Objects may be named as they are written and no other way.
    fn check(&self) -> Result<(), String> {
        if self.format > FORMAT {
            let (format, drover) = (self.format, &self.drover);
            return Err(format!(
                "it has format {format}, of drover {drover}: use that version or a newer one"
            ));
        }
        if !SHARDS.contains(&self.shards) {
            return Err(format!("no cluster has {} shards", self.shards));
        }
        let named: BTreeSet<_> = self.groups.iter().map(|group| group.shard).collect();
        let expected: BTreeSet<_> =
            std::iter::once(None).chain((0..self.shards).map(Some)).collect();
        if named != expected || self.groups.len() != expected.len() {
            return Err(format!("its groups are not the meta group and {} shards", self.shards));
        }
        for group in &self.groups {
            for (number, object) in group.objects.iter().enumerate() {
                if object.name != object_name(group.shard, number) {
                    return Err(format!("{} is no object of it", object.name));
                }
            }
        }
        Ok(())
    }
}

/// How the objects of a group are called.
pub(super) fn object_name(shard: Option<u32>, number: usize) -> String {
    match shard {
        Some(shard) => format!("shard-{shard:04}/{number:06}"),
        None => format!("meta/{number:06}"),
    }
}

pub(super) fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Makes a backup of what was written.
pub(super) async fn write(target: &Target, manifest: &Manifest) -> Result<(), Failure> {
    let bytes = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Failure::Failed(format!("the manifest cannot be written: {error}")))?;
    let line = format!("{}  {MANIFEST}\n", sum(&bytes));
    target.put(SUM, line.into_bytes()).await?;
    target.put(MANIFEST, bytes).await
}

pub(super) async fn read(target: &Target) -> Result<Manifest, Failure> {
    let Some(bytes) = target.get(MANIFEST, MANIFEST_BYTES_MAX).await? else {
        let text = format!("there is no {MANIFEST}: the backup was not finished, or is elsewhere");
        return Err(target.broken(&text));
    };
    let line = target.get(SUM, SUM_BYTES_MAX).await?;
    let line = line.ok_or_else(|| target.broken(&format!("there is no {SUM}")))?;
    if !line.starts_with(sum(&bytes).as_bytes()) {
        let text = format!("{MANIFEST} is not what was written: its SHA-256 is not that of {SUM}");
        return Err(target.broken(&text));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| target.broken(&format!("{MANIFEST} cannot be understood: {error}")))?;
    manifest.check().map_err(|problem| target.broken(&problem))?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(shards: u32) -> Manifest {
        let group = |shard| Group {
            shard,
            term: 1,
            index: 7,
            records: 2,
            objects: vec![Object { name: object_name(shard, 0), bytes: 9, sha256: sum(b"x") }],
        };
        Manifest {
            format: FORMAT,
            backup: "b".to_owned(),
            cluster: "c".to_owned(),
            drover: "0.1.0".to_owned(),
            began: "then".to_owned(),
            ended: "later".to_owned(),
            shards,
            groups: std::iter::once(None).chain((0..shards).map(Some)).map(group).collect(),
        }
    }

    #[test]
    fn a_manifest_names_each_group_once_and_no_object_outside() {
        assert_eq!(manifest(4).check(), Ok(()));
        let mut twice = manifest(4);
        twice.groups[2].shard = Some(3);
        assert!(twice.check().is_err());
        let mut short = manifest(4);
        short.groups.pop();
        assert!(short.check().is_err());
        let mut outside = manifest(4);
        outside.groups[1].objects[0].name = "../../etc/passwd".to_owned();
        assert!(outside.check().is_err());
        assert!(Manifest { format: FORMAT + 1, ..manifest(4) }.check().is_err());
        assert!(manifest(0).check().is_err());
    }

    #[tokio::test]
    async fn a_manifest_that_is_missing_cut_or_changed_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = Target::open(folder.path().to_str().expect("text")).expect("a folder");
        let refused = async || read(&target).await.expect_err("not whole").to_string();
        assert!(refused().await.contains("not finished"));
        write(&target, &manifest(2)).await.expect("room");
        assert_eq!(read(&target).await.expect("whole"), manifest(2));

        let file = folder.path().join(MANIFEST);
        let whole = std::fs::read(&file).expect("a file");
        std::fs::write(&file, &whole[..whole.len() / 2]).expect("writable");
        assert!(refused().await.contains("SHA-256"));
        let changed =
            String::from_utf8(whole).expect("text").replace("\"index\": 7", "\"index\": 8");
        std::fs::write(&file, changed).expect("writable");
        assert!(refused().await.contains("SHA-256"));
    }
}
