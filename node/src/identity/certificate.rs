//! Certificates as the proof of a device, and of who registers an authority (`spec/mqtt.md` section 4).
//!
//! A device is known by the thumbprint of its certificate, or by an authority that the cluster trusts having signed a
//! certificate in the device's name. Handshakes take any certificate, so all of that is asked here. Paths are built and
//! checked by webpki: signatures, validity, basic constraints, length, the use for clients.

use std::time::Duration;

use drover_core::access::ProvenDevice;
use drover_core::authority::Authority;
use drover_core::device::Authentication;
use drover_core::ids::DeviceId;
use drover_core::meta::Meta;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Denied, DeviceProof, Grant, Registry, connectable};
use crate::tls::common_name;

/// SHA-1 and SHA-256 of a certificate, as lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbprints {
    pub sha1: String,
    pub sha256: String,
}

impl Thumbprints {
    pub fn of(certificate: &[u8]) -> Self {
        Self {
            sha1: hex::encode(Sha1::digest(certificate)),
            sha256: hex::encode(Sha256::digest(certificate)),
        }
    }

    fn include(&self, registered: &str) -> bool {
        registered == self.sha1 || registered == self.sha256
    }
}

/// Checks a chain that is presented for `device`. The path to an authority is sought also for devices that are unknown
/// or known by thumbprint, so that they cannot be told apart by time.
pub(super) fn verify(
    device: &DeviceId,
    registry: Registry<'_>,
    certificates: &[CertificateDer<'static>],
    now_s: u64,
) -> Result<DeviceProof, Denied> {
    let (own, intermediates) = certificates.split_first().ok_or(Denied::Nothing)?;
    let thumbprints = Thumbprints::of(own);
    let vouched = vouched_for(own, intermediates, registry.meta, now_s);
    let parsed = parse(own)?;
    let identity = registry.identity.ok_or(Denied::UnknownDevice)?;
    let mut expires_s = until_s(&parsed, now_s)?;
    let grant = match &identity.authentication {
        Authentication::SelfSigned { primary, secondary } => {
            let mut registered = [primary, secondary].into_iter().flatten();
            if !registered.any(|thumbprint| thumbprints.include(thumbprint)) {
                return Err(Denied::OtherCertificate);
            }
            None
        }
        Authentication::CertificateAuthority => {
            let vouched = vouched?;
            if common_name(&parsed) != Some(device.as_str()) {
                return Err(Denied::OtherResource);
            }
            expires_s = expires_s.min(vouched.until_s);
            Some(vouched.grant)
        }
        Authentication::Sas { .. } | Authentication::None => {
            return Err(Denied::OtherAuthentication);
        }
    };
    let credentials = connectable(Some(identity))?;
    let proven = ProvenDevice { device: device.clone(), credentials };
    Ok(DeviceProof { proven, expires_s, grant })
}

/// An authority's word for a chain.
struct Vouched {
    grant: Grant,
    /// When the authority's own certificate ends.
    until_s: u64,
}

/// An authority that may vouch now.
struct Anchor<'a> {
    name: &'a str,
    authority: &'a Authority,
    certificate: CertificateDer<'a>,
    until_s: u64,
}

fn vouched_for(
    own: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    meta: Option<&Meta>,
    now_s: u64,
) -> Result<Vouched, Denied> {
    let vouching = meta.into_iter().flat_map(|meta| &meta.authorities);
    let candidates: Vec<_> =
        vouching.filter_map(|(name, authority)| candidate(name, authority, now_s)).collect();
    let (candidates, anchors): (Vec<_>, Vec<_>) = candidates
        .iter()
        .filter_map(|candidate| {
            Some((candidate, anchor_from_trusted_cert(&candidate.certificate).ok()?))
        })
        .unzip();
    let own = EndEntityCert::try_from(own).map_err(|_| Denied::NotVouchedFor("unreadable"))?;
    let path = own
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(now_s)),
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(|error| why(&error))?;
    let signer = anchors.iter().zip(candidates).find(|(anchor, _)| *anchor == path.anchor());
    let (_, Anchor { name, authority, until_s, .. }) =
        signer.ok_or(Denied::NotVouchedFor("unknown issuer"))?;
    let certificate = authority.certificate.clone();
    let grant = Grant::Authority { name: (*name).to_owned(), certificate };
    Ok(Vouched { grant, until_s: *until_s })
}

fn candidate<'a>(name: &'a str, authority: &'a Authority, now_s: u64) -> Option<Anchor<'a>> {
    if !authority.vouches() {
        return None;
    }
    let certificate = CertificateDer::from(&authority.certificate[..]);
    let (_, parsed) = X509Certificate::from_der(&authority.certificate).ok()?;
    let until_s = until_s(&parsed, now_s).ok()?;
    Some(Anchor { name, authority, certificate, until_s })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "an enum of webpki, which adds to it; for the log alone"
)]
fn why(error: &webpki::Error) -> Denied {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            Denied::Expired
        }
        webpki::Error::UnknownIssuer => Denied::NotVouchedFor("unknown issuer"),
        webpki::Error::RequiredEkuNotFoundContext(_) => Denied::NotVouchedFor("not for clients"),
        webpki::Error::CaUsedAsEndEntity => Denied::NotVouchedFor("it is itself an authority"),
        webpki::Error::EndEntityUsedAsCa => {
            Denied::NotVouchedFor("a certificate that is no authority signed it")
        }
        webpki::Error::PathLenConstraintViolated => Denied::NotVouchedFor("the path is too long"),
        _ => Denied::NotVouchedFor("the path is not in order"),
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Denied> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(|_| Denied::Malformed)
}

/// When a certificate that is valid now ends, in seconds since 1970.
fn until_s(certificate: &X509Certificate<'_>, now_s: u64) -> Result<u64, Denied> {
    let second = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    let (from_s, until_s) = (second(validity.not_before), second(validity.not_after));
    if (from_s..until_s).contains(&now_s) { Ok(until_s) } else { Err(Denied::Expired) }
}

/// Why a certificate cannot be registered, or proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it is no certificate")]
    Unreadable,
    #[error("it is not a certificate authority: it lacks the basic constraint CA")]
    NoAuthority,
    #[error("it has expired, or is not valid yet")]
    Expired,
    #[error("its common name is {found:?} and not the verification code {code}")]
    OtherCode { found: String, code: String },
    #[error("the authority has not signed it")]
    NotSigned,
}

/// Checks that a certificate can be an authority's.
pub fn check_authority(certificate: &[u8], now_s: u64) -> Result<(), Unfit> {
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| Unfit::Unreadable)?;
    let is_readable = anchor_from_trusted_cert(&CertificateDer::from(certificate)).is_ok();
    if !rest.is_empty() || !is_readable {
        return Err(Unfit::Unreadable);
    }
    if !parsed.is_ca() {
        return Err(Unfit::NoAuthority);
    }
    until_s(&parsed, now_s).map(drop).map_err(|_| Unfit::Expired)
}

/// Checks a proof of possession: a certificate that the authority has signed, with the code as its common name. It need
/// have nothing else: the commands that people use for it make certificates of X.509's first version, too.
pub fn check_possession(
    authority: &[u8],
    code: &str,
    proof: &[u8],
    now_s: u64,
) -> Result<(), Unfit> {
    let parse = |der| X509Certificate::from_der(der).map(|(_, parsed)| parsed);
    let authority = parse(authority).map_err(|_| Unfit::Unreadable)?;
    let proof = parse(proof).map_err(|_| Unfit::Unreadable)?;
    let is_signed = proof.issuer() == authority.subject()
        && proof.verify_signature(Some(authority.public_key())).is_ok();
    if !is_signed {
        return Err(Unfit::NotSigned);
    }
    until_s(&proof, now_s).map_err(|_| Unfit::Expired)?;
    match common_name(&proof) {
        Some(name) if name == code => Ok(()),
        found => Err(Unfit::OtherCode {
            found: found.unwrap_or_default().to_owned(),
            code: code.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
