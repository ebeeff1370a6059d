//! A command: what its sender asked for, where it stands, and the times that move it.
//!
//! What configuration decides comes with each command and stays with it. What becomes of the commands of one device together
//! is `mailbox`'s to say.

use std::fmt;

use crate::change::{Message, Refusal};
use crate::ids::{CommandId, CommandSequence, DeliveryNumber, LogTime, NodeId, SessionEpoch};

/// Of how many deliveries a command remembers when and where they went. All are counted.
pub const ATTEMPTS_MAX: usize = 10;

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

    pub(crate) fn is_completed(&self) -> bool {
        matches!(self.state, State::Ended { ending: Ending::Completed, .. })
    }

    pub(crate) fn is_ready(&self, at: LogTime) -> bool {
        self.state == State::Queued && self.not_before.is_none_or(|time| time <= at)
    }

    pub(crate) fn epoch(&self) -> Option<SessionEpoch> {
        self.attempts.last().map(|attempt| attempt.epoch)
    }

    /// The next time that changes it.
    pub(crate) fn due(&self, at: LogTime) -> LogTime {
        match self.state {
            State::Queued => self
                .not_before
                .filter(|time| *time > at)
                .map_or(self.expires, |time| time.min(self.expires)),
            State::Locked { until } => until.min(self.expires),
            State::Ended { at, .. } => at.plus_ms(self.keep_ms),
        }
    }

    pub(crate) fn lock(
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
    pub(crate) fn asks_for(self, ending: Ending) -> bool {
        match self {
            Self::None => false,
            Self::Full => true,
            Self::Positive => ending == Ending::Completed,
            Self::Negative => ending != Ending::Completed,
        }
    }
}

impl NewCommand {
    /// When it will expire, if it is accepted at this time.
    pub(crate) fn expires(&self, at: LogTime) -> Result<LogTime, Refusal> {
        let from = self.not_before.map_or(at, |time| time.max(at));
        let expires = match self.expiry {
            Expiry::At(expires) => expires,
            Expiry::After { ms } => from.plus_ms(ms),
        };
        let limit = from.plus_ms(self.limits.ttl_ms_max);
        if expires <= from {
            return Err(Refusal::CommandExpired);
        }
        if expires > limit {
            return Err(Refusal::CommandExpiryTooFar { limit });
        }
        Ok(expires)
    }

    /// As it stands in its mailbox at first.
    pub(crate) fn queued(
        &self,
        sequence: CommandSequence,
        at: LogTime,
        expires: LogTime,
    ) -> Command {
        Command {
            sequence,
            id: self.id.clone(),
            key: self.key.clone(),
            ack: self.ack,
            bytes: self.message.bytes(),
            queued: at,
            not_before: self.not_before,
            expires,
            lock_ms: self.limits.lock_ms,
            deliveries_max: self.limits.deliveries_max,
            keep_ms: self.limits.ended_ms,
            state: State::Queued,
            deliveries: 0,
            attempts: Vec::new(),
        }
    }
}
