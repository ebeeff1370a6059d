//! The time of a run: one clock for the order of events, and what the hub's clock says meanwhile.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::history::Moment;

/// Begins with the run. All nodes are on this machine, so its wall clock is theirs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    begin: Instant,
    begin_unix_ms: u64,
}

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the hub's times are dates, and are compared with this"
    )]
    pub(super) fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { begin: Instant::now(), begin_unix_ms: since_1970.as_millis() as u64 }
    }

    pub(super) fn begin(&self) -> Instant {
        self.begin
    }

    /// Microseconds since the run began.
    pub(super) fn moment(&self) -> Moment {
        self.begin.elapsed().as_micros() as u64
    }

    pub(super) fn unix_ms(&self) -> u64 {
        self.unix_ms_at(self.moment())
    }

    pub(super) fn unix_ms_at(&self, moment: Moment) -> u64 {
        self.begin_unix_ms + moment / 1_000
    }
}
