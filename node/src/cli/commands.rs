//! `drover commands`: mailboxes and feedback.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use drover_proto::admin::read_feedback_request::From as Start;
use drover_proto::admin::send_command_request::Expiry;
use drover_proto::admin::{
    Acknowledgement, CancelCommandRequest, Command as Shown, CommandState, CommitCursorRequest,
    Feedback, GetCommandRequest, ListCommandsRequest, Property, PurgeCommandsRequest,
    ReadFeedbackRequest, ReadFeedbackResponse, SendCommandRequest, SendCommandResponse,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use prost_types::Timestamp;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::{Client, HubArguments};
use super::credentials::Identity;
use super::json::{self, Body};
use super::messages::shards;
use super::output::{Form, Output, Table, json_text};
use super::{Failure, send_many};
use crate::clock;

const PAGE: u32 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Put a command into the mailbox of a device or a module.
    Send(Send),
    /// Put a command into the mailboxes of many devices with one call.
    SendMany(send_many::Arguments),
    /// Show a mailbox, in order, with what has ended lately.
    List {
        #[command(flatten)]
        identity: Identity,
        /// With the bodies of those that wait.
        #[arg(long)]
        bodies: bool,
    },
    /// Take a command back.
    Cancel(One),
    /// Take back all commands that wait.
    Purge(Identity),
    /// Show what became of one command: queued, delivered at which nodes, ended.
    History(One),
    /// Read how commands ended, of those that were sent with --ack.
    Feedback(ReadFeedback),
}

#[derive(Debug, Args)]
pub(super) struct Send {
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    sending: Sending,
}

/// What is sent, and how.
#[derive(Debug, Clone, Args)]
pub(super) struct Sending {
    /// The body: the text itself, @FILE, or - for standard input.
    body: String,
    /// Names the command, so that sending it again adds nothing. Names count in one mailbox.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    message_id: String,
    /// Replace the waiting commands of this key.
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    key: String,
    /// Which endings to give feedback for.
    #[arg(long, value_enum, default_value_t = Ack::None)]
    ack: Ack,
    /// How long it may wait: 10m, 2h.
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Not to be delivered earlier: a time (2026-11-22T10:00:00Z), or in a while (10m).
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    content_type: String,
    #[arg(long, value_name = "ENCODING", default_value = "", hide_default_value = true)]
    content_encoding: String,
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    correlation_id: String,
    /// An application property; may be given again.
    #[arg(long = "property", value_name = "KEY[=VALUE]")]
    properties: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Ack {
    None,
    Positive,
    Negative,
    Full,
}

#[derive(Debug, Args)]
pub(super) struct One {
    #[command(flatten)]
    identity: Identity,
    /// The command.
    message_id: String,
}

#[derive(Debug, Args)]
pub(super) struct ReadFeedback {
    /// Only this shard; without it, all of them, each in its own order.
    #[arg(long, value_name = "NUMBER")]
    shard: Option<u32>,
    /// Begin where the cursor of this consumer group stands; without it, at the beginning.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Move the group's cursor behind what was printed.
    #[arg(long, requires = "group")]
    commit: bool,
    /// Go on as commands end.
    #[arg(long)]
    follow: bool,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    match command {
        Command::Send(send) => self::send(send, &client, out).await,
        Command::SendMany(arguments) => send_many::call(arguments, &client, out).await,
        Command::List { identity, bodies } => list(&identity, bodies, &client, out).await,
        Command::Cancel(one) => cancel(one, &client, out).await,
        Command::Purge(identity) => purge(identity, &client, out).await,
        Command::History(One { identity: Identity { id, module }, message_id }) => {
            let request = GetCommandRequest { device_id: id, module_id: module, message_id };
            let command =
                client.commands().get_command(client.request(request)).await?.into_inner();
            print_history(&command, out)
        }
        Command::Feedback(read) => feedback(read, &client, out).await,
    }
}

async fn send(send: Send, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let Identity { id: device_id, module: module_id } = send.identity;
    let request = send_request(&send.sending, clock::unix_ms())?;
    let request = SendCommandRequest { device_id, module_id, ..request };
    let response = client.commands().send_command(client.request(request)).await?.into_inner();
    if out.form() == Form::Json {
        return out.json(&sent_json(&response));
    }
    let command = response.command.unwrap_or_default();
    let (id, place) = (&command.message_id, command.sequence);
    match (response.repeated, response.superseded) {
        (true, _) => out.line(&format!("{id} is there already: {}", state(command.state))),
        (false, 0) => out.line(&format!("{id} is queued as number {place}")),
        (false, superseded) => {
            out.line(&format!("{id} is queued as number {place} and replaces {superseded}"))
        }
    }
}

pub(super) fn sent_json(sent: &SendCommandResponse) -> Value {
    let mut shown = command_json(&sent.command.clone().unwrap_or_default());
    shown["repeated"] = json!(sent.repeated);
    shown["superseded"] = json!(sent.superseded);
    shown
}

/// The request without the id of whom it is for.
pub(super) fn send_request(send: &Sending, now_ms: u64) -> Result<SendCommandRequest, Failure> {
    let time_to_live = |text: &String| -> Result<Expiry, Failure> {
        let time = length(text)?.try_into();
        let time = time.map_err(|_| Failure::Usage(format!("{text:?} is too long")))?;
        Ok(Expiry::TimeToLive(time))
    };
    let acknowledgement = match send.ack {
        Ack::None => Acknowledgement::None,
        Ack::Positive => Acknowledgement::Positive,
        Ack::Negative => Acknowledgement::Negative,
        Ack::Full => Acknowledgement::Full,
    };
    Ok(SendCommandRequest {
        body: json::text_argument(&send.body)?.into_bytes(),
        message_id: send.message_id.clone(),
        correlation_id: send.correlation_id.clone(),
        content_type: send.content_type.clone(),
        content_encoding: send.content_encoding.clone(),
        application_properties: send.properties.iter().map(|text| property(text)).collect(),
        acknowledgement: acknowledgement.into(),
        supersede_key: send.key.clone(),
        scheduled_for: send.at.as_ref().map(|text| later(text, now_ms)).transpose()?,
        expiry: send.ttl.as_ref().map(time_to_live).transpose()?,
        ..SendCommandRequest::default()
    })
}

fn property(text: &str) -> Property {
    match text.split_once('=') {
        Some((key, value)) => Property { key: key.to_owned(), value: Some(value.to_owned()) },
        None => Property { key: text.to_owned(), value: None },
    }
}

/// A time, or how far off it is.
fn later(text: &str, now_ms: u64) -> Result<Timestamp, Failure> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        let nanos = i32::try_from(time.nanosecond()).unwrap_or_default();
        return Ok(Timestamp { seconds: time.unix_timestamp(), nanos });
    }
    let wait_ms = u64::try_from(length(text)?.as_millis()).unwrap_or(u64::MAX);
    let ms = now_ms.saturating_add(wait_ms);
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    Ok(Timestamp { seconds, nanos: (ms % 1_000) as i32 * 1_000_000 })
}

fn length(text: &str) -> Result<Duration, Failure> {
    humantime::parse_duration(text).map_err(|_| {
        Failure::Usage(format!("{text:?} is no length of time: write 30s, 10m, 2h or 3days"))
    })
}

async fn list(
    identity: &Identity,
    with_bodies: bool,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut table = Table::new(&["NUMBER", "MESSAGE ID", "STATE", "QUEUED", "DELIVERIES", "BODY"]);
    let mut page_token = String::new();
    loop {
        let request = ListCommandsRequest {
            device_id: identity.id.clone(),
            module_id: identity.module.clone(),
            with_bodies,
            page_size: PAGE,
            page_token,
        };
        let page = client.commands().list_commands(client.request(request)).await?.into_inner();
        for command in &page.commands {
            match out.form() {
                Form::Json => out.json(&command_json(command))?,
                Form::People => table.row(row(command)),
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    match out.form() {
        Form::Json => Ok(()),
        Form::People => out.table(&table),
    }
}

fn row(command: &Shown) -> [String; 6] {
    let body = command.body.as_ref().map(|body| match json::body(body) {
        Body::Json(value) => json_text(&value),
        Body::Text(text) => text,
        Body::Binary(base64) => format!("base64:{base64}"),
    });
    [
        command.sequence.to_string(),
        command.message_id.clone(),
        state(command.state).to_owned(),
        time_text(command.queued.as_ref()),
        command.delivery_count.to_string(),
        body.unwrap_or_default(),
    ]
}

async fn cancel(one: One, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let One { identity: Identity { id, module }, message_id } = one;
    let request = CancelCommandRequest { device_id: id, module_id: module, message_id };
    let response = client.commands().cancel_command(client.request(request)).await?.into_inner();
    let command = response.command.unwrap_or_default();
    if out.form() == Form::Json {
        let mut shown = command_json(&command);
        shown["mayHaveBeenDelivered"] = json!(response.may_have_been_delivered);
        return out.json(&shown);
    }
    let id = &command.message_id;
    out.line(&if response.may_have_been_delivered {
        format!("{id} is cancelled, but it was sent before: the device may have it")
    } else {
        format!("{id} is cancelled and was never sent")
    })
}

async fn purge(
    Identity { id, module }: Identity,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = client.request(PurgeCommandsRequest { device_id: id, module_id: module });
    let purged = client.commands().purge_commands(request).await?.into_inner();
    let (count, sent) = (purged.count, purged.may_have_been_delivered);
    match out.form() {
        Form::Json => out.json(&json!({ "count": count, "mayHaveBeenDelivered": sent })),
        Form::People => out.line(&format!("{count} taken back, {sent} of them sent before")),
    }
}

fn print_history(command: &Shown, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        return out.json(&command_json(command));
    }
    out.line(&format!("{} queued", time_text(command.queued.as_ref())))?;
    let forgotten = (command.delivery_count as usize).saturating_sub(command.deliveries.len());
    if forgotten > 0 {
        out.line(&format!("… {forgotten} earlier deliveries"))?;
    }
    for delivery in &command.deliveries {
        let (time, node) = (time_text(delivery.time.as_ref()), &delivery.node);
        out.line(&format!("{time} sent by node {node} over connection {}", delivery.epoch))?;
    }
    let state = state(command.state);
    if let Some(ended) = &command.ended {
        return out.line(&format!("{} {state}", json::time_text(ended)));
    }
    out.line(&format!("{state}, expires {}", time_text(command.expires.as_ref())))
}

type Responses = BoxStream<'static, Result<(u32, ReadFeedbackResponse), tonic::Status>>;

async fn feedback(
    read: ReadFeedback,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let shards = match read.shard {
        Some(shard) => vec![shard],
        None => shards(client).await?,
    };
    let mut streams: Vec<Responses> = Vec::new();
    for shard in shards {
        let from = read.group.clone().map(Start::ConsumerGroup);
        let request = ReadFeedbackRequest { shard, from, follow: read.follow };
        let responses = client.commands().read_feedback(request).await?.into_inner();
        streams.push(responses.map_ok(move |response| (shard, response)).boxed());
    }
    let mut responses = stream::select_all(streams);
    let commit_group = read.group.filter(|_| read.commit);
    while let Some((shard, response)) = responses.try_next().await? {
        response.feedback.iter().try_for_each(|feedback| print_feedback(feedback, out))?;
        if let Some(group) = &commit_group {
            let (consumer_group, next_offset) = (group.clone(), response.next_offset);
            let commit = CommitCursorRequest { shard, consumer_group, next_offset };
            client.commands().commit_feedback_cursor(client.request(commit)).await?;
        }
    }
    Ok(())
}

fn print_feedback(feedback: &Feedback, out: &mut Output<'_>) -> Result<(), Failure> {
    let Feedback { shard, offset, device_id, module_id, message_id, .. } = feedback;
    if out.form() == Form::People {
        let (time, state) = (time_text(feedback.ended.as_ref()), state(feedback.state));
        let name = json::name(device_id, module_id);
        return out.line(&format!("{time} {shard}/{offset} {name} {message_id} {state}"));
    }
    let mut shown = json!({
        "shard": shard,
        "offset": offset,
        "deviceId": device_id,
        "generationId": feedback.generation_id,
        "messageId": message_id,
        "state": state(feedback.state),
        "queuedTime": json::time(feedback.queued.as_ref()),
        "endedTime": json::time(feedback.ended.as_ref()),
        "deliveryCount": feedback.delivery_count,
    });
    if !module_id.is_empty() {
        shown["moduleId"] = json!(module_id);
    }
    out.json(&shown)
}

fn time_text(time: Option<&Timestamp>) -> String {
    time.map(json::time_text).unwrap_or_default()
}

fn state(state: i32) -> &'static str {
    match CommandState::try_from(state).unwrap_or_default() {
        CommandState::Unspecified => "unknown",
        CommandState::Queued => "queued",
        CommandState::Locked => "locked",
        CommandState::Completed => "completed",
        CommandState::Rejected => "rejected",
        CommandState::Expired => "expired",
        CommandState::Dead => "dead",
        CommandState::Purged => "purged",
        CommandState::Cancelled => "cancelled",
        CommandState::Superseded => "superseded",
    }
}

fn command_json(command: &Shown) -> Value {
    let delivery = |delivery: &drover_proto::admin::CommandDelivery| {
        json!({
            "time": json::time(delivery.time.as_ref()),
            "node": delivery.node,
            "epoch": delivery.epoch,
        })
    };
    let mut shown = json!({
        "deviceId": command.device_id,
        "number": command.sequence,
        "messageId": command.message_id,
        "state": state(command.state),
        "queuedTime": json::time(command.queued.as_ref()),
        "scheduledTime": json::time(command.scheduled_for.as_ref()),
        "expiryTime": json::time(command.expires.as_ref()),
        "lockedUntil": json::time(command.locked_until.as_ref()),
        "endedTime": json::time(command.ended.as_ref()),
        "deliveryCount": command.delivery_count,
        "deliveries": command.deliveries.iter().map(delivery).collect::<Vec<_>>(),
    });
    if !command.module_id.is_empty() {
        shown["moduleId"] = json!(command.module_id);
    }
    if !command.supersede_key.is_empty() {
        shown["supersedeKey"] = json!(command.supersede_key);
    }
    if let Some(body) = &command.body {
        let (name, body) = match json::body(body) {
            Body::Json(value) => ("body", value),
            Body::Text(text) => ("body", Value::String(text)),
            Body::Binary(base64) => ("bodyBase64", Value::String(base64)),
        };
        shown[name] = body;
        shown["systemProperties"] = json::properties(&command.system_properties);
        shown["properties"] = json::properties(&command.application_properties);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_a_time_or_a_while_from_now() {
        let at = |text| later(text, 1_700_000_000_500).expect("it is a time");
        assert_eq!(at("10s"), Timestamp { seconds: 1_700_000_010, nanos: 500_000_000 });
        assert_eq!(at("2023-11-14T22:13:20Z"), Timestamp { seconds: 1_700_000_000, nanos: 0 });
        assert!(matches!(later("soon", 0), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_property_without_a_value_is_null_and_one_with_nothing_is_empty() {
        assert_eq!(property("a").value, None);
        assert_eq!(property("a=").value, Some(String::new()));
        assert_eq!(property("a=b=c").value, Some("b=c".to_owned()));
    }
}
