//! Commands and feedback: protobuf to typed requests and back.

use drover_cluster::actors::commands::SendCommand;
use drover_cluster::core::change::Message;
use drover_cluster::core::feedback::StoredFeedback;
use drover_cluster::core::ids::{CommandId, CommandSequence, DeviceId, LogTime, Offset};
use drover_cluster::core::ids::{ShardCount, ShardId};
use drover_cluster::core::mailbox::{self, Ack, Attempt, Ending, Expiry, State};
use drover_cluster::wire::message::{Content, Property};
use drover_proto::admin::{
    self, Acknowledgement, CommandState, read_feedback_request::From as Start,
    send_command_request::Expiry as Asked,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{log_time, timestamp};
use crate::grpc::status::Invalid;

/// The longest key by which commands replace each other, in characters.
const KEY_CHARACTERS_MAX: usize = 128;
/// The properties become a part of an MQTT topic, which has at most 65,535 bytes.
const ESCAPED_BYTES_MAX: usize = 60_000;

/// A checked request to send a command.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) device: DeviceId,
    pub(crate) command: SendCommand,
}

impl TryFrom<admin::SendCommandRequest> for Send {
    type Error = Invalid;

    fn try_from(request: admin::SendCommandRequest) -> Result<Self, Invalid> {
        let id = Some(&request.message_id).filter(|id| !id.is_empty());
        let expiry = request.expiry.as_ref().map(expiry).transpose()?;
        let not_before = request.scheduled_for.as_ref();
        let not_before = not_before.map(|time| log_time("scheduled_for", time)).transpose()?;
        Ok(Self {
            device: super::identity(&request.device_id, &request.module_id)?,
            command: SendCommand {
                id: id.map(|id| command_id(id)).transpose()?,
                key: key(&request.supersede_key)?,
                ack: ack(request.acknowledgement()),
                expiry,
                not_before,
                message: message(request, expiry)?,
            },
        })
    }
}

pub(crate) fn command_id(id: &str) -> Result<CommandId, Invalid> {
    id.parse().map_err(|problem| Invalid::new("message_id", problem))
}

fn key(key: &str) -> Result<Option<String>, Invalid> {
    if key.chars().count() > KEY_CHARACTERS_MAX {
        let problem = format!("at most {KEY_CHARACTERS_MAX} characters are allowed");
        return Err(Invalid::new("supersede_key", problem));
    }
    Ok(Some(key.to_owned()).filter(|key| !key.is_empty()))
}

fn ack(asked: Acknowledgement) -> Ack {
    match asked {
        Acknowledgement::Unspecified | Acknowledgement::None => Ack::None,
        Acknowledgement::Positive => Ack::Positive,
        Acknowledgement::Negative => Ack::Negative,
        Acknowledgement::Full => Ack::Full,
    }
}

fn expiry(asked: &Asked) -> Result<Expiry, Invalid> {
    match asked {
        Asked::Expires(time) => log_time("expires", time).map(Expiry::At),
        Asked::TimeToLive(time) => {
            let time = std::time::Duration::try_from(*time).map_err(|_| {
                Invalid::new("time_to_live", "it must be a positive length of time")
            })?;
            Ok(Expiry::After { ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) })
        }
    }
}

fn message(request: admin::SendCommandRequest, expiry: Option<Expiry>) -> Result<Message, Invalid> {
    let expires = match expiry {
        Some(Expiry::At(at)) => time_text(at),
        Some(Expiry::After { .. }) | None => String::new(),
    };
    let named = [
        ("correlation-id", request.correlation_id),
        ("user-id", request.user_id),
        ("content-type", request.content_type),
        ("content-encoding", request.content_encoding),
        ("absolute-expiry-time", expires),
    ];
    let system = named.into_iter().filter(|(_, value)| !value.is_empty());
    let system: Vec<Property> =
        system.map(|(name, value)| (name.to_owned(), Some(value))).collect();
    let application: Vec<Property> = request
        .application_properties
        .into_iter()
        .map(|property| (property.key, property.value))
        .collect();
    if application.iter().any(|(key, _)| key.is_empty()) {
        return Err(Invalid::new("application_properties", "a key is empty"));
    }
    // Each byte may take three when it is escaped.
    let escaped =
        |(key, value): &Property| 3 * (key.len() + value.as_ref().map_or(0, String::len)) + 2;
    let bytes: usize = system.iter().chain(&application).map(escaped).sum();
    if bytes > ESCAPED_BYTES_MAX {
        let problem = format!("they take {bytes} bytes when escaped: at most {ESCAPED_BYTES_MAX}");
        return Err(Invalid::new("application_properties", problem));
    }
    Ok(Content { body: request.body.into(), system, application }.encode())
}

fn time_text(at: LogTime) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.get()) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// A page of a mailbox.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) device: DeviceId,
    pub(crate) after: CommandSequence,
    pub(crate) limit: u32,
    pub(crate) with_bodies: bool,
}

impl TryFrom<admin::ListCommandsRequest> for List {
    type Error = Invalid;

    fn try_from(request: admin::ListCommandsRequest) -> Result<Self, Invalid> {
        let token = Some(request.page_token).filter(|token| !token.is_empty());
        let after = token.map_or(Ok(0), |token| token.parse()).map_err(|_| {
            Invalid::new("page_token", "use the next_page_token of the page before, unchanged")
        })?;
        Ok(Self {
            device: super::identity(&request.device_id, &request.module_id)?,
            after: CommandSequence::new(after),
            limit: super::page_size(request.page_size)?,
            with_bodies: request.with_bodies,
        })
    }
}

/// Where to begin reading feedback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Beginning,
    Offset(Offset),
    Cursor(String),
    End,
}

/// What to read of a shard's feedback.
#[derive(Debug)]
pub(crate) struct ReadFeedback {
    pub(crate) shard: ShardId,
    pub(crate) from: From,
    pub(crate) follow: bool,
}

impl ReadFeedback {
    pub(crate) fn from_request(
        request: admin::ReadFeedbackRequest,
        shards: ShardCount,
    ) -> Result<Self, Invalid> {
        let from = match request.from {
            None => From::Beginning,
            Some(Start::Offset(offset)) => From::Offset(Offset::new(offset)),
            Some(Start::ConsumerGroup(group)) => {
                From::Cursor(super::messages::consumer_group(group)?)
            }
            Some(Start::End(true)) => From::End,
            Some(Start::End(false)) => {
                return Err(Invalid::new("end", "leave it out, or set it to true"));
            }
        };
        let shard = super::messages::shard(request.shard, shards)?;
        Ok(Self { shard, from, follow: request.follow })
    }
}

/// A command as clients see it.
pub(crate) fn command(device: &DeviceId, command: mailbox::Command) -> admin::Command {
    let (state, locked_until, ended) = match command.state {
        State::Queued => (CommandState::Queued, None, None),
        State::Locked { until } => (CommandState::Locked, Some(timestamp(until)), None),
        State::Ended { ending, at } => (ending_state(ending), None, Some(timestamp(at))),
    };
    let (device_id, module_id) = super::names(device);
    admin::Command {
        device_id,
        module_id,
        sequence: command.sequence.get(),
        message_id: command.id.to_string(),
        supersede_key: command.key.unwrap_or_default(),
        acknowledgement: acknowledgement(command.ack).into(),
        state: state.into(),
        queued: Some(timestamp(command.queued)),
        scheduled_for: command.not_before.map(timestamp),
        expires: Some(timestamp(command.expires)),
        ended,
        delivery_count: command.deliveries,
        deliveries: command.attempts.iter().map(delivery).collect(),
        locked_until,
        bytes: command.bytes,
        ..admin::Command::default()
    }
}

/// The same with its content, if it is there.
pub(crate) fn command_with_content(
    device: &DeviceId,
    (command, message): (mailbox::Command, Option<Message>),
) -> Result<admin::Command, Invalid> {
    let shown = self::command(device, command);
    let Some(message) = message else { return Ok(shown) };
    let Content { body, system, application } =
        Content::decode(message).map_err(|invalid| Invalid::new("command", invalid))?;
    let property = |(key, value): Property| admin::Property { key, value };
    Ok(admin::Command {
        body: Some(body.into()),
        system_properties: system.into_iter().map(property).collect(),
        application_properties: application.into_iter().map(property).collect(),
        ..shown
    })
}

fn delivery(attempt: &Attempt) -> admin::CommandDelivery {
    admin::CommandDelivery {
        time: Some(timestamp(attempt.at)),
        node: attempt.node.map(|node| node.to_string()).unwrap_or_default(),
        epoch: attempt.epoch.get(),
    }
}

pub(crate) fn feedback(stored: StoredFeedback) -> admin::Feedback {
    let StoredFeedback { shard, offset, feedback } = stored;
    let (device_id, module_id) = super::names(&feedback.device);
    admin::Feedback {
        shard: shard.number(),
        offset: offset.get(),
        device_id,
        module_id,
        generation_id: feedback.generation.to_string(),
        message_id: feedback.command.to_string(),
        state: ending_state(feedback.ending).into(),
        queued: Some(timestamp(feedback.queued)),
        ended: Some(timestamp(feedback.at)),
        delivery_count: feedback.deliveries,
    }
}

fn ending_state(ending: Ending) -> CommandState {
    match ending {
        Ending::Completed => CommandState::Completed,
        Ending::Rejected => CommandState::Rejected,
        Ending::Expired => CommandState::Expired,
        Ending::DeliveryCountExceeded => CommandState::Dead,
        Ending::Purged => CommandState::Purged,
        Ending::Cancelled => CommandState::Cancelled,
        Ending::Superseded => CommandState::Superseded,
    }
}

fn acknowledgement(ack: Ack) -> Acknowledgement {
    match ack {
        Ack::None => Acknowledgement::None,
        Ack::Positive => Acknowledgement::Positive,
        Ack::Negative => Acknowledgement::Negative,
        Ack::Full => Acknowledgement::Full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> admin::SendCommandRequest {
        admin::SendCommandRequest { device_id: "pump".to_owned(), ..Default::default() }
    }

    fn refused_field(request: admin::SendCommandRequest) -> String {
        Send::try_from(request).expect_err("it is not valid").field
    }

    #[test]
    fn what_is_left_out_is_left_to_the_hub() {
        let send = Send::try_from(request()).expect("it is valid");
        assert_eq!((send.command.id, send.command.key, send.command.ack), (None, None, Ack::None));
        assert_eq!((send.command.expiry, send.command.not_before), (None, None));
    }

    #[test]
    fn what_no_device_could_get_is_refused_with_its_field() {
        let bad = admin::SendCommandRequest { message_id: "a b".to_owned(), ..request() };
        assert_eq!(refused_field(bad), "message_id");
        let bad = admin::SendCommandRequest { supersede_key: "k".repeat(129), ..request() };
        assert_eq!(refused_field(bad), "supersede_key");
        let backwards = prost_types::Duration { seconds: -1, nanos: 0 };
        let expiry = Some(Asked::TimeToLive(backwards));
        assert_eq!(
            refused_field(admin::SendCommandRequest { expiry, ..request() }),
            "time_to_live"
        );
        let property = |key: &str, length| admin::Property {
            key: key.to_owned(),
            value: Some("v".repeat(length)),
        };
        for property in [property("", 1), property("k", 20_000)] {
            let application_properties = vec![property];
            let bad = admin::SendCommandRequest { application_properties, ..request() };
            assert_eq!(refused_field(bad), "application_properties");
        }
    }

    #[test]
    fn an_expiry_that_was_given_is_told_to_the_device() {
        let expires = prost_types::Timestamp { seconds: 0, nanos: 5_000_000 };
        let expiry = Some(Asked::Expires(expires));
        let send = Send::try_from(admin::SendCommandRequest { expiry, ..request() });
        let command = send.expect("it is valid").command;
        assert_eq!(command.expiry, Some(Expiry::At(LogTime::new(5))));
        let content = Content::decode(command.message).expect("encoded here");
        let told = Some("1970-01-01T00:00:00.005Z".to_owned());
        assert_eq!(content.system, [("absolute-expiry-time".to_owned(), told)]);
    }
}
