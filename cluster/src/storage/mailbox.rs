//! Reading mailboxes: commands with and without their bodies, by place and by id, what is due, feedback.
//!
//! As in `state`, a record that cannot be decoded is corruption, not absence.

use bytes::Bytes;
use drover_core::change::Message;
use drover_core::feedback::{FeedbackPage, StoredFeedback};
use drover_core::ids::{CommandId, CommandSequence, DeviceId, GroupId, LogTime, Offset, ShardId};
use drover_core::mailbox::{Command, Commands};

use super::state::decoded;
use super::{Error, Order, ScanLimit, Storage, Table, keys, state};
use crate::wire::record;

/// Everything there is: what bounds it is the mailbox's depth.
const ALL: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };

/// All commands of a device, those that have ended included.
pub fn commands(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
) -> Result<Commands, Error> {
    let commands = commands_after(storage, group, device, CommandSequence::default(), ALL)?;
    let loaded = commands.into_iter().map(|command| (command.sequence, command)).collect();
    Ok(Commands { loaded, others_due: None })
}

/// Commands of a device in order, after `after`.
pub fn commands_after(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    after: CommandSequence,
    limit: ScanLimit,
) -> Result<Vec<Command>, Error> {
    let range = keys::commands_after(group, device, after);
    let records = storage.scan(Table::Mailbox, range, Order::Ascending, limit)?;
    let command =
        |(_, record): (Bytes, Bytes)| decoded("a command", record::command_from_bytes(record));
    records.into_iter().map(command).collect()
}

pub fn command(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    sequence: CommandSequence,
) -> Result<Option<Command>, Error> {
    let record = storage.get(Table::Mailbox, &keys::command(group, device, sequence))?;
    record.map(|record| decoded("a command", record::command_from_bytes(record))).transpose()
}

/// The command of an id, as long as it is remembered.
pub fn find(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    id: &CommandId,
) -> Result<Option<Command>, Error> {
    let Some(place) = storage.get(Table::Mailbox, &keys::command_id(group, device, id))? else {
        return Ok(None);
    };
    let corrupt = |what: &str| Error::Corrupt { what: format!("the command {id}: {what}") };
    let place = place[..].try_into().map_err(|_| corrupt("its place cannot be read"))?;
    let sequence = CommandSequence::new(u64::from_be_bytes(place));
    let found = command(storage, group, device, sequence)?;
    found.map(Some).ok_or_else(|| corrupt("it is not where its place says"))
}

/// The body of a command that waits.
pub fn body(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    sequence: CommandSequence,
) -> Result<Option<Message>, Error> {
    let body = storage.get(Table::Mailbox, &keys::command_body(group, device, sequence))?;
    Ok(body.map(Message))
}

/// The mailboxes that are due first.
pub fn due(
    storage: &dyn Storage,
    group: GroupId,
    limit: usize,
) -> Result<Vec<(LogTime, DeviceId)>, Error> {
    let limit = ScanLimit { records: limit, bytes: usize::MAX };
    let records = storage.scan(Table::Mailbox, keys::all_due(group), Order::Ascending, limit)?;
    let place = |(key, _): (Bytes, Bytes)| {
        let what = "when a mailbox is due cannot be read from its key".to_owned();
        keys::due_place(&key).ok_or(Error::Corrupt { what })
    };
    records.into_iter().map(place).collect()
}

/// Feedback of a shard from an offset on, up to so many records.
pub fn feedback(
    storage: &dyn Storage,
    shard: ShardId,
    from: Offset,
    limit: usize,
) -> Result<FeedbackPage, Error> {
    let group = GroupId::Shard(shard);
    let log = state::stream(storage, group)?.feedback;
    let from = from.max(log.first);
    let limit = ScanLimit { records: limit, bytes: usize::MAX };
    let range = keys::feedback_from(group, from);
    let records = storage.scan(Table::Mailbox, range, Order::Ascending, limit)?;
    let records: Vec<StoredFeedback> = records
        .into_iter()
        .map(|record| stored_feedback(shard, record))
        .collect::<Result<_, _>>()?;
    let next = records.last().map_or(from, |last| last.offset.next());
    Ok(FeedbackPage { records, next, first: log.first })
}

fn stored_feedback(shard: ShardId, (key, record): (Bytes, Bytes)) -> Result<StoredFeedback, Error> {
    let what = "the offset of feedback cannot be read from its key".to_owned();
    let offset = keys::feedback_offset(&key).ok_or(Error::Corrupt { what })?;
    let feedback = decoded("feedback", record::feedback_from_bytes(record))?;
    Ok(StoredFeedback { shard, offset, feedback })
}
