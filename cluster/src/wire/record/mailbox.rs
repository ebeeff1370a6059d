//! Commands, mailboxes and feedback.

use bytes::Bytes;
use drover_core::change::{DeviceChange, Message};
use drover_core::feedback::Feedback;
use drover_core::ids::{
    CommandId, CommandSequence, DeliveryNumber, GenerationId, LogTime, NodeId, SessionEpoch,
};
use drover_core::mailbox::{
    Ack, Attempt, Command, Ending, Expiry, Head, Limits, NewCommand, Settlement, State,
};
use drover_proto::record;

use super::device::device_id;
use super::{decode, encode, required};
use crate::wire::Invalid;

pub fn command_to_bytes(command: &Command) -> Bytes {
    let state = match command.state {
        State::Queued => None,
        State::Locked { until } => Some(record::command::State::LockedUntilMs(until.get())),
        State::Ended { ending, at } => Some(record::command::State::Ended(record::Ended {
            ending: ending_to_record(ending).into(),
            at_ms: at.get(),
        })),
    };
    encode(&record::Command {
        sequence: command.sequence.get(),
        id: command.id.as_str().to_owned(),
        key: command.key.clone(),
        ack: ack_to_record(command.ack).into(),
        bytes: command.bytes,
        queued_ms: command.queued.get(),
        not_before_ms: command.not_before.map(LogTime::get),
        expires_ms: command.expires.get(),
        lock_ms: command.lock_ms,
        deliveries_max: command.deliveries_max,
        keep_ms: command.keep_ms,
        deliveries: command.deliveries,
        attempts: command.attempts.iter().map(attempt_to_record).collect(),
        state,
    })
}

pub fn command_from_bytes(bytes: Bytes) -> Result<Command, Invalid> {
    let command: record::Command = decode("command", bytes)?;
    let ack = ack_from_record(command.ack())?;
    Ok(Command {
        sequence: CommandSequence::new(command.sequence),
        id: command_id(&command.id)?,
        key: command.key,
        ack,
        bytes: command.bytes,
        queued: LogTime::new(command.queued_ms),
        not_before: command.not_before_ms.map(LogTime::new),
        expires: LogTime::new(command.expires_ms),
        lock_ms: command.lock_ms,
        deliveries_max: command.deliveries_max,
        keep_ms: command.keep_ms,
        state: match command.state {
            None => State::Queued,
            Some(record::command::State::LockedUntilMs(until)) => {
                State::Locked { until: LogTime::new(until) }
            }
            Some(record::command::State::Ended(ended)) => State::Ended {
                ending: ending_from_record(ended.ending())?,
                at: LogTime::new(ended.at_ms),
            },
        },
        deliveries: command.deliveries,
        attempts: command.attempts.into_iter().map(attempt_from_record).collect(),
    })
}

pub fn feedback_to_bytes(feedback: &Feedback) -> Bytes {
    encode(&record::Feedback {
        device: feedback.device.as_str().to_owned(),
        generation: feedback.generation.get(),
        command: feedback.command.as_str().to_owned(),
        ending: ending_to_record(feedback.ending).into(),
        queued_ms: feedback.queued.get(),
        at_ms: feedback.at.get(),
        deliveries: feedback.deliveries,
    })
}

pub fn feedback_from_bytes(bytes: Bytes) -> Result<Feedback, Invalid> {
    let feedback: record::Feedback = decode("feedback", bytes)?;
    Ok(Feedback {
        device: device_id(&feedback.device)?,
        generation: GenerationId::new(feedback.generation),
        command: command_id(&feedback.command)?,
        ending: ending_from_record(feedback.ending())?,
        queued: LogTime::new(feedback.queued_ms),
        at: LogTime::new(feedback.at_ms),
        deliveries: feedback.deliveries,
    })
}

fn command_id(id: &str) -> Result<CommandId, Invalid> {
    id.parse().map_err(|problem| Invalid::new("command.id", problem))
}

pub(super) fn head_to_record(head: &Head) -> record::MailboxHead {
    record::MailboxHead {
        last: head.last.get(),
        waiting: head.waiting,
        bytes: head.bytes,
        ended: head.ended,
        ended_max: head.ended_max,
        epoch: head.epoch.get(),
        sent: head.sent.get(),
        due_ms: head.due.map(LogTime::get),
        locked: head.locked,
    }
}

pub(super) fn head_from_record(head: record::MailboxHead) -> Head {
    Head {
        last: CommandSequence::new(head.last),
        waiting: head.waiting,
        bytes: head.bytes,
        ended: head.ended,
        ended_max: head.ended_max,
        epoch: SessionEpoch::new(head.epoch),
        sent: DeliveryNumber::new(head.sent),
        due: head.due_ms.map(LogTime::new),
        locked: head.locked,
    }
}

pub(super) fn new_command_to_record(new: &NewCommand) -> record::SendCommand {
    let Limits { depth_max, mailbox_bytes_max, command_bytes_max, ttl_ms_max, .. } = new.limits;
    let Limits { lock_ms, deliveries_max, ended_max, ended_ms, .. } = new.limits;
    record::SendCommand {
        id: new.id.as_str().to_owned(),
        key: new.key.clone(),
        ack: ack_to_record(new.ack).into(),
        expiry: Some(match new.expiry {
            Expiry::At(at) => record::send_command::Expiry::ExpiresMs(at.get()),
            Expiry::After { ms } => record::send_command::Expiry::TtlMs(ms),
        }),
        not_before_ms: new.not_before.map(LogTime::get),
        message: new.message.0.clone(),
        limits: Some(record::MailboxLimits {
            depth_max,
            mailbox_bytes_max,
            command_bytes_max,
            ttl_ms_max,
            lock_ms,
            deliveries_max,
            ended_max,
            ended_ms,
        }),
    }
}

pub(super) fn send_command_from_record(send: record::SendCommand) -> Result<DeviceChange, Invalid> {
    let ack = ack_from_record(send.ack())?;
    let limits = required("send_command.limits", send.limits)?;
    Ok(DeviceChange::SendCommand(Box::new(NewCommand {
        id: command_id(&send.id)?,
        key: send.key,
        ack,
        expiry: match required("send_command.expiry", send.expiry)? {
            record::send_command::Expiry::ExpiresMs(at) => Expiry::At(LogTime::new(at)),
            record::send_command::Expiry::TtlMs(ms) => Expiry::After { ms },
        },
        not_before: send.not_before_ms.map(LogTime::new),
        message: Message(send.message),
        limits: Limits {
            depth_max: limits.depth_max,
            mailbox_bytes_max: limits.mailbox_bytes_max,
            command_bytes_max: limits.command_bytes_max,
            ttl_ms_max: limits.ttl_ms_max,
            lock_ms: limits.lock_ms,
            deliveries_max: limits.deliveries_max,
            ended_max: limits.ended_max,
            ended_ms: limits.ended_ms,
        },
    })))
}

pub(super) fn settle_command_from_record(
    settle: &record::SettleCommand,
) -> Result<DeviceChange, Invalid> {
    let settlement = match settle.settlement() {
        record::Settlement::Complete => Settlement::Complete,
        record::Settlement::Reject => Settlement::Reject,
        record::Settlement::Abandon => Settlement::Abandon,
        record::Settlement::Unspecified => {
            return Err(Invalid::new("settle_command.settlement", "is not known"));
        }
    };
    let (epoch, sequence) =
        (SessionEpoch::new(settle.epoch), CommandSequence::new(settle.sequence));
    Ok(DeviceChange::SettleCommand { epoch, sequence, settlement })
}

pub(super) fn cancel_command_from_record(
    cancel: &record::CancelCommand,
) -> Result<DeviceChange, Invalid> {
    Ok(DeviceChange::CancelCommand { command: command_id(&cancel.id)? })
}

pub(super) fn settle_command_to_record(
    epoch: SessionEpoch,
    sequence: CommandSequence,
    settlement: Settlement,
) -> record::SettleCommand {
    record::SettleCommand {
        epoch: epoch.get(),
        sequence: sequence.get(),
        settlement: settlement_to_record(settlement).into(),
    }
}

fn settlement_to_record(settlement: Settlement) -> record::Settlement {
    match settlement {
        Settlement::Complete => record::Settlement::Complete,
        Settlement::Reject => record::Settlement::Reject,
        Settlement::Abandon => record::Settlement::Abandon,
    }
}

fn attempt_to_record(attempt: &Attempt) -> record::Attempt {
    record::Attempt {
        at_ms: attempt.at.get(),
        epoch: attempt.epoch.get(),
        number: attempt.number.get(),
        node: attempt.node.map(NodeId::to_u64),
    }
}

fn attempt_from_record(attempt: record::Attempt) -> Attempt {
    Attempt {
        at: LogTime::new(attempt.at_ms),
        epoch: SessionEpoch::new(attempt.epoch),
        number: DeliveryNumber::new(attempt.number),
        node: attempt.node.map(NodeId::from_u64),
    }
}

fn ack_to_record(ack: Ack) -> record::Ack {
    match ack {
        Ack::None => record::Ack::None,
        Ack::Positive => record::Ack::Positive,
        Ack::Negative => record::Ack::Negative,
        Ack::Full => record::Ack::Full,
    }
}

fn ack_from_record(ack: record::Ack) -> Result<Ack, Invalid> {
    match ack {
        record::Ack::None => Ok(Ack::None),
        record::Ack::Positive => Ok(Ack::Positive),
        record::Ack::Negative => Ok(Ack::Negative),
        record::Ack::Full => Ok(Ack::Full),
        record::Ack::Unspecified => Err(Invalid::new("command.ack", "is not known")),
    }
}

/// An ending as the number that it has in records.
pub fn ending_number(ending: Ending) -> u64 {
    ending_to_record(ending) as u64
}

pub fn ending_from_number(number: u64) -> Option<Ending> {
    let ending = record::Ending::try_from(i32::try_from(number).ok()?).ok()?;
    ending_from_record(ending).ok()
}

fn ending_to_record(ending: Ending) -> record::Ending {
    match ending {
        Ending::Completed => record::Ending::Completed,
        Ending::Rejected => record::Ending::Rejected,
        Ending::Expired => record::Ending::Expired,
        Ending::DeliveryCountExceeded => record::Ending::DeliveryCountExceeded,
        Ending::Purged => record::Ending::Purged,
        Ending::Cancelled => record::Ending::Cancelled,
        Ending::Superseded => record::Ending::Superseded,
    }
}

fn ending_from_record(ending: record::Ending) -> Result<Ending, Invalid> {
    match ending {
        record::Ending::Completed => Ok(Ending::Completed),
        record::Ending::Rejected => Ok(Ending::Rejected),
        record::Ending::Expired => Ok(Ending::Expired),
        record::Ending::DeliveryCountExceeded => Ok(Ending::DeliveryCountExceeded),
        record::Ending::Purged => Ok(Ending::Purged),
        record::Ending::Cancelled => Ok(Ending::Cancelled),
        record::Ending::Superseded => Ok(Ending::Superseded),
        record::Ending::Unspecified => Err(Invalid::new("command.ending", "is not known")),
    }
}
