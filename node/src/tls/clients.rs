//! The authority for clients of the API: whose certificates stand for an access policy.
//!
//! Handshakes take any client certificate, and prove that the client holds its key. Whether the certificate means
//! anything is asked here, afterwards. It speaks for as long as it is valid: whoever relies on it must look at
//! [`Proven::until_s`] again when time has passed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::certificate::X509Certificate;

use super::{Error, read_certificates};

/// Authorities from a PEM file, replaced whole by a reload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientAuthority {
    file: PathBuf,
    verifier: Arc<RwLock<Arc<dyn ClientCertVerifier>>>,
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    pub common_name: Arc<str>,
    /// When the certificate ends, in seconds since 1970.
    pub until_s: u64,
}

impl ClientAuthority {
    pub fn load(file: PathBuf) -> Result<Self, Error> {
        let verifier = Arc::new(RwLock::new(verifier(&file)?));
        Ok(Self { file, verifier })
    }

    /// Reads the file again. New connections are judged by what it holds now; if it is not in order, the former
    /// authorities stay. Connections that are open keep what they have proved.
    pub fn reload(&self) -> Result<(), Error> {
        let verifier = verifier(&self.file)?;
        *self.verifier.write().expect("no holder of this lock panics") = verifier;
        Ok(())
    }

    /// Whom a chain of certificates, the client's own first, stands for.
    pub(crate) fn proven(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Option<Proven> {
        let (leaf, intermediates) = chain.split_first()?;
        let verifier = Arc::clone(&self.verifier.read().expect("no holder of this lock panics"));
        verifier.verify_client_cert(leaf, intermediates, now).ok()?;
        named_by(leaf)
    }
}

fn verifier(file: &Path) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in read_certificates(file)? {
        roots.add(authority)?;
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
        .map_err(|error| Error::file(file, error))
}

/// The common name, if there is exactly one, and the end of a certificate.
fn named_by(certificate: &CertificateDer<'_>) -> Option<Proven> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let until_s = certificate.validity().not_after.timestamp().try_into().ok()?;
    Some(Proven { common_name: common_name(&certificate)?.into(), until_s })
}

/// The common name, if there is exactly one: of two it would be chance which one counts.
pub(crate) fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    names.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// 2026-01-01: certificates of rcgen are good from 1975 to 4096.
    const NOW_S: u64 = 1_767_225_600;

    struct Signer {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn signer() -> Signer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("ring makes keys");
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        Signer { pem, issuer: Issuer::new(params, key) }
    }

    fn certificate(signer: &Signer, names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let key = KeyPair::generate().expect("ring makes keys");
        params.signed_by(&key, &signer.issuer).expect("the authority signs").der().clone()
    }

    fn name(authority: &ClientAuthority, chain: &[CertificateDer<'_>]) -> Option<String> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
        authority.proven(chain, now).map(|proven| proven.common_name.to_string())
    }

    #[test]
    fn a_certificate_names_a_policy_only_if_the_authority_for_clients_signed_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("clients.pem");
        let (ours, stranger) = (signer(), signer());
        fs::write(&file, &ours.pem).expect("written");
        let authority = ClientAuthority::load(file).expect("in order");
        assert_eq!(name(&authority, &[certificate(&ours, &["reader"])]).as_deref(), Some("reader"));
        assert_eq!(name(&authority, &[certificate(&stranger, &["reader"])]), None);
        assert_eq!(name(&authority, &[certificate(&ours, &[])]), None, "no name");
        assert_eq!(name(&authority, &[]), None);
    }

    #[test]
    fn a_reload_believes_the_new_authority_only_and_a_bad_file_changes_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("clients.pem");
        let (before, after) = (signer(), signer());
        fs::write(&file, &before.pem).expect("written");
        let authority = ClientAuthority::load(file.clone()).expect("in order");
        fs::write(&file, &after.pem).expect("written");
        authority.reload().expect("in order");
        assert_eq!(name(&authority, &[certificate(&before, &["reader"])]), None);
        fs::write(&file, "nonsense").expect("written");
        assert!(authority.reload().is_err());
        assert_eq!(
            name(&authority, &[certificate(&after, &["reader"])]).as_deref(),
            Some("reader")
        );
    }
}
