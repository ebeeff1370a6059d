//! `drover.admin.v1.Backups`: parse, call, answer or stream.

use drover_cluster::Cluster;
use drover_cluster::actors::backups::Records;
use drover_cluster::core::ids::{GroupId, ShardId};
use drover_proto::admin::backups_server::Backups;
use drover_proto::admin::copy_group_response::Part as Copied;
use drover_proto::admin::restore_shard_request::Part as Restored;
use drover_proto::admin::{
    BeginRestoreRequest, BeginRestoreResponse, CopyGroupRequest, CopyGroupResponse,
    EndRestoreRequest, EndRestoreResponse, GroupMoment, RestoreShardRequest, RestoreShardResponse,
};
use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::convert::backups;
use super::guard::Readers;
use super::status::Invalid;
use super::{shard_count, status};

#[derive(Debug, Clone)]
pub(crate) struct BackupsService {
    pub(crate) cluster: Cluster,
    pub(crate) readers: Readers,
}

#[tonic::async_trait]
impl Backups for BackupsService {
    type CopyGroupStream = BoxStream<'static, Result<CopyGroupResponse, Status>>;
    type RestoreShardStream = BoxStream<'static, Result<RestoreShardResponse, Status>>;

    async fn copy_group(
        &self,
        request: Request<CopyGroupRequest>,
    ) -> Result<Response<Self::CopyGroupStream>, Status> {
        let guard = self.readers.guard(&request)?;
        let group = match request.into_inner().shard {
            Some(number) => GroupId::Shard(self.shard(number)?),
            None => GroupId::Meta,
        };
        let copy = self.cluster.copy_group(group).await.map_err(status::of)?;
        let moment = Copied::Moment(GroupMoment { term: copy.term, index: copy.index });
        let records = copy.chunks.map(|chunk| match chunk {
            Ok(chunk) => Ok(Copied::Records(backups::records(chunk))),
            Err(error) => Err(Status::aborted(error.to_string())),
        });
        let parts = stream::once(std::future::ready(Ok(moment))).chain(records).boxed();
        let responses = stream::try_unfold((parts, guard), |(mut parts, guard)| async move {
            guard.check()?;
            let next = async { parts.next().await.transpose() };
            let part = guard.unless_stopped(next).await?;
            Ok(part.map(|part| (CopyGroupResponse { part: Some(part) }, (parts, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn begin_restore(
        &self,
        request: Request<BeginRestoreRequest>,
    ) -> Result<Response<BeginRestoreResponse>, Status> {
        let restoration = backups::restoration(request.into_inner()).map_err(status::invalid)?;
        let meta = self.cluster.begin_restore(restoration).await.map_err(status::of)?;
        Ok(Response::new(BeginRestoreResponse { cluster_id: meta.cluster_id.clone() }))
    }

    /// Answered as a stream: what has one answer must have it within the time that every call has.
    async fn restore_shard(
        &self,
        request: Request<Streaming<RestoreShardRequest>>,
    ) -> Result<Response<Self::RestoreShardStream>, Status> {
        let mut parts = request.into_inner();
        let Some(Restored::Shard(number)) = parts.message().await?.and_then(|first| first.part)
        else {
            return Err(status::invalid(Invalid::new("shard", "it comes first")));
        };
        let (cluster, shard) = (self.cluster.clone(), self.shard(number)?);
        let restored = async move {
            let restored = cluster.restore_shard(shard, received(parts)).await;
            restored.map(|()| RestoreShardResponse {}).map_err(status::of)
        };
        Ok(Response::new(stream::once(restored).boxed()))
    }

    async fn end_restore(
        &self,
        _: Request<EndRestoreRequest>,
    ) -> Result<Response<EndRestoreResponse>, Status> {
        self.cluster.end_restore().await.map_err(status::of)?;
        Ok(Response::new(EndRestoreResponse {}))
    }
}

impl BackupsService {
    fn shard(&self, number: u32) -> Result<ShardId, Status> {
        let shard = ShardId::new(number, shard_count(&self.cluster)?);
        shard.ok_or_else(|| status::invalid(Invalid::new("shard", "there is none")))
    }
}

/// The records of a shard. Who leaves in the middle, or sends another number of them than it says, has sent nothing.
fn received(requests: Streaming<RestoreShardRequest>) -> Records {
    let chunks = stream::try_unfold((requests, 0), move |(mut requests, count)| async move {
        let request = requests.message().await.map_err(|status| status.to_string())?;
        match request.and_then(|request| request.part) {
            Some(Restored::Records(records)) => {
                let chunk = backups::chunk(records);
                let chunk = chunk.map_err(|invalid| invalid.to_string())?;
                let count = count + chunk.records.len() as u64;
                Ok(Some((chunk, (requests, count))))
            }
            Some(Restored::End(sent)) if sent == count => Ok(None),
            Some(Restored::End(sent)) => Err(format!("{count} of {sent} records came")),
            Some(Restored::Shard(_)) | None => Err("the records have no end".to_owned()),
        }
    });
    chunks.boxed()
}
