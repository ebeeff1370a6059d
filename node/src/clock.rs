//! The wall clock, read in this one place. Deadlines use tokio's clock; only what is compared with a time that a
//! client or an operator wrote (a token's expiry, a certificate's dates) needs this one.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC. A clock set before 1970 reads 0, which lets every token live: like any node with
/// a wrong clock, such a node is wrong about new connections only (S-12 in docs/testing.md).
#[expect(
    clippy::disallowed_methods,
    reason = "tokens carry a wall-clock expiry; everything else gets time as an argument"
)]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
