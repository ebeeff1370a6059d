//! Who is at the other end of a device's socket, as far as the socket tells. Who that is has to be proved: `identity`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConnection;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

/// An address, and what was shown in the TLS handshake.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The certificates that the client showed, its own first. The handshake has proved that it holds the key of the
    /// first, and nothing else.
    pub(crate) certificates: Option<Arc<[CertificateDer<'static>]>>,
}

impl Peer {
    pub(crate) fn without_tls(address: IpAddr) -> Self {
        Self { address, certificates: None }
    }

    pub(crate) fn of_tls(address: IpAddr, connection: &ServerConnection) -> Self {
        Self { address, certificates: connection.peer_certificates().map(Arc::from) }
    }
}

/// The TLS handshake of a device's socket. `None`: it failed, or took longer than `within`.
pub(crate) async fn shake_hands(
    acceptor: &TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
    within: Duration,
) -> Option<(TlsStream<TcpStream>, Peer)> {
    match timeout(within, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => {
            let peer = Peer::of_tls(address.ip(), stream.get_ref().1);
            Some((stream, peer))
        }
        Ok(Err(error)) => {
            debug!(%address, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            debug!(%address, "TLS handshake timed out");
            None
        }
    }
}
