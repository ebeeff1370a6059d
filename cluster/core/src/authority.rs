//! Certificate authorities whose devices may connect: registered, proven, switched off and on.
//!
//! Whoever registers a certificate has to prove that its key is theirs, or anybody could register a CA of others and be
//! let in by what it signs: they sign a certificate that carries a code which they could not foresee. What certificates
//! say is read at the edge, which tells here only with which code the proof was made; core takes them as bytes.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::device::Status;
use crate::meta::{MetaRefusal, is_legal_name};

/// How many authorities a cluster may have: all of them are tried for each device that connects by one. Azure IoT Hub's
/// limit.
pub const AUTHORITIES_MAX: usize = 25;
/// The longest certificate, DER. Real ones have one or two thousand bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// The registered authorities by name.
pub type Authorities = BTreeMap<String, Authority>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// X.509, DER.
    pub certificate: Bytes,
    pub possession: Possession,
    pub status: Status,
}

/// Whether the key of the certificate is known to be in the hands of who registered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Possession {
    /// A certificate with this code as its common name, signed with the key, will prove it.
    Unproven {
        code: String,
    },
    Proven,
}

/// A change of one authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityChange {
    /// Register it, enabled and unproven.
    Create {
        certificate: Bytes,
        code: String,
    },
    /// The former code proves nothing any more.
    ReplaceCode {
        code: String,
    },
    /// A certificate with this code was checked and found in order.
    Prove {
        code: String,
    },
    SetStatus(Status),
    Delete,
}

impl Authority {
    /// Whether a device that it has signed may connect.
    pub fn vouches(&self) -> bool {
        self.possession == Possession::Proven && self.status == Status::Enabled
    }
}

/// Applies one change. A refusal changes nothing.
pub(crate) fn apply(
    authorities: &mut Authorities,
    name: &str,
    change: &AuthorityChange,
) -> Result<(), MetaRefusal> {
    if let AuthorityChange::Create { certificate, code } = change {
        return create(authorities, name, certificate, code);
    }
    let not_found = || MetaRefusal::AuthorityNotFound { name: name.to_owned() };
    let authority = authorities.get_mut(name).ok_or_else(not_found)?;
    match change {
        // Answered above.
        AuthorityChange::Create { .. } => {}
        AuthorityChange::ReplaceCode { code } => {
            expected_code(authority, name)?;
            authority.possession = Possession::Unproven { code: code.clone() };
        }
        AuthorityChange::Prove { code } => {
            if expected_code(authority, name)? != code {
                return Err(MetaRefusal::AuthorityCodeReplaced { name: name.to_owned() });
            }
            authority.possession = Possession::Proven;
        }
        AuthorityChange::SetStatus(status) => authority.status = *status,
        AuthorityChange::Delete => {
            authorities.remove(name);
        }
    }
    Ok(())
}

fn create(
    authorities: &mut Authorities,
    name: &str,
    certificate: &Bytes,
    code: &str,
) -> Result<(), MetaRefusal> {
    if !is_legal_name(name) {
        return Err(MetaRefusal::InvalidAuthorityName { name: name.to_owned() });
    }
    if authorities.contains_key(name) {
        return Err(MetaRefusal::AuthorityAlreadyExists { name: name.to_owned() });
    }
    // Under two names, switching off one of them would leave its devices in.
    let same = authorities.iter().find(|(_, authority)| authority.certificate == certificate);
    if let Some((name, _)) = same {
        return Err(MetaRefusal::AuthorityAlreadyExists { name: name.clone() });
    }
    if authorities.len() >= AUTHORITIES_MAX {
        return Err(MetaRefusal::TooManyAuthorities { limit: AUTHORITIES_MAX });
    }
    let authority = Authority {
        certificate: certificate.clone(),
        possession: Possession::Unproven { code: code.to_owned() },
        status: Status::Enabled,
    };
    authorities.insert(name.to_owned(), authority);
    Ok(())
}

fn expected_code<'a>(authority: &'a Authority, name: &str) -> Result<&'a str, MetaRefusal> {
    match &authority.possession {
        Possession::Unproven { code } => Ok(code),
        Possession::Proven => Err(MetaRefusal::AuthorityIsProven { name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn creation(certificate: &'static [u8]) -> AuthorityChange {
        let code = "c1".to_owned();
        AuthorityChange::Create { certificate: Bytes::from_static(certificate), code }
    }

    fn prove(code: &str) -> AuthorityChange {
        AuthorityChange::Prove { code: code.to_owned() }
    }

    fn with_one() -> Authorities {
        let mut authorities = Authorities::new();
        apply(&mut authorities, "factory", &creation(b"factory")).expect("legal");
        authorities
    }

    /// What the refusal is, and that it changed nothing.
    fn refused(authorities: &mut Authorities, name: &str, change: &AuthorityChange) -> MetaRefusal {
        let before = authorities.clone();
        let refusal = apply(authorities, name, change).expect_err("refused");
        assert_eq!(*authorities, before);
        refusal
    }

    #[test]
    fn an_authority_vouches_when_it_is_proven_and_while_it_is_enabled() {
        let mut authorities = with_one();
        assert!(!authorities["factory"].vouches(), "nothing is proven yet");
        apply(&mut authorities, "factory", &prove("c1")).expect("the code that was given out");
        assert!(authorities["factory"].vouches());
        for (status, vouches) in [(Status::Disabled, false), (Status::Enabled, true)] {
            let change = AuthorityChange::SetStatus(status);
            apply(&mut authorities, "factory", &change).expect("legal");
            assert_eq!(authorities["factory"].vouches(), vouches, "{status:?}");
        }
    }

    #[test]
    fn only_the_newest_code_proves_and_only_once() {
        let mut authorities = with_one();
        let replace = AuthorityChange::ReplaceCode { code: "c2".to_owned() };
        apply(&mut authorities, "factory", &replace).expect("legal");
        let name = || "factory".to_owned();
        assert_eq!(
            refused(&mut authorities, "factory", &prove("c1")),
            MetaRefusal::AuthorityCodeReplaced { name: name() }
        );
        apply(&mut authorities, "factory", &prove("c2")).expect("the newest");
        for change in [prove("c2"), replace] {
            assert_eq!(
                refused(&mut authorities, "factory", &change),
                MetaRefusal::AuthorityIsProven { name: name() }
            );
        }
    }

    #[test]
    fn a_name_and_a_certificate_are_registered_once() {
        let mut authorities = with_one();
        for (name, certificate) in [("factory", &b"other"[..]), ("other", b"factory")] {
            assert_eq!(
                refused(&mut authorities, name, &creation(certificate)),
                MetaRefusal::AuthorityAlreadyExists { name: "factory".to_owned() }
            );
        }
        apply(&mut authorities, "factory", &AuthorityChange::Delete).expect("it is there");
        apply(&mut authorities, "other", &creation(b"factory")).expect("it is free again");
    }

    #[test]
    fn what_does_not_exist_cannot_be_changed() {
        for change in [prove("c1"), AuthorityChange::Delete] {
            let refusal = refused(&mut with_one(), "mill", &change);
            assert_eq!(refusal, MetaRefusal::AuthorityNotFound { name: "mill".to_owned() });
        }
    }

    #[test]
    fn names_and_number_are_limited() {
        let mut authorities = with_one();
        for name in ["", "a b", &"n".repeat(65)] {
            let refusal = refused(&mut authorities, name, &creation(b"x"));
            assert_eq!(refusal, MetaRefusal::InvalidAuthorityName { name: name.to_owned() });
        }
        for number in 1..AUTHORITIES_MAX {
            let certificate = Bytes::from(number.to_string());
            let create = AuthorityChange::Create { certificate, code: "c".to_owned() };
            apply(&mut authorities, &format!("n{number}"), &create).expect("below the limit");
        }
        assert_eq!(
            refused(&mut authorities, "more", &creation(b"more")),
            MetaRefusal::TooManyAuthorities { limit: AUTHORITIES_MAX }
        );
    }
}
