//! TLS for the listeners: certificates and keys from PEM files, reload while running.
//!
//! A client certificate is asked for but not required, and one that chains to no CA does not fail the handshake:
//! devices may use certificates that they signed themselves, and who they are is decided after CONNECT
//! (`spec/mqtt.md` section 1). What the handshake does prove is that the client holds the key of the certificate that
//! it showed. Certificates for development are made in [`authority`].

pub mod authority;
mod clients;
pub mod signer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

pub use clients::ClientAuthority;
pub(crate) use clients::{Proven, common_name};

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {problem}")]
    File { path: PathBuf, problem: String },
    #[error(
        "the key {key} does not belong to the certificate {certificate}: give the matching pair"
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("a certificate cannot be made: {0}")]
    Generation(#[from] rcgen::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl Error {
    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// The files of a certificate (with what leads to its CA) and of its key, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The TLS side of a listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
}

impl ServerTls {
    /// Serves TLS 1.2 and 1.3 with this certificate.
    pub fn load(files: KeyPair) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let certified = Arc::new(certified_key(&files, &provider)?);
        let current = Arc::new(Current { files, certified: RwLock::new(certified) });
        let verifier = AnyClient { algorithms: provider.signature_verification_algorithms };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::<Current>::clone(&current));
        // A ticket is of use once, to the next connection; each costs the handshake a packet.
        config.send_tls13_tickets = 1;
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self { config: Arc::new(config), current })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// The same for everybody but those who ask for `name`: they are shown what `other` has.
    pub fn config_beside(&self, name: String, other: &Self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.config);
        let (others, asked) = (Arc::clone(&self.current), Arc::clone(&other.current));
        config.cert_resolver = Arc::new(Named { name, asked, others });
        Arc::new(config)
    }

    /// Reads the files again. New handshakes use what they hold now; if they are not in order, the former certificate
    /// stays (S-46).
    pub fn reload(&self) -> Result<(), Error> {
        let provider = self.config.crypto_provider();
        let certified = Arc::new(certified_key(&self.current.files, provider)?);
        *self.current.certified.write().expect("no holder of this lock panics") = certified;
        Ok(())
    }
}

/// The certificate that is served, replaced whole by a reload.
#[derive(Debug)]
struct Current {
    files: KeyPair,
    certified: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certified = self.certified.read().expect("no holder of this lock panics");
        Some(Arc::clone(&certified))
    }
}

/// One certificate for those who ask for a name, another for all others.
#[derive(Debug)]
struct Named {
    name: String,
    asked: Arc<Current>,
    others: Arc<Current>,
}

impl ResolvesServerCert for Named {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_named = hello.server_name() == Some(&self.name);
        let current = if is_named { &self.asked } else { &self.others };
        current.resolve(hello)
    }
}

/// A certificate as text (RFC 7468): base64 in lines of 64 characters.
pub(crate) fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let body = lines.collect::<Vec<_>>().join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

fn certified_key(files: &KeyPair, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let chain = read_certificates(&files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| Error::file(&files.key, error))?;
    let key = provider.key_provider.load_private_key(key)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Some kinds of keys cannot tell; a handshake would.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(_) => {
            Err(Error::Mismatch { certificate: files.certificate.clone(), key: files.key.clone() })
        }
    }
}

/// The certificates of a PEM file, at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| Error::file(path, error))?;
    if certificates.is_empty() {
        return Err(Error::file(path, "it holds no certificate"));
    }
    Ok(certificates)
}

/// Takes any client certificate whose key the client holds, and does without one.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
