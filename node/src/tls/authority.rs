//! A certificate authority of one's own, for `drover dev` and for tests: nothing else to install.
//!
//! Keys never leave the folder: files have mode 0600, the folder 0700 (S-47).

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use drover_core::ids::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use super::{Error, KeyPair};

/// Clocks of clients may be behind by this much.
const BACKDATED: Duration = Duration::days(1);
pub(super) const AUTHORITY_LIFETIME: Duration = Duration::days(3650);
/// The longest that clients accept of a server certificate.
const CERTIFICATE_LIFETIME: Duration = Duration::days(825);
/// What a node's certificate is good for: it is shown both ways.
pub(super) const NODE_USAGES: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

/// The name that the certificate of a node carries, by which its peers know it: number and generation, so that a wiped
/// node is another one.
pub fn node_name(node: NodeId) -> String {
    format!("node-{}-{}.drover", node.number(), node.generation())
}

/// A CA in a folder: `ca.pem`, to be given to clients, and `ca.key`.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, rcgen::KeyPair>,
    now: OffsetDateTime,
}

impl Authority {
    /// Opens the authority of a folder, or makes both. `now_s` is the time that its certificates begin.
    pub fn open_or_create(folder: &Path, now_s: u64) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| Error::file(folder, error))?;
        let now = i64::try_from(now_s)
            .ok()
            .and_then(|now_s| OffsetDateTime::from_unix_timestamp(now_s).ok())
            .ok_or_else(|| Error::file(folder, "the clock is outside the calendar"))?;
        let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
        let issuer = if certificate.exists() {
            open(&certificate, &key)?
        } else {
            create(&certificate, &key, now)?
        };
        Ok(Self { folder: folder.to_owned(), issuer, now })
    }

    /// What clients need to trust.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate for a server that is reached under these names and addresses, as `server.pem` and `server.key`.
    pub fn issue_server(&self, names: &[String]) -> Result<KeyPair, Error> {
        self.issue("server", names.to_vec(), &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A certificate by which a node knows and is known by its peers.
    pub fn issue_node(&self, node: NodeId) -> Result<KeyPair, Error> {
        let file = format!("node-{}-{}", node.number(), node.generation());
        self.issue(&file, vec![node_name(node)], &NODE_USAGES)
    }

    /// Writes the key first: a certificate without a key would be taken for a whole pair after a crash.
    fn issue(
        &self,
        file: &str,
        names: Vec<String>,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<KeyPair, Error> {
        let params = leaf(names, usages, self.now, CERTIFICATE_LIFETIME)?;
        let key = rcgen::KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = KeyPair {
            certificate: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
        };
        write_secret(&files.key, &key.serialize_pem())?;
        write_secret(&files.certificate, &certificate.pem())?;
        Ok(files)
    }
}

fn open(certificate: &Path, key: &Path) -> Result<Issuer<'static, rcgen::KeyPair>, Error> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| Error::file(path, error));
    let key_pair =
        rcgen::KeyPair::from_pem(&read(key)?).map_err(|error| Error::file(key, error))?;
    Issuer::from_ca_cert_pem(&read(certificate)?, key_pair)
        .map_err(|error| Error::file(certificate, error))
}

fn create(
    certificate: &Path,
    key: &Path,
    now: OffsetDateTime,
) -> Result<Issuer<'static, rcgen::KeyPair>, Error> {
    let mut params = root("Drover development CA", now);
    params.key_usages.push(KeyUsagePurpose::CrlSign);
    let key_pair = rcgen::KeyPair::generate()?;
    let signed = params.self_signed(&key_pair)?;
    write_secret(key, &key_pair.serialize_pem())?;
    write_secret(certificate, &signed.pem())?;
    Ok(Issuer::new(params, key_pair))
}

/// An authority that signs leaves and no other authorities.
pub(super) fn root(common_name: &str, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (now - BACKDATED, now + AUTHORITY_LIFETIME);
    params
}

/// What an authority signs: the first of the names is the common name, too.
pub(super) fn leaf(
    names: Vec<String>,
    usages: &[ExtendedKeyUsagePurpose],
    now: OffsetDateTime,
    lifetime: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let common_name = names.first().cloned().unwrap_or_default();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = (now - BACKDATED, now + lifetime);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Writes beside the file and renames, so that a crash leaves the old one or the new one.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            // The mode above is for a new file only.
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| Error::file(path, error))
}
