//! The promises, as checks of what clients saw against what the cluster kept.
//!
//! Each file is a promise. The checks are pure, so that their own tests can plant a violation and see it found: a check
//! that cannot fail proves nothing.

pub mod linearizable;
pub mod p1_telemetry;
pub mod p2_twin;
pub mod p3_commands;
pub mod p4_methods;
pub mod restored;
pub mod twin_section;

use serde::Serialize;

use p1_telemetry::Telemetry;
use p2_twin::Twins;
use p3_commands::Commands;
use p4_methods::Methods;

/// What the checks of all promises say of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checked {
    pub telemetry: Telemetry,
    pub twins: Twins,
    pub commands: Commands,
    pub methods: Methods,
}

impl Checked {
    pub fn violations(&self) -> impl Iterator<Item = &Violation> {
        let Self { telemetry, twins, commands, methods } = self;
        let of_state = telemetry.violations.iter().chain(&twins.violations);
        of_state.chain(&commands.violations).chain(&methods.violations)
    }

    /// With so many messages acknowledged and none lost, at most this share is lost at 95 % confidence.
    pub fn loss_bound(&self) -> f64 {
        3.0 / self.telemetry.acknowledged.max(1) as f64
    }
}

/// A broken promise: which invariant, of what, and what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub invariant: &'static str,
    pub subject: String,
    pub seen: String,
}

impl Violation {
    pub fn new(
        invariant: &'static str,
        subject: impl Into<String>,
        seen: impl Into<String>,
    ) -> Self {
        Self { invariant, subject: subject.into(), seen: seen.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.invariant, self.subject, self.seen)
    }
}
