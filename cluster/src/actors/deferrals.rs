//! Devices that were sent to a node of a newer build, so that an upgrade interrupts them once and not with each node again.
//!
//! It is a request and no rule: a device that comes back all the same is taken after a while, because the newer nodes may be
//! full, or out of its reach.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use drover_core::ids::DeviceId;
use tokio::time::Instant;

/// A device is sent away for so long. Devices try again within seconds, through a load balancer that knows more nodes.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so long it is another connection that is meant.
const REMEMBERED: Duration = Duration::from_mins(1);
/// Devices that are remembered. One more is taken at once.
const DEVICES_MAX: usize = 16_384;

/// When each device was first sent away.
#[derive(Debug, Default)]
pub(super) struct Deferrals {
    since: Mutex<BTreeMap<DeviceId, Instant>>,
}

impl Deferrals {
    /// Whether to send the device away once more.
    pub(super) fn defer(&self, device: &DeviceId, now: Instant) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = since.get(device).map(|first| now.duration_since(*first));
        if let Some(waited) = waited.filter(|waited| *waited < REMEMBERED) {
            return waited < PATIENCE;
        }
        if since.len() >= DEVICES_MAX {
            since.retain(|_, first| now.duration_since(*first) < REMEMBERED);
        }
        let has_room = since.len() < DEVICES_MAX;
        if has_room {
            since.insert(device.clone(), now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: usize) -> DeviceId {
        format!("pump-{number}").parse().expect("a legal id")
    }

    #[tokio::test]
    async fn a_device_that_keeps_coming_is_taken_in_the_end() {
        let (deferrals, start) = (Deferrals::default(), Instant::now());
        assert!(deferrals.defer(&device(1), start));
        assert!(deferrals.defer(&device(1), start + PATIENCE / 2));
        assert!(!deferrals.defer(&device(1), start + PATIENCE));
        assert!(deferrals.defer(&device(2), start + PATIENCE), "another one has its own time");
        assert!(deferrals.defer(&device(1), start + REMEMBERED), "this is another connection");
    }

    #[tokio::test]
    async fn of_too_many_devices_the_rest_is_taken_at_once() {
        let (deferrals, start) = (Deferrals::default(), Instant::now());
        let deferred =
            (0..DEVICES_MAX + 10).filter(|n| deferrals.defer(&device(*n), start)).count();
        assert_eq!(deferred, DEVICES_MAX);
        assert!(
            deferrals.defer(&device(DEVICES_MAX), start + REMEMBERED),
            "and later there is room"
        );
    }
}
