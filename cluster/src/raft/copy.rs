//! Groups as they are copied out of a running cluster, and into a new one.
//!
//! Out: the applied records at the group's leader, read after a read barrier, so that everything which was committed before is
//! among them. In: to the first replica of a shard that has none yet, as a snapshot of a group whose voters are the shard's
//! replicas here; Raft elects one that has it and brings it to the others. Both travel as snapshots do, in chunks that are
//! checked at the end. Where backups are kept is left to the layers above.

use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId, ReplicaId, ShardId};
use drover_core::meta::Meta;
use drover_proto::cluster::snapshot_part::Part;
use drover_proto::cluster::{GroupRead, SnapshotHeader, SnapshotInstalled, SnapshotPart};
use drover_proto::record;
use futures::stream::{self, BoxStream, StreamExt};
use openraft::ReadPolicy;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

use super::Error;
use super::groups::{Groups, founders};
use super::peers::Shared;
use super::position::Position;
use super::receive;
use super::snapshot::{CHUNK_BYTES, Checksum, Outgoing};
use super::snapshot_pace::SnapshotPace;
use super::transport::{self, Failure, Transport};
use super::types::{
    LogId, Membership, SnapshotMeta, StoredMembership, log_id_to_record, vote_from_record,
};
use crate::storage::{self, Chunk, Table, keys};

/// How long a node that is to get records may take to start the replica which takes them.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(100);

/// Chunks of a group's applied records, in the order of tables and keys. Worth something only if the last is no error.
pub type Chunks<E> = BoxStream<'static, Result<Chunk, E>>;

/// A group as of one moment.
pub struct Copy {
    /// The last entry that is in it.
    pub term: u64,
    pub index: u64,
    pub chunks: Chunks<Error>,
}

impl Groups {
    /// Reads a group at the node that leads it. Whatever was committed before the call is in the copy.
    pub async fn copy(&self, leader: NodeId, group: GroupId) -> Result<Copy, Error> {
        let peers = self.peers();
        let mut parts = if leader == self.node() {
            read(peers.shared(), group).await.map_err(interrupted)?
        } else {
            let mut client = peers.link(leader).and_then(|link| link.client()).map_err(failed)?;
            let read = GroupRead { hello: Some(peers.hello(leader)), group: group.number() };
            client.read_group(read).await.map_err(interrupted)?.into_inner().boxed()
        };
        let header = receive::header(&mut parts).await.map_err(interrupted)?;
        let last = header.last_log_id.unwrap_or_default();
        Ok(Copy { term: last.term, index: last.index, chunks: chunks(group, parts) })
    }

    /// Brings the records of a shard to its first replica here, which must not have any. On return they are durable there, and
    /// the group begins. A shard that has them already keeps what it has.
    pub async fn found(
        &self,
        shard: ShardId,
        meta: &Meta,
        mut chunks: Chunks<storage::Error>,
    ) -> Result<(), Error> {
        let group = GroupId::Shard(shard);
        let voters = founders(meta, shard);
        let placed = meta.placement.get(&shard).and_then(|nodes| nodes.first());
        let target = placed.map(|node| meta.replica(shard, *node));
        let target = target.ok_or_else(|| failed(format!("{group} is placed nowhere")))?;
        let membership = Membership::new(vec![voters.keys().copied().collect()], voters);
        let membership = membership.map_err(failed)?;
        self.until_it_runs(group, target).await?;

        let mut first = chunks.next().await.ok_or_else(|| failed("there are no records"))??;
        let founding = take_over(group, &mut first, membership)?;
        let chunks = stream::once(std::future::ready(Ok(first))).chain(chunks).boxed();
        let failure = Failure::default();
        let header = founding_header(group, &founding);
        let installed = self.install(target, header, chunks, &failure).await;
        match failure.take() {
            Some(error) => Err(error.into()),
            None => installed.map(drop).map_err(interrupted),
        }
    }

    async fn install(
        &self,
        target: ReplicaId,
        header: SnapshotHeader,
        chunks: Chunks<storage::Error>,
        failure: &Failure,
    ) -> Result<SnapshotInstalled, Status> {
        let incarnation = target.incarnation().into();
        let hello = self.peers().hello(target.node());
        let header = SnapshotHeader { hello: Some(hello), incarnation, ..header };
        // Nobody is served yet whom this could hold up.
        let pace = Arc::new(SnapshotPace::new(None));
        let parts = transport::parts(header, chunks, failure.clone(), pace);
        if target.node() == self.node() {
            let mut parts = parts.map(Ok).boxed();
            let header = receive::header(&mut parts).await?;
            return receive::install(self.peers().shared(), header, parts).await;
        }
        let link = self.peers().link(target.node());
        let client = link.and_then(|link| link.client());
        let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
        client.install_snapshot(parts).await.map(tonic::Response::into_inner)
    }

    /// A node learns from the meta state what it is to hold, a moment after that was committed.
    async fn until_it_runs(&self, group: GroupId, target: ReplicaId) -> Result<(), Error> {
        let deadline = Instant::now() + START_TIMEOUT;
        let transport = Transport::new(target, group, self.peers().clone());
        let running = async {
            loop {
                let runs = if target.node() == self.node() {
                    self.get(group).is_some()
                } else {
                    transport.is_empty(target).await.is_some()
                };
                if runs {
                    return;
                }
                sleep(START_PAUSE).await;
            }
        };
        let node = target.node();
        let late = |_| failed(format!("node {node} does not answer for {group}"));
        timeout_at(deadline, running).await.map_err(late)
    }
}

/// The records of a group that this node leads.
pub(super) async fn read(
    shared: &Arc<Shared>,
    group: GroupId,
) -> Result<BoxStream<'static, Result<SnapshotPart, Status>>, Status> {
    let replica = shared.running(group);
    let replica = replica.ok_or_else(|| Status::unavailable("the group does not run here"))?;
    let passed = replica.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
    passed.map_err(|error| Status::unavailable(error.to_string()))?;
    let internal = |error: storage::Error| Status::internal(error.to_string());
    let export = replica.storage.export(group, CHUNK_BYTES).map_err(internal)?;
    let last = Position::find(group, &export.group).map_err(internal)?.last;
    let header = SnapshotHeader {
        group: group.number(),
        last_log_id: last.as_ref().map(log_id_to_record),
        ..SnapshotHeader::default()
    };
    let chunks = Outgoing { chunks: export.chunks }.into_stream();
    let pace = Arc::clone(&shared.snapshot_pace);
    Ok(transport::parts(header, chunks, Failure::default(), pace).map(Ok).boxed())
}

/// What comes after the header, checked at the end.
fn chunks(
    group: GroupId,
    parts: BoxStream<'static, Result<SnapshotPart, Status>>,
) -> Chunks<Error> {
    let state = (parts, Checksum::default());
    let chunks = stream::try_unfold(state, move |(mut parts, mut checksum)| async move {
        match receive::next(&mut parts).await.map_err(interrupted)? {
            Part::Chunk(part) => {
                let chunk = receive::chunk(group, part).map_err(interrupted)?;
                checksum.add(&chunk);
                Ok(Some((chunk, (parts, checksum))))
            }
            Part::End(end) => {
                receive::verify(checksum, end).map_err(interrupted)?;
                Ok(None)
            }
            Part::Header(_) => Err(failed("a second header")),
        }
    });
    chunks.boxed()
}

/// Puts the voters that the group is to have in place of those it had.
fn take_over(
    group: GroupId,
    first: &mut Chunk,
    membership: Membership,
) -> Result<SnapshotMeta, storage::Error> {
    let corrupt = |what: &str| storage::Error::Corrupt { what: format!("{group}: {what}") };
    let last = Position::find(group, &first.records)?.last.filter(|_| first.table == Table::Group);
    let last: LogId =
        last.ok_or_else(|| corrupt("the records do not begin with how far they are"))?;
    let membership = StoredMembership::new(Some(last), membership);
    let position = Position { last: Some(last), membership: membership.clone() };
    let key = keys::applied(group);
    for (_, value) in first.records.iter_mut().filter(|(found, _)| *found == key) {
        *value = position.encode();
    }
    Ok(SnapshotMeta { last_log_id: Some(last), last_membership: membership })
}

/// Nobody has led the group here: the vote names a node that none can be, so that its voters elect one of them.
fn founding_header(group: GroupId, founding: &SnapshotMeta) -> SnapshotHeader {
    let term = founding.last_log_id.map_or(0, |id| id.leader_id.term);
    let vote = vote_from_record(record::Vote { term, node: 0, committed: true });
    transport::header(group, &vote, founding)
}

fn interrupted(status: Status) -> Error {
    Error::Interrupted { problem: status.message().to_owned() }
}

fn failed(problem: impl ToString) -> Error {
    Error::Interrupted { problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use drover_core::ids::ShardCount;
    use futures::TryStreamExt;

    use super::super::types::{PeerNode, log_id};
    use super::*;

    fn group() -> GroupId {
        let count = ShardCount::new(16).expect("a legal count");
        GroupId::Shard(ShardId::new(4, count).expect("a shard of 16"))
    }

    fn device() -> Chunk {
        let key = [&group().number().to_be_bytes()[..], b"pump"].concat();
        Chunk { table: Table::Device, records: vec![(key.into(), Bytes::from_static(b"twin"))] }
    }

    /// What arrives of a copy with one device, of whose parts something happened on the way.
    async fn arrives(befall: impl FnOnce(&mut Vec<SnapshotPart>)) -> Result<Vec<Chunk>, Error> {
        let sent = stream::iter([Ok(device())]);
        let pace = Arc::new(SnapshotPace::new(None));
        let parts = transport::parts(SnapshotHeader::default(), sent, Failure::default(), pace);
        let mut parts = parts.collect().await;
        befall(&mut parts);
        let mut parts = stream::iter(parts).map(Ok).boxed();
        receive::header(&mut parts).await.map_err(interrupted)?;
        chunks(group(), parts).try_collect().await
    }

    #[tokio::test]
    async fn a_copy_that_was_changed_on_its_way_or_broke_off_is_not_taken_for_one() {
        let whole = arrives(|_| {}).await.expect("a copy");
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].records, device().records);
        let change = |parts: &mut Vec<SnapshotPart>| {
            let Some(Part::Chunk(chunk)) = &mut parts[1].part else { panic!("{parts:?}") };
            chunk.values[0] = Bytes::from_static(b"twig");
        };
        arrives(change).await.expect_err("it was changed");
        arrives(|parts| drop(parts.remove(1))).await.expect_err("a part is missing");
        arrives(|parts| drop(parts.pop())).await.expect_err("it has no end");
    }

    #[test]
    fn a_copied_shard_has_the_voters_of_its_new_cluster_and_none_of_the_old() {
        let voters = |numbers: [u32; 3]| {
            let replica = |number| (ReplicaId::first(NodeId::new(number, 0)), PeerNode::default());
            let nodes: BTreeMap<_, _> = numbers.into_iter().map(replica).collect();
            Membership::new(vec![nodes.keys().copied().collect()], nodes).expect("a membership")
        };
        let (last, new) = (log_id(3, 9), voters([4, 5, 6]));
        let membership = StoredMembership::new(Some(log_id(1, 2)), voters([1, 2, 3]));
        let old = Position { last: Some(last), membership };
        let records = vec![(keys::applied(group()).into(), old.encode())];
        let mut first = Chunk { table: Table::Group, records };

        let founding = take_over(group(), &mut first, new.clone()).expect("it says how far it is");
        let written = Position::find(group(), &first.records).expect("a position");
        assert_eq!((written.last, founding.last_log_id), (Some(last), Some(last)));
        assert_eq!(written.membership.membership(), &new);
        assert_eq!(founding.last_membership, written.membership);
        take_over(group(), &mut device(), new).expect_err("it does not begin with how far it is");
    }
}
