//! The request of a node that joins, to one member after the other until one answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use drover_cluster::PEER_FORMAT;
use drover_core::ids::NodeId;
use drover_core::level;
use drover_proto::admin::members_client::MembersClient;
use drover_proto::admin::{JoinContact, JoinRequest, JoinResponse, JoinToken};
use hyper_util::rt::TokioIo;
use rcgen::PublicKeyData as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tracing::{info, warn};

use super::identity::Identity;
use super::{Error, token};
use crate::clock;
use crate::config::Config;
use crate::tls::authority::node_name;

/// To connect and to be answered; the cluster commits two entries meanwhile.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often all members are asked, when none of them can be reached or is ready.
const ROUNDS_MAX: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Makes this node a member, or finds that it is one, and answers with its configuration from now on. `number`: the one
/// that it should have, if not any.
pub async fn join(config: Config, text: &str, number: Option<u32>) -> Result<Config, Error> {
    let identity = Identity::of(&config);
    if identity.is_complete() {
        info!("this node has joined before: its token is not used again");
        return identity.apply(config);
    }
    let token = token::decode(text)?;
    if config.node.data.join("store").exists() {
        return Err(Error::NotEmpty { folder: config.node.data.display().to_string() });
    }
    let request = request(&config, &identity, number)?;
    let joined = ask_all(&token, &request).await?;
    identity.keep(&joined)?;
    info!(number = joined.number, generation = joined.generation, "joined the cluster");
    identity.apply(config)
}

fn request(
    config: &Config,
    identity: &Identity,
    number: Option<u32>,
) -> Result<JoinRequest, Error> {
    let listen = config.listen.peer;
    let peer_address = match config.node.peer_address.as_str() {
        "" if listen.ip().is_unspecified() => {
            return Err(Error::NoAddress { listen: listen.to_string() });
        }
        "" => listen.to_string(),
        address => address.to_owned(),
    };
    // The API may be reached under the host that peers use.
    let host = peer_address.rsplit_once(':').map_or(peer_address.as_str(), |(host, _)| host);
    let admin_address = match config.node.admin_address.as_str() {
        "" => format!("{host}:{}", config.listen.grpc.port()),
        address => address.to_owned(),
    };
    Ok(JoinRequest {
        number,
        admin_address,
        peer_address,
        zone: config.node.zone.clone(),
        public_key: identity.key()?.subject_public_key_info(),
        format: PEER_FORMAT,
        unix_ms: clock::unix_ms(),
        feature_level: level::supported().get().into(),
    })
}

async fn ask_all(token: &JoinToken, request: &JoinRequest) -> Result<JoinResponse, Error> {
    let mut problem = String::new();
    for _ in 0..ROUNDS_MAX {
        for contact in &token.contacts {
            match ask(token, contact, request.clone()).await {
                Ok(joined) => return Ok(joined),
                Err(Problem::Final(error)) => return Err(error),
                Err(Problem::Other(text)) => {
                    warn!(member = contact.admin_address, problem = text, "asked in vain");
                    problem = format!("{}: {text}", contact.admin_address);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(Error::Unreachable(problem))
}

/// What another member, or the same one later, may answer otherwise.
const PASSING: [Code; 4] =
    [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Cancelled];

enum Problem {
    /// Every member would say the same.
    Final(Error),
    Other(String),
}

async fn ask(
    token: &JoinToken,
    contact: &JoinContact,
    asked: JoinRequest,
) -> Result<JoinResponse, Problem> {
    let connector = connector(token).map_err(Problem::Final)?;
    let asking = async {
        let channel = connect(connector, contact).await.map_err(Problem::Other)?;
        let mut request = Request::new(asked);
        let credential = token::credential(token)
            .parse()
            .map_err(|_| Problem::Final(Error::Token { problem: "its id is not plain text" }))?;
        request.metadata_mut().insert("authorization", credential);
        let answer = MembersClient::new(channel).join(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            let text = status.message().to_owned();
            if PASSING.contains(&status.code()) {
                Problem::Other(text)
            } else {
                Problem::Final(Error::Refused(text))
            }
        })
    };
    let timeout = |_| Problem::Other(format!("no answer within {TIMEOUT:?}"));
    tokio::time::timeout(TIMEOUT, asking).await.map_err(timeout)?
}

/// Believes only the authorities that the token names.
fn connector(token: &JoinToken) -> Result<TlsConnector, Error> {
    let bad = |error: rustls::Error| Error::Answer(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in &token.authorities {
        roots.add(CertificateDer::from(authority.clone())).map_err(bad)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The member shows the certificate that its peers know it by, because it is asked for by that name.
async fn connect(connector: TlsConnector, contact: &JoinContact) -> Result<Channel, String> {
    let generation = u16::try_from(contact.generation).unwrap_or_default();
    let name = node_name(NodeId::new(contact.number, generation));
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let address = contact.admin_address.clone();
    let service = tower::service_fn(move |_| {
        let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://member");
    // The outermost text alone says little ("transport error").
    let described = |error| format!("{:#}", anyhow::Error::new(error));
    endpoint.connect_with_connector(service).await.map_err(described)
}
