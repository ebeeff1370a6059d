//! A network that can be cut: a node behind a closed gate reaches nobody and is reached by nobody. It learns that at once if
//! the gate is closed, and never if it is silent. [`Pipes`] is a network without sockets, for paused time.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use drover_core::ids::NodeId;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::raft::network::{PeerIo, PeerNetwork, PlainNetwork, ProvenPeer};

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    network: Arc<dyn PeerNetwork>,
    passage: Arc<Mutex<Passage>>,
}

#[derive(Debug, Default)]
struct Passage {
    state: State,
    /// Who waits for a silent gate to open.
    waiting: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Closed,
    Silent,
}

impl Gate {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self::before(PlainNetwork::new(listener))
    }

    pub(super) fn before(network: impl PeerNetwork) -> Self {
        Self { network: Arc::new(network), passage: Arc::default() }
    }

    /// Connections break.
    pub(super) fn set_closed(&self, is_closed: bool) {
        self.set(if is_closed { State::Closed } else { State::Open });
    }

    /// Connections stay, and nothing comes or goes over them.
    pub(super) fn set_silent(&self, is_silent: bool) {
        self.set(if is_silent { State::Silent } else { State::Open });
    }

    fn set(&self, state: State) {
        let mut passage = self.passage.lock().expect("nobody panics with it in hand");
        passage.state = state;
        passage.waiting.drain(..).for_each(Waker::wake);
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut passage = self.passage.lock().expect("nobody panics with it in hand");
        match passage.state {
            State::Open => Poll::Ready(Ok(())),
            State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            State::Silent => {
                passage.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn behind(&self, io: PeerIo) -> PeerIo {
        PeerIo::new(Gated { io, gate: self.clone() }, ProvenPeer(None))
    }
}

impl PeerNetwork for Gate {
    fn connect(&self, node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let (gate, connecting) = (self.clone(), self.network.connect(node, address));
        Box::pin(async move {
            poll_fn(|cx| gate.poll(cx)).await?;
            connecting.await.map(|io| gate.behind(io))
        })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let gate = self.clone();
        self.network.incoming().map(move |io| io.map(|io| gate.behind(io))).boxed()
    }
}

/// Connections in memory. Nobody waits for anything but the others and timers, so that time can be paused.
#[derive(Debug, Clone, Default)]
pub(super) struct Pipes {
    listeners: Arc<Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>>,
}

/// One node's end of them.
#[derive(Debug)]
pub(super) struct PipesEnd {
    pipes: Pipes,
    incoming: Mutex<Option<mpsc::Receiver<DuplexStream>>>,
}

/// What a connection holds that nobody has read, and connections that nobody has taken up.
const PIPE_BYTES: usize = 1 << 20;
const PENDING_MAX: usize = 64;

impl Pipes {
    pub(super) fn listen(&self, address: &str) -> PipesEnd {
        let (sender, incoming) = mpsc::channel(PENDING_MAX);
        let mut listeners = self.listeners.lock().expect("nobody panics with them in hand");
        listeners.insert(address.to_owned(), sender);
        PipesEnd { pipes: self.clone(), incoming: Mutex::new(Some(incoming)) }
    }
}

impl PeerNetwork for PipesEnd {
    fn connect(&self, _node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let listeners = self.pipes.listeners.lock().expect("nobody panics with them in hand");
        let listener = listeners.get(address).cloned();
        let (own, other) = duplex(PIPE_BYTES);
        Box::pin(async move {
            let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
            let Some(listener) = listener else { return Err(refused) };
            listener.send(other).await.map_err(|_| refused)?;
            Ok(PeerIo::new(own, ProvenPeer(None)))
        })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let mut incoming = self.incoming.lock().expect("nobody panics with it in hand");
        let incoming = incoming.take().expect("incoming() is called once");
        Box::pin(stream::unfold(incoming, |mut incoming| async move {
            let io = incoming.recv().await?;
            Some((Ok(PeerIo::new(io, ProvenPeer(None))), incoming))
        }))
    }
}

/// A connection breaks with the first byte that comes or goes while the gate is closed; peers are never silent for long.
struct Gated {
    io: PeerIo,
    gate: Gate,
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.gate.poll(cx))?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.gate.poll(cx))?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
