//! Brings what a backup holds into a new cluster.
//!
//! The backup was read as a whole before anything is made; each object is checked again when it is sent. A restore that was broken
//! off leaves a cluster that serves nobody: the same command goes on with it.

use drover_proto::admin::restore_shard_request::Part;
use drover_proto::admin::{
    BeginRestoreRequest, EndRestoreRequest, GroupRecords, Member, RestoreShardRequest,
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::manifest::{Group, Manifest};
use super::objects::Reader;
use super::progress::Progress;
use super::target::Target;
use crate::cli::Failure;
use crate::cli::client::Client;

/// Shards that are restored at a time. Each holds an object in memory.
const TOGETHER: usize = 4;
/// Messages that wait for the connection.
const AHEAD: usize = 4;

/// The cluster that is to be made.
pub(super) struct Plan {
    pub(super) members: Vec<Member>,
    /// 0: as it was.
    pub(super) replicas: u32,
}

/// Answers with the id of the new cluster.
pub(super) async fn restore(
    client: &Client,
    target: &Target,
    manifest: &Manifest,
    plan: Plan,
    progress: &Progress,
) -> Result<String, Failure> {
    progress.expect(manifest.groups.len());
    let meta = manifest.groups.iter().find(|group| group.shard.is_none());
    let meta = meta.ok_or_else(|| target.broken("it has no meta group"))?;
    let request = BeginRestoreRequest {
        backup: manifest.backup.clone(),
        members: plan.members,
        replication_factor: plan.replicas,
        meta: read_all(target, meta, progress).await?,
    };
    let begun = client.backups().begin_restore(client.request(request)).await?.into_inner();
    eprintln!("drover: cluster {} is being filled", begun.cluster_id);
    let filled = progress.show(fill(client, target, manifest, progress)).await;
    filled.map_err(|failure| unfinished(&begun.cluster_id, failure))?;
    Ok(begun.cluster_id)
}

/// Brings all shards, and lets the cluster serve.
async fn fill(
    client: &Client,
    target: &Target,
    manifest: &Manifest,
    progress: &Progress,
) -> Result<(), Failure> {
    let shards = manifest.groups.iter().filter_map(|group| Some((group.shard?, group)));
    let restored = shards.map(|(shard, group)| async move {
        restore_shard(client, shard, Reader::new(target, group, progress)).await?;
        progress.group_done();
        Ok::<_, Failure>(())
    });
    stream::iter(restored).buffer_unordered(TOGETHER).try_collect::<()>().await?;
    // Without a deadline of its own: every shard of a large cluster is waited for.
    client.backups().end_restore(Request::new(EndRestoreRequest {})).await?;
    Ok(())
}

fn unfinished(cluster: &str, failure: Failure) -> Failure {
    Failure::Failed(format!(
        "{failure}; cluster {cluster} serves nobody before all of the backup is there: give the same command again and it goes \
         on, or begin anew with empty data folders on all nodes"
    ))
}

async fn read_all(
    target: &Target,
    group: &Group,
    progress: &Progress,
) -> Result<Vec<GroupRecords>, Failure> {
    let mut reader = Reader::new(target, group, progress);
    let mut all = Vec::new();
    while let Some(messages) = reader.next().await? {
        all.extend(messages);
    }
    progress.group_done();
    Ok(all)
}

/// The answer comes when the records are durable. If they cannot be read to their end, the call is given up before it is told
/// that they have ended, and nothing of them is taken over.
async fn restore_shard(client: &Client, shard: u32, reader: Reader<'_>) -> Result<(), Failure> {
    let (sender, requests) = mpsc::channel(AHEAD);
    let mut backups = client.backups();
    let answered = async {
        let requests = Request::new(ReceiverStream::new(requests));
        let mut answers = backups.restore_shard(requests).await?.into_inner();
        answers.message().await?;
        Ok::<_, Failure>(())
    };
    let answered = std::pin::pin!(answered);
    let sent = std::pin::pin!(send(shard, reader, sender));
    match futures::future::select(answered, sent).await {
        // A shard that is there already is answered before all of it was sent; so is a refusal.
        futures::future::Either::Left((answer, _)) => answer,
        futures::future::Either::Right((sent, answered)) => {
            sent?;
            answered.await
        }
    }
}

async fn send(
    shard: u32,
    mut reader: Reader<'_>,
    requests: mpsc::Sender<RestoreShardRequest>,
) -> Result<(), Failure> {
    let request = |part| RestoreShardRequest { part: Some(part) };
    let mut parts = vec![request(Part::Shard(shard))];
    let mut count = 0;
    loop {
        for part in parts {
            if requests.send(part).await.is_err() {
                // Whoever reads them has an answer that says why.
                return std::future::pending().await;
            }
        }
        let Some(messages) = reader.next().await? else { break };
        count += messages.iter().map(|message| message.keys.len() as u64).sum::<u64>();
        parts = messages.into_iter().map(|records| request(Part::Records(records))).collect();
    }
    requests.send(request(Part::End(count))).await.ok();
    Ok(())
}
