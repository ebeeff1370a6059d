//! Connections for the gRPC server: accept, TLS, who is at the other end.
//!
//! Handshakes run beside each other, bounded in number and time, so that a client that connects and falls silent holds
//! up nobody else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
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
    pub clients: ClientCertificates,
}

/// What a client certificate is worth.
#[derive(Debug, Clone)]
pub enum ClientCertificates {
    /// Nothing.
    Ignored,
    /// One that this verifier accepts names an access policy by its common name. It is asked after the handshake, which
    /// has proved that the client holds the key, because handshakes take any certificate.
    NamePolicies(Arc<dyn ClientCertVerifier>),
}

impl ClientCertificates {
    /// Those that this authority, or one below it, has signed.
    pub fn signed_by(
        authority: CertificateDer<'static>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|_| rustls::server::VerifierBuilderError::NoRootAnchors)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        Ok(Self::NamePolicies(verifier.build()?))
    }

    /// The policy that a chain of certificates, the client's first, stands for.
    fn policy(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<Arc<str>> {
        let Self::NamePolicies(verifier) = self else { return None };
        let (leaf, intermediates) = chain.split_first()?;
        verifier.verify_client_cert(leaf, intermediates, now).ok()?;
        common_name(leaf)
    }
}

/// Who is at the other end; it travels with each request of the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    policy: Option<Arc<str>>,
}

impl Peer {
    pub(crate) fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
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
    let policy = clients.policy(chain, now);
    Ok(Connection { stream: Stream::Tls(Box::new(stream)), peer: Peer { policy } })
}

/// The common name of a certificate, if it has exactly one.
fn common_name(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.into();
    names.next().is_none().then_some(name)
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// 2026-01-01: certificates of rcgen are good from 1975 to 4096.
    const NOW_S: u64 = 1_767_225_600;

    fn authority() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.self_signed(&key).expect("it signs itself");
        (certificate.der().clone(), Issuer::new(params, key))
    }

    fn client(issuer: &Issuer<'static, KeyPair>, name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("ring makes keys");
        params.signed_by(&key, issuer).expect("the authority signs").der().clone()
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(NOW_S))
    }

    #[test]
    fn a_certificate_names_a_policy_only_if_the_authority_for_clients_signed_it() {
        let (ours, issuer) = authority();
        let (_, stranger) = authority();
        let clients = ClientCertificates::signed_by(ours).expect("it is an authority");
        let policy = |certificate| clients.policy(&[certificate], now());
        assert_eq!(policy(client(&issuer, "reader")).as_deref(), Some("reader"));
        assert_eq!(policy(client(&stranger, "reader")), None);
        assert_eq!(clients.policy(&[], now()), None);
    }

    #[test]
    fn certificates_stand_for_nothing_where_no_authority_is_configured() {
        let (_, issuer) = authority();
        assert_eq!(ClientCertificates::Ignored.policy(&[client(&issuer, "reader")], now()), None);
    }
}
