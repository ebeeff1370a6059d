//! Devices that have lost their connection and are all back at once: nobody can rely on a back-off of theirs.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;
use crate::mqtt::link::Link;

/// Whoever was turned away tries again so much later. All at once and without a pause would measure the generator alone.
const RETRY: Duration = Duration::from_millis(250);

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
