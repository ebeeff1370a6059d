//! `drover commands send-many`: one command into many mailboxes.
//!
//! What was not queued for a passing reason, or perhaps was, is sent again: the command has a name in each mailbox, which
//! makes that harmless.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use clap::Args;
use drover_proto::admin::send_commands_result::Result as Sent;
use drover_proto::admin::{
    BulkError, SendCommandRequest, SendCommandsRequest, SendCommandsResponse, SendCommandsResult,
};
use futures::stream;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::{Code, Response, Status, Streaming};

use super::client::Client;
use super::commands::{Sending as Given, send_request, sent_json};
use super::follow::Reopener;
use super::output::{Form, Output};
use super::{Failure, files, progress};
use crate::clock;

/// Commands in one message of the call.
const SENT_TOGETHER: usize = 100;
/// A cluster that is well has found its leaders by then.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two calls: an election takes about as long.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Whom to send it to, one a line: DEVICE or DEVICE/MODULE; - is standard input.
    file: String,
    #[command(flatten)]
    sending: Given,
}

pub(super) async fn call(
    arguments: Arguments,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let text = files::read_text(&arguments.file)?;
    let mut command = send_request(&arguments.sending, clock::unix_ms())?;
    if command.message_id.is_empty() {
        command.message_id = format!("{:032x}", rand::random::<u128>());
    }
    let identities = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let left: Vec<_> = identities.map(|identity| addressed(&command, identity)).collect();
    let count = left.len();
    let answered = Cell::new(0);
    let mut sending =
        Sending { left, refused: 0, answered: &answered, until: Instant::now() + PATIENCE };
    let sent = progress::show(
        || format!("{} of {count} answered", answered.get()),
        sending.send(client, out),
    );
    if let Err(failure) = sent.await {
        let (answered, id) = (answered.get(), &command.message_id);
        eprintln!(
            "drover: {answered} of {count} were answered; the same again with --message-id {id} adds nothing where it was queued"
        );
        return Err(failure);
    }
    let (refused, unanswered) = (sending.refused, sending.left.len());
    let queued = count - refused - unanswered;
    match (queued == count, out.form()) {
        (true, Form::People) => out.line(&format!("{queued} queued")),
        (true, Form::Json) => Ok(()),
        (false, _) => Err(Failure::Failed(format!(
            "{queued} were queued, {refused} were refused, {unanswered} were not answered"
        ))),
    }
}

fn addressed(command: &SendCommandRequest, identity: &str) -> SendCommandRequest {
    let (device, module) = identity.split_once('/').unwrap_or((identity, ""));
    let (device_id, module_id) = (device.to_owned(), module.to_owned());
    SendCommandRequest { device_id, module_id, ..command.clone() }
}

/// The commands of one invocation, over as many calls as it takes.
struct Sending<'a> {
    /// Not known to be queued, nor to be refused for good.
    left: Vec<SendCommandRequest>,
    refused: usize,
    /// Queued or refused for good, for whoever looks on.
    answered: &'a Cell<usize>,
    /// What would pass is refused for good from then on.
    until: Instant,
}

impl Sending<'_> {
    async fn send(&mut self, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
        let reopener = Reopener::default();
        let open = async |left: &[SendCommandRequest]| {
            let chunks: Vec<_> = left.chunks(SENT_TOGETHER).map(<[_]>::to_vec).collect();
            let requests = chunks.into_iter().map(|commands| SendCommandsRequest { commands });
            client.commands().send_commands(stream::iter(requests)).await.map(Response::into_inner)
        };
        let mut answers = open(&self.left).await?;
        loop {
            let lost = self.take(&mut answers, out).await?;
            if self.left.is_empty() || lost.is_none() && Instant::now() >= self.until {
                return Ok(());
            }
            answers = if let Some(lost) = lost {
                reopener.open(lost, || open(&self.left)).await?
            } else {
                sleep(PAUSE).await;
                open(&self.left).await?
            };
        }
    }

    /// Takes the answers of one call. Answers how it broke off, if it did.
    async fn take(
        &mut self,
        answers: &mut Streaming<SendCommandsResponse>,
        out: &mut Output<'_>,
    ) -> Result<Option<Status>, Failure> {
        let mut open: BTreeMap<u64, _> = (0..).zip(mem::take(&mut self.left)).collect();
        let lost = loop {
            let answer = match answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => break None,
                Err(status) => break Some(status),
            };
            for SendCommandsResult { index, result } in answer.results {
                let Some(result) = result else { continue };
                if Instant::now() < self.until && is_passing(&result) {
                    continue;
                }
                let Some(command) = open.remove(&index) else { continue };
                self.refused += usize::from(matches!(result, Sent::Error(_)));
                self.answered.set(self.answered.get() + 1);
                print(&command, &result, out)?;
            }
        };
        self.left = open.into_values().collect();
        Ok(lost)
    }
}

/// Whether the same command may be queued when it is sent again.
fn is_passing(result: &Sent) -> bool {
    let Sent::Error(error) = result else { return false };
    matches!(Code::from(error.code), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded)
}

/// People see what was refused, programs see everything.
fn print(command: &SendCommandRequest, result: &Sent, out: &mut Output<'_>) -> Result<(), Failure> {
    let SendCommandRequest { device_id, module_id, .. } = command;
    match (result, out.form()) {
        (Sent::Sent(sent), Form::Json) => out.json(&sent_json(sent)),
        (Sent::Sent(_), Form::People) => Ok(()),
        (Sent::Error(BulkError { code, message }), Form::Json) => {
            let error = json!({ "code": code, "message": message });
            out.json(&json!({ "deviceId": device_id, "moduleId": module_id, "error": error }))
        }
        (Sent::Error(error), Form::People) => {
            let module = if module_id.is_empty() { String::new() } else { format!("/{module_id}") };
            out.line(&format!("{device_id}{module}: {}", error.message))
        }
    }
}
