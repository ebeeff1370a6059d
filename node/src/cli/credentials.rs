//! What the commands about devices and about modules have in common: whom they mean, and how it proves who it is.

use clap::Args;
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::{self, Authentication};
use serde_json::{Value, json};

use super::Failure;
use super::output::Table;

/// Whom a command is about.
#[derive(Debug, Clone, Args)]
pub(super) struct Identity {
    /// The device.
    pub(super) id: String,
    /// One of its modules, instead of the device itself.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(super) module: String,
}

#[derive(Debug, Clone, Args)]
pub(super) struct Condition {
    /// Change it only if its etag is this one.
    #[arg(long, value_name = "ETAG", default_value = "")]
    pub(super) if_match: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct WhichKeys {
    /// Replace the primary key.
    #[arg(long)]
    pub(super) primary: bool,
    /// Replace the secondary key.
    #[arg(long)]
    pub(super) secondary: bool,
}

/// How a device or module proves who it is; symmetric keys unless something else is said.
#[derive(Debug, Args)]
pub(super) struct Credentials {
    /// Base64 of 16 to 64 bytes.
    #[arg(long, value_name = "BASE64", conflicts_with_all = ["thumbprint", "ca_signed", "no_proof"])]
    primary_key: Option<String>,
    /// Base64 of 16 to 64 bytes.
    #[arg(long, value_name = "BASE64", conflicts_with_all = ["thumbprint", "ca_signed", "no_proof"])]
    secondary_key: Option<String>,
    /// A certificate with this SHA-1 or SHA-256 thumbprint; give it twice to allow two.
    #[arg(long, value_name = "HEX", num_args = 1, conflicts_with_all = ["ca_signed", "no_proof"])]
    thumbprint: Vec<String>,
    /// A certificate that a registered authority has signed.
    #[arg(long, conflicts_with = "no_proof")]
    ca_signed: bool,
    /// Nothing: it cannot connect.
    #[arg(long)]
    no_proof: bool,
}

impl Credentials {
    /// `None`: nothing was said.
    pub(super) fn authentication(self) -> Result<Option<Authentication>, Failure> {
        let kind = if self.no_proof {
            Kind::None(admin::NoAuthentication {})
        } else if self.ca_signed {
            Kind::CertificateAuthority(admin::CertificateAuthority {})
        } else if !self.thumbprint.is_empty() {
            let mut thumbprints = self.thumbprint.into_iter();
            let primary = thumbprints.next().unwrap_or_default();
            let secondary = thumbprints.next().unwrap_or_default();
            if thumbprints.next().is_some() {
                return Err(Failure::Usage(
                    "--thumbprint can be given twice, not more often".to_owned(),
                ));
            }
            Kind::SelfSigned(admin::Thumbprints { primary, secondary })
        } else if self.primary_key.is_some() || self.secondary_key.is_some() {
            Kind::Sas(admin::SymmetricKeys {
                primary_key: self.primary_key.unwrap_or_default(),
                secondary_key: self.secondary_key.unwrap_or_default(),
            })
        } else {
            return Ok(None);
        };
        Ok(Some(Authentication { kind: Some(kind) }))
    }
}

/// By the names of Azure IoT Hub.
pub(super) fn kind_text(authentication: Option<&Authentication>) -> &'static str {
    match authentication.and_then(|authentication| authentication.kind.as_ref()) {
        Some(Kind::Sas(_)) => "sas",
        Some(Kind::SelfSigned(_)) => "selfSigned",
        Some(Kind::CertificateAuthority(_)) => "certificateAuthority",
        Some(Kind::None(_)) | None => "none",
    }
}

/// Kind, keys and thumbprints, for people.
pub(super) fn rows(authentication: Option<&Authentication>, table: &mut Table) {
    table.row(["AUTHENTICATION", kind_text(authentication)]);
    match authentication.and_then(|authentication| authentication.kind.as_ref()) {
        Some(Kind::Sas(keys)) => {
            table.row(["PRIMARY KEY", &keys.primary_key]);
            table.row(["SECONDARY KEY", &keys.secondary_key]);
        }
        Some(Kind::SelfSigned(thumbprints)) => {
            table.row(["PRIMARY", &thumbprints.primary]);
            table.row(["SECONDARY", &thumbprints.secondary]);
        }
        Some(Kind::CertificateAuthority(_) | Kind::None(_)) | None => {}
    }
}

/// By the names of Azure IoT Hub's REST API.
pub(super) fn to_json(given: Option<&Authentication>) -> Value {
    let mut authentication = json!({ "type": kind_text(given) });
    match given.and_then(|authentication| authentication.kind.as_ref()) {
        Some(Kind::Sas(keys)) => {
            authentication["symmetricKey"] =
                json!({ "primaryKey": keys.primary_key, "secondaryKey": keys.secondary_key });
        }
        Some(Kind::SelfSigned(thumbprints)) => {
            authentication["x509Thumbprint"] = json!({
                "primaryThumbprint": thumbprints.primary,
                "secondaryThumbprint": thumbprints.secondary,
            });
        }
        Some(Kind::CertificateAuthority(_) | Kind::None(_)) | None => {}
    }
    authentication
}
