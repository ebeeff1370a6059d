//! Copies each group of a running cluster into objects, and then writes the manifest.
//!
//! A copy that breaks off, because a leader was lost in the middle of it, is begun again; what it has written is written over.

use drover_cluster::core::ids::LogTime;
use drover_proto::admin::copy_group_response::Part;
use drover_proto::admin::{ClusterStatus, CopyGroupRequest};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use rand::RngCore as _;
use tonic::{Code, Request};

use super::manifest::{self, FORMAT, Group, Manifest};
use super::objects::Writer;
use super::progress::Progress;
use super::target::Target;
use crate::cli::client::Client;
use crate::cli::{Failure, cluster, json};
use crate::clock;
use crate::grpc::convert::timestamp;

/// Groups that are copied at a time. Each holds an object in memory, and a snapshot at its leader.
const TOGETHER: usize = 4;
/// How often one group is begun.
const ATTEMPTS: usize = 5;
/// Not to be confused with another backup.
const ID_BYTES: usize = 8;

pub(super) async fn create(
    client: &Client,
    target: &Target,
    progress: &Progress,
) -> Result<Manifest, Failure> {
    if !target.is_empty().await? {
        let place = target.name();
        return Err(Failure::Failed(format!(
            "there is something at {place} already: give each backup a place of its own"
        )));
    }
    let began = now();
    let status = cluster::status(client).await?;
    let written = progress.show(write(client, target, status, began, progress)).await;
    written.map_err(|failure| unfinished(target, failure))
}

async fn write(
    client: &Client,
    target: &Target,
    status: ClusterStatus,
    began: String,
    progress: &Progress,
) -> Result<Manifest, Failure> {
    let shards = status.shards.iter().filter(|shard| shard.shard.is_some()).count() as u32;
    progress.expect(shards as usize + 1);
    let groups = std::iter::once(None).chain((0..shards).map(Some));
    let copies = groups.map(|shard| copy_until_done(client, target, shard, progress));
    let groups: Vec<Group> = stream::iter(copies).buffered(TOGETHER).try_collect().await?;
    let mut id = [0; ID_BYTES];
    rand::rng().fill_bytes(&mut id);
    let manifest = Manifest {
        format: FORMAT,
        backup: hex::encode(id),
        cluster: status.cluster_id,
        drover: env!("CARGO_PKG_VERSION").to_owned(),
        began,
        ended: now(),
        shards,
        groups,
    };
    manifest::write(target, &manifest).await?;
    Ok(manifest)
}

async fn copy_until_done(
    client: &Client,
    target: &Target,
    shard: Option<u32>,
    progress: &Progress,
) -> Result<Group, Failure> {
    let mut attempt = 1;
    loop {
        match copy(client, target, shard, progress).await {
            Err(Failure::Call(status)) if attempt < ATTEMPTS && passes(status.code()) => {
                attempt += 1;
            }
            copied => {
                progress.group_done();
                return copied;
            }
        }
    }
}

/// What the loss of a leader or of a node looks like. Each call waits for a leader by itself.
fn passes(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Aborted | Code::Unknown | Code::Cancelled)
}

async fn copy(
    client: &Client,
    target: &Target,
    shard: Option<u32>,
    progress: &Progress,
) -> Result<Group, Failure> {
    let copy = client.backups().copy_group(Request::new(CopyGroupRequest { shard })).await;
    let mut parts = copy?.into_inner();
    let mut writer = Writer::new(target, shard, progress);
    let (mut term, mut index) = (0, 0);
    while let Some(response) = parts.message().await? {
        match response.part {
            Some(Part::Moment(moment)) => (term, index) = (moment.term, moment.index),
            Some(Part::Records(records)) => writer.add(&records).await?,
            None => {}
        }
    }
    let records = writer.records;
    Ok(Group { shard, term, index, records, objects: writer.finish().await? })
}

fn unfinished(target: &Target, failure: Failure) -> Failure {
    let place = target.name();
    Failure::Failed(format!(
        "{failure}; what was written to {place} has no manifest and is no backup: remove it"
    ))
}

fn now() -> String {
    json::time_text(&timestamp(LogTime::new(clock::unix_ms())))
}
