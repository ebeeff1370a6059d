//! Panics of a run. The runtime catches those of tasks and ractor those of actors, and both go on without what has died;
//! in a simulation each one is a finding.

use std::panic;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::promises::Violation;

/// Of this process: a seed has one of its own.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn seen() -> MutexGuard<'static, Vec<String>> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes every panic from here on.
pub(super) fn watch() {
    let former = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        seen().push(panicked.to_string());
        former(panicked);
    }));
}

pub(super) fn violations() -> Vec<Violation> {
    let take = |text: String| Violation::new("no panic", "the product", text);
    std::mem::take(&mut *seen()).into_iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_a_runtime_would_catch_is_found() {
        watch();
        let died = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(died.is_err());
        let found = violations();
        assert!(found.iter().any(|violation| violation.seen.contains("on purpose")), "{found:?}");
    }
}
