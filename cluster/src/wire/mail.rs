//! Commands and feedback in the answers of one node to another.

use drover_core::change::Message;
use drover_core::feedback::{FeedbackPage, StoredFeedback};
use drover_core::ids::{Offset, ShardCount, ShardId};
use drover_core::mailbox::Command;
use drover_proto::cluster as proto;

use super::record;

pub(super) fn of_command((command, message): (Command, Option<Message>)) -> proto::CommandAndBody {
    let command = record::command_to_bytes(&command);
    proto::CommandAndBody { command, message: message.map(|Message(bytes)| bytes) }
}

pub(super) fn command(given: proto::CommandAndBody) -> Option<(Command, Option<Message>)> {
    Some((record::command_from_bytes(given.command).ok()?, given.message.map(Message)))
}

pub(super) fn of_feedback(page: FeedbackPage) -> proto::FeedbackRecords {
    let record = |stored: StoredFeedback| proto::FeedbackRecord {
        shard: stored.shard.number(),
        offset: stored.offset.get(),
        feedback: record::feedback_to_bytes(&stored.feedback),
    };
    proto::FeedbackRecords {
        records: page.records.into_iter().map(record).collect(),
        next: page.next.get(),
        first: page.first.get(),
    }
}

pub(super) fn feedback_page(page: proto::FeedbackRecords) -> Option<FeedbackPage> {
    let record = |given: proto::FeedbackRecord| {
        Some(StoredFeedback {
            shard: ShardId::new(given.shard, ShardCount::new(ShardCount::MAX)?)?,
            offset: Offset::new(given.offset),
            feedback: record::feedback_from_bytes(given.feedback).ok()?,
        })
    };
    Some(FeedbackPage {
        records: page.records.into_iter().map(record).collect::<Option<_>>()?,
        next: Offset::new(page.next),
        first: Offset::new(page.first),
    })
}
