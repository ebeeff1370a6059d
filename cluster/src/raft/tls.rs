//! Mutual TLS between nodes: a certificate names the node, and both ends check the name.
//!
//! The side that connects checks that the certificate's name is the node that it addressed; the side that is called
//! learns from the certificate who speaks, before it parses a byte of what is said (security tests S-40). Who signs
//! certificates and how they are renewed is the program's business.

use std::io;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use drover_core::ids::NodeId;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::network::{PeerIo, PeerNetwork, ProvenPeer, accept_tcp, connect_tcp, take_listener};

/// Handshakes that run at once. Each costs about a millisecond of CPU, and whoever reaches the port can start one.
const HANDSHAKES_MAX: usize = 32;
/// A peer on the other side of the world needs well under a second; who takes longer is no peer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// What both ends speak inside TLS.
const ALPN: &[u8] = b"h2";

/// What proves this node to its peers, and whom it believes.
#[derive(Debug)]
pub struct TlsIdentity {
    /// The cluster's certificate authorities: nobody else's certificates are accepted.
    pub authorities: Vec<CertificateDer<'static>>,
    /// This node's certificate, and the intermediates up to an authority.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// The name of a node in its certificate, a DNS subject alternative name.
pub fn certificate_name(node: NodeId) -> String {
    format!("node-{}-{}.drover", node.number(), node.generation())
}

/// TCP with mutual TLS 1.3.
pub struct TlsNetwork {
    listener: Mutex<Option<TcpListener>>,
    ends: Arc<RwLock<Ends>>,
}

/// Both ends of a connection, with what this node proves itself by.
#[derive(Clone)]
struct Ends {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for TlsNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsNetwork").finish_non_exhaustive()
    }
}

impl TlsNetwork {
    pub fn new(listener: TcpListener, identity: TlsIdentity) -> Result<Self, rustls::Error> {
        let ends = Arc::new(RwLock::new(Ends::new(identity)?));
        Ok(Self { listener: Mutex::new(Some(listener)), ends })
    }

    /// New connections use this identity. Those that are open go on.
    pub fn renew(&self, identity: TlsIdentity) -> Result<(), rustls::Error> {
        let ends = Ends::new(identity)?;
        *self.ends.write().expect("no holder of this lock panics") = ends;
        Ok(())
    }
}

impl Ends {
    fn new(identity: TlsIdentity) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in identity.authorities {
            roots.add(authority)?;
        }
        let roots = Arc::new(roots);
        let versions = [&rustls::version::TLS13];

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
        client.alpn_protocols = vec![ALPN.to_vec()];

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain, identity.key)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would be trusted for as long as its ticket lives, whatever was revoked since.
        server.send_tls13_tickets = 0;

        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
        })
    }
}

impl PeerNetwork for TlsNetwork {
    fn connect(&self, node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let connector = current(&self.ends).connector;
        let address = address.to_owned();
        Box::pin(async move {
            let name = ServerName::try_from(certificate_name(node)).map_err(io::Error::other)?;
            let stream = connector.connect(name, connect_tcp(&address).await?).await?;
            Ok(PeerIo::new(stream, ProvenPeer(Some(node))))
        })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let accepting = Accepting {
            listener: take_listener(&self.listener),
            ends: Arc::clone(&self.ends),
            handshakes: JoinSet::new(),
        };
        Box::pin(stream::unfold(accepting, |mut accepting| async move {
            let io = accepting.next().await;
            Some((Ok(io), accepting))
        }))
    }
}

fn current(ends: &RwLock<Ends>) -> Ends {
    ends.read().expect("no holder of this lock panics").clone()
}

struct Accepting {
    listener: TcpListener,
    ends: Arc<RwLock<Ends>>,
    handshakes: JoinSet<io::Result<PeerIo>>,
}

impl Accepting {
    /// The next peer that has proven who it is.
    async fn next(&mut self) -> PeerIo {
        loop {
            tokio::select! {
                biased;
                Some(finished) = self.handshakes.join_next() => match finished {
                    Ok(Ok(io)) => return io,
                    Ok(Err(error)) => tracing::info!(%error, "refused a connection to the peer port"),
                    Err(error) => tracing::error!(%error, "a handshake with a peer broke off"),
                },
                stream = accept_tcp(&self.listener), if self.handshakes.len() < HANDSHAKES_MAX => {
                    let acceptor = current(&self.ends).acceptor;
                    self.handshakes.spawn(handshake(acceptor, stream));
                }
            }
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<PeerIo> {
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let (_, session) = stream.get_ref();
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or_else(|| io::Error::other("the peer shows no certificate"))?;
    let node = node_of(certificate)
        .ok_or_else(|| io::Error::other("the peer's certificate does not name a node"))?;
    Ok(PeerIo::new(stream, ProvenPeer(Some(node))))
}

/// The node that a certificate names: it must name exactly one, and nothing else, in its DNS names.
#[expect(clippy::wildcard_enum_match_arm, reason = "names of other kinds do not name nodes")]
fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(parse_certificate_name(name)),
        _ => None,
    });
    let node = nodes.next()??;
    nodes.next().is_none().then_some(node)
}

fn parse_certificate_name(name: &str) -> Option<NodeId> {
    let (number, generation) =
        name.strip_prefix("node-")?.strip_suffix(".drover")?.split_once('-')?;
    let node = NodeId::new(number.parse().ok()?, generation.parse().ok()?);
    // Rules out "+1" and "01", which parse but are not how a node is written.
    (certificate_name(node) == name).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_name_of_a_node_is_read() {
        let node = NodeId::new(7, 2);
        assert_eq!(parse_certificate_name(&certificate_name(node)), Some(node));
        for name in ["node-7.drover", "node-07-2.drover", "node-+7-2.drover", "node-7-2", "pump-7"]
        {
            assert_eq!(parse_certificate_name(name), None, "{name}");
        }
        assert_eq!(parse_certificate_name("node-7-65536.drover"), None);
        assert_eq!(parse_certificate_name("node-7-2.drover.example"), None);
    }
}
