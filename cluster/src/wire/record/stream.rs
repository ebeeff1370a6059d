//! A shard's stream: its state, and the messages of its chunks.

use bytes::Bytes;
use drover_core::change::Message;
use drover_core::feedback::FeedbackLog;
use drover_core::ids::{GenerationId, LogTime, Offset, SessionEpoch, ShardId};
use drover_core::message::StoredMessage;
use drover_core::stream::Stream;
use drover_proto::record;

use super::device::device_id;
use super::{decode, encode};
use crate::wire::Invalid;

pub fn stream_to_bytes(stream: &Stream) -> Bytes {
    let cursor = |(group, next): (&String, &Offset)| record::Cursor {
        group: group.clone(),
        next: next.get(),
    };
    encode(&record::Stream {
        first: stream.first.get(),
        next: stream.next.get(),
        bytes: stream.bytes,
        cursors: stream.cursors.iter().map(cursor).collect(),
        at_ms: stream.at.get(),
        device_count: stream.device_count,
        disabled_count: stream.disabled_count,
        retired: stream.retired,
        feedback: Some(record::FeedbackLog {
            first: stream.feedback.first.get(),
            next: stream.feedback.next.get(),
            cursors: stream.feedback.cursors.iter().map(cursor).collect(),
        }),
    })
}

pub fn stream_from_bytes(bytes: Bytes) -> Result<Stream, Invalid> {
    let stream: record::Stream = decode("stream", bytes)?;
    let cursor = |cursor: record::Cursor| (cursor.group, Offset::new(cursor.next));
    let feedback = stream.feedback.unwrap_or_default();
    Ok(Stream {
        first: Offset::new(stream.first),
        next: Offset::new(stream.next),
        bytes: stream.bytes,
        cursors: stream.cursors.into_iter().map(cursor).collect(),
        at: LogTime::new(stream.at_ms),
        device_count: stream.device_count,
        disabled_count: stream.disabled_count,
        retired: stream.retired,
        feedback: FeedbackLog {
            first: Offset::new(feedback.first),
            next: Offset::new(feedback.next),
            cursors: feedback.cursors.into_iter().map(cursor).collect(),
        },
    })
}

/// The messages of a chunk, in order, each with its offset.
pub fn messages(
    shard: ShardId,
    chunk: record::Chunk,
) -> impl Iterator<Item = Result<StoredMessage, Invalid>> {
    let at = LogTime::new(chunk.at_ms);
    let mut next = Offset::new(chunk.first_offset);
    chunk.runs.into_iter().flat_map(move |run| {
        let first = next;
        next = next.plus(run.messages.len() as u64);
        run_messages(shard, at, first, run)
    })
}

fn run_messages(
    shard: ShardId,
    at: LogTime,
    first: Offset,
    run: record::Run,
) -> impl Iterator<Item = Result<StoredMessage, Invalid>> {
    let authentication = authentication_name(run.authentication());
    let device = device_id(&run.device);
    let epoch = (run.epoch != 0).then(|| SessionEpoch::new(run.epoch));
    let generation = GenerationId::new(run.generation);
    run.messages.into_iter().zip(0..).map(move |(bytes, place)| {
        Ok(StoredMessage {
            shard,
            offset: first.plus(place),
            at,
            device: device.clone()?,
            generation,
            epoch,
            authentication,
            message: Message(bytes),
        })
    })
}

/// As Azure IoT Hub writes it (`spec/service-rest.md` section 4.1).
fn authentication_name(kind: record::AuthenticationKind) -> &'static str {
    match kind {
        record::AuthenticationKind::Sas => "sas",
        record::AuthenticationKind::SelfSigned => "selfSigned",
        record::AuthenticationKind::CertificateAuthority => "certificateAuthority",
        record::AuthenticationKind::None | record::AuthenticationKind::Unspecified => "none",
    }
}
