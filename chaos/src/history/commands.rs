//! What back ends and a device did with the commands of one mailbox, and what the hub said became of them.
//!
//! Whoever got no answer does not know: an attempt whose answer is missing may have been carried out, at any time.

use drover_core::mailbox::{Ending, Settlement};

use super::Moment;

/// Everything that was done with one mailbox.
#[derive(Debug, Clone, Default)]
pub struct MailboxHistory {
    pub device: String,
    pub sends: Vec<SendAttempt>,
    pub cancels: Vec<CancelAttempt>,
    /// When somebody first took back all commands.
    pub purged: Option<Moment>,
    /// Connections that were accepted, oldest first.
    pub connections: Vec<Opened>,
    /// In the order in which the device saw them.
    pub deliveries: Vec<Delivery>,
}

/// One attempt to put a command into the mailbox. A command that is sent again is another attempt with the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendAttempt {
    pub command: String,
    pub key: Option<String>,
    pub begun: Moment,
    pub answer: SendAnswer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendAnswer {
    Accepted {
        at: Moment,
        sequence: u64,
        /// The hub had it already.
        repeated: bool,
        /// How many older commands of its key it has replaced.
        superseded: u32,
        /// By the hub's clock.
        expires_ms: u64,
        not_before_ms: Option<u64>,
    },
    /// Nothing was done.
    Refused,
    Unknown,
}

/// One attempt to take a command back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelAttempt {
    pub command: String,
    pub begun: Moment,
    pub answer: CancelAnswer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It will not be sent again; it had been sent so many times before.
    Cancelled {
        at: Moment,
        deliveries: u32,
    },
    /// It had ended before.
    Ended {
        at: Moment,
    },
    /// Nothing was done.
    Refused,
    Unknown,
}

/// A connection that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Newer connections have higher numbers.
    pub number: u64,
    /// Before anything of it was on the wire.
    pub begun: Moment,
}

/// The device saw a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub command: String,
    pub connection: u64,
    /// The hub sent it at this time by its own clock, or later.
    pub earliest_ms: u64,
    /// Or earlier.
    pub latest_ms: u64,
    /// The hub says that this is not the first time.
    pub is_marked: bool,
    /// A lock may have run out over this connection: its place in the order is not its first one.
    pub may_be_relocked: bool,
    /// What the device has said about it over this connection.
    pub settled: Option<Settlement>,
    /// When the device learned that the command had ended.
    pub ended: Option<Moment>,
}

/// What the hub says about the commands of a mailbox after the run: the feedback, in which each stands once when it has
/// ended, and what waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    pub ended: Vec<Ended>,
    pub waiting: Vec<String>,
}

/// A record of feedback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub command: String,
    pub ending: Ending,
    /// By the hub's clock.
    pub at_ms: u64,
    pub deliveries: u32,
}
