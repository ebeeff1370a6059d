//! `drover.admin.v1.Messages`: parse, call, answer or stream.

use drover_cluster::Cluster;
use drover_cluster::core::ids::Offset;
use drover_proto::admin::messages_server::Messages;
use drover_proto::admin::{
    self, CommitCursorRequest, DeleteCursorRequest, DeleteCursorResponse, ListCursorsRequest,
    ListCursorsResponse, ReadHistoryRequest, ReadHistoryResponse, ReadStreamRequest,
    SeekCursorRequest, TailRequest,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tonic::{Code, Request, Response, Status};

use super::convert::messages::{self, Cursor, ReadHistory, ReadStream};
use super::guard::{Guard, Readers};
use super::reader::StreamReader;
use super::{cursors, shard_count, status};
use crate::bus::{Bus, Filter, Subscription};

#[derive(Debug, Clone)]
pub(crate) struct MessagesService {
    pub(crate) cluster: Cluster,
    pub(crate) bus: Bus,
    pub(crate) readers: Readers,
}

#[tonic::async_trait]
impl Messages for MessagesService {
    type ReadStreamStream = BoxStream<'static, Result<admin::ReadStreamResponse, Status>>;
    type TailStream = BoxStream<'static, Result<admin::TailResponse, Status>>;

    async fn read_stream(
        &self,
        request: Request<ReadStreamRequest>,
    ) -> Result<Response<Self::ReadStreamStream>, Status> {
        let guard = self.readers.guard(&request)?;
        let shards = shard_count(&self.cluster)?;
        let read =
            ReadStream::from_request(request.into_inner(), shards).map_err(status::invalid)?;
        let reader = StreamReader::open(self.cluster.clone(), read).await.map_err(status::of)?;
        let responses = stream::try_unfold((reader, guard), |(mut reader, guard)| async move {
            guard.check()?;
            let response = guard.unless_stopped(reader.next(|| guard.check())).await?;
            Ok(response.map(|response| (response, (reader, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn commit_cursor(
        &self,
        request: Request<CommitCursorRequest>,
    ) -> Result<Response<admin::Cursor>, Status> {
        let CommitCursorRequest { shard, consumer_group, next_offset } = request.into_inner();
        let cursor = cursors::parse(&self.cluster, shard, consumer_group, next_offset)?;
        let Cursor { shard, group, next } = cursor;
        let next = self.cluster.commit_cursor(shard, group.clone(), next).await;
        Ok(Response::new(messages::cursor(shard, group, next.map_err(status::of)?)))
    }

    async fn seek_cursor(
        &self,
        request: Request<SeekCursorRequest>,
    ) -> Result<Response<admin::Cursor>, Status> {
        let SeekCursorRequest { shard, consumer_group, next_offset } = request.into_inner();
        let cursor = cursors::parse(&self.cluster, shard, consumer_group, next_offset)?;
        let Cursor { shard, group, next } = cursor;
        let next = self.cluster.seek_cursor(shard, group.clone(), next).await;
        Ok(Response::new(messages::cursor(shard, group, next.map_err(status::of)?)))
    }

    async fn list_cursors(
        &self,
        request: Request<ListCursorsRequest>,
    ) -> Result<Response<ListCursorsResponse>, Status> {
        let group = request.into_inner().consumer_group;
        let cursors = cursors::list(&self.cluster, group, |state| state.cursors).await?;
        Ok(Response::new(ListCursorsResponse { cursors }))
    }

    async fn delete_cursor(
        &self,
        request: Request<DeleteCursorRequest>,
    ) -> Result<Response<DeleteCursorResponse>, Status> {
        let request = request.into_inner();
        let cursor = cursors::parse(&self.cluster, request.shard, request.consumer_group, 0)?;
        let Cursor { shard, group, .. } = cursor;
        self.cluster.delete_cursor(shard, group).await.map_err(status::of)?;
        Ok(Response::new(DeleteCursorResponse {}))
    }

    async fn read_history(
        &self,
        request: Request<ReadHistoryRequest>,
    ) -> Result<Response<ReadHistoryResponse>, Status> {
        let read = ReadHistory::try_from(request.into_inner()).map_err(status::invalid)?;
        let ReadHistory { device, from, until, after, limit } = read;
        let page = self.cluster.history(&device, from, until, after, limit).await;
        let page = page.map_err(status::of)?;
        let is_full = page.len() >= limit as usize;
        let last = page.last().filter(|_| is_full).map(|message| message.offset);
        let messages = page.into_iter().map(message).collect::<Result<_, _>>()?;
        let next_page_token = last.as_ref().map(Offset::to_string).unwrap_or_default();
        Ok(Response::new(ReadHistoryResponse { messages, next_page_token }))
    }

    async fn tail(
        &self,
        request: Request<TailRequest>,
    ) -> Result<Response<Self::TailStream>, Status> {
        let guard = self.readers.guard(&request)?;
        let filter = Filter::try_from(request.into_inner()).map_err(status::invalid)?;
        let subscription = self.bus.subscribe(filter);
        let responses = stream::try_unfold((subscription, guard), |(mut live, guard)| async move {
            let response = guard.unless_stopped(next_live(&mut live, &guard)).await?;
            Ok(response.map(|response| (response, (live, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }
}

/// The next live messages. Wakes up now and then to look whether the caller may still listen.
async fn next_live(
    live: &mut Subscription,
    guard: &Guard,
) -> Result<Option<admin::TailResponse>, Status> {
    loop {
        if let Some(response) = guard.next(live.next()).await? {
            return Ok(response);
        }
    }
}

pub(crate) fn message(
    stored: drover_cluster::actors::cluster::StoredMessage,
) -> Result<admin::Message, Status> {
    let (shard, offset) = (stored.shard, stored.offset);
    messages::message(stored).map_err(|error| {
        let text =
            format!("shard {shard}, offset {offset}: what is stored is not a message: {error}");
        status::refused(Code::DataLoss, "CORRUPT_MESSAGE", &text)
    })
}
