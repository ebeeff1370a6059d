//! Certificate authorities: PEM to DER, and what certificates say for those who read lists.

use bytes::Bytes;
use drover_cluster::core::authority::{Authority, CERTIFICATE_BYTES_MAX, Possession};
use drover_cluster::core::device::Status;
use drover_proto::admin;
use prost_types::Timestamp;
use rand::RngCore as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::grpc::status::Invalid;
use crate::identity::certificate::{Thumbprints, Unfit};
use crate::tls::pem;

/// 160 bits, which nobody guesses; as hex they are shorter than a common name may be.
const CODE_BYTES: usize = 20;

/// The one certificate of a PEM text. More would be a chain, and whoever sends one expects something of it.
pub(crate) fn certificate(pem: &str) -> Result<Bytes, Invalid> {
    let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
    let (Some(Ok(certificate)), None) = (certificates.next(), certificates.next()) else {
        return Err(invalid("give one certificate, as PEM"));
    };
    if certificate.len() > CERTIFICATE_BYTES_MAX {
        return Err(invalid(format!("a certificate has at most {CERTIFICATE_BYTES_MAX} bytes")));
    }
    Ok(Bytes::copy_from_slice(&certificate))
}

pub(crate) fn unfit(unfit: &Unfit) -> Invalid {
    invalid(unfit)
}

fn invalid(problem: impl std::fmt::Display) -> Invalid {
    Invalid::new("certificate_pem", problem)
}

pub(crate) fn new_code() -> String {
    let mut code = [0; CODE_BYTES];
    rand::rng().fill_bytes(&mut code);
    hex::encode(code)
}

pub(crate) fn answer(name: &str, authority: &Authority) -> admin::Authority {
    let code = match &authority.possession {
        Possession::Unproven { code } => code.clone(),
        Possession::Proven => String::new(),
    };
    // It was read before it was registered.
    let parsed = X509Certificate::from_der(&authority.certificate).map(|(_, parsed)| parsed).ok();
    let validity = parsed.as_ref().map(|parsed| parsed.validity());
    admin::Authority {
        name: name.to_owned(),
        certificate_pem: pem(&authority.certificate),
        verified: code.is_empty(),
        verification_code: code,
        enabled: authority.status == Status::Enabled,
        subject: parsed.as_ref().map(|parsed| parsed.subject().to_string()).unwrap_or_default(),
        sha256_thumbprint: Thumbprints::of(&authority.certificate).sha256,
        not_before: validity.map(|validity| timestamp(validity.not_before)),
        not_after: validity.map(|validity| timestamp(validity.not_after)),
    }
}

fn timestamp(time: ASN1Time) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_shown_as_it_was_given_and_a_chain_is_refused() {
        let made = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).expect("made");
        let given = made.cert.pem().replace("\r\n", "\n");
        let der = certificate(&given).expect("one certificate");
        assert_eq!(pem(&der), given);
        assert!(certificate(&format!("{given}{given}")).is_err());
        assert!(certificate("").is_err());
        assert!(certificate("nonsense").is_err());
    }

    #[test]
    fn codes_do_not_repeat() {
        assert_ne!(new_code(), new_code());
    }
}
