//! What peers ask of this node: Raft messages go to the group they name, everything else to the queue of the layers
//! above.
//!
//! One task a connection reads, hands on and collects answers; none is spawned for a message. A message for a group is
//! handed to its replica in the order of arrival, and nobody waits for a slow group but the messages for it.

use std::sync::Arc;
use std::task::Poll;

use drover_core::ids::{GroupId, NodeId};
use drover_core::level::{self, FeatureLevel};
use drover_proto::cluster::envelope::Body;
use drover_proto::cluster::failure::Kind;
use drover_proto::cluster::peer_server::{Peer, PeerServer};
use drover_proto::cluster::{
    Envelope, Failure, Frame, GroupRead, Hello, SnapshotInstalled, SnapshotPart,
};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use super::frames::{FRAME_BYTES_MAX, Outbox, outbox};
use super::link::{FORMAT, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, WINDOW_BYTES};
use super::messages as wire;
use super::network::ProvenPeer;
use super::peers::{Incoming, Shared};
use super::{copy, receive};
use crate::metrics;

/// Requests of one peer that are being carried out. Its next frame is not read while there are more.
const RUNNING_MAX: usize = 65_536;
/// Streams of one connection: one exchange, and a snapshot for each of some groups.
const STREAMS_MAX: u32 = 64;

/// Accepts peers until the node stops.
pub(super) async fn listen(shared: Arc<Shared>) {
    let stopping = shared.stopping.clone();
    let connections = shared.network.incoming();
    let service = PeerServer::new(Service { shared })
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let served = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(connections, stopping.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the peer listener has ended");
    }
}

struct Service {
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl Peer for Service {
    type ExchangeStream = BoxStream<'static, Result<Frame, Status>>;
    type ReadGroupStream = BoxStream<'static, Result<SnapshotPart, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let proven = proven(&request);
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.hello);
        let from = self.greet(proven, first)?;
        let (outbox, answers) = outbox(None);
        let exchange = Exchange { shared: Arc::clone(&self.shared), from, outbox };
        tokio::spawn(exchange.run(frames));
        Ok(Response::new(answers.map(Ok).boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotInstalled>, Status> {
        let proven = proven(&request);
        let mut parts = request.into_inner();
        let mut header = receive::header(&mut parts).await?;
        self.greet(proven, header.hello.take())?;
        receive::install(&self.shared, header, parts).await.map(Response::new)
    }

    async fn read_group(
        &self,
        request: Request<GroupRead>,
    ) -> Result<Response<Self::ReadGroupStream>, Status> {
        let proven = proven(&request);
        let GroupRead { hello, group } = request.into_inner();
        self.greet(proven, hello)?;
        let group = GroupId::from_number(group)
            .ok_or_else(|| Status::invalid_argument("there is no such group"))?;
        copy::read(&self.shared, group).await.map(Response::new)
    }
}

/// Tells a node that it is no member any more; no other refusal of a peer has this code.
pub(super) const DISOWNED: Code = Code::NotFound;

impl Service {
    /// Checks who speaks and who is meant before anything else that was said is looked at.
    fn greet(&self, proven: ProvenPeer, hello: Option<Hello>) -> Result<NodeId, Status> {
        let hello = hello.ok_or_else(|| Status::invalid_argument("nobody introduced itself"))?;
        let (from, to) = (NodeId::from_u64(hello.from), NodeId::from_u64(hello.to));
        if let Some(node) = proven.0.filter(|node| *node != from) {
            let text = format!("the certificate names node {node}, not node {from}");
            return Err(Status::permission_denied(text));
        }
        if to != self.shared.node {
            let text = format!("this is node {}, not node {to}", self.shared.node);
            return Err(Status::failed_precondition(text));
        }
        if hello.format > FORMAT {
            let text = format!("format {} is newer than mine, {FORMAT}", hello.format);
            return Err(Status::failed_precondition(text));
        }
        let foreign = self.shared.cluster_id().filter(|mine| *mine != hello.cluster_id);
        if let Some(mine) = foreign.filter(|_| !hello.cluster_id.is_empty()) {
            let text = format!("this is cluster {mine}, not {}", hello.cluster_id);
            return Err(Status::failed_precondition(text));
        }
        if self.shared.is_removed(from) {
            let text = format!("node {from} was removed from the cluster");
            return Err(Status::new(DISOWNED, text));
        }
        self.check_levels(from, &hello)?;
        Ok(from)
    }

    /// Neither side may get an entry that its build cannot read: a node that went back to an older build after the level has risen
    /// is refused, and refuses, whichever of the two knows of it.
    fn check_levels(&self, from: NodeId, hello: &Hello) -> Result<(), Status> {
        let level = |number: u32| FeatureLevel::new(u16::try_from(number).unwrap_or(u16::MAX));
        let heard = level(hello.active_level);
        self.shared.hear_active_level(heard);
        let supports = level(hello.feature_level).max(FeatureLevel::FIRST);
        let here = (self.shared.node, level::supported(), heard);
        let there = (from, supports, self.shared.active_level());
        let outdated = [here, there].into_iter().find(|(_, supports, active)| supports < active);
        outdated.map_or(Ok(()), |(node, supports, active)| {
            let text =
                format!("node {node} supports feature level {supports}, and {active} is active");
            Err(Status::failed_precondition(text))
        })
    }
}

fn proven<T>(request: &Request<T>) -> ProvenPeer {
    request.extensions().get::<ProvenPeer>().copied().unwrap_or_default()
}

/// One peer's stream of requests.
struct Exchange {
    shared: Arc<Shared>,
    from: NodeId,
    outbox: Outbox,
}

/// A request that is being carried out.
type Running = BoxFuture<'static, Body>;

impl Exchange {
    async fn run(self, mut frames: Streaming<Frame>) {
        let stopping = self.shared.stopping.clone();
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                Some(answer) = running.next(), if !running.is_empty() => {
                    if self.outbox.send(answer).await.is_err() {
                        break;
                    }
                }
                frame = frames.message(), if running.len() < RUNNING_MAX => match frame {
                    // Who was removed meanwhile is told so when it introduces itself again.
                    Ok(Some(frame)) if !self.shared.is_removed(self.from) => {
                        self.shared.heard.note(self.from);
                        self.begin_all(frame, &mut running).await;
                    }
                    Ok(_) | Err(_) => break,
                },
            }
        }
        self.shared.lost(self.from);
    }

    async fn begin_all(
        &self,
        frame: Frame,
        running: &mut FuturesUnordered<BoxFuture<'static, Envelope>>,
    ) {
        metrics::peer_frame_received(frame.envelopes.len());
        for envelope in frame.envelopes {
            let Some(mut answer) = self.begin(envelope) else { continue };
            // The first poll is what puts a message into its group's queue, so it must happen in order, here. Most
            // requests then wait for a disk or for another actor.
            match futures::poll!(&mut answer) {
                // A closed outbox is noticed by the next answer and by the end of the stream.
                Poll::Ready(answer) => drop(self.outbox.send(answer).await),
                Poll::Pending => running.push(answer),
            }
        }
    }

    fn begin(&self, envelope: Envelope) -> Option<BoxFuture<'static, Envelope>> {
        let Envelope { id, group: number, incarnation, body, .. } = envelope;
        let answer = match GroupId::from_number(number) {
            Some(group) => self.carry_out(group, incarnation, body?)?,
            None => failure(Kind::Invalid, "there is no such group"),
        };
        if id == 0 {
            return None;
        }
        let named = async move {
            let body = Some(answer.await);
            Envelope { id, group: number, incarnation, deadline_ms: 0, body }
        };
        Some(Box::pin(named))
    }

    /// Hands a request to whom it is for. Nothing is returned for what has no answer.
    fn carry_out(&self, group: GroupId, incarnation: u32, body: Body) -> Option<Running> {
        let from = self.from;
        match body {
            Body::AppendEntries(_) | Body::Vote(_) | Body::PreVote(_) | Body::TransferLeader(_) => {
                Some(self.to_raft(group, incarnation, body))
            }
            Body::Request(request) => {
                let (reply, answer) = oneshot::channel();
                let incoming = Incoming::Request { from, group, request, reply };
                Some(self.to_layers_above(incoming, answer, Body::Response))
            }
            Body::Announce(announce) => {
                let (reply, answer) = oneshot::channel();
                let incoming = Incoming::Announce { from, group, announce, reply };
                Some(self.to_layers_above(incoming, answer, Body::AnnounceResponse))
            }
            Body::Deliver(deliver) => self.tell_layers_above(Incoming::Deliver { from, deliver }),
            Body::Events(events) => self.tell_layers_above(Incoming::Events { from, events }),
            Body::EventsWanted(wanted) => {
                self.tell_layers_above(Incoming::EventsWanted { from, wanted })
            }
            Body::AppendEntriesResponse(_)
            | Body::VoteResponse(_)
            | Body::TransferLeaderResponse(_)
            | Body::Response(_)
            | Body::AnnounceResponse(_)
            | Body::Failure(_) => Some(failure(Kind::Invalid, "an answer where a request belongs")),
        }
    }

    fn to_layers_above<T: Send + 'static>(
        &self,
        incoming: Incoming,
        answer: oneshot::Receiver<T>,
        body: fn(T) -> Body,
    ) -> Running {
        match self.shared.incoming.try_send(incoming) {
            Ok(()) => Box::pin(async move {
                answer.await.map_or_else(|_| failed(Kind::Stopped, "nobody answered"), body)
            }),
            Err(mpsc::error::TrySendError::Full(_)) => {
                failure(Kind::Busy, "too much waits already")
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                failure(Kind::Absent, "the node is stopping")
            }
        }
    }

    fn tell_layers_above(&self, incoming: Incoming) -> Option<Running> {
        if self.shared.incoming.try_send(incoming).is_err() {
            metrics::peer_message_dropped();
        }
        None
    }

    fn to_raft(&self, group: GroupId, incarnation: u32, body: Body) -> Running {
        let Some(replica) = self.shared.replica(group, incarnation) else {
            return failure(Kind::Absent, "this replica of the group does not run here");
        };
        Box::pin(async move { answer(replica.raft, body).await.unwrap_or_else(Body::Failure) })
    }
}

/// What a replica answers to a Raft message.
#[expect(clippy::wildcard_enum_match_arm, reason = "who calls this has sorted out all others")]
async fn answer(raft: super::group::Raft, body: Body) -> Result<Body, Failure> {
    Ok(match body {
        Body::AppendEntries(message) => {
            let request = wire::append_from_proto(message).map_err(invalid)?;
            let response = raft.append_entries(request).await.map_err(stopped)?;
            Body::AppendEntriesResponse(wire::append_response_to_proto(&response))
        }
        Body::Vote(message) => {
            let request = wire::vote_from_proto(message).map_err(invalid)?;
            let response = raft.vote(request).await.map_err(stopped)?;
            Body::VoteResponse(wire::vote_response_to_proto(&response))
        }
        Body::PreVote(message) => {
            let request = wire::vote_from_proto(message).map_err(invalid)?;
            let response = raft.pre_vote(request).await.map_err(stopped)?;
            Body::VoteResponse(wire::vote_response_to_proto(&response))
        }
        Body::TransferLeader(message) => {
            let request = wire::transfer_from_proto(message).map_err(invalid)?;
            let response = raft.handle_transfer_leader(request).await.map_err(stopped)?;
            Body::TransferLeaderResponse(wire::transfer_response_to_proto(&response))
        }
        _ => return Err(invalid("not a message of Raft")),
    })
}

fn invalid(problem: impl ToString) -> Failure {
    let text = problem.to_string();
    tracing::warn!(text, "a peer sent nonsense");
    Failure { kind: Kind::Invalid.into(), text }
}

fn stopped(problem: impl ToString) -> Failure {
    Failure { kind: Kind::Stopped.into(), text: problem.to_string() }
}

fn failed(kind: Kind, text: &str) -> Body {
    Body::Failure(Failure { kind: kind.into(), text: text.to_owned() })
}

fn failure(kind: Kind, text: &str) -> Running {
    Box::pin(std::future::ready(failed(kind, text)))
}
