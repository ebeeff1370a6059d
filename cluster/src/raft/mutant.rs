//! Mistakes of the shell around apply (`drover_core::mutants`): the simulation must find them.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;

use drover_core::feedback::Feedback;
use drover_core::ids::LogTime;
use tokio::time::Instant;

/// The time of an entry as a replica sees it that looks at its own clock: it applies it a little later than the others, or
/// much later.
pub(super) fn local_time(at: LogTime) -> LogTime {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let passed = STARTED.get_or_init(Instant::now).elapsed();
    at.plus_ms(passed.as_millis() as u64)
}

/// Another order in each replica.
pub(super) fn order_by_hash(feedback: &mut [Feedback]) {
    let hashes = RandomState::new();
    feedback.sort_by_cached_key(|ended| hashes.hash_one(&ended.command));
}
