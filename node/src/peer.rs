//! Who is at the other end of a device's socket, as far as the socket tells. Who that is has to be proved: `identity`.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConnection;
use rustls::pki_types::CertificateDer;

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
