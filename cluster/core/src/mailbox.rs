//! The mailbox of a device: its commands, in order, from acceptance to their end (P3).
//!
//! A command waits, is locked for a connection, and ends once. What is to be sent is locked in the same step that makes it
//! possible, and sent only after that step is committed: so whoever has been told that a waiting command was cancelled or
//! superseded knows that it was not sent and will not be. Time is the log's; a time that passes takes effect with the next
//! change of the mailbox, at the latest with [`RunCommandTimers`](crate::change::DeviceChange::RunCommandTimers).
//!
//! What configuration decides comes with each command and stays with it. Who is connected is `presence`'s to know, what is
//! written is `shard`'s to say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::change::{Done, Message, Refusal};
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

/// Of how many deliveries a command remembers when and where they went. All are counted.
pub const ATTEMPTS_MAX: usize = 10;

/// What a device's record says about its mailbox, so that most changes need not read the commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The newest command's place.
    pub last: CommandSequence,
    /// Commands that have not ended.
    pub waiting: u32,
    /// Bytes of those.
    pub bytes: u64,
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
}

/// A command without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub sequence: CommandSequence,
    pub id: CommandId,
    /// A newer command of the same key replaces this one while it waits.
    pub key: Option<String>,
    pub ack: Ack,
    /// Of its message.
    pub bytes: u64,
    pub queued: LogTime,
    /// Not to be sent earlier.
    pub not_before: Option<LogTime>,
    /// Not to be sent from then on.
    pub expires: LogTime,
    pub lock_ms: u64,
    pub deliveries_max: u32,
    /// How long it is remembered after its end.
    pub keep_ms: u64,
    pub state: State,
    pub deliveries: u32,
    /// The last [`ATTEMPTS_MAX`] deliveries.
    pub attempts: Vec<Attempt>,
}

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Queued,
    /// It is on its way to the connection of its last attempt, or there.
    Locked {
        until: LogTime,
    },
    Ended {
        ending: Ending,
        at: LogTime,
    },
}

/// How a command ended. It ends once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    Completed,
    Rejected,
    Expired,
    /// It was delivered as often as it may be, and never completed.
    DeliveryCountExceeded,
    Purged,
    Cancelled,
    Superseded,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::DeliveryCountExceeded => "dead, its deliveries are used up",
            Self::Purged => "purged",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        })
    }
}

/// One delivery over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub at: LogTime,
    pub epoch: SessionEpoch,
    pub number: DeliveryNumber,
    pub node: Option<NodeId>,
}

/// Which endings the sender wants feedback for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ack {
    #[default]
    None,
    /// Completed.
    Positive,
    /// All the others.
    Negative,
    Full,
}

/// What the device says about a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    Complete,
    Reject,
    /// Put it back to its place; it is delivered again.
    Abandon,
}

/// What a sender asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCommand {
    pub id: CommandId,
    pub key: Option<String>,
    pub ack: Ack,
    pub expiry: Expiry,
    pub not_before: Option<LogTime>,
    pub message: Message,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    At(LogTime),
    /// After it was accepted, or after it may be sent.
    After {
        ms: u64,
    },
}

/// What configuration says about commands. The change carries it, so that replicas agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Commands of a mailbox that have not ended.
    pub depth_max: u32,
    /// Bytes of those.
    pub mailbox_bytes_max: u64,
    /// Bytes of one command with its properties.
    pub command_bytes_max: u64,
    /// How far off the expiry may be.
    pub ttl_ms_max: u64,
    pub lock_ms: u64,
    pub deliveries_max: u32,
    /// Ended commands of a mailbox that are remembered, and for how long.
    pub ended_max: u32,
    pub ended_ms: u64,
}

/// A command that is locked for a connection and to be sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    pub sequence: CommandSequence,
    pub number: DeliveryNumber,
}

/// The commands of a mailbox, those that have ended included.
pub type Commands = BTreeMap<CommandSequence, Command>;

/// What a change did to a mailbox, for the shell to write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes {
    /// Commands that differ from what was given: write those that are there and remove the others. The body of a command
    /// that is not waiting is removed.
    pub touched: BTreeSet<CommandSequence>,
    /// The body of a new command.
    pub added: Option<(CommandSequence, Message)>,
    /// What the due time was.
    pub due_before: Option<LogTime>,
    /// What it is.
    pub due: Option<LogTime>,
    pub feedback: Vec<Feedback>,
}

impl Command {
    pub fn is_waiting(&self) -> bool {
        match self.state {
            State::Queued | State::Locked { .. } => true,
            State::Ended { .. } => false,
        }
    }

    pub fn is_locked(&self) -> bool {
        matches!(self.state, State::Locked { .. })
    }

    fn is_completed(&self) -> bool {
        matches!(self.state, State::Ended { ending: Ending::Completed, .. })
    }

    fn is_ready(&self, at: LogTime) -> bool {
        self.state == State::Queued && self.not_before.is_none_or(|time| time <= at)
    }

    fn epoch(&self) -> Option<SessionEpoch> {
        self.attempts.last().map(|attempt| attempt.epoch)
    }

    /// The next time that changes it.
    fn due(&self, at: LogTime) -> LogTime {
        match self.state {
            State::Queued => self
                .not_before
                .filter(|time| *time > at)
                .map_or(self.expires, |time| time.min(self.expires)),
            State::Locked { until } => until.min(self.expires),
            State::Ended { at, .. } => at.plus_ms(self.keep_ms),
        }
    }

    fn lock(
        &mut self,
        epoch: SessionEpoch,
        number: DeliveryNumber,
        node: Option<NodeId>,
        at: LogTime,
    ) {
        self.state = State::Locked { until: at.plus_ms(self.lock_ms) };
        self.deliveries = self.deliveries.saturating_add(1);
        if self.attempts.len() >= ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push(Attempt { at, epoch, number, node });
    }
}

impl Ack {
    fn asks_for(self, ending: Ending) -> bool {
        match self {
            Self::None => false,
            Self::Full => true,
            Self::Positive => ending == Ending::Completed,
            Self::Negative => ending != Ending::Completed,
        }
    }
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
        if let Some(command) = self.find(&new.id) {
            let command = Box::new(command.clone());
            return Ok(Done::Queued { command, repeated: true, superseded: 0 });
        }
        let expires = check_times(new, self.at)?;
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
        let command = self.commands.get(&sequence).ok_or_else(not_found)?;
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
        let command = self.find(id).ok_or_else(not_found)?;
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
        let was_sent = |sequence: &&CommandSequence| self.commands[*sequence].deliveries > 0;
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
            let Some(command) = self.commands.get(&sequence) else { continue };
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
        self.head.due = self.commands.values().map(|command| command.due(at)).min();
        self.writes.due = self.head.due;
        (self.writes, outgoing)
    }

    // ------------------------------------------------------------ steps

    fn lock_next(&mut self) -> Option<(SessionEpoch, Vec<Outgoing>)> {
        let (epoch, node) = self.listener?;
        if self.head.epoch != epoch {
            self.head.epoch = epoch;
            self.head.sent = DeliveryNumber::new(0);
        }
        let locked = self.commands.values().filter(|command| command.is_locked()).count();
        let room = DELIVERY_WINDOW.saturating_sub(locked);
        let at = self.at;
        let ready = self.commands.values_mut().filter(|command| command.is_ready(at));
        let mut outgoing = Vec::new();
        for command in ready.take(room) {
            self.head.sent = self.head.sent.next();
            command.lock(epoch, self.head.sent, node, at);
            self.writes.touched.insert(command.sequence);
            outgoing.push(Outgoing { sequence: command.sequence, number: self.head.sent });
        }
        (!outgoing.is_empty()).then_some((epoch, outgoing))
    }

    fn insert(&mut self, new: &NewCommand, expires: LogTime) -> Command {
        let NewCommand { id, key, ack, not_before, message, limits, .. } = new;
        let sequence = self.head.last.next();
        let command = Command {
            sequence,
            id: id.clone(),
            key: key.clone(),
            ack: *ack,
            bytes: message.bytes(),
            queued: self.at,
            not_before: *not_before,
            expires,
            lock_ms: limits.lock_ms,
            deliveries_max: limits.deliveries_max,
            keep_ms: limits.ended_ms,
            state: State::Queued,
            deliveries: 0,
            attempts: Vec::new(),
        };
        self.head.last = sequence;
        self.head.waiting = self.head.waiting.saturating_add(1);
        self.head.bytes = self.head.bytes.saturating_add(command.bytes);
        self.head.ended_max = limits.ended_max;
        self.commands.insert(sequence, command.clone());
        self.writes.touched.insert(sequence);
        self.writes.added = Some((sequence, message.clone()));
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
        let Some(command) = self.commands.get_mut(&sequence) else { return };
        if command.deliveries >= command.deliveries_max {
            return self.end(sequence, Ending::DeliveryCountExceeded);
        }
        command.state = State::Queued;
        self.writes.touched.insert(sequence);
        let key = self.commands[&sequence].key.clone();
        let counts = |other: &Command| other.is_waiting() || other.is_completed();
        let newer = |other: &Command| counts(other) && other.sequence > sequence;
        if key.is_some() && self.commands.values().any(|other| newer(other) && other.key == key) {
            self.end(sequence, Ending::Superseded);
        }
    }

    fn end(&mut self, sequence: CommandSequence, ending: Ending) {
        let Some(command) = self.commands.get_mut(&sequence) else { return };
        command.state = State::Ended { ending, at: self.at };
        if ending == Ending::Expired && is_planted(Mutation::ExpiresTwice) {
            command.state = State::Queued;
            command.expires = self.at.plus_ms(1);
        }
        self.head.waiting = self.head.waiting.saturating_sub(1);
        self.head.bytes = self.head.bytes.saturating_sub(command.bytes);
        self.head.ended = self.head.ended.saturating_add(1);
        self.writes.touched.insert(sequence);
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
            let ended = self.commands.values().filter_map(|command| match command.state {
                State::Ended { at, .. } => Some((at, command.sequence)),
                State::Queued | State::Locked { .. } => None,
            });
            let Some((_, sequence)) = ended.min() else { return };
            self.forget(sequence);
        }
    }

    fn forget(&mut self, sequence: CommandSequence) {
        self.commands.remove(&sequence);
        self.head.ended = self.head.ended.saturating_sub(1);
        self.writes.touched.insert(sequence);
    }

    // ------------------------------------------------------------ questions

    fn find(&self, id: &CommandId) -> Option<&Command> {
        self.commands.values().find(|command| command.id == *id)
    }

    fn sequences(&self, wanted: impl Fn(&Command) -> bool) -> Vec<CommandSequence> {
        let wanted = self.commands.values().filter(|command| wanted(command));
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
        let stays = |command: &&Command| {
            command.is_waiting() && command.expires > self.at && !is_replaced(command)
        };
        let (depth, held) =
            self.commands.values().filter(stays).fold((0_u32, 0_u64), |sum, command| {
                (sum.0.saturating_add(1), sum.1.saturating_add(command.bytes))
            });
        if depth >= depth_max {
            return Err(Refusal::MailboxFull { limit: depth_max });
        }
        if held.saturating_add(bytes) > mailbox_bytes_max {
            return Err(Refusal::MailboxTooLarge { limit_bytes: mailbox_bytes_max });
        }
        Ok(())
    }
}

/// When a new command expires.
fn check_times(new: &NewCommand, at: LogTime) -> Result<LogTime, Refusal> {
    let from = new.not_before.map_or(at, |time| time.max(at));
    let expires = match new.expiry {
        Expiry::At(expires) => expires,
        Expiry::After { ms } => from.plus_ms(ms),
    };
    let limit = from.plus_ms(new.limits.ttl_ms_max);
    if expires <= from {
        return Err(Refusal::CommandExpired);
    }
    if expires > limit {
        return Err(Refusal::CommandExpiryTooFar { limit });
    }
    Ok(expires)
}
