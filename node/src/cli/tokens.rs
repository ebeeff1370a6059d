//! `drover devices sas-token` and `connection-string`: what a person pastes into a device.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use drover_cluster::core::device::Key;
use drover_cluster::core::ids::{DeviceId, InvalidId};
use drover_proto::admin::Authentication;
use drover_proto::admin::authentication::Kind;
use serde_json::json;

use super::client::HubArguments;
use super::credentials::Identity;
use super::output::{Form, Output};
use super::{Failure, devices, modules};
use crate::clock;
use crate::identity::connection_string::{ConnectionString, Subject};
use crate::identity::device_token;

#[derive(Debug, Args)]
pub(super) struct SasToken {
    /// The device. Its key is read from the hub.
    #[arg(required_unless_present = "device_connection_string")]
    id: Option<String>,
    /// One of its modules, instead of the device itself.
    #[arg(long, value_name = "ID", requires = "id", default_value = "", hide_default_value = true)]
    module: String,
    /// Make the token from this connection string of a device or module, without asking a hub.
    #[arg(long, value_name = "TEXT", conflicts_with = "id")]
    device_connection_string: Option<String>,
    /// How long it is good for.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    #[command(flatten)]
    hub: HubName,
    /// Sign with the secondary key.
    #[arg(long)]
    secondary: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowConnectionString {
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    hub: HubName,
    /// Show the secondary key.
    #[arg(long)]
    secondary: bool,
}

#[derive(Debug, Args)]
struct HubName {
    /// The name that the device knows the hub by, if it differs from the one in your connection string.
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
}

pub(super) async fn sas_token(
    arguments: SasToken,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let SasToken { id, module, device_connection_string, ttl, hub, secondary } = arguments;
    let of = match (device_connection_string, id) {
        (Some(text), _) => text.trim().parse().map_err(|problem| {
            Failure::Usage(format!("the connection string is not valid: {problem}"))
        })?,
        (None, Some(id)) => registered(Identity { id, module }, hub, secondary, connection).await?,
        (None, None) => return Err(Failure::Usage("name a device".to_owned())),
    };
    let expires_s = (clock::unix_ms() / 1_000).saturating_add(ttl.as_secs());
    let token = token(&of, expires_s)?;
    match out.form() {
        Form::Json => out.json(&json!({ "sasToken": token, "expires": expires_s })),
        Form::People => out.line(&token),
    }
}

fn token(of: &ConnectionString, expires_s: u64) -> Result<String, Failure> {
    let Subject::Device(device) = &of.subject else {
        return Err(Failure::Usage(
            "this is not a device's connection string: it has no DeviceId".to_owned(),
        ));
    };
    Ok(device_token(&of.host_name, device, &of.key, expires_s))
}

pub(super) async fn connection_string(
    arguments: ShowConnectionString,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let ShowConnectionString { identity, hub, secondary } = arguments;
    let text = registered(identity, hub, secondary, connection).await?.to_string();
    match out.form() {
        Form::Json => out.json(&json!({ "connectionString": text })),
        Form::People => out.line(&text),
    }
}

/// What is in the connection string of a device or module, its key read from the hub.
async fn registered(
    Identity { id, module }: Identity,
    hub: HubName,
    secondary: bool,
    connection: &HubArguments,
) -> Result<ConnectionString, Failure> {
    let client = connection.client()?;
    let device: DeviceId = id.parse().map_err(not_an_id)?;
    let (subject, authentication) = if module.is_empty() {
        (device, devices::get(&client, &id).await?.authentication)
    } else {
        let subject = device.module(&module.parse().map_err(not_an_id)?);
        (subject, modules::get(&client, &id, &module).await?.authentication)
    };
    let host_name = match hub.host_name {
        Some(name) => name,
        None => connection.host_name()?,
    };
    let key = key(&subject, authentication, secondary)?;
    Ok(ConnectionString { host_name, subject: Subject::Device(subject), key })
}

fn not_an_id(problem: InvalidId) -> Failure {
    Failure::Usage(problem.to_string())
}

fn key(
    of: &DeviceId,
    authentication: Option<Authentication>,
    secondary: bool,
) -> Result<Key, Failure> {
    let kind = authentication.and_then(|authentication| authentication.kind);
    let Some(Kind::Sas(keys)) = kind else {
        return Err(Failure::Failed(format!("{of} has no keys: it authenticates in another way")));
    };
    let text = if secondary { &keys.secondary_key } else { &keys.primary_key };
    let key = STANDARD.decode(text).ok().and_then(Key::new);
    key.ok_or_else(|| Failure::Failed("the hub sent a key that is none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_from_a_devices_connection_string_alone() {
        let of = "HostName=hub;DeviceId=pump;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==";
        let of: ConnectionString = of.parse().expect("it is valid");
        let token = token(&of, 1_700_000_000).expect("a device's");
        assert!(token.starts_with("SharedAccessSignature sr=hub%2Fdevices%2Fpump&sig="), "{token}");
        assert!(token.contains("&se=1700000000"), "{token}");
    }

    #[test]
    fn a_modules_token_names_the_module() {
        let of = "HostName=hub;DeviceId=pump;ModuleId=ai;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==";
        let token = token(&of.parse().expect("it is valid"), 1_700_000_000).expect("a module's");
        assert!(token.contains(" sr=hub%2Fdevices%2Fpump%2Fmodules%2Fai&"), "{token}");
    }

    #[test]
    fn a_policys_connection_string_makes_no_token_for_a_device() {
        let of =
            "HostName=hub;SharedAccessKeyName=service;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==";
        let of: ConnectionString = of.parse().expect("it is valid");
        assert!(matches!(token(&of, 1), Err(Failure::Usage(_))));
    }
}
