//! Connections for the gRPC server: accept, TLS, who is at the other end.
//!
//! Handshakes run beside each other, bounded in number and time, so that a client that connects and falls silent holds
//! up nobody else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::clock;
use crate::tls::{ClientAuthority, Proven};

/// Handshakes at one time. Each costs about a millisecond of a core.
const HANDSHAKES_MAX: usize = 128;
/// A handshake takes three round trips at most.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are ready and wait to be served.
const READY_MAX: usize = 64;
/// After an error of accept (no file descriptors left, as a rule) others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the listener speaks TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// What it offers by ALPN does not matter: gRPC is HTTP/2, and the listener says so.
    pub config: Arc<rustls::ServerConfig>,
    /// Whose client certificates name an access policy by their common name. `None`: nobody's.
    pub clients: Option<ClientAuthority>,
}

/// Who is at the other end; it travels with each request of the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    certificate: Option<Proven>,
}

impl Peer {
    /// What its certificate has proved when the connection was made.
    pub(crate) fn certificate(&self) -> Option<&Proven> {
        self.certificate.as_ref()
    }
}

/// A connection, plain or over TLS.
pub(crate) struct Connection {
    stream: Stream,
    peer: Peer,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Accepts until `stop`; what it yields is ready to be served.
pub(crate) fn connections(
    listener: TcpListener,
    tls: Option<Tls>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let tls = tls.map(offering_http2);
    let (ready, connections) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept_all(listener, tls, ready) => {}
        }
    });
    ReceiverStream::new(connections)
}

fn offering_http2(tls: Tls) -> Tls {
    let mut config = Arc::unwrap_or_clone(tls.config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Tls { config: Arc::new(config), ..tls }
}

async fn accept_all(
    listener: TcpListener,
    tls: Option<Tls>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (stream, address) = tokio::select! {
            // The server has stopped.
            () = ready.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept connections to the gRPC API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            }
        };
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, establish(stream, tls)).await {
                // It fails only if the server has stopped, and then nobody waits for the connection.
                Ok(Ok(connection)) => drop(ready.send(Ok(connection)).await),
                Ok(Err(error)) => debug!(%address, %error, "a TLS handshake failed"),
                Err(_) => debug!(%address, "a TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}

async fn establish(stream: TcpStream, tls: Option<Tls>) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let Some(Tls { config, clients }) = tls else {
        return Ok(Connection { stream: Stream::Plain(stream), peer: Peer::default() });
    };
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(clock::unix_ms()));
    let certificate = clients.and_then(|authority| authority.proven(chain, now));
    Ok(Connection { stream: Stream::Tls(Box::new(stream)), peer: Peer { certificate } })
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
