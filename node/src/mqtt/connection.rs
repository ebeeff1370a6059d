//! One socket: reads, feeds the session, writes what it polls, carries its requests to the cluster.
//!
//! It decides nothing. An idle connection holds no buffer: bytes are read into one that the thread's connections share,
//! and only a packet that is not complete, or may not be taken yet, is kept.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use drover_cluster::Cluster;
use drover_cluster::actors::session::{CallReport, Delivery, Session as ClusterSession};
use drover_core::ids::CallId;
use futures::future::join_all;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{debug, trace};

use super::attempts::Attempts;
use super::close::CloseReason;
use super::codec::{self, Reply};
use super::config::Config;
use super::metrics::Meters;
use super::opening::{OpenedSession, open};
use super::revocation::Revocation;
use super::session::{Now, OpenError, Outcome, Outgoing, Request, Session};
use crate::peer::Peer;

/// How much is read at once: some 80 messages of 200 bytes.
const READ_BYTES: usize = 16 * 1024;

/// No more packets are encoded while so many bytes wait for the socket.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// For the last packets and the end of TLS; a peer that is gone does not answer.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) cluster: Cluster,
    pub(super) config: Arc<Config>,
    pub(super) attempts: Attempts,
    pub(super) meters: Meters,
    pub(super) stop: CancellationToken,
}

impl Shared {
    /// By the node's one wall clock.
    pub(super) fn now(&self) -> Now {
        Now { instant: Instant::now(), unix_ms: self.cluster.now().get() }
    }
}

/// What comes back from the cluster.
enum Answer {
    Opened(Box<OpenedSession>),
    Outcome(Outcome),
}

type InFlight = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What woke the connection.
enum Event {
    Answer(Answer),
    Delivery(Option<Box<Delivery>>),
    Revoked,
    Written(std::io::Result<()>),
    Read(std::io::Result<usize>),
    Time,
    Stop,
}

/// Carries a connection from its open socket to its end.
///
/// `place` is the connection's place among those that have proved nothing; it is given up once the device is connected.
pub(super) async fn run<S>(stream: S, peer: Peer, shared: Arc<Shared>, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut connection = Connection::new(stream, peer, shared, place);
    let reason = connection.serve().await;
    connection.finish(reason).await;
}

struct Connection<S> {
    stream: S,
    peer: Peer,
    shared: Arc<Shared>,
    place: Option<OwnedSemaphorePermit>,
    session: Session,
    /// Received and not parsed: part of a packet, or packets that may not be taken yet.
    input: Vec<u8>,
    /// Encoded and not written.
    output: Vec<u8>,
    written: usize,
    /// TLS keeps bytes back until it is flushed.
    needs_flush: bool,
    /// When the socket took bytes last.
    taken: Instant,
    /// What is to be sent has nobody to go to. What was received before is still taken.
    is_mute: bool,
    is_stopping: bool,
    cluster_session: Option<Arc<ClusterSession>>,
    deliveries: Option<mpsc::Receiver<Box<Delivery>>>,
    in_flight: Option<InFlight>,
    revocation: Option<Revocation>,
    timer: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    fn new(stream: S, peer: Peer, shared: Arc<Shared>, place: OwnedSemaphorePermit) -> Self {
        let now = shared.now();
        let session = Session::new(Arc::clone(&shared.config), now);
        let deadline = session.deadline().unwrap_or(now.instant);
        Self {
            stream,
            peer,
            place: Some(place),
            session,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            needs_flush: false,
            taken: now.instant,
            is_mute: false,
            is_stopping: false,
            cluster_session: None,
            deliveries: None,
            in_flight: None,
            revocation: None,
            timer: Box::pin(sleep_until(deadline)),
            stop: Box::pin(shared.stop.clone().cancelled_owned()),
            shared,
        }
    }

    /// Until the session has ended.
    async fn serve(&mut self) -> CloseReason {
        loop {
            self.advance(self.shared.now());
            if let Some(reason) = self.session.closed() {
                return reason;
            }
            let event = poll_fn(|context| self.poll_event(context)).await;
            self.handle(event, self.shared.now());
        }
    }

    /// All that can be done without waiting.
    fn advance(&mut self, now: Now) {
        self.parse(now);
        // A flooding device must not outrun its own deadlines.
        if self.session.deadline().is_some_and(|deadline| deadline <= now.instant) {
            self.session.handle_time(now);
        }
        self.ask(now);
        self.encode(now);
        // What was sent may have something to be said about it.
        self.ask(now);
        if self.in_flight.is_none() && self.output.is_empty() {
            self.session.release_memory();
        }
    }

    /// Gives the session's next request to the cluster, if nothing is there.
    fn ask(&mut self, now: Now) {
        if self.in_flight.is_none()
            && let Some(request) = self.session.poll_request(now)
        {
            self.in_flight = Some(self.begin(request));
        }
    }

    /// Takes packets from the input while the session wants any.
    fn parse(&mut self, now: Now) {
        let mut parsed = 0;
        while self.session.wants_packets() && parsed < self.input.len() {
            match codec::decode(&self.input[parsed..], self.session.expects()) {
                Ok(Some((packet, length))) => {
                    self.session.handle_packet(packet, now);
                    parsed += length;
                }
                Ok(None) => break,
                Err(error) => {
                    debug!(%error, "malformed");
                    self.session.handle_malformed(error);
                }
            }
        }
        if parsed == self.input.len() {
            self.input = Vec::new();
        } else if parsed > 0 {
            self.input.drain(..parsed);
        }
    }

    /// Encodes what is to be sent into one buffer, so that it leaves with one system call.
    fn encode(&mut self, now: Now) {
        if self.output.is_empty() {
            self.taken = now.instant;
        }
        while self.output.len() < OUTPUT_BYTES_MAX
            && let Some(Outgoing { reply, received }) = self.session.poll_reply(now)
        {
            if let (Reply::Puback(_), Some(received)) = (&reply, received) {
                let waited = now.instant.saturating_duration_since(received);
                self.shared.meters.ack_seconds.record(waited.as_secs_f64());
            }
            if !self.is_mute {
                codec::encode(reply, &mut self.output);
            }
        }
    }

    // ------------------------------------------------------------ events

    /// Answers before new packets, writing before reading, time last: whoever is served is not yet overdue.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Some(in_flight) = &mut self.in_flight
            && let Poll::Ready(answer) = in_flight.as_mut().poll(context)
        {
            self.in_flight = None;
            return Poll::Ready(Event::Answer(answer));
        }
        if let Some(deliveries) = &mut self.deliveries
            && let Poll::Ready(delivery) = deliveries.poll_recv(context)
        {
            return Poll::Ready(Event::Delivery(delivery));
        }
        if let Some(revocation) = &mut self.revocation
            && revocation.as_mut().poll(context).is_ready()
        {
            self.revocation = None;
            return Poll::Ready(Event::Revoked);
        }
        if (self.written < self.output.len() || self.needs_flush)
            && let Poll::Ready(written) = self.poll_write(context)
        {
            return Poll::Ready(Event::Written(written));
        }
        if self.session.wants_packets()
            && let Poll::Ready(read) = self.poll_read(context)
        {
            return Poll::Ready(Event::Read(read));
        }
        if !self.is_stopping
            && !self.session.is_opening()
            && self.stop.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Event::Stop);
        }
        self.poll_time(context).map(|()| Event::Time)
    }

    fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Answer(Answer::Opened(opened)) => {
                let OpenedSession { session, deliveries, opened, revocation } = *opened;
                self.revocation = revocation;
                self.peer.certificates = None;
                self.cluster_session = Some(Arc::new(session));
                self.place = None;
                self.deliveries = Some(deliveries);
                self.session.handle_outcome(Outcome::Opened(Ok(opened)), now);
            }
            Event::Answer(Answer::Outcome(outcome)) => {
                if let Outcome::Appended(Ok(count)) = &outcome {
                    self.shared.meters.messages.increment(*count);
                }
                self.session.handle_outcome(outcome, now);
            }
            Event::Delivery(delivery) => {
                self.session.handle_delivery(delivery.map(|delivery| *delivery));
            }
            Event::Revoked => self.session.handle_failure(CloseReason::Revoked),
            Event::Written(Ok(())) => {}
            Event::Read(Ok(read)) if read > 0 => {}
            Event::Written(Err(_)) => self.fall_silent(),
            Event::Read(_) => {
                self.fall_silent();
                self.session.handle_hang_up(now);
            }
            Event::Time if self.is_unread(now.instant) => {
                self.session.handle_failure(CloseReason::Unread);
            }
            Event::Time => self.session.handle_time(now),
            Event::Stop => {
                self.is_stopping = true;
                self.session.handle_stop(now);
            }
        }
    }

    /// The device reads no more. What it sent before, a DISCONNECT perhaps, may still be on its way.
    fn fall_silent(&mut self) {
        self.is_mute = true;
        self.output = Vec::new();
        self.written = 0;
        self.needs_flush = false;
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            self.input.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Ready when everything is with the socket.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.taken = Instant::now();
            self.needs_flush = true;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.output = Vec::new();
        self.written = 0;
        self.needs_flush = false;
        Poll::Ready(Ok(()))
    }

    /// Ready when the next deadline has passed. The timer is set anew only when it fires or the deadline comes nearer,
    /// so that a busy connection does not set it with each packet.
    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let unread = (!self.output.is_empty()).then(|| self.taken + self.shared.config.unread_max);
        let deadline = self.session.deadline();
        let Some(deadline) = deadline.into_iter().chain(unread).min() else {
            return Poll::Pending;
        };
        if deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(context));
        if deadline <= Instant::now() {
            return Poll::Ready(());
        }
        self.timer.as_mut().reset(deadline);
        self.timer.as_mut().poll(context)
    }

    fn is_unread(&self, now: Instant) -> bool {
        !self.output.is_empty() && now >= self.taken + self.shared.config.unread_max
    }

    // ------------------------------------------------------------ requests

    fn begin(&self, request: Request) -> InFlight {
        let Some(session) = self.cluster_session.clone() else {
            return self.begin_open(request);
        };
        Box::pin(async move {
            Answer::Outcome(match request {
                Request::Append(messages) => {
                    let count = messages.len() as u64;
                    Outcome::Appended(session.append(messages).await.map(|_| count))
                }
                Request::ReadTwin => Outcome::Twin(session.twin().await.map(Box::new)),
                Request::PatchReported { expected, patch } => {
                    Outcome::Reported(session.patch_reported(expected, patch).await)
                }
                Request::Subscribe(subscriptions) => {
                    Outcome::Subscribed(session.subscribe(subscriptions).await)
                }
                Request::Unsubscribe(channels) => {
                    Outcome::Subscribed(session.unsubscribe(channels).await)
                }
                Request::Settle { sequence, settlement } => {
                    Outcome::Settled(session.settle(sequence, settlement).await)
                }
                Request::ReportCall { call, report } => {
                    Outcome::CallReported(session.report_call(call, report).await)
                }
                // A session opens once.
                Request::Open(_) => Outcome::Opened(Err(OpenError::Denied)),
            })
        })
    }

    fn begin_open(&self, request: Request) -> InFlight {
        let (shared, peer) = (Arc::clone(&self.shared), self.peer.clone());
        Box::pin(async move {
            let opened = match request {
                Request::Open(login) => open(&shared, &peer, &login).await,
                // Before it is open a session asks for nothing else.
                Request::Append(_)
                | Request::ReadTwin
                | Request::PatchReported { .. }
                | Request::Subscribe(_)
                | Request::Unsubscribe(_)
                | Request::Settle { .. }
                | Request::ReportCall { .. } => Err(OpenError::Denied),
            };
            match opened {
                Ok(opened) => Answer::Opened(Box::new(opened)),
                Err(error) => Answer::Outcome(Outcome::Opened(Err(error))),
            }
        })
    }

    // ------------------------------------------------------------ the end

    /// Sends the last packets, closes the socket, then the session. A request that is still with the cluster is given
    /// up: nobody waits for its answer.
    async fn finish(&mut self, reason: CloseReason) {
        Meters::closed(reason);
        self.in_flight = None;
        let unsent = self.deliveries.take().map(calls_left).unwrap_or_default();
        self.encode(self.shared.now());
        if !self.is_mute {
            let last = async {
                poll_fn(|context| self.poll_write(context)).await?;
                self.stream.shutdown().await
            };
            if let Ok(Err(error)) = timeout(SHUTDOWN_MAX, last).await {
                trace!(%error, "the peer was gone already");
            }
        }
        let Some(session) = self.cluster_session.take().and_then(Arc::into_inner) else { return };
        debug!(device = %session.device(), epoch = %session.epoch(), reason = reason.label(), "closed");
        let live = &session;
        let given_back = unsent.into_iter().map(async |call| {
            if let Err(error) = live.report_call(call, CallReport::NotSent).await {
                debug!(%error, "a call that was not sent could not be given back");
            }
        });
        join_all(given_back).await;
        if let Err(error) = session.close(self.session.take_will()).await {
            debug!(%error, "a session was not closed in order: the next connection replaces it");
        }
    }
}

/// The calls that nobody has taken from the queue: the device has not been sent them.
fn calls_left(mut deliveries: mpsc::Receiver<Box<Delivery>>) -> Vec<CallId> {
    deliveries.close();
    let left = std::iter::from_fn(|| deliveries.try_recv().ok());
    left.filter_map(|delivery| match *delivery {
        Delivery::Call(call) => Some(call.id),
        Delivery::End(_) | Delivery::Desired { .. } | Delivery::Command(_) => None,
    })
    .collect()
}
