//! Commands on their way to the device: what waits to be sent, and what it has not acknowledged.
//!
//! Over one connection a command is published once, as MQTT 3.1.1 wants it; when the cluster locks it again because no
//! PUBACK came in time, the first publication stands, and a PUBACK that comes late counts.

use std::collections::VecDeque;

use drover_cluster::actors::session::SentCommand;
use drover_core::ids::CommandSequence;
use drover_core::mailbox::DELIVERY_WINDOW;

#[derive(Debug, Default)]
pub(super) struct Commands {
    waiting: VecDeque<Box<SentCommand>>,
    /// Published at quality 1, with their packet ids.
    open: Vec<(u16, CommandSequence)>,
    /// The last that the device has dealt with. Their locks may have run out before the cluster heard of it, and what it
    /// sent then is still on its way.
    done: Vec<CommandSequence>,
}

/// More commands wait than the cluster has on their way to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

impl Commands {
    pub(super) fn push(&mut self, sent: Box<SentCommand>) -> Result<(), TooMany> {
        let sequence = sent.command.sequence;
        let is_open = self.open.iter().any(|(_, open)| *open == sequence);
        if is_open || self.done.contains(&sequence) {
            return Ok(());
        }
        if let Some(same) = self.waiting.iter_mut().find(|w| w.command.sequence == sequence) {
            *same = sent;
            return Ok(());
        }
        // What has expired still stands here until its turn comes.
        if self.waiting.len() >= 2 * DELIVERY_WINDOW {
            return Err(TooMany);
        }
        self.waiting.push_back(sent);
        Ok(())
    }

    /// The next command that is worth sending.
    pub(super) fn next(&mut self, unix_ms: u64) -> Option<&SentCommand> {
        while self.waiting.front().is_some_and(|sent| sent.command.expires.get() <= unix_ms) {
            self.waiting.pop_front();
        }
        self.waiting.front().map(|sent| &**sent)
    }

    /// It is not to be sent, or is sent at quality 0.
    pub(super) fn drop_next(&mut self) {
        if let Some(sent) = self.waiting.pop_front() {
            self.remember(sent.command.sequence);
        }
    }

    /// It is sent with this packet id.
    pub(super) fn open_next(&mut self, packet_id: u16) {
        if let Some(sent) = self.waiting.pop_front() {
            self.open.push((packet_id, sent.command.sequence));
        }
    }

    /// A PUBACK has come; the answer is the command that it is for.
    pub(super) fn acknowledge(&mut self, packet_id: u16) -> Option<CommandSequence> {
        let place = self.open.iter().position(|(open, _)| *open == packet_id)?;
        let (_, sequence) = self.open.remove(place);
        self.remember(sequence);
        Some(sequence)
    }

    /// No more than the cluster has on their way to a connection.
    fn remember(&mut self, sequence: CommandSequence) {
        if self.done.len() >= DELIVERY_WINDOW {
            self.done.remove(0);
        }
        self.done.push(sequence);
    }

    /// The device does not listen any more. What it has may still be acknowledged.
    pub(super) fn stop(&mut self) {
        self.waiting = VecDeque::new();
    }

    pub(super) fn release_memory(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        if self.open.is_empty() {
            self.open = Vec::new();
        }
    }
}
