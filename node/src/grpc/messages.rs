//! `drover.admin.v1.Messages`: parse, call, answer or stream.

use std::sync::Arc;

use drover_cluster::core::ids::Offset;
use drover_cluster::{Cluster, Error};
use drover_proto::admin::messages_server::Messages;
use drover_proto::admin::{
    self, CommitCursorRequest, DeleteCursorRequest, DeleteCursorResponse, ListCursorsRequest,
    ListCursorsResponse, ReadHistoryRequest, ReadHistoryResponse, ReadStreamRequest,
    SeekCursorRequest, TailRequest,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::auth::Caller;
use super::convert::messages::{self, Cursor, ReadHistory, ReadStream};
use super::reader::StreamReader;
use super::{convert, shard_count, status};
use crate::bus::{Bus, Filter, Subscription};
use crate::clock;

/// Streams that are read at one time at a node. Each holds a page of messages and a place in a queue.
pub(crate) const READERS_MAX: usize = 1_000;
/// How many shards are asked at a time for the cursors of a group.
const CURSORS_CONCURRENCY: usize = 32;

#[derive(Debug, Clone)]
pub(crate) struct MessagesService {
    pub(crate) cluster: Cluster,
    pub(crate) bus: Bus,
    pub(crate) readers: Arc<Semaphore>,
    /// Ends the streams, so that the server can stop.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Messages for MessagesService {
    type ReadStreamStream = BoxStream<'static, Result<admin::ReadStreamResponse, Status>>;
    type TailStream = BoxStream<'static, Result<admin::TailResponse, Status>>;

    async fn read_stream(
        &self,
        request: Request<ReadStreamRequest>,
    ) -> Result<Response<Self::ReadStreamStream>, Status> {
        let guard = self.guard(&request)?;
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
        let request = request.into_inner();
        let cursor = self.cursor(request.shard, request.consumer_group, request.next_offset)?;
        let Cursor { shard, group, next } = cursor;
        let next = self.cluster.commit_cursor(shard, group.clone(), next).await;
        Ok(Response::new(messages::cursor(shard, group, next.map_err(status::of)?)))
    }

    async fn seek_cursor(
        &self,
        request: Request<SeekCursorRequest>,
    ) -> Result<Response<admin::Cursor>, Status> {
        let request = request.into_inner();
        let cursor = self.cursor(request.shard, request.consumer_group, request.next_offset)?;
        let Cursor { shard, group, next } = cursor;
        let next = self.cluster.seek_cursor(shard, group.clone(), next).await;
        Ok(Response::new(messages::cursor(shard, group, next.map_err(status::of)?)))
    }

    async fn list_cursors(
        &self,
        request: Request<ListCursorsRequest>,
    ) -> Result<Response<ListCursorsResponse>, Status> {
        let group = messages::consumer_group(request.into_inner().consumer_group);
        let group = group.map_err(status::invalid)?;
        let shards = shard_count(&self.cluster)?.shards();
        let mut states = stream::iter(shards)
            .map(|shard| self.cluster.stream_state(shard))
            .buffered(CURSORS_CONCURRENCY);
        let mut cursors = Vec::new();
        while let Some(state) = states.next().await {
            let state = state.map_err(status::of)?;
            let next = state.cursors.iter().find(|(name, _)| *name == group).map(|(_, next)| *next);
            cursors.extend(next.map(|next| messages::cursor(state.shard, group.clone(), next)));
        }
        Ok(Response::new(ListCursorsResponse { cursors }))
    }

    async fn delete_cursor(
        &self,
        request: Request<DeleteCursorRequest>,
    ) -> Result<Response<DeleteCursorResponse>, Status> {
        let request = request.into_inner();
        let Cursor { shard, group, .. } = self.cursor(request.shard, request.consumer_group, 0)?;
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
        let guard = self.guard(&request)?;
        let filter = Filter::try_from(request.into_inner()).map_err(status::invalid)?;
        let subscription = self.bus.subscribe(filter);
        let responses = stream::try_unfold((subscription, guard), |(mut live, guard)| async move {
            let response = guard.unless_stopped(next_live(&mut live, &guard)).await?;
            Ok(response.map(|response| (response, (live, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }
}

impl MessagesService {
    fn cursor(&self, shard: u32, group: String, next: u64) -> Result<Cursor, Status> {
        let shards = shard_count(&self.cluster)?;
        Cursor::from_parts(shard, group, next, shards).map_err(status::invalid)
    }

    fn guard<T>(&self, request: &Request<T>) -> Result<Guard, Status> {
        let permit = Arc::clone(&self.readers).try_acquire_owned().map_err(|_| {
            let text =
                format!("{READERS_MAX} streams are read at this node already: use another node");
            status::refused(Code::ResourceExhausted, "TOO_MANY_READERS", &text)
        })?;
        Ok(Guard {
            caller: caller(request),
            cluster: self.cluster.clone(),
            stop: self.stop.clone(),
            _permit: permit,
        })
    }
}

/// The next live messages. Wakes up now and then to look whether the caller may still listen.
async fn next_live(
    live: &mut Subscription,
    guard: &Guard,
) -> Result<Option<admin::TailResponse>, Status> {
    loop {
        let response = tokio::time::timeout(convert::RECHECK, live.next()).await;
        guard.check()?;
        if let Ok(response) = response {
            return Ok(response);
        }
    }
}

/// Holds a stream's place among the readers, and ends it when its caller's right has ended.
struct Guard {
    caller: Caller,
    cluster: Cluster,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Guard {
    async fn unless_stopped<T>(
        &self,
        next: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            () = self.stop.cancelled() => Err(status::of(Error::Stopping)),
            next = next => next,
        }
    }

    fn check(&self) -> Result<(), Status> {
        let meta = self.cluster.meta();
        if self.caller.still_stands(meta.as_deref(), clock::unix_ms() / 1_000) {
            return Ok(());
        }
        let text = "the token has expired or its policy was changed: go on with a new one from where you are";
        Err(status::refused(Code::Unauthenticated, "EXPIRED", text))
    }
}

/// The authorization layer has put it there; without it nobody gets in.
fn caller<T>(request: &Request<T>) -> Caller {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .expect("every call passes the authorization layer")
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
