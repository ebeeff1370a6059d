//! Who may enter: ractor's inboxes have no limit, so a request needs permits before it is put into one (P6).
//!
//! A permit counts a request and its bytes until it is answered, for the node, its shard and its device. What finds no
//! permit is refused at once as busy; nothing is buffered outside the limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::config::Rate;
use crate::metrics;
use crate::wire::request::Failure;

/// Counts what is inside.
#[derive(Debug)]
pub(super) struct Gauge {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    requests_max: usize,
    bytes_max: usize,
}

impl Gauge {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Arc<Self> {
        let zero = AtomicUsize::default;
        Arc::new(Self { requests: zero(), bytes: zero(), requests_max, bytes_max })
    }

    /// `None`: it is full. One request of whatever size enters an empty gauge.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let permit = Permit { gauge: Arc::clone(self), bytes };
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before.saturating_add(bytes) <= self.bytes_max;
        // A permit that does not fit is given back by its drop.
        (requests < self.requests_max && fits).then_some(permit)
    }

    /// Enters, or says that `what` is full.
    pub(super) fn admit(
        self: &Arc<Self>,
        bytes: usize,
        what: impl FnOnce() -> String,
    ) -> Result<Permit, Failure> {
        self.enter(bytes).ok_or_else(|| {
            metrics::refused("busy");
            Failure::Busy { what: what() }
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0 && self.bytes.load(Ordering::Relaxed) == 0
    }
}

/// The right to wait inside; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gauge.requests.fetch_sub(1, Ordering::Relaxed);
        self.gauge.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A token bucket: a device's messages.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst, filled: now }
    }

    /// Whether so many messages may be sent now. More than the burst at once may be sent when the bucket is full, or
    /// they never could be.
    pub(super) fn take(&mut self, messages: usize, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + since * self.rate.messages_per_second).min(self.rate.burst);
        #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 messages")]
        let needed = messages as f64;
        let may = self.tokens >= needed.min(self.rate.burst);
        if may {
            self.tokens -= needed;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_gauge_refuses_and_a_dropped_permit_makes_room() {
        let gauge = Gauge::new(2, 100);
        let first = gauge.enter(10).expect("room");
        let second = gauge.enter(10).expect("room");
        assert!(gauge.enter(10).is_none(), "two requests are the limit");
        drop(second);
        assert!(gauge.enter(91).is_none(), "a hundred bytes are the limit");
        drop((first, gauge.enter(90).expect("exactly the limit")));
        assert!(gauge.is_empty());
        assert!(gauge.enter(101).is_some(), "an empty gauge takes a request of any size");
    }

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { messages_per_second: 10.0, burst: 5.0 }, start);
        assert!(bucket.take(5, start));
        assert!(!bucket.take(1, start));
        assert!(bucket.take(1, start + Duration::from_millis(100)));
        assert!(!bucket.take(1, start + Duration::from_millis(150)));
        let later = start + Duration::from_mins(1);
        assert!(bucket.take(8, later), "a batch larger than the burst passes a full bucket");
        assert!(!bucket.take(1, later + Duration::from_millis(300)), "and is paid for afterwards");
    }
}
