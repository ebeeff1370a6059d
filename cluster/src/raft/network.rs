//! The bytes between two nodes: who carries them, and who is proven to be at the other end.
//!
//! The product uses [`TlsNetwork`](super::tls::TlsNetwork). Tests and simulation bring a [`PeerNetwork`] of their own,
//! so that nothing above this file knows a socket. Framing, requests and answers are the work of `link` and `serve`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use drover_core::ids::NodeId;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

/// How long the listener rests after it could not accept, for example because there are no file descriptors left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How nodes reach each other.
pub trait PeerNetwork: fmt::Debug + Send + Sync + 'static {
    /// Connects to a node. Where the network can prove who answers, it must be that node.
    fn connect(&self, node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>>;

    /// Connections from peers, one after the other. Called once.
    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>>;
}

/// Anything that carries bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

/// A connection to or from a peer.
pub struct PeerIo {
    stream: Box<dyn ByteStream>,
    peer: ProvenPeer,
}

/// The node that the connection itself proves to be at the other end. `None` where nothing is proven (no TLS).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProvenPeer(pub Option<NodeId>);

impl PeerIo {
    pub fn new(stream: impl ByteStream, peer: ProvenPeer) -> Self {
        Self { stream: Box::new(stream), peer }
    }
}

impl fmt::Debug for PeerIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerIo").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for PeerIo {
    type ConnectInfo = ProvenPeer;

    fn connect_info(&self) -> ProvenPeer {
        self.peer
    }
}

impl AsyncRead for PeerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// TCP without encryption or proof: for tests on loopback, and for `drover dev`.
#[derive(Debug)]
pub struct PlainNetwork {
    listener: Mutex<Option<TcpListener>>,
}

impl PlainNetwork {
    pub fn new(listener: TcpListener) -> Self {
        Self { listener: Mutex::new(Some(listener)) }
    }
}

impl PeerNetwork for PlainNetwork {
    fn connect(&self, _node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let address = address.to_owned();
        Box::pin(async move { Ok(PeerIo::new(connect_tcp(&address).await?, ProvenPeer(None))) })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let listener = take_listener(&self.listener);
        Box::pin(stream::unfold(listener, |listener| async move {
            let stream = accept_tcp(&listener).await;
            Some((Ok(PeerIo::new(stream, ProvenPeer(None))), listener))
        }))
    }
}

pub(super) fn take_listener(listener: &Mutex<Option<TcpListener>>) -> TcpListener {
    let mut listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
    listener.take().expect("incoming() is called once")
}

pub(super) async fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The next connection. What goes wrong with one of them must not end the listener.
pub(super) async fn accept_tcp(listener: &TcpListener) -> TcpStream {
    loop {
        let accepted = match listener.accept().await {
            Ok((stream, _)) => stream.set_nodelay(true).map(|()| stream),
            Err(error) => Err(error),
        };
        match accepted {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a peer's connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
