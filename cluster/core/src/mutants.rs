//! Mistakes that somebody could make, so that the simulation can be seen to find them: a check that cannot fail proves
//! nothing. This file exists only with the feature `mutants`, which nothing but `make sim-mutants` switches on.

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
}

impl Mutation {
    pub const ALL: [(&str, Self); 3] = [
        ("ack-before-commit", Self::AcknowledgeBeforeCommit),
        ("no-epoch-check", Self::NoEpochCheck),
        ("applied-index-outside-batch", Self::AppliedIndexOutsideBatch),
    ];
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, mutation)| *mutation).ok_or_else(|| format!("there is no mutant {name}"))
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
