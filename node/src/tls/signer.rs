//! The cluster's own authority: it signs the certificates of nodes that join by a token.
//!
//! It is made with the first token and lives in the meta state, so that any node can answer a join. Whoever reads a node's
//! data folder has it, as they have the keys of all policies; `docs/decisions/0009` weighs that.

use bytes::Bytes;
use drover_core::ids::NodeId;
use drover_core::membership::{PrivateKey, Signer};
use rcgen::{GeneralSubtree, Issuer, KeyPair, NameConstraints, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

use super::Error;
use super::authority::{AUTHORITY_LIFETIME, NODE_USAGES, leaf, node_name, root};

/// A node's certificate lasts as long as the authority: there is nobody yet who would renew it.
const CERTIFICATE_LIFETIME: Duration = AUTHORITY_LIFETIME;
/// What it may sign for, and nothing else.
const DOMAIN: &str = "drover";

/// A new authority. `now_s`: seconds since 1970.
pub fn make(now_s: u64) -> Result<Signer, Error> {
    let mut params = root("Drover cluster CA", time_of(now_s));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Signer {
        certificate: Bytes::copy_from_slice(certificate.der()),
        key: PrivateKey(key.serialize_der().into()),
    })
}

/// A certificate by which a node knows and is known by its peers, for the key that it has made itself.
pub fn sign(signer: &Signer, node: NodeId, public_key: &[u8], now_s: u64) -> Result<Bytes, Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signer.key.0.to_vec()));
    let key = KeyPair::try_from(&key)?;
    let authority = CertificateDer::from(signer.certificate.to_vec());
    let issuer = Issuer::from_ca_cert_der(&authority, key)?;
    let params = leaf(vec![node_name(node)], &NODE_USAGES, time_of(now_s), CERTIFICATE_LIFETIME)?;
    let certificate = params.signed_by(&SubjectPublicKeyInfo::from_der(public_key)?, &issuer)?;
    Ok(Bytes::copy_from_slice(certificate.der()))
}

/// SHA-256, by which secrets and keys are kept and compared.
pub fn digest(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(bytes))
}

/// A clock outside of the calendar gives certificates that nobody accepts.
fn time_of(now_s: u64) -> OffsetDateTime {
    let seconds = i64::try_from(now_s).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
