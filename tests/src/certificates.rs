//! Certificates of devices and of authorities, as an operator would make them with openssl.

use std::path::{Path, PathBuf};

use anyhow::Result;
use drover_chaos::mqtt::link::Tls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::clients::HOST;

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// An authority with its key.
pub struct Authority {
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Identity {
    pub fn self_signed(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = params(name).self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem() })
    }

    pub fn sha256(&self) -> Result<String> {
        Ok(hex::encode(Sha256::digest(self.der()?)))
    }

    /// In the form that openssl prints: upper case, with colons.
    pub fn sha1(&self) -> Result<String> {
        let digest = Sha1::digest(self.der()?);
        let digits: Vec<_> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        Ok(digits.join(":"))
    }

    fn der(&self) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_slice(self.certificate.as_bytes())?)
    }

    /// A client that trusts the CA in `ca` and shows this certificate.
    pub fn tls(&self, ca: &Path) -> Result<Tls> {
        let (certificate, key) = (self.certificate.as_bytes(), self.key.as_bytes());
        Tls::with_certificate(&std::fs::read(ca)?, HOST, certificate, key)
    }

    /// Writes NAME.pem and NAME.key into a folder, for clients that read files.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
        let file = |ending| folder.join(format!("{name}.{ending}"));
        std::fs::write(file("pem"), &self.certificate)?;
        std::fs::write(file("key"), &self.key)?;
        Ok((file("pem"), file("key")))
    }
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let params = authority(name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    pub fn sign(&self, name: &str) -> Result<Identity> {
        self.sign_params(&params(name))
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Result<Self> {
        let params = authority(name);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// A certificate with this authority's own behind it, for those who know only the one above.
    pub fn sign_with_chain(&self, name: &str) -> Result<Identity> {
        let mut identity = self.sign(name)?;
        identity.certificate.push_str(&self.certificate);
        Ok(identity)
    }

    /// A certificate that was good until yesterday.
    pub fn sign_expired(&self, name: &str) -> Result<Identity> {
        let mut params = params(name);
        params.not_after = OffsetDateTime::now_utc() - time::Duration::days(1);
        self.sign_params(&params)
    }

    fn sign_params(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}
