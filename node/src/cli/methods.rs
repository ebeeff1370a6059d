//! `drover methods`: calls of connected devices.

use std::time::Duration;

use clap::{Args, Subcommand};
use drover_proto::admin::InvokeMethodRequest;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, HubArguments};
use super::credentials::Identity;
use super::json;
use super::output::{Form, Output};

/// What the hub may take beyond the waits that were asked for.
const SLACK: Duration = Duration::from_secs(15);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Call a method of a connected device or module and print its answer.
    Invoke(Invoke),
}

#[derive(Debug, Args)]
pub(super) struct Invoke {
    #[command(flatten)]
    identity: Identity,
    /// The method.
    name: String,
    /// The payload: JSON, @FILE, or - for standard input.
    #[arg(default_value = "null", hide_default_value = true)]
    payload: String,
    /// How long to wait for the device to connect.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    connect_timeout: Duration,
    /// How long to wait for its answer from then on.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    response_timeout: Duration,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    match command {
        Command::Invoke(call) => invoke(call, &client, out).await,
    }
}

async fn invoke(call: Invoke, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let wait = |time: Duration| {
        let wait = prost_types::Duration::try_from(time);
        wait.map_err(|_| Failure::Usage(format!("{time:?} is too long")))
    };
    let message = InvokeMethodRequest {
        device_id: call.identity.id,
        module_id: call.identity.module,
        method_name: call.name,
        payload: json::text_argument(&call.payload)?,
        connect_timeout: Some(wait(call.connect_timeout)?),
        response_timeout: Some(wait(call.response_timeout)?),
    };
    let mut request = tonic::Request::new(message);
    let waits = call.connect_timeout.saturating_add(call.response_timeout);
    request.set_timeout(waits.saturating_add(SLACK));
    let response = client.methods().invoke_method(request).await?.into_inner();
    let payload: Value = serde_json::from_str(&response.payload).unwrap_or_default();
    match out.form() {
        Form::Json => out.json(&json!({ "status": response.status, "payload": payload })),
        Form::People => {
            out.line(&format!("status {}", response.status))?;
            if payload.is_null() { Ok(()) } else { out.document(&payload) }
        }
    }
}
