//! The certificates of a node, read at its start and again when it is told to: for devices and API clients, for other
//! nodes, and the authority for clients of the API.

use std::sync::{Arc, Mutex};

use drover_cluster::raft::tls::{TlsIdentity, TlsNetwork};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;

use crate::config;
use crate::tls::{ClientAuthority, Error, KeyPair, ServerTls, read_certificates};

pub(super) struct Certificates {
    pub(super) server: ServerTls,
    pub(super) clients: Option<ClientAuthority>,
    /// What peers know this node by, for those who ask the admin API under that name: nodes that join.
    pub(super) own: ServerTls,
    pub(super) peer_authorities: Vec<CertificateDer<'static>>,
    peers: Arc<TlsNetwork>,
    /// The cluster's own authority, once it has one.
    signer: Mutex<Option<CertificateDer<'static>>>,
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
        let pair =
            KeyPair { certificate: files.peer_certificate.clone(), key: files.peer_key.clone() };
        let own = ServerTls::load(pair)?;
        let peers = Arc::new(TlsNetwork::new(listener, identity(files, None)?)?);
        let network = Arc::clone(&peers);
        let peer_authorities = read_certificates(&files.peer_ca)?;
        let (signer, files) = (Mutex::default(), files.clone());
        Ok((Self { server, clients, own, peer_authorities, peers, signer, files }, network))
    }

    /// Each kind by itself: a file that is not in order does not keep the others from being replaced. The first problem
    /// is told.
    pub(super) fn reload(&self) -> Result<(), Error> {
        let clients = self.clients.as_ref().map_or(Ok(()), ClientAuthority::reload);
        let peers = self.renew_peers();
        self.server.reload().and(clients).and(self.own.reload()).and(peers)
    }

    /// Peers that show a certificate of the cluster's own authority are believed from now on, as are those of the
    /// configured ones.
    pub(super) fn trust(&self, signer: CertificateDer<'static>) -> Result<(), Error> {
        let known = self.signer().replace(signer.clone());
        if known == Some(signer) { Ok(()) } else { self.renew_peers() }
    }

    fn renew_peers(&self) -> Result<(), Error> {
        let identity = identity(&self.files, self.signer().clone())?;
        Ok(self.peers.renew(identity)?)
    }

    fn signer(&self) -> std::sync::MutexGuard<'_, Option<CertificateDer<'static>>> {
        self.signer.lock().expect("nobody panics with it in hand")
    }
}

fn identity(
    files: &config::Tls,
    signer: Option<CertificateDer<'static>>,
) -> Result<TlsIdentity, Error> {
    let mut authorities = read_certificates(&files.peer_ca)?;
    authorities.extend(signer);
    Ok(TlsIdentity {
        authorities,
        chain: read_certificates(&files.peer_certificate)?,
        key: PrivateKeyDer::from_pem_file(&files.peer_key)
            .map_err(|error| Error::file(&files.peer_key, error))?,
    })
}
