//! What a backup reads of a running cluster, and how a new cluster gets it back.
//!
//! Each group is read at a moment of its own, by its leader: what was acknowledged before the backup began is in it, what was
//! acknowledged meanwhile may be. A restore makes a new cluster, with an id, nodes and placement of its own, which serves
//! nobody until every shard is there: so one that was broken off has taken nothing from anybody, and can be begun again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId, ShardId};
use drover_core::meta::{Member, Meta, MetaChange, MetaRefusal};
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::cluster::Cluster;
use super::error::Error;
use super::initial;
use super::router::Target;
use super::serve;
pub use crate::raft::copy::Copy;
pub use crate::raft::snapshot::{table_from_number, table_number};
use crate::storage::{self, keys};
pub use crate::storage::{Chunk, Table};
use crate::wire::record;
use crate::wire::request::Request;

/// Before another node is asked who may lead a group.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a restored shard may take to elect its first leader and to bring its records to a majority.
const LEADER_TIMEOUT: Duration = Duration::from_mins(5);

/// Records of a shard as they come in, in the order in which they were copied; where they end too early, why.
pub type Records = BoxStream<'static, Result<Chunk, String>>;

/// What a cluster is made from that is to have what a backup holds.
#[derive(Debug, Clone)]
pub struct Restoration {
    /// Tells backups apart: the same one may be begun again.
    pub backup: String,
    pub members: Vec<(NodeId, Member)>,
    /// `None`: what the backup has. With fewer nodes the others come when more nodes join.
    pub replication_factor: Option<u8>,
    /// The records of the meta group.
    pub meta: Vec<Chunk>,
}

impl Cluster {
    /// The records of a group, with everything that was acknowledged before the call.
    pub async fn copy_group(&self, group: GroupId) -> Result<Copy, Error> {
        if self.meta().is_none() {
            return Err(Error::NotInitialized);
        }
        self.check_restored()?;
        let deadline = self.deadline();
        for attempt in 0.. {
            let leader = match self.shared.router.target_of(group, attempt) {
                Target::Here => Some(self.shared.config.node),
                Target::Node(node) => Some(node),
                Target::Unknown => None,
            };
            if let Some(leader) = leader {
                let copy = self.shared.groups.copy(leader, group);
                match timeout_at(deadline, copy).await {
                    Ok(Ok(copy)) => return Ok(copy),
                    Ok(Err(error)) => debug!(%group, %leader, %error, "a group is not copied yet"),
                    Err(_) => break,
                }
            }
            if Instant::now() + PAUSE >= deadline {
                break;
            }
            sleep(PAUSE).await;
        }
        Err(Error::NoLeader { group })
    }

    /// Makes a cluster that waits for the records of its shards. Refused if there is one already, unless it waits for those of
    /// the same backup: then that restore goes on.
    pub async fn begin_restore(&self, restoration: Restoration) -> Result<Arc<Meta>, Error> {
        if let Some(meta) = self.meta() {
            check_same(&meta, &restoration)?;
            return Ok(meta);
        }
        let backed_up =
            meta_of(&restoration.meta).map_err(|error| not_restored(GroupId::Meta, error))?;
        let meta = {
            let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            initial::restored(restoration, backed_up, &mut *random)?
        };
        self.found(meta).await
    }

    /// Brings the records of a shard to its first replica. Success: they are durable there; the other replicas get them from
    /// it. A shard that has them already keeps them.
    pub async fn restore_shard(&self, shard: ShardId, records: Records) -> Result<(), Error> {
        let meta = self.restoring()?;
        let records = records.map_err(|what| storage::Error::Corrupt { what }).boxed();
        let restored = self.shared.groups.found(shard, &meta, records).await;
        restored.map_err(|error| not_restored(GroupId::Shard(shard), error))
    }

    /// Lets the cluster serve. Success: what was restored is durable on a majority of every shard's replicas. Refused with the
    /// shard that is missing.
    pub async fn end_restore(&self) -> Result<(), Error> {
        let meta = self.restoring()?;
        for shard in meta.shard_count.shards() {
            self.until_led(shard).await?;
        }
        self.change_meta(MetaChange::EndRestore).await
    }

    /// A leader serves when a majority has its first entry, and with it everything before. Until there is one, the group seems
    /// to be led by somebody whom nobody reaches.
    async fn until_led(&self, shard: ShardId) -> Result<(), Error> {
        let (group, request) = (GroupId::Shard(shard), Request::StreamState);
        let given_up = Instant::now() + LEADER_TIMEOUT;
        loop {
            let deadline = self.deadline();
            let here = || serve::read_here(&self.shared, shard, &request, deadline);
            match self.shared.router.ask(group, &request, deadline, here).await {
                Err(Error::NoLeader { .. }) if Instant::now() < given_up => sleep(PAUSE).await,
                asked => return asked.map(drop),
            }
        }
    }

    fn restoring(&self) -> Result<Arc<Meta>, Error> {
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        if meta.restoring.is_some() {
            return Ok(meta);
        }
        let cluster_id = meta.cluster_id.clone();
        Err(MetaRefusal::AlreadyInitialized { cluster_id }.into())
    }
}

/// What was begun goes on as it was begun: other nodes would be ignored in silence.
fn check_same(begun: &Meta, restoration: &Restoration) -> Result<(), Error> {
    if begun.restoring.as_ref() != Some(&restoration.backup) {
        let cluster_id = begun.cluster_id.clone();
        return Err(MetaRefusal::AlreadyInitialized { cluster_id }.into());
    }
    let members: BTreeMap<_, _> = restoration.members.iter().cloned().collect();
    let factor = restoration.replication_factor.unwrap_or(begun.replication_factor);
    if members == begun.members && factor == begun.replication_factor {
        return Ok(());
    }
    let problem = "the restore that was broken off began with other nodes, addresses or replicas: name the same, or begin \
                   anew with empty data folders on all of its nodes";
    Err(Error::Invalid { field: "members".to_owned(), problem: problem.to_owned() })
}

fn meta_of(chunks: &[Chunk]) -> Result<Meta, String> {
    let key = keys::meta(GroupId::Meta);
    let mut records = chunks.iter().flat_map(|chunk| &chunk.records);
    let (_, value) = records.find(|(found, _)| *found == key).ok_or("it has no meta state")?;
    record::meta_from_bytes(value.clone()).map_err(|error| error.to_string())
}

fn not_restored(group: GroupId, problem: impl ToString) -> Error {
    Error::NotRestored { group, problem: problem.to_string() }
}
