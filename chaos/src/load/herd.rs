//! Devices that have lost their connection and are all back at once: without a back-off, which nobody can rely on.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;
use crate::mqtt::link::Link;

/// Between two attempts of one device: no back-off, and no busy loop either.
const RETRY: Duration = Duration::from_millis(20);

/// Tries the addresses of `fleet` in turn until device `number` is connected; how long the attempt took that succeeded. Ends
/// no other way: whoever calls it has a limit.
pub async fn come_back(fleet: &Fleet, number: usize) -> (Duration, Link) {
    let mut turn = number;
    loop {
        let begin = Instant::now();
        let address = fleet.addresses[turn % fleet.addresses.len()];
        match fleet.connect_to(number, address).await {
            Ok(link) => return (begin.elapsed(), link),
            Err(error) => tracing::debug!(number, "{error:#}"),
        }
        turn += 1;
        sleep(RETRY).await;
    }
}
