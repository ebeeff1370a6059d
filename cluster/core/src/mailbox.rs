//! The mailbox of a device: its commands, in order, from acceptance to their end (P3).
//!
//! A command waits, is locked for a connection, and ends once. What is to be sent is locked in the same step that makes it
//! possible, and sent only after that step is committed: so whoever has been told that a waiting command was cancelled or
//! superseded knows that it was not sent and will not be. Time is the log's; a time that passes takes effect with the next
//! change of the mailbox, at the latest with [`RunCommandTimers`](crate::change::DeviceChange::RunCommandTimers).
//!
//! A change works on those commands that it can read or move. Most of those that wait are not among them: a new command that
//! replaces none needs to know of one other at most, however deep the mailbox is ([`Head::needs`]).
//!
//! Who is connected is `presence`'s to know, what is written is `shard`'s to say.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::{Done, Message, Refusal};
pub use crate::command::{
    ATTEMPTS_MAX, Ack, Attempt, Command, Ending, Expiry, Limits, NewCommand, Settlement, State,
};
use crate::device::Device;
use crate::feedback::Feedback;
use crate::ids::{
    CommandId, CommandSequence, DeliveryNumber, DeviceId, GenerationId, LogTime, NodeId,
    SessionEpoch,
};
use crate::mutants::{Mutation, is_planted};

/// How many commands are on their way to a connection together. Beyond it they wait, so that a slow device cannot fill its
/// connection's queue. It is a rule, not a setting: apply must decide alike on every replica.
pub const DELIVERY_WINDOW: usize = 16;

/// What a device's record says about its mailbox, so that most changes need not read the commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The newest command's place.
    pub last: CommandSequence,
    /// Commands that have not ended.
    pub waiting: u32,
    /// Bytes of those.
    pub bytes: u64,
    /// How many of them are locked.
    pub locked: u32,
    /// Ended commands that are still remembered.
    pub ended: u32,
    /// How many of those there may be, as the newest command said.
    pub ended_max: u32,
    /// The connection that `sent` counts for.
    pub epoch: SessionEpoch,
    /// The last number that was given to a delivery over it.
    pub sent: DeliveryNumber,
    /// When the mailbox has something to do of its own accord.
    pub due: Option<LogTime>,
}

impl Head {
    /// Whether there are any commands to read.
    pub fn has_commands(&self) -> bool {
        self.waiting > 0 || self.ended > 0
    }

    /// Which commands a new one can meet. While no time has passed that moves others, they stay as they are; as long as
    /// fewer are locked than may be, none of them could be sent, or it would have been.
    pub(crate) fn needs<'a>(&self, new: &'a NewCommand, at: LogTime) -> Needs<'a> {
        if self.due.is_none_or(|due| due <= at) || new.key.is_some() {
            return Needs::All;
        }
        Needs::One(&new.id)
    }
}

/// The commands that a change works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs<'a> {
    None,
    /// The one of this id, if there is one.
    One(&'a CommandId),
    All,
}

/// A command that is locked for a connection and to be sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    pub sequence: CommandSequence,
    pub number: DeliveryNumber,
}

/// The commands of a mailbox, those that have ended included: all of them, or as many as [`Needs`] said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commands {
    pub loaded: BTreeMap<CommandSequence, Command>,
    /// When the first of the others is due; without others none.
    pub others_due: Option<LogTime>,
}

impl Commands {
    pub fn get(&self, sequence: CommandSequence) -> Option<&Command> {
        self.loaded.get(&sequence)
    }

    /// The command of an id, if it is loaded.
    pub fn find(&self, id: &CommandId) -> Option<&Command> {
        self.loaded.values().find(|command| command.id == *id)
    }

    pub fn are_all(&self) -> bool {
        self.others_due.is_none()
    }
}

/// What a change did to a mailbox, for the shell to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes {
    /// Commands that differ from what was given. The body of one that does not wait any more is removed.
    pub touched: BTreeSet<CommandSequence>,
    /// Commands that are gone, with their bodies.
    pub forgotten: BTreeMap<CommandSequence, CommandId>,
    /// The body of a new command.
    pub added: Option<(CommandSequence, Message)>,
    /// What the due time was.
    pub due_before: Option<LogTime>,
    /// What it is.
    pub due: Option<LogTime>,
    pub feedback: Vec<Feedback>,
    /// How commands ended, each.
    pub endings: Vec<Ending>,
    /// Commands that wait now.
    pub waiting: u32,
}

/// A mailbox at work on one change. Checks come first and change nothing, then the change is made; [`Mailbox::finish`] lets
/// the times that have passed take effect and locks what can be sent.
pub(crate) struct Mailbox<'a> {
    device: &'a DeviceId,
    generation: GenerationId,
    head: &'a mut Head,
    commands: &'a mut Commands,
    live: Option<SessionEpoch>,
    listener: Option<(SessionEpoch, Option<NodeId>)>,
    at: LogTime,
    writes: Writes,
}

impl<'a> Mailbox<'a> {
    pub(crate) fn new(device: &'a mut Device, commands: &'a mut Commands, at: LogTime) -> Self {
        let live = device.presence.live();
        let listener = device.presence.command_session();
        let Device { id, generation, mailbox: head, .. } = device;
        let writes = Writes { due_before: head.due, ..Writes::default() };
        Self { device: id, generation: *generation, head, commands, live, listener, at, writes }
    }

    pub(crate) fn device(&self) -> &DeviceId {
        self.device
    }

    pub(crate) fn send(&mut self, new: &NewCommand) -> Result<Done, Refusal> {
        if let Some(command) = self.commands.find(&new.id) {
            let command = Box::new(command.clone());
            return Ok(Done::Queued { command, repeated: true, superseded: 0 });
        }
        let expires = new.expires(self.at)?;
        self.check_room(new)?;
        self.run_timers();
        let superseded = self.supersede(new.key.as_deref());
        let command = self.insert(new, expires);
        Ok(Done::Queued { command: Box::new(command), repeated: false, superseded })
    }

    pub(crate) fn settle(
        &mut self,
        epoch: SessionEpoch,
        sequence: CommandSequence,
        settlement: Settlement,
    ) -> Result<Done, Refusal> {
        let not_found = || Refusal::CommandNotFound { command: format!("number {sequence}") };
        let command = self.commands.get(sequence).ok_or_else(not_found)?;
        self.check_waiting(command)?;
        if command.epoch() != Some(epoch) {
            return Err(Refusal::CommandNotLocked);
        }
        // If its lock has run out, the device has it all the same.
        match settlement {
            Settlement::Complete if is_planted(Mutation::CompletedAgain) => self.unlock(sequence),
            Settlement::Complete => self.end(sequence, Ending::Completed),
            Settlement::Reject => self.end(sequence, Ending::Rejected),
            Settlement::Abandon => self.unlock(sequence),
        }
        Ok(Done::Settled)
    }

    pub(crate) fn cancel(&mut self, id: &CommandId) -> Result<Done, Refusal> {
        let not_found = || Refusal::CommandNotFound { command: id.to_string() };
        let command = self.commands.find(id).ok_or_else(not_found)?;
        self.check_waiting(command)?;
        let sequence = command.sequence;
        let ended = State::Ended { ending: Ending::Cancelled, at: self.at };
        let cancelled = Command { state: ended, ..command.clone() };
        self.end(sequence, Ending::Cancelled);
        Ok(Done::Cancelled(Box::new(cancelled)))
    }

    pub(crate) fn purge(&mut self) -> Done {
        self.run_timers();
        let waiting = self.sequences(Command::is_waiting);
        let was_sent = |sequence: &&CommandSequence| self.commands.loaded[*sequence].deliveries > 0;
        let sent = waiting.iter().filter(was_sent).count() as u32;
        for sequence in &waiting {
            self.end(*sequence, Ending::Purged);
        }
        Done::Purged { count: waiting.len() as u32, sent }
    }

    /// What times that have passed have brought about. Called again it does nothing.
    pub(crate) fn run_timers(&mut self) {
        let at = self.at;
        for sequence in self.sequences(|command| command.due(at) <= at) {
            let Some(command) = self.commands.get(sequence) else { continue };
            match command.state {
                State::Ended { .. } => self.forget(sequence),
                State::Queued | State::Locked { .. } if command.expires <= at => {
                    self.end(sequence, Ending::Expired);
                }
                State::Locked { .. } => self.unlock(sequence),
                State::Queued => {}
            }
        }
    }

    /// Locks what can be sent now. The answer is what to write, and what to send to whom.
    pub(crate) fn finish(mut self) -> (Writes, Option<(SessionEpoch, Vec<Outgoing>)>) {
        self.run_timers();
        let live = self.live;
        for sequence in self.sequences(|command| command.is_locked() && command.epoch() != live) {
            self.unlock(sequence);
        }
        let outgoing = self.lock_next();
        let at = self.at;
        let due = self.commands.loaded.values().map(|command| command.due(at));
        self.head.due = due.chain(self.commands.others_due).min();
        self.writes.due = self.head.due;
        self.writes.waiting = self.head.waiting;
        (self.writes, outgoing)
    }

    // ------------------------------------------------------------ steps

    fn lock_next(&mut self) -> Option<(SessionEpoch, Vec<Outgoing>)> {
        let (epoch, node) = self.listener?;
        if self.head.epoch != epoch {
            self.head.epoch = epoch;
            self.head.sent = DeliveryNumber::new(0);
        }
        let room = DELIVERY_WINDOW.saturating_sub(self.head.locked as usize);
        let at = self.at;
        let ready = self.commands.loaded.values_mut().filter(|command| command.is_ready(at));
        let mut outgoing = Vec::new();
        for command in ready.take(room) {
            self.head.sent = self.head.sent.next();
            command.lock(epoch, self.head.sent, node, at);
            self.head.locked = self.head.locked.saturating_add(1);
            self.writes.touched.insert(command.sequence);
            outgoing.push(Outgoing { sequence: command.sequence, number: self.head.sent });
        }
        (!outgoing.is_empty()).then_some((epoch, outgoing))
    }

    fn insert(&mut self, new: &NewCommand, expires: LogTime) -> Command {
        let sequence = self.head.last.next();
        let command = new.queued(sequence, self.at, expires);
        self.head.last = sequence;
        self.head.waiting = self.head.waiting.saturating_add(1);
        self.head.bytes = self.head.bytes.saturating_add(command.bytes);
        self.head.ended_max = new.limits.ended_max;
        self.commands.loaded.insert(sequence, command.clone());
        self.writes.touched.insert(sequence);
        self.writes.added = Some((sequence, new.message.clone()));
        command
    }

    /// Ends those of a key that wait and are not on their way.
    fn supersede(&mut self, key: Option<&str>) -> u32 {
        let Some(key) = key else { return 0 };
        if is_planted(Mutation::SupersededStays) {
            return 0;
        }
        let replaced = |command: &Command| {
            command.state == State::Queued && command.key.as_deref() == Some(key)
        };
        let replaced = self.sequences(replaced);
        for sequence in &replaced {
            self.end(*sequence, Ending::Superseded);
        }
        replaced.len() as u32
    }

    /// Puts a command back to its place, if it may be delivered again and no newer one of its key waits or was carried out:
    /// an old setting must not come behind a newer one.
    fn unlock(&mut self, sequence: CommandSequence) {
        let Some(command) = self.commands.loaded.get_mut(&sequence) else { return };
        if command.deliveries >= command.deliveries_max {
            return self.end(sequence, Ending::DeliveryCountExceeded);
        }
        command.state = State::Queued;
        self.head.locked = self.head.locked.saturating_sub(1);
        self.writes.touched.insert(sequence);
        let key = self.commands.loaded[&sequence].key.clone();
        let counts = |other: &Command| other.is_waiting() || other.is_completed();
        let newer = |other: &Command| counts(other) && other.sequence > sequence;
        if key.is_some()
            && self.commands.loaded.values().any(|other| newer(other) && other.key == key)
        {
            self.end(sequence, Ending::Superseded);
        }
    }

    fn end(&mut self, sequence: CommandSequence, ending: Ending) {
        let Some(command) = self.commands.loaded.get_mut(&sequence) else { return };
        self.head.locked = self.head.locked.saturating_sub(u32::from(command.is_locked()));
        command.state = State::Ended { ending, at: self.at };
        if ending == Ending::Expired && is_planted(Mutation::ExpiresTwice) {
            command.state = State::Queued;
            command.expires = self.at.plus_ms(1);
        }
        self.head.waiting = self.head.waiting.saturating_sub(1);
        self.head.bytes = self.head.bytes.saturating_sub(command.bytes);
        self.head.ended = self.head.ended.saturating_add(1);
        self.writes.touched.insert(sequence);
        self.writes.endings.push(ending);
        if command.ack.asks_for(ending) {
            self.writes.feedback.push(Feedback {
                device: self.device.clone(),
                generation: self.generation,
                command: command.id.clone(),
                ending,
                queued: command.queued,
                at: self.at,
                deliveries: command.deliveries,
            });
        }
        self.forget_beyond_limit();
    }

    /// The one that ended first goes first; what ends now stays for the answer.
    fn forget_beyond_limit(&mut self) {
        while self.head.ended > self.head.ended_max.max(1) {
            let ended = self.commands.loaded.values().filter_map(|command| match command.state {
                State::Ended { at, .. } => Some((at, command.sequence)),
                State::Queued | State::Locked { .. } => None,
            });
            let Some((_, sequence)) = ended.min() else { return };
            self.forget(sequence);
        }
    }

    fn forget(&mut self, sequence: CommandSequence) {
        let Some(command) = self.commands.loaded.remove(&sequence) else { return };
        self.head.ended = self.head.ended.saturating_sub(1);
        self.writes.touched.remove(&sequence);
        self.writes.forgotten.insert(sequence, command.id);
    }

    // ------------------------------------------------------------ questions

    fn sequences(&self, wanted: impl Fn(&Command) -> bool) -> Vec<CommandSequence> {
        let wanted = self.commands.loaded.values().filter(|command| wanted(command));
        wanted.map(|command| command.sequence).collect()
    }

    fn check_waiting(&self, command: &Command) -> Result<(), Refusal> {
        match command.state {
            State::Ended { ending, .. } => Err(Refusal::CommandEnded { ending }),
            // Its time is over, though nothing has said so yet.
            State::Queued | State::Locked { .. } if command.expires <= self.at => {
                Err(Refusal::CommandEnded { ending: Ending::Expired })
            }
            State::Queued | State::Locked { .. } => Ok(()),
        }
    }

    /// What is about to make room does not count.
    fn check_room(&self, new: &NewCommand) -> Result<(), Refusal> {
        let Limits { depth_max, mailbox_bytes_max, command_bytes_max, .. } = new.limits;
        let bytes = new.message.bytes();
        if bytes > command_bytes_max {
            return Err(Refusal::CommandTooLarge { bytes, limit_bytes: command_bytes_max });
        }
        let is_replaced = |command: &Command| {
            command.state == State::Queued && new.key.is_some() && command.key == new.key
        };
        let leaves = |command: &&Command| {
            command.is_waiting() && (command.expires <= self.at || is_replaced(command))
        };
        let (mut depth, mut held) = (self.head.waiting, self.head.bytes);
        for command in self.commands.loaded.values().filter(leaves) {
            depth = depth.saturating_sub(1);
            held = held.saturating_sub(command.bytes);
        }
        if depth >= depth_max {
            return Err(Refusal::MailboxFull { limit: depth_max });
        }
        if held.saturating_add(bytes) > mailbox_bytes_max {
            return Err(Refusal::MailboxTooLarge { limit_bytes: mailbox_bytes_max });
        }
        Ok(())
    }
}
