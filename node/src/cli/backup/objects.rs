//! Records as objects: cut on the way out, put together and checked on the way in.
//!
//! An object is some megabytes: few enough bytes to be held, sent again and summed as one, and many enough that a bucket is not
//! asked for each record. It holds whole messages, each after its length.

use bytes::{Buf as _, Bytes};
use drover_proto::admin::GroupRecords;
use prost::Message as _;

use super::manifest::{Group, Object, object_name, sum};
use super::progress::Progress;
use super::target::Target;
use crate::cli::Failure;

/// An object is written when it has so many bytes, so it has a message more at the most.
const OBJECT_BYTES: usize = 8 << 20;

/// Writes the objects of one group.
pub(super) struct Writer<'a> {
    target: &'a Target,
    progress: &'a Progress,
    shard: Option<u32>,
    gathered: Vec<u8>,
    pub(super) records: u64,
    written: Vec<Object>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(target: &'a Target, shard: Option<u32>, progress: &'a Progress) -> Self {
        Self { target, progress, shard, gathered: Vec::new(), records: 0, written: Vec::new() }
    }

    pub(super) async fn add(&mut self, records: &GroupRecords) -> Result<(), Failure> {
        self.records += records.keys.len() as u64;
        records
            .encode_length_delimited(&mut self.gathered)
            .expect("a vector grows as far as it must");
        if self.gathered.len() >= OBJECT_BYTES { self.write().await } else { Ok(()) }
    }

    /// Writes what is left; answers with all objects.
    pub(super) async fn finish(mut self) -> Result<Vec<Object>, Failure> {
        if !self.gathered.is_empty() {
            self.write().await?;
        }
        Ok(self.written)
    }

    async fn write(&mut self) -> Result<(), Failure> {
        let name = object_name(self.shard, self.written.len());
        let bytes = std::mem::take(&mut self.gathered);
        let (length, sha256) = (bytes.len() as u64, sum(&bytes));
        self.target.put(&name, bytes).await?;
        self.progress.moved(length);
        self.written.push(Object { name, bytes: length, sha256 });
        Ok(())
    }
}

/// Reads the objects of one group, one after the other. What it hands out is what was written.
pub(super) struct Reader<'a> {
    target: &'a Target,
    progress: &'a Progress,
    group: &'a Group,
    next: usize,
    records: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(target: &'a Target, group: &'a Group, progress: &'a Progress) -> Self {
        Self { target, progress, group, next: 0, records: 0 }
    }

    /// The messages of the next object; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<GroupRecords>>, Failure> {
        let Some(object) = self.group.objects.get(self.next) else {
            return if self.records == self.group.records {
                Ok(None)
            } else {
                let (found, named) = (self.records, self.group.records);
                Err(self.target.broken(&format!("a group has {found} records, not {named}")))
            };
        };
        self.next += 1;
        let Object { name, bytes, sha256 } = object;
        let found = self.target.get(name, *bytes).await?;
        let found = found.ok_or_else(|| self.target.broken(&format!("{name} is missing")))?;
        if sum(&found) != *sha256 {
            let text = format!("{name} is not what was written: its SHA-256 is another one");
            return Err(self.target.broken(&text));
        }
        let messages = decode(found)
            .map_err(|error| self.target.broken(&format!("{name} cannot be read: {error}")))?;
        self.records += messages.iter().map(|message| message.keys.len() as u64).sum::<u64>();
        self.progress.moved(*bytes);
        Ok(Some(messages))
    }
}

fn decode(mut bytes: Bytes) -> Result<Vec<GroupRecords>, prost::DecodeError> {
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        messages.push(GroupRecords::decode_length_delimited(&mut bytes)?);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8, bytes: usize) -> GroupRecords {
        GroupRecords { table: 3, keys: vec![vec![number]], values: vec![vec![number; bytes]] }
    }

    async fn read_all(target: &Target, group: &Group) -> Result<Vec<GroupRecords>, String> {
        let progress = Progress::default();
        let mut reader = Reader::new(target, group, &progress);
        let mut messages = Vec::new();
        while let Some(found) = reader.next().await.map_err(|failure| failure.to_string())? {
            messages.extend(found);
        }
        Ok(messages)
    }

    #[tokio::test]
    async fn what_was_written_is_read_and_what_was_changed_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = Target::open(folder.path().to_str().expect("text")).expect("a folder");
        let progress = Progress::default();
        let mut writer = Writer::new(&target, Some(5), &progress);
        let messages = [message(1, OBJECT_BYTES / 2), message(2, OBJECT_BYTES), message(3, 7)];
        for message in &messages {
            writer.add(message).await.expect("room");
        }
        let records = writer.records;
        let objects = writer.finish().await.expect("room");
        assert_eq!(objects.len(), 2, "two messages make an object, the third another one");
        let group = Group { shard: Some(5), term: 1, index: 1, records, objects };
        assert_eq!(read_all(&target, &group).await.as_deref(), Ok(&messages[..]));

        let second = folder.path().join("shard-0005/000001");
        let mut bytes = std::fs::read(&second).expect("a file");
        bytes[3] ^= 1;
        std::fs::write(&second, &bytes).expect("writable");
        let refused = read_all(&target, &group).await.expect_err("a flipped bit");
        assert!(refused.contains("shard-0005/000001 is not what was written"), "{refused}");
        std::fs::remove_file(&second).expect("it is there");
        let refused = read_all(&target, &group).await.expect_err("no object");
        assert!(refused.contains("shard-0005/000001 is missing"), "{refused}");
        let fewer = Group { objects: group.objects[..1].to_vec(), ..group };
        read_all(&target, &fewer).await.expect_err("fewer records than were written");
    }
}
