//! The receiving half of a snapshot: parts in, one verified snapshot for Raft out.
//!
//! Everything is collected and compared before Raft hears of it, so that a sender that dies in the middle costs nothing
//! but the time. The sending half is in `transport`.

use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::GroupId;
use drover_proto::cluster::snapshot_part::Part;
use drover_proto::cluster::{
    SnapshotChunk, SnapshotEnd, SnapshotHeader, SnapshotInstalled, SnapshotPart,
};
use futures::{Stream, StreamExt};
use tonic::Status;

use super::messages as wire;
use super::peers::Shared;
use super::snapshot::{Checksum, Incoming, SnapshotData, table_from_number};
use super::types::{
    Snapshot, SnapshotMeta, StoredMembership, membership_from_record, vote_to_record,
};
use crate::storage::{Chunk, Table};

/// A sender that is silent for this long has stopped.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// A snapshot as it comes, from a peer or from this node.
pub(super) trait Parts: Stream<Item = Result<SnapshotPart, Status>> + Unpin {}

impl<S: Stream<Item = Result<SnapshotPart, Status>> + Unpin> Parts for S {}

/// The first part of a snapshot says what it is.
pub(super) async fn header(parts: &mut impl Parts) -> Result<SnapshotHeader, Status> {
    match next(parts).await? {
        Part::Header(header) => Ok(header),
        Part::Chunk(_) | Part::End(_) => Err(Status::invalid_argument("no header")),
    }
}

/// Receives the rest and installs it.
pub(super) async fn install(
    shared: &Arc<Shared>,
    header: SnapshotHeader,
    mut parts: impl Parts,
) -> Result<SnapshotInstalled, Status> {
    let group = GroupId::from_number(header.group)
        .ok_or_else(|| Status::invalid_argument("there is no such group"))?;
    let replica = shared
        .replica(group, header.incarnation)
        .ok_or_else(|| Status::unavailable("this replica of the group does not run here"))?;
    let vote = wire::required_vote(header.vote).map_err(invalid)?;
    let membership =
        membership_from_record(header.membership.unwrap_or_default()).map_err(invalid)?;
    let membership_at = wire::optional_log_id(header.membership_log_id).map_err(invalid)?;
    let meta = SnapshotMeta {
        last_log_id: wire::optional_log_id(header.last_log_id).map_err(invalid)?,
        last_membership: StoredMembership::new(membership_at, membership),
    };
    // Two snapshots of a group at once would write over each other.
    let receiving = shared
        .begin_receiving(group)
        .ok_or_else(|| Status::unavailable("a snapshot of the group is being received"))?;

    let mut incoming = Incoming::begin(&*replica.storage, group).map_err(failed)?;
    let end = loop {
        match next(&mut parts).await? {
            Part::Chunk(part) => {
                let chunk = chunk(group, part)?;
                receiving.add(chunk.bytes());
                incoming.add(chunk).map_err(failed)?;
            }
            Part::End(end) => break end,
            Part::Header(_) => return Err(Status::invalid_argument("a second header")),
        }
    };
    verify(incoming.checksum(), end)?;

    tracing::info!(%group, records = end.records, "received a snapshot");
    let snapshot = Snapshot { meta, snapshot: SnapshotData::Incoming(incoming) };
    let installed = replica.raft.install_full_snapshot(vote, snapshot).await.map_err(failed)?;
    Ok(SnapshotInstalled { vote: Some(vote_to_record(&installed.vote)) })
}

pub(super) async fn next(parts: &mut impl Parts) -> Result<Part, Status> {
    tokio::time::timeout(PART_TIMEOUT, parts.next())
        .await
        .map_err(|_| Status::deadline_exceeded("the sender went silent"))?
        .transpose()?
        .and_then(|part| part.part)
        .ok_or_else(|| Status::aborted("the snapshot has no end"))
}

/// Records that lie outside the group would overwrite those of another one.
pub(super) fn chunk(group: GroupId, part: SnapshotChunk) -> Result<Chunk, Status> {
    let table = table_from_number(part.table)
        .filter(|table| Table::APPLIED.contains(table))
        .ok_or_else(|| Status::invalid_argument("a table that is not part of snapshots"))?;
    if part.keys.len() != part.values.len() {
        return Err(Status::invalid_argument("keys without values"));
    }
    let prefix = group.number().to_be_bytes();
    if !part.keys.iter().all(|key| key.starts_with(&prefix)) {
        return Err(Status::invalid_argument("a record of another group"));
    }
    Ok(Chunk { table, records: part.keys.into_iter().zip(part.values).collect() })
}

pub(super) fn verify(received: Checksum, sent: SnapshotEnd) -> Result<(), Status> {
    let sent = Checksum { records: sent.records, crc32: sent.crc32 };
    if received == sent {
        return Ok(());
    }
    let text = format!("received {received:?}, but {sent:?} was sent");
    Err(Status::data_loss(text))
}

fn invalid(problem: impl ToString) -> Status {
    Status::invalid_argument(problem.to_string())
}

fn failed(problem: impl ToString) -> Status {
    Status::internal(problem.to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use drover_core::ids::{ShardCount, ShardId};

    use super::*;

    fn part(table: u32, key: &'static [u8]) -> SnapshotChunk {
        let (keys, values) = (vec![Bytes::from_static(key)], vec![Bytes::new()]);
        SnapshotChunk { table, keys, values }
    }

    #[test]
    fn a_record_of_another_group_or_of_the_log_is_refused() {
        let count = ShardCount::new(16).expect("a legal count");
        let group = GroupId::Shard(ShardId::new(4, count).expect("a shard of 16"));
        assert!(chunk(group, part(2, b"\0\0\0\x05device")).is_ok());
        assert!(chunk(group, part(2, b"\0\0\0\x06device")).is_err());
        assert!(chunk(group, part(0, b"\0\0\0\x05entry")).is_err());
        assert!(chunk(group, part(99, b"\0\0\0\x05device")).is_err());
    }

    #[test]
    fn a_snapshot_that_differs_from_what_was_sent_is_refused() {
        let received = Checksum { records: 2, crc32: 7 };
        assert!(verify(received, SnapshotEnd { records: 2, crc32: 7 }).is_ok());
        assert!(verify(received, SnapshotEnd { records: 3, crc32: 7 }).is_err());
        assert!(verify(received, SnapshotEnd { records: 2, crc32: 8 }).is_err());
    }
}
