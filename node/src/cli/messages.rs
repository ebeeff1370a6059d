//! `drover messages`: live, from the streams, or one device's history.

use std::time::Duration;

use clap::{Args, Subcommand};
use drover_proto::admin::read_stream_request::From as Start;
use drover_proto::admin::{
    CommitCursorRequest, GetStatusRequest, Message, Property, ReadHistoryRequest,
    ReadStreamRequest, ReadStreamResponse, TailRequest,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost_types::Timestamp;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Status, Streaming};

use super::Failure;
use super::client::{Client, HubArguments};
use super::credentials::Identity;
use super::follow::{Reopener, follow};
use super::json::{self, Body};
use super::output::{Form, Output, counted, json_text};
use crate::clock;

const HISTORY_PAGE: u32 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show messages as they come. Best effort: what a slow reader misses is counted, and what comes while the hub cannot be
    /// reached is not shown.
    Tail(Tail),
    /// Read the shards' streams, in the order of their offsets, without holes.
    Read(Read),
    /// Read the messages of one device, or of one module, oldest first.
    History(History),
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    /// Only this device; with a star at the end, all whose ids begin so.
    #[arg(long, value_name = "ID", default_value = "")]
    device: String,
    /// Only this module, of the device or of all devices; with a star at the end, all whose ids begin so.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    module: String,
    /// Only messages with this application property, or with this value of it.
    #[arg(long, value_name = "KEY[=VALUE]")]
    property: Option<String>,
    /// Stop after so many messages.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct Read {
    /// Only this shard; without it, all of them, each in its own order.
    #[arg(long, value_name = "NUMBER")]
    shard: Option<u32>,
    /// Where to begin: beginning, end, an offset, a time (2026-11-22T10:00:00Z), or a while ago (10m).
    #[arg(long, value_name = "PLACE", default_value = "beginning", conflicts_with = "group")]
    from: String,
    /// Begin where the cursor of this consumer group stands.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Move the group's cursor behind what was printed.
    #[arg(long, requires = "group")]
    commit: bool,
    /// Go on as messages come, also after the hub was away.
    #[arg(long)]
    follow: bool,
    /// Stop after so many messages (of each shard).
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    limit: u64,
}

#[derive(Debug, Args)]
pub(super) struct History {
    #[command(flatten)]
    identity: Identity,
    /// From this time on (2026-11-22T10:00:00Z), or from a while ago (10m).
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Until this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Stop after so many messages.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    match command {
        Command::Tail(arguments) => tail(arguments, &client, out).await,
        Command::Read(arguments) => read(arguments, &client, out).await,
        Command::History(arguments) => history(arguments, &client, out).await,
    }
}

async fn tail(arguments: Tail, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let (key, value) = match arguments.property.as_deref().map(|p| p.split_once('=').ok_or(p)) {
        None => (String::new(), None),
        Some(Err(key)) => (key.to_owned(), None),
        Some(Ok((key, value))) => (key.to_owned(), Some(value.to_owned())),
    };
    let request = TailRequest {
        device_id: arguments.device,
        module_id: arguments.module,
        property_key: key,
        property_value: value,
    };
    let open = async || Ok(client.messages().tail(request.clone()).await?.into_inner());
    follow(arguments.limit, open, |response, left| {
        if response.missed > 0 {
            print_missed(response.missed, out)?;
        }
        for message in response.messages.iter().take(usize::try_from(*left).unwrap_or(usize::MAX)) {
            print(message, out)?;
            *left -= 1;
        }
        Ok(())
    })
    .await
}

fn print_missed(missed: u64, out: &mut Output<'_>) -> Result<(), Failure> {
    match out.form() {
        Form::Json => out.json(&json!({ "missed": missed })),
        Form::People => out.line(&format!("… missed: up to {}", counted(missed, "message"))),
    }
}

async fn read(arguments: Read, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let shards = match arguments.shard {
        Some(shard) => vec![shard],
        None => shards(client).await?,
    };
    let from = match &arguments.group {
        Some(group) => Some(Start::ConsumerGroup(group.clone())),
        None => start(&arguments.from, clock::unix_ms())?,
    };
    let reopener = Reopener::default();
    let mut streams = Vec::new();
    for shard in shards {
        let (follow, limit) = (arguments.follow, arguments.limit);
        let request = ReadStreamRequest { shard, follow, limit, from: from.clone() };
        let reader = ShardReader::open(client.clone(), request, reopener.clone()).await?;
        streams.push(stream::try_unfold(reader, ShardReader::next).boxed_local());
    }
    let mut responses = stream::select_all(streams);
    let commit_group = arguments.group.filter(|_| arguments.commit);
    while let Some((shard, response)) = responses.try_next().await? {
        print_response(shard, &response, out)?;
        if let Some(group) = &commit_group {
            commit(client, shard, group, response.next_offset).await?;
        }
    }
    Ok(())
}

/// The stream of one shard. When it is followed and the connection is lost, it goes on where it was.
struct ShardReader {
    client: Client,
    /// What is still to be read.
    request: ReadStreamRequest,
    is_limited: bool,
    reopener: Reopener,
    responses: Streaming<ReadStreamResponse>,
}

impl ShardReader {
    async fn open(
        client: Client,
        request: ReadStreamRequest,
        reopener: Reopener,
    ) -> Result<Self, Status> {
        let responses = client.messages().read_stream(request.clone()).await?.into_inner();
        Ok(Self { client, is_limited: request.limit > 0, request, reopener, responses })
    }

    /// The next messages, with their shard; `None` at the end.
    async fn next(mut self) -> Result<Option<((u32, ReadStreamResponse), Self)>, Status> {
        loop {
            match self.responses.try_next().await {
                Ok(None) => return Ok(None),
                Ok(Some(response)) => {
                    self.request.from = Some(Start::Offset(response.next_offset));
                    let count = response.messages.len() as u64;
                    self.request.limit = self.request.limit.saturating_sub(count);
                    return Ok(Some(((self.request.shard, response), self)));
                }
                // A limit of 0 is none: what was asked for has been read.
                Err(_) if self.is_limited && self.request.limit == 0 => return Ok(None),
                Err(lost) if self.request.follow => self.reopen(lost).await?,
                Err(lost) => return Err(lost),
            }
        }
    }

    async fn reopen(&mut self, lost: Status) -> Result<(), Status> {
        let (client, request) = (&self.client, &self.request);
        let open = async || client.messages().read_stream(request.clone()).await;
        self.responses = self.reopener.open(lost, open).await?.into_inner();
        Ok(())
    }
}

pub(super) async fn shards(client: &Client) -> Result<Vec<u32>, Failure> {
    let request = client.request(GetStatusRequest {});
    let status = client.cluster().get_status(request).await?.into_inner();
    Ok(status.shards.iter().filter_map(|shard| shard.shard).collect())
}

fn print_response(
    shard: u32,
    response: &ReadStreamResponse,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    if response.skipped > 0 {
        let skipped = response.skipped;
        match out.form() {
            Form::Json => out.json(&json!({ "shard": shard, "skipped": skipped }))?,
            Form::People => {
                let skipped = counted(skipped, "message");
                out.line(&format!("… retention took {skipped} of shard {shard}"))?;
            }
        }
    }
    response.messages.iter().try_for_each(|message| print(message, out))
}

async fn commit(client: &Client, shard: u32, group: &str, next: u64) -> Result<(), Failure> {
    let request =
        CommitCursorRequest { shard, consumer_group: group.to_owned(), next_offset: next };
    client.messages().commit_cursor(client.request(request)).await?;
    Ok(())
}

async fn history(arguments: History, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let now_ms = clock::unix_ms();
    let time = |text: Option<String>| text.map(|text| time(&text, now_ms)).transpose();
    let (from, until) = (time(arguments.from)?, time(arguments.until)?);
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut page_token = String::new();
    while left > 0 {
        let request = ReadHistoryRequest {
            device_id: arguments.identity.id.clone(),
            module_id: arguments.identity.module.clone(),
            from,
            until,
            page_size: u32::try_from(left).unwrap_or(u32::MAX).min(HISTORY_PAGE),
            page_token,
        };
        let page = client.messages().read_history(client.request(request)).await?.into_inner();
        page.messages.iter().try_for_each(|message| print(message, out))?;
        left = left.saturating_sub(page.messages.len() as u64);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    Ok(())
}

/// A message is a line: a table would have to wait for its end to know its widths.
fn print(message: &Message, out: &mut Output<'_>) -> Result<(), Failure> {
    match out.form() {
        Form::Json => out.json(&json::message(message)),
        Form::People => out.line(&line(message)),
    }
}

fn line(message: &Message) -> String {
    let time = message.enqueued.as_ref().map(json::time_text).unwrap_or_default();
    let body = match json::body(&message.body) {
        Body::Json(value) => json_text(&value),
        Body::Text(text) => text,
        Body::Binary(base64) => format!("base64:{base64}"),
    };
    let properties: Vec<_> = message.application_properties.iter().map(pair).collect();
    let (shard, offset, sender) =
        (message.shard, message.offset, json::name(&message.device_id, &message.module_id));
    let line = format!("{time} {shard}/{offset} {sender} {body} {}", properties.join(" "));
    line.trim_end().to_owned()
}

pub(super) fn pair(property: &Property) -> String {
    match &property.value {
        Some(value) => format!("{}={value}", property.key),
        None => property.key.clone(),
    }
}

fn start(text: &str, now_ms: u64) -> Result<Option<Start>, Failure> {
    match text {
        "beginning" => Ok(None),
        "end" => Ok(Some(Start::End(true))),
        _ => match text.parse() {
            Ok(offset) => Ok(Some(Start::Offset(offset))),
            Err(_) => Ok(Some(Start::Time(time(text, now_ms)?))),
        },
    }
}

/// A time, or how long ago it was.
fn time(text: &str, now_ms: u64) -> Result<Timestamp, Failure> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        let nanos = i32::try_from(time.nanosecond()).unwrap_or_default();
        return Ok(Timestamp { seconds: time.unix_timestamp(), nanos });
    }
    let ago: Duration = humantime::parse_duration(text).map_err(|_| {
        Failure::Usage(format!(
            "{text:?} is no time: write 2026-11-22T10:00:00Z, or how long ago: 10m, 2h, 3days"
        ))
    })?;
    let ms = now_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    Ok(Timestamp { seconds, nanos: (ms % 1_000) as i32 * 1_000_000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_an_offset_a_time_or_a_while_ago() {
        let now_ms = 1_700_000_000_500;
        let place = |text| start(text, now_ms).expect("it is a place");
        assert_eq!(place("beginning"), None);
        assert_eq!(place("end"), Some(Start::End(true)));
        assert_eq!(place("17"), Some(Start::Offset(17)));
        let time = Timestamp { seconds: 1_699_999_990, nanos: 500_000_000 };
        assert_eq!(place("10s"), Some(Start::Time(time)));
        let time = Timestamp { seconds: 1_700_000_000, nanos: 0 };
        assert_eq!(place("2023-11-14T22:13:20Z"), Some(Start::Time(time)));
        assert!(matches!(start("yesterday", now_ms), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_message_is_a_line_with_its_place_sender_body_and_properties() {
        let message = Message {
            shard: 3,
            offset: 9,
            device_id: "pump".to_owned(),
            enqueued: Some(Timestamp { seconds: 0, nanos: 0 }),
            body: br#"{"t": 21.5}"#.to_vec(),
            application_properties: vec![
                Property { key: "level".to_owned(), value: Some("high".to_owned()) },
                Property { key: "flag".to_owned(), value: None },
            ],
            ..Message::default()
        };
        assert_eq!(line(&message), r#"1970-01-01T00:00:00Z 3/9 pump {"t":21.5} level=high flag"#);
        let of_module = Message { module_id: "ai".to_owned(), ..message.clone() };
        assert!(line(&of_module).contains(" 3/9 pump/ai "), "{}", line(&of_module));
        let binary = Message { body: vec![0xff], ..message };
        assert!(line(&binary).contains(" base64:/w== "), "{}", line(&binary));
    }
}
