//! Mistakes that somebody could make, so that the simulation can be seen to find them: a check that cannot fail proves
//! nothing.
//!
//! They are chosen in the running process and not by a feature of cargo, because a second build of everything would
//! cost each test run minutes. Only the simulation calls [`plant`]; no configuration, environment or request of a node
//! leads there, and `tests/tests/tidy.rs` fails if anything in the product ever names it. Unplanted, a mutant costs the
//! product one load of a static.

use std::str::FromStr;
use std::sync::OnceLock;

/// A mistake. At most one is planted in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A message is acknowledged when it is proposed (P1).
    AcknowledgeBeforeCommit,
    /// Whoever was once connected may go on speaking (P4).
    NoEpochCheck,
    /// What was applied and how far are stored one after the other, not together (P2).
    AppliedIndexOutsideBatch,
    /// A command that its device has completed waits again (P3).
    CompletedAgain,
    /// A newer command of a key leaves the older ones in the mailbox (P3).
    SupersededStays,
    /// A command that has expired expires again (P3).
    ExpiresTwice,
    /// Raft is told that entries are durable before they are (P1).
    CommitBeforeFsync,
    /// A leader reads without asking whether it still is one (P2).
    ReadWithoutBarrier,
    /// A replica takes the time from its own clock and not from the entry (P2, P3).
    LocalClock,
    /// What one change ends is put down in the order of a hash (P3).
    HashOrder,
    /// A snapshot leaves the mailboxes out (P3).
    SnapshotWithoutMailbox,
    /// A connection is told its epoch by a leader that has it in its memory only (P4).
    EpochInMemory,
    /// A node that joins in the place of one that was removed gets its id (I-35).
    NodeIdReused,
    /// Who may publish to a topic is decided by how it begins (P5).
    AccessByPrefix,
    /// A scan that meets a damaged record ends there as if there were no more (P1, I-34).
    IteratorStatusIgnored,
}

impl Mutation {
    pub const ALL: [Self; 15] = [
        Self::AcknowledgeBeforeCommit,
        Self::NoEpochCheck,
        Self::AppliedIndexOutsideBatch,
        Self::CompletedAgain,
        Self::SupersededStays,
        Self::ExpiresTwice,
        Self::CommitBeforeFsync,
        Self::ReadWithoutBarrier,
        Self::LocalClock,
        Self::HashOrder,
        Self::SnapshotWithoutMailbox,
        Self::EpochInMemory,
        Self::NodeIdReused,
        Self::AccessByPrefix,
        Self::IteratorStatusIgnored,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeCommit => "ack-before-commit",
            Self::NoEpochCheck => "no-epoch-check",
            Self::AppliedIndexOutsideBatch => "applied-index-outside-batch",
            Self::CompletedAgain => "completed-again",
            Self::SupersededStays => "superseded-stays",
            Self::ExpiresTwice => "expires-twice",
            Self::CommitBeforeFsync => "commit-before-fsync",
            Self::ReadWithoutBarrier => "read-without-barrier",
            Self::LocalClock => "local-clock",
            Self::HashOrder => "hash-order",
            Self::SnapshotWithoutMailbox => "snapshot-without-mailbox",
            Self::EpochInMemory => "epoch-in-memory",
            Self::NodeIdReused => "node-id-reused",
            Self::AccessByPrefix => "access-by-prefix",
            Self::IteratorStatusIgnored => "iterator-status-ignored",
        }
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mutation| mutation.name() == name);
        found.ok_or_else(|| {
            format!("there is no mutant {name}, only {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

static PLANTED: OnceLock<Mutation> = OnceLock::new();

/// From here on this process makes the mistake. The first one stays.
pub fn plant(mutation: Mutation) {
    PLANTED.get_or_init(|| mutation);
}

pub fn is_planted(mutation: Mutation) -> bool {
    PLANTED.get() == Some(&mutation)
}
