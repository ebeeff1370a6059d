//! Telemetry: protobuf to typed requests and back.

use drover_cluster::actors::cluster::StoredMessage;
use drover_cluster::core::ids::{DeviceId, LogTime, Offset, ShardCount, ShardId};
use drover_cluster::wire::message::{Content, Property};
use drover_proto::admin::{self, read_stream_request::From as Start};

use crate::grpc::status::Invalid;

/// The longest name of a consumer group, in characters.
const CONSUMER_GROUP_CHARACTERS_MAX: usize = 50;

/// Where to begin reading a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Beginning,
    Offset(Offset),
    Time(LogTime),
    Cursor(String),
    End,
}

/// What to read of a stream.
#[derive(Debug)]
pub(crate) struct ReadStream {
    pub(crate) shard: ShardId,
    pub(crate) from: From,
    pub(crate) follow: bool,
    pub(crate) limit: Option<u64>,
}

impl ReadStream {
    pub(crate) fn from_request(
        request: admin::ReadStreamRequest,
        shards: ShardCount,
    ) -> Result<Self, Invalid> {
        let from = match request.from {
            None => From::Beginning,
            Some(Start::Offset(offset)) => From::Offset(Offset::new(offset)),
            Some(Start::Time(time)) => From::Time(super::log_time("time", &time)?),
            Some(Start::ConsumerGroup(group)) => From::Cursor(consumer_group(group)?),
            Some(Start::End(true)) => From::End,
            Some(Start::End(false)) => {
                return Err(Invalid::new("end", "leave it out, or set it to true"));
            }
        };
        Ok(Self {
            shard: shard(request.shard, shards)?,
            from,
            follow: request.follow,
            limit: Some(request.limit).filter(|limit| *limit != 0),
        })
    }
}

/// A consumer group at a shard, and where to put its cursor.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) shard: ShardId,
    pub(crate) group: String,
    pub(crate) next: Offset,
}

impl Cursor {
    pub(crate) fn from_parts(
        shard: u32,
        group: String,
        next: u64,
        shards: ShardCount,
    ) -> Result<Self, Invalid> {
        Ok(Self {
            shard: self::shard(shard, shards)?,
            group: consumer_group(group)?,
            next: Offset::new(next),
        })
    }
}

pub(crate) fn cursor(shard: ShardId, group: String, next: Offset) -> admin::Cursor {
    admin::Cursor { shard: shard.number(), consumer_group: group, next_offset: next.get() }
}

/// A page of a device's history.
#[derive(Debug)]
pub(crate) struct ReadHistory {
    pub(crate) device: DeviceId,
    pub(crate) from: LogTime,
    pub(crate) until: LogTime,
    pub(crate) after: Option<Offset>,
    pub(crate) limit: u32,
}

impl TryFrom<admin::ReadHistoryRequest> for ReadHistory {
    type Error = Invalid;

    fn try_from(request: admin::ReadHistoryRequest) -> Result<Self, Invalid> {
        let time = |field, time: Option<prost_types::Timestamp>, otherwise| {
            time.map_or(Ok(otherwise), |time| super::log_time(field, &time))
        };
        Ok(Self {
            device: super::identity(&request.device_id, &request.module_id)?,
            from: time("from", request.from, LogTime::new(0))?,
            until: time("until", request.until, LogTime::new(u64::MAX))?,
            after: history_token(&request.page_token)?,
            limit: super::page_size(request.page_size)?,
        })
    }
}

/// The token is the offset of the last message; clients take it as it is.
fn history_token(token: &str) -> Result<Option<Offset>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    token.parse().map(|offset| Some(Offset::new(offset))).map_err(|_| {
        Invalid::new("page_token", "use the next_page_token of the page before, unchanged")
    })
}

pub(crate) fn consumer_group(group: String) -> Result<String, Invalid> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._$".contains(c);
    if group.is_empty() || group.len() > CONSUMER_GROUP_CHARACTERS_MAX || !group.chars().all(legal)
    {
        return Err(Invalid::new("consumer_group", "use 1 to 50 letters, digits, - . _ $"));
    }
    Ok(group)
}

pub(crate) fn shard(number: u32, shards: ShardCount) -> Result<ShardId, Invalid> {
    ShardId::new(number, shards).ok_or_else(|| {
        let last = shards.get() - 1;
        Invalid::new(
            "shard",
            format!("there is no shard {number}: they are numbered from 0 to {last}"),
        )
    })
}

/// A stored message as clients see it. Fails only if what was stored is not a message of ours.
pub(crate) fn message(stored: StoredMessage) -> Result<admin::Message, Invalid> {
    let content = Content::decode(stored.message)?;
    let (device_id, module_id) = super::names(&stored.device);
    Ok(admin::Message {
        shard: stored.shard.number(),
        offset: stored.offset.get(),
        device_id,
        module_id,
        generation_id: stored.generation.to_string(),
        enqueued: Some(super::timestamp(stored.at)),
        body: content.body.into(),
        system_properties: content.system.into_iter().map(property).collect(),
        application_properties: content.application.into_iter().map(property).collect(),
        authentication: stored.authentication.to_owned(),
    })
}

pub(crate) fn property((key, value): Property) -> admin::Property {
    admin::Property { key, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards() -> ShardCount {
        ShardCount::new(2).expect("2 is a legal count")
    }

    fn read(from: Option<Start>) -> Result<ReadStream, Invalid> {
        let request = admin::ReadStreamRequest { shard: 1, from, ..Default::default() };
        ReadStream::from_request(request, shards())
    }

    #[test]
    fn a_stream_is_read_from_its_beginning_unless_a_place_is_named() {
        let from = |start| read(start).expect("it is valid").from;
        assert_eq!(from(None), From::Beginning);
        assert_eq!(from(Some(Start::Offset(0))), From::Offset(Offset::new(0)));
        assert_eq!(from(Some(Start::ConsumerGroup("g".to_owned()))), From::Cursor("g".to_owned()));
        assert_eq!(from(Some(Start::End(true))), From::End);
        assert!(read(Some(Start::End(false))).is_err());
    }

    #[test]
    fn a_shard_that_does_not_exist_is_refused_with_those_that_do() {
        let request = admin::ReadStreamRequest { shard: 2, ..Default::default() };
        let refused = ReadStream::from_request(request, shards()).expect_err("there are two");
        assert!(refused.problem.contains("from 0 to 1"), "{}", refused.problem);
    }

    #[test]
    fn a_group_name_cannot_carry_control_characters_or_grow_without_bound() {
        for bad in ["", "a b", "a\u{1b}[31m", "é", &"x".repeat(51)] {
            assert!(consumer_group(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(consumer_group("$Default".to_owned()).is_ok());
    }

    #[test]
    fn a_history_request_without_times_covers_all_of_it() {
        let request =
            admin::ReadHistoryRequest { device_id: "pump".to_owned(), ..Default::default() };
        let read = ReadHistory::try_from(request).expect("it is valid");
        assert_eq!((read.from, read.until), (LogTime::new(0), LogTime::new(u64::MAX)));
        assert_eq!((read.after, read.limit), (None, 100));
    }
}
