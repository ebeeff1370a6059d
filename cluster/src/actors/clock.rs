//! The wall clock. Proposers stamp entries with it, from which apply takes the time; edges hold it against times that clients wrote.

use std::fmt;

use drover_core::ids::LogTime;

/// Where the time of new log entries comes from. Simulation brings its own.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    fn now(&self) -> LogTime;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place where the wall clock is read")]
    fn now(&self) -> LogTime {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        LogTime::new(since_1970.map_or(0, |since| since.as_millis() as u64))
    }
}
