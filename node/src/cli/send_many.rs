//! `drover commands send-many`: one command into many mailboxes, with one call.

use clap::Args;
use drover_proto::admin::send_commands_result::Result as Sent;
use drover_proto::admin::{BulkError, SendCommandRequest, SendCommandsRequest, SendCommandsResult};
use futures::stream;
use serde_json::json;
use tonic::Request;

use super::client::Client;
use super::commands::{Sending, send_request, sent_json};
use super::output::{Form, Output};
use super::{Failure, files};
use crate::clock;

/// Commands in one message of the call.
const SENT_TOGETHER: usize = 100;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Whom to send it to, one a line: DEVICE or DEVICE/MODULE; - is standard input.
    file: String,
    #[command(flatten)]
    sending: Sending,
}

pub(super) async fn call(
    arguments: Arguments,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let text = files::read_text(&arguments.file)?;
    let devices: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let command = send_request(&arguments.sending, clock::unix_ms())?;
    let to = |identity: &&str| {
        let (device, module) = identity.split_once('/').unwrap_or((identity, ""));
        let (device_id, module_id) = (device.to_owned(), module.to_owned());
        SendCommandRequest { device_id, module_id, ..command.clone() }
    };
    let requests: Vec<_> = devices
        .chunks(SENT_TOGETHER)
        .map(|chunk| SendCommandsRequest { commands: chunk.iter().map(to).collect() })
        .collect();
    let request = Request::new(stream::iter(requests));
    let mut answers = client.commands().send_commands(request).await?.into_inner();
    let (mut queued, mut refused) = (0_usize, 0_usize);
    while let Some(answer) = answers.message().await? {
        for result in &answer.results {
            let index = usize::try_from(result.index).ok();
            let device = index.and_then(|index| devices.get(index)).unwrap_or(&"?");
            let is_queued = print(device, result, out)?;
            queued += usize::from(is_queued);
            refused += usize::from(!is_queued);
        }
    }
    let unanswered = devices.len().saturating_sub(queued + refused);
    match (refused, unanswered, out.form()) {
        (0, 0, Form::People) => out.line(&format!("{queued} queued")),
        (0, 0, Form::Json) => Ok(()),
        _ => Err(Failure::Failed(format!(
            "{queued} were queued, {refused} were refused, {unanswered} were not answered"
        ))),
    }
}

/// People see what was refused, programs see everything. Answers whether it is queued.
fn print(device: &str, result: &SendCommandsResult, out: &mut Output<'_>) -> Result<bool, Failure> {
    let unanswered = BulkError { code: 0, message: "no answer".to_owned() };
    match (&result.result, out.form()) {
        (Some(Sent::Sent(sent)), Form::Json) => out.json(&sent_json(sent))?,
        (Some(Sent::Sent(_)), Form::People) => {}
        (Some(Sent::Error(error)), form) => refused(device, error, form, out)?,
        (None, form) => refused(device, &unanswered, form, out)?,
    }
    Ok(matches!(result.result, Some(Sent::Sent(_))))
}

fn refused(
    device: &str,
    error: &BulkError,
    form: Form,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let BulkError { code, message } = error;
    match form {
        Form::Json => {
            out.json(&json!({ "deviceId": device, "error": { "code": code, "message": message } }))
        }
        Form::People => out.line(&format!("{device}: {message}")),
    }
}
