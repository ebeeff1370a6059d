//! `drover authorities`: certificate authorities whose devices may connect.

use clap::{Args, Subcommand};
use drover_proto::admin::{
    Authority, CreateAuthorityRequest, DeleteAuthorityRequest, GenerateVerificationCodeRequest,
    GetAuthorityRequest, ListAuthoritiesRequest, SetAuthorityStatusRequest, VerifyAuthorityRequest,
};
use serde_json::{Value, json};

use super::client::HubArguments;
use super::output::{Form, Output, Table};
use super::{Failure, files, json};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register an authority. It vouches for devices once it is verified.
    Create(WithCertificate),
    /// Show an authority.
    Get { name: String },
    /// List the authorities.
    List,
    /// Make a new verification code; the one before proves nothing any more.
    NewCode { name: String },
    /// Prove that the key of an authority is yours: give a certificate that it has signed, with the verification code as
    /// its common name.
    Verify(WithCertificate),
    /// Let the devices of an authority connect again.
    Enable { name: String },
    /// Keep the devices of an authority from connecting, and end their connections.
    Disable { name: String },
    /// Remove an authority, and end the connections of its devices.
    Delete { name: String },
}

#[derive(Debug, Args)]
pub(super) struct WithCertificate {
    name: String,
    /// PEM file with one certificate, or - for standard input.
    #[arg(long, value_name = "FILE")]
    certificate: String,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let mut authorities = client.authorities();
    let authority = match command {
        Command::Create(WithCertificate { name, certificate }) => {
            let certificate_pem = files::read_text(&certificate)?;
            let request = client.request(CreateAuthorityRequest { name, certificate_pem });
            authorities.create_authority(request).await?
        }
        Command::Get { name } => {
            authorities.get_authority(client.request(GetAuthorityRequest { name })).await?
        }
        Command::List => {
            let request = client.request(ListAuthoritiesRequest {});
            let listed = authorities.list_authorities(request).await?;
            return list(&listed.get_ref().authorities, out);
        }
        Command::NewCode { name } => {
            let request = client.request(GenerateVerificationCodeRequest { name });
            authorities.generate_verification_code(request).await?
        }
        Command::Verify(WithCertificate { name, certificate }) => {
            let certificate_pem = files::read_text(&certificate)?;
            let request = client.request(VerifyAuthorityRequest { name, certificate_pem });
            authorities.verify_authority(request).await?
        }
        Command::Enable { name } => {
            let request = client.request(SetAuthorityStatusRequest { name, enabled: true });
            authorities.set_authority_status(request).await?
        }
        Command::Disable { name } => {
            let request = client.request(SetAuthorityStatusRequest { name, enabled: false });
            authorities.set_authority_status(request).await?
        }
        Command::Delete { name } => {
            authorities.delete_authority(client.request(DeleteAuthorityRequest { name })).await?;
            return Ok(());
        }
    };
    show(authority.get_ref(), out)
}

fn list(authorities: &[Authority], out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return authorities.iter().try_for_each(|authority| out.json(&authority_json(authority)));
    }
    let mut table = Table::new(&["AUTHORITY", "VERIFIED", "ENABLED", "UNTIL", "SUBJECT"]);
    for authority in authorities {
        let until = authority.not_after.as_ref().map(json::time_text).unwrap_or_default();
        let (verified, enabled) = (yes(authority.verified), yes(authority.enabled));
        table.row([&authority.name, verified, enabled, &until, &authority.subject]);
    }
    out.table(&table)
}

fn show(authority: &Authority, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return out.json(&authority_json(authority));
    }
    let mut table = Table::new(&["AUTHORITY", &authority.name]);
    table.row(["VERIFIED", yes(authority.verified)]);
    if !authority.verified {
        table.row(["VERIFICATION CODE", &authority.verification_code]);
    }
    table.row(["ENABLED", yes(authority.enabled)]);
    table.row(["SUBJECT", &authority.subject]);
    table.row(["SHA-256", &authority.sha256_thumbprint]);
    for (label, time) in [("FROM", &authority.not_before), ("UNTIL", &authority.not_after)] {
        table.row([label, &time.as_ref().map(json::time_text).unwrap_or_default()]);
    }
    out.table(&table)
}

fn yes(claim: bool) -> &'static str {
    if claim { "yes" } else { "no" }
}

fn authority_json(authority: &Authority) -> Value {
    json!({
        "name": authority.name,
        "verified": authority.verified,
        "verificationCode": authority.verification_code,
        "enabled": authority.enabled,
        "subject": authority.subject,
        "sha256Thumbprint": authority.sha256_thumbprint,
        "notBefore": json::time(authority.not_before.as_ref()),
        "notAfter": json::time(authority.not_after.as_ref()),
        "certificate": authority.certificate_pem,
    })
}
