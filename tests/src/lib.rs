//! What the tests of whole processes stand on: real nodes, clients, and waiting for a condition.

pub mod balancer;
pub mod certificates;
pub mod clients;
pub mod nodes;
pub mod programs;
pub mod websocket;

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a condition may take on a machine whose two cores are busy with other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `is_met` says that the state is as it should be; answers with that state. A test waits for a condition and
/// never for a duration; when it waits in vain the last state that was seen tells why.
pub async fn until<S: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> S,
    is_met: impl Fn(&S) -> bool,
) -> S {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = look().await;
        if is_met(&state) {
            return state;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}; last seen: {state:?}");
        sleep(PAUSE).await;
    }
}

/// Repeats a call until it succeeds.
pub async fn until_ok<T: Debug, E: Debug>(
    what: &str,
    call: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    until(what, call, Result::is_ok).await.expect("the condition was that it is Ok")
}
