//! How openraft reaches the replicas of a group on other nodes.
//!
//! Appends are pipelined: a request leaves as soon as openraft has it, and answers are yielded in the order of the
//! requests. The connection keeps that order, and the peer hands appends on as they arrive. An append without entries,
//! which only says what is committed, waits for one with entries and is not sent if it comes. A snapshot has a stream of
//! its own, so that it holds up nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drover_core::ids::{GroupId, ReplicaId};
use drover_proto::cluster::envelope::Body;
use drover_proto::cluster::snapshot_part::Part;
use drover_proto::cluster::{SnapshotChunk, SnapshotEnd, SnapshotHeader, SnapshotPart};
use drover_proto::record;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use openraft::errors::{
    ErrorSource, NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::impls::BoxedErrorSource;
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::time::Instant;

use super::link::Call;
use super::messages as wire;
use super::peers::{CallError, Peers, unexpected};
use super::snapshot::{Checksum, SnapshotData, table_number};
use super::snapshot_pace::SnapshotPace;
use super::types::{
    Invalid, LogId, PeerNode, Snapshot, SnapshotMeta, StorageError, TypeConfig, Vote,
    log_id_to_record, membership_to_record, vote_from_record, vote_to_record,
};
use crate::{metrics, storage};

/// How long an append may be under way. A follower whose disk hangs is noticed by this; a lost connection at once.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long followers of a shard may not know what was committed: a fraction of the shortest election time-out. Nobody
/// reads from a follower; it only applies later, and together. Under load the next entry says it earlier.
const COMMIT_NEWS_DELAY: Duration = Duration::from_millis(50);
/// Appends of one group to one peer that may be under way.
const PIPELINE: usize = 64;
/// How long a replica may take to say what it has.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses before a peer that cannot be reached is tried again. Cheap, because a call to a broken connection ends here.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];

/// Makes the connections of one group: views of the connections that the node has.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    replica: ReplicaId,
    group: GroupId,
    peers: Peers,
}

impl Transport {
    pub(super) fn new(replica: ReplicaId, group: GroupId, peers: Peers) -> Self {
        Self { replica, group, peers }
    }

    /// Whether a replica has nothing at all. `None` if it does not say.
    pub(super) async fn is_empty(&self, target: ReplicaId) -> Option<bool> {
        let remote = Remote { transport: self.clone(), target };
        // Asks for what nobody would refuse or grant in earnest: it changes nothing there, and the answer says it all.
        let nobody = vote_from_record(record::Vote::default());
        let nobody = Body::PreVote(wire::vote_to_proto(&VoteRequest::new(nobody, None)));
        let answer = remote.call(nobody, RPCTypes::Vote, PROBE_TIMEOUT).await.ok()?;
        let response = remote.vote_response(answer).ok()?;
        Some(response.last_log_id.is_none() && response.vote.leader_id.term == 0)
    }
}

impl RaftNetworkFactory<TypeConfig> for Transport {
    type Network = Remote;

    async fn new_client(&mut self, target: ReplicaId, _node: &PeerNode) -> Remote {
        Remote { transport: self.clone(), target }
    }
}

/// A replica of the group on another node.
#[derive(Debug)]
pub(super) struct Remote {
    transport: Transport,
    target: ReplicaId,
}

type RpcError = RPCError<TypeConfig>;

impl RaftNetworkV2<TypeConfig> for Remote {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let body = Body::AppendEntries(wire::append_to_proto(request));
        let answer = self.call(body, RPCTypes::AppendEntries, option.soft_ttl()).await?;
        self.append_response(answer)
    }

    #[expect(clippy::elidable_lifetime_names, reason = "the trait names it")]
    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let pipeline = Pipeline {
            remote: self,
            requests: Some(requests),
            under_way: VecDeque::with_capacity(1),
            news: None,
            broken: None,
        };
        let answers = stream::unfold(pipeline, |mut pipeline| async move {
            let answer = pipeline.next().await?;
            Some((answer, pipeline))
        });
        Box::pin(std::future::ready(Ok(answers.boxed())))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = Body::Vote(wire::vote_to_proto(&request));
        let answer = self.call(body, RPCTypes::Vote, option.soft_ttl()).await?;
        self.vote_response(answer)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = Body::PreVote(wire::vote_to_proto(&request));
        let answer = self.call(body, RPCTypes::Vote, option.soft_ttl()).await?;
        self.vote_response(answer)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let body = Body::TransferLeader(wire::transfer_to_proto(&request));
        let answer = self.call(body, RPCTypes::TransferLeader, option.soft_ttl()).await?;
        if let Body::TransferLeaderResponse(response) = answer {
            return wire::transfer_response_from_proto(response).map_err(|error| network(&error));
        }
        Err(rpc_error(unexpected(self.target.node(), answer)))
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = RETRY_PAUSES[RETRY_PAUSES.len() - 1];
        Some(Backoff::new(RETRY_PAUSES.into_iter().chain(std::iter::repeat(last))))
    }
}

impl Remote {
    async fn call(
        &self,
        body: Body,
        action: RPCTypes,
        deadline: Duration,
    ) -> Result<Body, RpcError> {
        let Transport { peers, group, .. } = &self.transport;
        match peers.call_replica(self.target, *group, body, deadline).await {
            Err(CallError::Timeout { .. }) => Err(self.timeout(action, deadline)),
            answer => answer.map_err(rpc_error),
        }
    }

    /// The nodes act on what the meta group has committed wherever they are; a shard's followers do nothing with it.
    fn may_learn_later(&self) -> bool {
        self.transport.group != GroupId::Meta
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        let (id, target) = (self.transport.replica, self.target);
        RPCError::Timeout(Timeout { action, id, target, timeout })
    }

    fn append_response(&self, answer: Body) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        if let Body::AppendEntriesResponse(response) = answer {
            return wire::append_response_from_proto(response).map_err(|error| network(&error));
        }
        Err(rpc_error(unexpected(self.target.node(), answer)))
    }

    fn vote_response(&self, answer: Body) -> Result<VoteResponse<TypeConfig>, RpcError> {
        if let Body::VoteResponse(response) = answer {
            return wire::vote_response_from_proto(response).map_err(|error| network(&error));
        }
        Err(rpc_error(unexpected(self.target.node(), answer)))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Transport { peers, group, .. } = &self.transport;
        let SnapshotData::Outgoing(outgoing) = snapshot.snapshot else {
            let problem = Invalid { problem: "a received snapshot cannot be sent on" };
            return Err(StreamingError::Network(NetworkError::new(&problem)));
        };
        let unreachable = |error| StreamingError::Unreachable(Unreachable::new(&error));
        let mut client =
            peers.link(self.target.node()).and_then(|link| link.client()).map_err(unreachable)?;
        let header = SnapshotHeader {
            hello: Some(peers.hello(self.target.node())),
            incarnation: self.target.incarnation().into(),
            ..header(*group, &vote, &snapshot.meta)
        };
        let failure = Failure::default();
        let pace = Arc::clone(&peers.shared().snapshot_pace);
        let parts = parts(header, outgoing.into_stream(), failure.clone(), pace);
        let answer = client.install_snapshot(parts).await;
        if let Some(error) = failure.take() {
            return Err(StreamingError::StorageError(StorageError::read_snapshot(
                None,
                BoxedErrorSource::from_error(&error),
            )));
        }
        let installed = answer.map_err(|status| {
            StreamingError::Unreachable(Unreachable::from_string(status.message()))
        })?;
        let vote = wire::required_vote(installed.into_inner().vote)
            .map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
        Ok(SnapshotResponse { vote })
    }
}

/// Unreachable makes openraft pause. It does for all of these: what was lost came with the connection, and a full queue
/// does not empty faster for being asked at once.
fn rpc_error(error: CallError) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&error))
}

fn network(error: &Invalid) -> RpcError {
    RPCError::Network(NetworkError::new(error))
}

/// Appends of one replication stream.
struct Pipeline<'s, S> {
    remote: &'s Remote,
    /// Nothing once openraft has no more.
    requests: Option<S>,
    under_way: VecDeque<Append>,
    /// What was committed, not said yet.
    news: Option<News>,
    /// What went wrong behind those under way: yielded after their answers.
    broken: Option<RpcError>,
}

/// An append under way, and what it is about.
struct Append {
    prev: Option<LogId>,
    last: Option<LogId>,
    expires: Instant,
    call: Call,
}

/// An append without entries, and when it must leave.
struct News {
    request: AppendEntriesRequest<TypeConfig>,
    due: Instant,
}

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// The next answer in the order of the requests. Nothing after the last, or after one that ends the stream.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        loop {
            let may_send = self.under_way.len() < PIPELINE;
            let Some(requests) = self.requests.as_mut() else {
                return self.drain().await;
            };
            // Requests first: the more are under way, the fewer frames and fsyncs they share.
            tokio::select! {
                biased;
                request = requests.next(), if may_send => self.take(request),
                answer = answered(self.under_way.front_mut()) => {
                    let append = self.under_way.pop_front().expect("its answer has just come");
                    return Some(self.conclude(&append, answer));
                }
                () = due(self.news.as_ref()), if may_send => self.send_news(),
            }
        }
    }

    /// After the last request: answers that are still to come, then what broke the stream.
    async fn drain(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        let Some(mut append) = self.under_way.pop_front() else {
            return self.broken.take().map(Err);
        };
        let answer = answered(Some(&mut append)).await;
        Some(self.conclude(&append, answer))
    }

    fn take(&mut self, request: Option<AppendEntriesRequest<TypeConfig>>) {
        match request {
            None => {
                self.requests = None;
                self.send_news();
            }
            Some(request) if request.entries.is_empty() && self.remote.may_learn_later() => {
                let due = self.news.as_ref().map(|news| news.due);
                let due = due.unwrap_or_else(|| Instant::now() + COMMIT_NEWS_DELAY);
                self.news = Some(News { request, due });
            }
            Some(request) => {
                // It says itself what is committed. openraft counts the acknowledgement of a later log id for both.
                self.news = None;
                self.send(request);
            }
        }
    }

    fn send_news(&mut self) {
        if let Some(news) = self.news.take() {
            self.send(news.request);
        }
    }

    fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let Transport { peers, group, .. } = &self.remote.transport;
        let target = self.remote.target;
        let body = Body::AppendEntries(wire::append_to_proto(request));
        let call = peers
            .link(target.node())
            .and_then(|link| link.call(*group, target.incarnation(), APPEND_TIMEOUT, body));
        match call {
            Ok(call) => {
                let expires = Instant::now() + APPEND_TIMEOUT;
                self.under_way.push_back(Append { prev, last, expires, call });
            }
            Err(error) => {
                self.broken = Some(rpc_error(error));
                self.requests = None;
            }
        }
    }

    fn conclude(
        &mut self,
        append: &Append,
        answer: Option<Result<Body, CallError>>,
    ) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
        let concluded = match answer {
            None => Err(self.remote.timeout(RPCTypes::AppendEntries, APPEND_TIMEOUT)),
            Some(Err(error)) => Err(rpc_error(error)),
            Some(Ok(body)) => self
                .remote
                .append_response(body)
                .and_then(|response| stream_result(response, append)),
        };
        let goes_on = matches!(&concluded, Ok(Ok(matching)) if *matching == append.last);
        if !goes_on {
            self.requests = None;
            self.under_way.clear();
            self.news = None;
            self.broken = None;
        }
        concluded
    }
}

/// The answer of an append; `None` if it does not come in time. Never resolves if there is no append.
async fn answered(append: Option<&mut Append>) -> Option<Result<Body, CallError>> {
    match append {
        Some(append) => tokio::time::timeout_at(append.expires, &mut append.call).await.ok(),
        None => std::future::pending().await,
    }
}

async fn due(news: Option<&News>) {
    match news {
        Some(news) => tokio::time::sleep_until(news.due).await,
        None => std::future::pending().await,
    }
}

fn stream_result(
    response: AppendEntriesResponse<TypeConfig>,
    append: &Append,
) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    Ok(match response {
        AppendEntriesResponse::Success => Ok(append.last),
        AppendEntriesResponse::PartialSuccess(matching) => Ok(matching),
        AppendEntriesResponse::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
        AppendEntriesResponse::Conflict => {
            let problem = Invalid { problem: "a conflict where nothing was expected before" };
            let prev = append.prev.ok_or_else(|| network(&problem))?;
            Err(StreamAppendError::Conflict(prev))
        }
    })
}

/// What broke while a snapshot was read. Set by the stream of parts, looked at when the call is over.
#[derive(Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<storage::Error>>>);

impl Failure {
    fn set(&self, error: storage::Error) {
        *self.0.lock().expect("nobody panics with it in hand") = Some(error);
    }

    pub(super) fn take(&self) -> Option<storage::Error> {
        self.0.lock().expect("nobody panics with it in hand").take()
    }
}

pub(super) fn header(group: GroupId, vote: &Vote, meta: &SnapshotMeta) -> SnapshotHeader {
    SnapshotHeader {
        hello: None,
        incarnation: 0,
        group: group.number(),
        vote: Some(vote_to_record(vote)),
        last_log_id: meta.last_log_id.as_ref().map(log_id_to_record),
        membership_log_id: meta.last_membership.log_id().as_ref().map(log_id_to_record),
        membership: Some(membership_to_record(meta.last_membership.membership())),
    }
}

/// A snapshot as it is sent. It has no end if reading it failed: nobody installs it then.
pub(super) fn parts(
    header: SnapshotHeader,
    chunks: impl Stream<Item = Result<storage::Chunk, storage::Error>> + Send + Unpin + 'static,
    failure: Failure,
    pace: Arc<SnapshotPace>,
) -> impl Stream<Item = SnapshotPart> + Send + 'static {
    let header = SnapshotPart { part: Some(Part::Header(header)) };
    let state = Some((chunks, Checksum::default(), pace));
    let rest = stream::unfold((state, failure), |(state, failure)| async move {
        let (mut chunks, mut checksum, pace) = state?;
        let (part, state) = match chunks.next().await {
            Some(Ok(chunk)) => {
                checksum.add(&chunk);
                let bytes = chunk.bytes();
                pace.wait_for(bytes).await;
                metrics::snapshot_sent(bytes);
                let table = u32::from(table_number(chunk.table));
                let (keys, values) = chunk.records.into_iter().unzip();
                let chunk = SnapshotChunk { table, keys, values };
                (Part::Chunk(chunk), Some((chunks, checksum, pace)))
            }
            Some(Err(error)) => {
                failure.set(error);
                return None;
            }
            None => {
                let Checksum { records, crc32 } = checksum;
                (Part::End(SnapshotEnd { records, crc32 }), None)
            }
        };
        Some((SnapshotPart { part: Some(part) }, (state, failure)))
    });
    stream::once(std::future::ready(header)).chain(rest)
}
