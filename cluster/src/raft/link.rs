//! One peer as this node calls it: a connection that is kept up, and requests that wait for their answers.
//!
//! The connection carries one `Exchange` stream for everything but snapshots, which get streams of their own on the
//! same connection. While it is down every call fails at once; when it breaks, all that wait fail at once. Nothing is
//! sent twice: repeating is the business of those who know what they asked.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use drover_core::level::{self, FeatureLevel};
use drover_proto::cluster::envelope::Body;
use drover_proto::cluster::peer_client::PeerClient;
use drover_proto::cluster::{Envelope, Frame, Hello};
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::frames::{FRAME_BYTES_MAX, NotTaken, Outbox, outbox};
use super::network::PeerIo;
use super::peers::{CallError, Shared};

/// What may be in flight on one stream and on the whole connection: 8 MiB keep 1 Gbit/s busy over 60 ms.
pub(super) const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// A peer that is gone without a word is noticed after the interval and the time-out.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// To connect, prove who is who and open the stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Calls that may wait for one peer's answers.
const CALLS_MAX: usize = 65_536;

/// A peer. Shared by all who call it.
pub(super) struct Link {
    node: NodeId,
    state: Mutex<State>,
}

enum State {
    Down { problem: String },
    Up(Live),
}

/// One connection, from the moment both sides know each other until it breaks.
#[derive(Clone)]
struct Live {
    outbox: Outbox,
    calls: Arc<Calls>,
    client: PeerClient<Channel>,
}

impl Link {
    pub(super) fn new(node: NodeId) -> Self {
        let state = State::Down { problem: "not connected yet".into() };
        Self { node, state: Mutex::new(state) }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(*self.lock(), State::Up(_))
    }

    /// Sends a request. The answer is the [`Call`]'s; to drop it is to lose interest.
    pub(super) fn call(
        &self,
        group: GroupId,
        incarnation: u16,
        deadline: Duration,
        body: Body,
    ) -> Result<Call, CallError> {
        let state = self.lock();
        let live = self.live(&state)?;
        let Some((id, answer)) = live.calls.begin() else {
            return Err(CallError::Busy { node: self.node });
        };
        let call = Call { node: self.node, id, answer, calls: Arc::clone(&live.calls) };
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let envelope = Envelope {
            id,
            group: group.number(),
            incarnation: incarnation.into(),
            deadline_ms,
            body: Some(body),
        };
        self.put(live, envelope).map(|()| call)
    }

    /// Sends something that has no answer.
    pub(super) fn tell(&self, group: GroupId, body: Body) -> Result<(), CallError> {
        let state = self.lock();
        let live = self.live(&state)?;
        let (group, body) = (group.number(), Some(body));
        self.put(live, Envelope { id: 0, group, incarnation: 0, deadline_ms: 0, body })
    }

    /// For streams of their own on the connection.
    pub(super) fn client(&self) -> Result<PeerClient<Channel>, CallError> {
        let state = self.lock();
        self.live(&state).map(|live| live.client.clone())
    }

    fn live<'a>(&self, state: &'a State) -> Result<&'a Live, CallError> {
        match state {
            State::Up(live) => Ok(live),
            State::Down { problem } => {
                Err(CallError::Unreachable { node: self.node, problem: problem.clone() })
            }
        }
    }

    fn put(&self, live: &Live, envelope: Envelope) -> Result<(), CallError> {
        live.outbox.try_send(envelope).map_err(|not_taken| match not_taken {
            NotTaken::Full => CallError::Busy { node: self.node },
            NotTaken::Closed => CallError::Unreachable {
                node: self.node,
                problem: "the connection is closing".into(),
            },
        })
    }

    /// Fails all that waits, and all that comes until the next connection. Says whether there was a connection.
    pub(super) fn take_down(&self, problem: String) -> bool {
        let before = std::mem::replace(&mut *self.lock(), State::Down { problem });
        match before {
            State::Up(live) => {
                live.calls.close();
                true
            }
            State::Down { .. } => false,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the state of a link in hand")
    }
}

/// Keeps a connection to the peer until the task is aborted.
pub(super) async fn keep(link: Arc<Link>, address: String, shared: Arc<Shared>) {
    let mut random = SmallRng::seed_from_u64(shared.draw());
    let mut backoff = BACKOFF_MIN;
    loop {
        let problem = match open(&link, &address, &shared).await {
            Ok(answers) => {
                backoff = BACKOFF_MIN;
                tracing::info!(peer = %link.node, "connected to a peer");
                let problem = receive(&link, answers, &shared).await;
                tracing::warn!(peer = %link.node, problem, "lost the connection to a peer");
                problem
            }
            Err(problem) => {
                tracing::debug!(peer = %link.node, problem, "a peer cannot be reached");
                problem
            }
        };
        if link.take_down(problem) {
            shared.lost(link.node);
        }
        tokio::time::sleep(backoff.mul_f64(random.random_range(0.5..1.0))).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Connects and introduces this node; on success the link is up.
async fn open(link: &Link, address: &str, shared: &Shared) -> Result<Streaming<Frame>, String> {
    tokio::time::timeout(CONNECT_TIMEOUT, async {
        let io = shared.network.connect(link.node, address).await.map_err(describe)?;
        let channel = channel(io).await.map_err(describe)?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let (outbox, frames) = outbox(Some(shared.hello(link.node)));
        let answers = client.exchange(frames).await.map_err(|refused| {
            shared.note_refusal(refused.code());
            describe(refused)
        })?;
        let answers = answers.into_inner();
        let calls = Arc::new(Calls::default());
        *link.lock() = State::Up(Live { outbox, calls, client });
        shared.answered(link.node);
        shared.introduce(link);
        Ok(answers)
    })
    .await
    .unwrap_or_else(|_| Err(format!("no answer within {CONNECT_TIMEOUT:?}")))
}

/// Hands out answers until the connection breaks. Returns why it did.
async fn receive(link: &Link, mut answers: Streaming<Frame>, shared: &Shared) -> String {
    let calls = match &*link.lock() {
        State::Up(live) => Arc::clone(&live.calls),
        State::Down { problem } => return problem.clone(),
    };
    loop {
        match answers.message().await {
            Ok(Some(frame)) => {
                shared.answered(link.node);
                for envelope in frame.envelopes {
                    if let Some(body) = envelope.body {
                        calls.answer(envelope.id, body);
                    }
                }
            }
            Ok(None) => return "the peer ended it".into(),
            Err(status) => return describe(status),
        }
    }
}

/// HTTP/2 over one connection. When that breaks, so does the channel: reconnecting is `keep`'s work.
async fn channel(io: PeerIo) -> Result<Channel, tonic::transport::Error> {
    let io = Mutex::new(Some(TokioIo::new(io)));
    let connector = tower::service_fn(move |_| {
        let io = io.lock().expect("nobody panics here").take();
        std::future::ready(io.ok_or_else(|| io::Error::other("the connection is used up")))
    });
    Endpoint::from_static("http://peer")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

/// An error and what caused it: the outermost text alone says little ("transport error").
fn describe(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Requests on one connection that wait for their answers.
#[derive(Default)]
struct Calls {
    last_id: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    closed: bool,
    by_id: BTreeMap<u64, oneshot::Sender<Body>>,
}

impl Calls {
    /// Nothing if too many wait already. On a closed connection the answer fails at once.
    fn begin(&self) -> Option<(u64, oneshot::Receiver<Body>)> {
        // 0 means that no answer is wanted.
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.by_id.len() >= CALLS_MAX {
            return None;
        }
        if !waiting.closed {
            waiting.by_id.insert(id, sender);
        }
        Some((id, receiver))
    }

    fn answer(&self, id: u64, body: Body) {
        let caller = self.lock().by_id.remove(&id);
        // Nobody waits any more when the caller has lost patience.
        if let Some(caller) = caller {
            caller.send(body).ok();
        }
    }

    fn forget(&self, id: u64) {
        self.lock().by_id.remove(&id);
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.by_id.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nobody panics with the waiting calls in hand")
    }
}

/// A request under way. Resolves to the answer, or to `Lost` when the connection breaks.
pub(super) struct Call {
    node: NodeId,
    id: u64,
    answer: oneshot::Receiver<Body>,
    calls: Arc<Calls>,
}

impl Future for Call {
    type Output = Result<Body, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let node = self.node;
        Pin::new(&mut self.answer).poll(cx).map_err(|_| CallError::Lost { node })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.forget(self.id);
    }
}

/// What a node says first on each stream.
pub(super) fn hello(
    from: NodeId,
    to: NodeId,
    cluster_id: Option<String>,
    active: FeatureLevel,
) -> Hello {
    Hello {
        from: from.to_u64(),
        to: to.to_u64(),
        cluster_id: cluster_id.unwrap_or_default(),
        format: FORMAT,
        feature_level: level::supported().get().into(),
        active_level: active.get().into(),
    }
}

/// The version of what peers say to each other. A node refuses a newer one: the older node of the two does not know what
/// it may do.
pub const FORMAT: u32 = 1;
