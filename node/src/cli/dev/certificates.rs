//! A CA of one's own for development: made on the first start and kept; the certificates that it signs are made anew at
//! each start, so they never run out.
//!
//! Two authorities, because being called by a name (the hub's) and being a member (a node's) are different rights.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use drover_core::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Long enough that nobody installs a new CA in a device at a desk twice.
const CA_DAYS: i64 = 10 * 365;
/// Some clients refuse server certificates that live longer than 398 days.
const CERTIFICATE_DAYS: i64 = 397;

/// An authority: its certificate's text, and what signs with its key.
pub(super) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads `NAME.pem` and `NAME.key`, or makes them.
    pub(super) fn open(folder: &Path, name: &str, common_name: &str) -> Result<Self> {
        let (certificate, key) =
            (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        if !certificate.exists() {
            let pair = KeyPair::generate().context("no key could be made")?;
            let made = authority_params(common_name)?.self_signed(&pair)?;
            write_secret(&key, &pair.serialize_pem())?;
            write(&certificate, &made.pem())?;
        }
        let certificate = read(&certificate)?;
        let pair = KeyPair::from_pem(&read(&key)?).with_context(|| {
            format!("{} is not a private key: drover dev --fresh makes a new one", key.display())
        })?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, pair)
            .context("the CA certificate cannot be read: drover dev --fresh makes a new one")?;
        Ok(Self { certificate, issuer })
    }

    /// Writes `NAME.pem` (with the CA behind it) and `NAME.key` for the given host names and addresses.
    pub(super) fn sign(&self, folder: &Path, name: &str, names: Vec<String>) -> Result<()> {
        let pair = KeyPair::generate().context("no key could be made")?;
        let params = certificate_params(names)?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        write_secret(&folder.join(format!("{name}.key")), &pair.serialize_pem())?;
        let chain = format!("{}{}", certificate.pem(), self.certificate);
        write(&folder.join(format!("{name}.pem")), &chain)
    }
}

/// The names that the certificate of a node carries.
pub(super) fn node_names(node: NodeId) -> Vec<String> {
    vec![format!("node-{}-{}.drover", node.number(), node.generation())]
}

/// The names that this machine may be called by from itself.
pub(super) fn host_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = machine.trim().to_ascii_lowercase();
    if !machine.is_empty() && machine.is_ascii() {
        names.push(machine);
    }
    names
}

fn authority_params(common_name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live_for(&mut params, CA_DAYS);
    Ok(params)
}

fn certificate_params(names: Vec<String>) -> Result<CertificateParams> {
    let common_name = names.first().context("a certificate needs a name")?.clone();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    live_for(&mut params, CERTIFICATE_DAYS);
    Ok(params)
}

/// From yesterday on, for clients whose clock is behind.
fn live_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(days - 1);
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Readable by its owner only, from its first byte on.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
