//! `drover.admin.v1.Commands`: parse, call, answer or stream.

use drover_cluster::Cluster;
use drover_cluster::core::ids::{CommandSequence, Offset, ShardId};
use drover_proto::admin::commands_server::Commands;
use drover_proto::admin::{
    self, CancelCommandRequest, CancelCommandResponse, CommitCursorRequest, GetCommandRequest,
    ListCommandsRequest, ListCommandsResponse, ListCursorsRequest, ListCursorsResponse,
    PurgeCommandsRequest, PurgeCommandsResponse, ReadFeedbackRequest, ReadFeedbackResponse,
    SeekCursorRequest, SendCommandRequest, SendCommandResponse, SendCommandsRequest,
    SendCommandsResponse, SendCommandsResult, send_commands_result,
};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::convert::commands::{self, From, List, ReadFeedback, Send};
use super::convert::messages::{self, Cursor};
use super::convert::{RECHECK, identity};
use super::guard::{Guard, Readers};
use super::{cursors, shard_count, status};

/// Feedback records of one answer.
const FEEDBACK_PAGE: u32 = 1_000;
/// Commands of one call that are on their way to their mailboxes together: as many as may wait for one device.
const SENDS_CONCURRENCY: usize = 256;
/// Results in one answer of such a call, at most.
const RESULTS_MAX: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct CommandsService {
    pub(crate) cluster: Cluster,
    pub(crate) readers: Readers,
}

#[tonic::async_trait]
impl Commands for CommandsService {
    type SendCommandsStream = BoxStream<'static, Result<SendCommandsResponse, Status>>;
    type ReadFeedbackStream = BoxStream<'static, Result<ReadFeedbackResponse, Status>>;

    async fn send_command(
        &self,
        request: Request<SendCommandRequest>,
    ) -> Result<Response<SendCommandResponse>, Status> {
        Ok(Response::new(send(&self.cluster, request.into_inner()).await?))
    }

    async fn send_commands(
        &self,
        request: Request<Streaming<SendCommandsRequest>>,
    ) -> Result<Response<Self::SendCommandsStream>, Status> {
        let guard = self.readers.guard(&request)?;
        let results = send_all(self.cluster.clone(), request.into_inner());
        let results = results.ready_chunks(RESULTS_MAX).boxed();
        let responses = stream::try_unfold((results, guard), |(mut results, guard)| async move {
            guard.check()?;
            let chunk = guard.unless_stopped(async { Ok(results.next().await) }).await?;
            let results_of = |chunk: Vec<_>| chunk.into_iter().collect::<Result<Vec<_>, Status>>();
            let response = chunk.map(results_of).transpose()?;
            Ok(response.map(|sent| (SendCommandsResponse { results: sent }, (results, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn list_commands(
        &self,
        request: Request<ListCommandsRequest>,
    ) -> Result<Response<ListCommandsResponse>, Status> {
        let list = List::try_from(request.into_inner()).map_err(status::invalid)?;
        let List { device, after, limit, with_bodies } = list;
        let page = self.cluster.commands(&device, after, limit, with_bodies).await;
        let page = page.map_err(status::of)?;
        let shown = page.commands.into_iter();
        let shown = shown.map(|command| commands::command_with_content(&device, command));
        let commands = shown.collect::<Result<_, _>>().map_err(|invalid| {
            let text = format!("what is stored is not a command: {}", invalid.problem);
            status::refused(Code::DataLoss, "CORRUPT_COMMAND", &text)
        })?;
        let next_page_token =
            page.next.as_ref().map(CommandSequence::to_string).unwrap_or_default();
        Ok(Response::new(ListCommandsResponse { commands, next_page_token }))
    }

    async fn get_command(
        &self,
        request: Request<GetCommandRequest>,
    ) -> Result<Response<admin::Command>, Status> {
        let GetCommandRequest { device_id, module_id, message_id } = request.into_inner();
        let device = identity(&device_id, &module_id).map_err(status::invalid)?;
        let id = commands::command_id(&message_id).map_err(status::invalid)?;
        let command = self.cluster.command(&device, &id).await.map_err(status::of)?;
        Ok(Response::new(commands::command(&device, command)))
    }

    async fn cancel_command(
        &self,
        request: Request<CancelCommandRequest>,
    ) -> Result<Response<CancelCommandResponse>, Status> {
        let CancelCommandRequest { device_id, module_id, message_id } = request.into_inner();
        let device = identity(&device_id, &module_id).map_err(status::invalid)?;
        let id = commands::command_id(&message_id).map_err(status::invalid)?;
        let command = self.cluster.cancel_command(&device, id).await.map_err(status::of)?;
        let may_have_been_delivered = command.deliveries > 0;
        let command = Some(commands::command(&device, command));
        Ok(Response::new(CancelCommandResponse { command, may_have_been_delivered }))
    }

    async fn purge_commands(
        &self,
        request: Request<PurgeCommandsRequest>,
    ) -> Result<Response<PurgeCommandsResponse>, Status> {
        let PurgeCommandsRequest { device_id, module_id } = request.into_inner();
        let device = identity(&device_id, &module_id).map_err(status::invalid)?;
        let purged = self.cluster.purge_commands(&device).await.map_err(status::of)?;
        let (count, may_have_been_delivered) = (purged.count, purged.sent);
        Ok(Response::new(PurgeCommandsResponse { count, may_have_been_delivered }))
    }

    async fn read_feedback(
        &self,
        request: Request<ReadFeedbackRequest>,
    ) -> Result<Response<Self::ReadFeedbackStream>, Status> {
        let guard = self.readers.guard(&request)?;
        let shards = shard_count(&self.cluster)?;
        let read =
            ReadFeedback::from_request(request.into_inner(), shards).map_err(status::invalid)?;
        let reader = FeedbackReader::open(self.cluster.clone(), read).await?;
        let responses = stream::try_unfold((reader, guard), |(mut reader, guard)| async move {
            guard.check()?;
            let response = guard.unless_stopped(reader.next(&guard)).await?;
            Ok(response.map(|response| (response, (reader, guard))))
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn commit_feedback_cursor(
        &self,
        request: Request<CommitCursorRequest>,
    ) -> Result<Response<admin::Cursor>, Status> {
        let CommitCursorRequest { shard, consumer_group, next_offset } = request.into_inner();
        let cursor = cursors::parse(&self.cluster, shard, consumer_group, next_offset)?;
        let Cursor { shard, group, next } = cursor;
        let next = self.cluster.commit_feedback_cursor(shard, group.clone(), next).await;
        Ok(Response::new(messages::cursor(shard, group, next.map_err(status::of)?)))
    }

    async fn seek_feedback_cursor(
        &self,
        request: Request<SeekCursorRequest>,
    ) -> Result<Response<admin::Cursor>, Status> {
        let SeekCursorRequest { shard, consumer_group, next_offset } = request.into_inner();
        let cursor = cursors::parse(&self.cluster, shard, consumer_group, next_offset)?;
        let Cursor { shard, group, next } = cursor;
        let next = self.cluster.seek_feedback_cursor(shard, group.clone(), next).await;
        Ok(Response::new(messages::cursor(shard, group, next.map_err(status::of)?)))
    }

    async fn list_feedback_cursors(
        &self,
        request: Request<ListCursorsRequest>,
    ) -> Result<Response<ListCursorsResponse>, Status> {
        let group = request.into_inner().consumer_group;
        let cursors = cursors::list(&self.cluster, group, |state| state.feedback_cursors).await?;
        Ok(Response::new(ListCursorsResponse { cursors }))
    }
}

async fn send(
    cluster: &Cluster,
    request: SendCommandRequest,
) -> Result<SendCommandResponse, Status> {
    let Send { device, command } = Send::try_from(request).map_err(status::invalid)?;
    let queued = cluster.send_command(&device, command).await.map_err(status::of)?;
    Ok(SendCommandResponse {
        command: Some(commands::command(&device, queued.command)),
        repeated: queued.repeated,
        superseded: queued.superseded,
    })
}

/// The results of the commands of a call, as they come.
fn send_all(
    cluster: Cluster,
    requests: Streaming<SendCommandsRequest>,
) -> impl Stream<Item = Result<SendCommandsResult, Status>> + std::marker::Send {
    let commands = requests
        .map_ok(|request| stream::iter(request.commands.into_iter().map(Ok::<_, Status>)))
        .try_flatten();
    let sends = commands.zip(stream::iter(0..)).map(move |(command, index)| {
        let cluster = cluster.clone();
        async move {
            let result = match send(&cluster, command?).await {
                Ok(sent) => send_commands_result::Result::Sent(sent),
                Err(refused) => send_commands_result::Result::Error(status::bulk_error(&refused)),
            };
            Ok(SendCommandsResult { index, result: Some(result) })
        }
    });
    sends.buffer_unordered(SENDS_CONCURRENCY)
}

/// One reader of a shard's feedback, page by page, with the pace of whoever pulls.
struct FeedbackReader {
    cluster: Cluster,
    shard: ShardId,
    next: Offset,
    /// Where it ends; `None`: it goes on.
    until: Option<Offset>,
}

impl FeedbackReader {
    async fn open(cluster: Cluster, read: ReadFeedback) -> Result<Self, Status> {
        let state = cluster.stream_state(read.shard).await.map_err(status::of)?;
        let next = match read.from {
            From::Beginning => state.first_feedback,
            From::End => state.next_feedback,
            From::Offset(offset) => offset,
            From::Cursor(group) => {
                let found = state.feedback_cursors.iter().find(|(name, _)| *name == group);
                found.map_or(state.first_feedback, |(_, next)| *next)
            }
        };
        let until = (!read.follow).then_some(state.next_feedback);
        Ok(Self { cluster, shard: read.shard, next, until })
    }

    async fn next(&mut self, guard: &Guard) -> Result<Option<ReadFeedbackResponse>, Status> {
        let wait_ms = if self.until.is_none() { RECHECK.as_millis() as u32 } else { 0 };
        loop {
            if self.until.is_some_and(|until| self.next >= until) {
                return Ok(None);
            }
            let page =
                self.cluster.read_feedback(self.shard, self.next, FEEDBACK_PAGE, wait_ms).await;
            let page = page.map_err(status::of)?;
            if !page.records.is_empty() {
                self.next = page.next;
                let feedback = page.records.into_iter().map(commands::feedback).collect();
                return Ok(Some(ReadFeedbackResponse { feedback, next_offset: page.next.get() }));
            }
            if self.until.is_some() {
                return Ok(None);
            }
            guard.check()?;
        }
    }
}
