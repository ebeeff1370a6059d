//! The back ends' side of mailboxes: methods of the [`Cluster`] handle.

use drover_core::change::{DeviceChange, Done, Message, Refusal, StreamChange};
use drover_core::feedback::FeedbackPage;
use drover_core::ids::{CommandId, CommandSequence, DeviceId, LogTime, Offset, ShardId};
use drover_core::mailbox::{Ack, Command, Expiry, NewCommand};

use super::cluster::{Cluster, check_limit, unexpected};
use super::error::Error;
use crate::wire::request::{Answer, Request};

/// A command that a back end sends.
#[derive(Debug, Clone)]
pub struct SendCommand {
    /// `None`: the cluster makes one up, and a send that is repeated adds another command.
    pub id: Option<CommandId>,
    /// Replaces the waiting commands of the same key.
    pub key: Option<String>,
    pub ack: Ack,
    /// `None`: after the configured time to live.
    pub expiry: Option<Expiry>,
    pub not_before: Option<LogTime>,
    /// Body and properties, encoded once.
    pub message: Message,
}

/// A command that was accepted.
#[derive(Debug, Clone)]
pub struct Queued {
    pub command: Command,
    /// It was there already, and nothing was added.
    pub repeated: bool,
    pub superseded: u32,
}

/// What a purge took back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    pub count: u32,
    /// How many of them had been sent before: the device may have them.
    pub sent: u32,
}

/// Commands of one mailbox, in order.
#[derive(Debug, Clone, Default)]
pub struct CommandPage {
    /// With their bodies, if they were asked for: a command that has ended has none.
    pub commands: Vec<(Command, Option<Message>)>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<CommandSequence>,
}

impl Cluster {
    /// Puts a command into a mailbox. Success: durable on a majority; the device may not have seen it.
    pub async fn send_command(
        &self,
        device: &DeviceId,
        send: SendCommand,
    ) -> Result<Queued, Error> {
        let commands = self.shared.config.commands;
        let id = send.id.unwrap_or_else(|| {
            let drawn = format!("{:016x}{:016x}", self.shared.draw(), self.shared.draw());
            drawn.parse().expect("hexadecimal digits are a legal id")
        });
        let new = NewCommand {
            id,
            key: send.key,
            ack: send.ack,
            expiry: send.expiry.unwrap_or(Expiry::After { ms: commands.ttl_ms }),
            not_before: send.not_before,
            message: send.message,
            limits: commands.limits,
        };
        let done = self.change_device(device, DeviceChange::SendCommand(Box::new(new))).await?;
        let Done::Queued { command, repeated, superseded } = done else {
            return Err(unexpected(self.shard_of(device)?));
        };
        Ok(Queued { command: *command, repeated, superseded })
    }

    /// Takes a command back. Success: it will not be sent again; if it has been sent before, as `deliveries` of the answer
    /// says, the device may have it, or be about to.
    pub async fn cancel_command(
        &self,
        device: &DeviceId,
        command: CommandId,
    ) -> Result<Command, Error> {
        let done = self.change_device(device, DeviceChange::CancelCommand { command }).await?;
        let Done::Cancelled(command) = done else {
            return Err(unexpected(self.shard_of(device)?));
        };
        Ok(*command)
    }

    /// Takes all waiting commands back, as [`Cluster::cancel_command`] does one.
    pub async fn purge_commands(&self, device: &DeviceId) -> Result<Purged, Error> {
        let done = self.change_device(device, DeviceChange::PurgeCommands).await?;
        let Done::Purged { count, sent } = done else {
            return Err(unexpected(self.shard_of(device)?));
        };
        Ok(Purged { count, sent })
    }

    /// Linearizable. Commands that have ended are among them as long as they are remembered. `limit`: 1 to 1000.
    pub async fn commands(
        &self,
        device: &DeviceId,
        after: CommandSequence,
        limit: u32,
        with_bodies: bool,
    ) -> Result<CommandPage, Error> {
        let shard = self.shard_of(device)?;
        let limit = check_limit(limit)?;
        let device = device.clone();
        let answer =
            self.read(shard, Request::Commands { device, after, limit, with_bodies }).await?;
        let Answer::Commands { commands, more } = answer else {
            return Err(unexpected(shard));
        };
        let last = commands.last().map(|(command, _)| command.sequence);
        Ok(CommandPage { commands, next: last.filter(|_| more) })
    }

    /// One command with its history, linearizable.
    pub async fn command(&self, device: &DeviceId, id: &CommandId) -> Result<Command, Error> {
        let mut after = CommandSequence::default();
        loop {
            let page = self.commands(device, after, 1000, false).await?;
            let found = page.commands.into_iter().find(|(command, _)| command.id == *id);
            match (found, page.next) {
                (Some((command, _)), _) => return Ok(command),
                (None, Some(next)) => after = next,
                (None, None) => {
                    return Err(Refusal::CommandNotFound { command: id.to_string() }.into());
                }
            }
        }
    }

    /// How commands of the shard's devices ended, from an offset on. Waits so long for a first record; what retention has
    /// taken is passed over. `limit`: 1 to 1000.
    pub async fn read_feedback(
        &self,
        shard: ShardId,
        from: Offset,
        limit: u32,
        wait_ms: u32,
    ) -> Result<FeedbackPage, Error> {
        let limit = check_limit(limit)?;
        let wait_ms = self.bounded_wait(wait_ms);
        let answer = self.read(shard, Request::Feedback { from, limit, wait_ms }).await?;
        let Answer::Feedback(page) = answer else {
            return Err(unexpected(shard));
        };
        Ok(page)
    }

    pub async fn commit_feedback_cursor(
        &self,
        shard: ShardId,
        group: String,
        next: Offset,
    ) -> Result<Offset, Error> {
        self.move_cursor(shard, StreamChange::CommitFeedbackCursor { group, next }).await
    }

    pub async fn seek_feedback_cursor(
        &self,
        shard: ShardId,
        group: String,
        next: Offset,
    ) -> Result<Offset, Error> {
        self.move_cursor(shard, StreamChange::SeekFeedbackCursor { group, next }).await
    }
}
