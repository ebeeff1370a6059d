//! The certificates of a node, read at its start and again when it is told to: for devices and API clients, for other
//! nodes, and the authority for clients of the API.

use std::sync::Arc;

use drover_cluster::raft::tls::{TlsIdentity, TlsNetwork};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;

use crate::config;
use crate::tls::{ClientAuthority, Error, KeyPair, ServerTls, read_certificates};

pub(super) struct Certificates {
    pub(super) server: ServerTls,
    pub(super) clients: Option<ClientAuthority>,
    peers: Arc<TlsNetwork>,
    files: config::Tls,
}

impl Certificates {
    /// Reads all files; `listener` becomes the side of the network that other nodes connect to.
    pub(super) fn load(
        files: &config::Tls,
        listener: TcpListener,
    ) -> Result<(Self, Arc<TlsNetwork>), Error> {
        let pair = KeyPair { certificate: files.certificate.clone(), key: files.key.clone() };
        let server = ServerTls::load(pair)?;
        let has_clients = !files.client_ca.as_os_str().is_empty();
        let clients =
            has_clients.then(|| ClientAuthority::load(files.client_ca.clone())).transpose()?;
        let peers = Arc::new(TlsNetwork::new(listener, identity(files)?)?);
        let network = Arc::clone(&peers);
        Ok((Self { server, clients, peers, files: files.clone() }, network))
    }

    /// Each kind by itself: a file that is not in order does not keep the others from being replaced. The first problem
    /// is told.
    pub(super) fn reload(&self) -> Result<(), Error> {
        let clients = self.clients.as_ref().map_or(Ok(()), ClientAuthority::reload);
        let peers = identity(&self.files).and_then(|identity| Ok(self.peers.renew(identity)?));
        self.server.reload().and(clients).and(peers)
    }
}

fn identity(files: &config::Tls) -> Result<TlsIdentity, Error> {
    Ok(TlsIdentity {
        authorities: read_certificates(&files.peer_ca)?,
        chain: read_certificates(&files.peer_certificate)?,
        key: PrivateKeyDer::from_pem_file(&files.peer_key)
            .map_err(|error| Error::file(&files.peer_key, error))?,
    })
}
