//! A network that can be cut: a node behind a closed gate reaches nobody and is reached by nobody.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use drover_core::ids::NodeId;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;

use crate::raft::network::{PeerIo, PeerNetwork, PlainNetwork, ProvenPeer};

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    network: Arc<PlainNetwork>,
    is_closed: Arc<AtomicBool>,
}

impl Gate {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { network: Arc::new(PlainNetwork::new(listener)), is_closed: Arc::default() }
    }

    pub(super) fn set_closed(&self, is_closed: bool) {
        self.is_closed.store(is_closed, Ordering::SeqCst);
    }

    fn check(&self) -> io::Result<()> {
        let is_closed = self.is_closed.load(Ordering::SeqCst);
        if is_closed { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    fn behind(&self, io: PeerIo) -> PeerIo {
        PeerIo::new(Gated { io, gate: self.clone() }, ProvenPeer(None))
    }
}

impl PeerNetwork for Gate {
    fn connect(&self, node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let (gate, connecting) = (self.clone(), self.network.connect(node, address));
        Box::pin(async move {
            gate.check()?;
            connecting.await.map(|io| gate.behind(io))
        })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let gate = self.clone();
        self.network.incoming().map(move |io| io.map(|io| gate.behind(io))).boxed()
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
        self.gate.check()?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.gate.check()?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
