//! Failed logins, counted so that guessing and retrying for ever get slow (S-15).
//!
//! A device that keeps failing at one address is refused there unheard, which spares the cluster the look-up; at other
//! addresses it is heard, so nobody can lock a device out from afar. An address where many fail may be a whole site behind
//! NAT, so only its refusals get slow: whoever proves a claim there waits for nothing. What is remembered is bounded,
//! however many ids are tried, and holds no ids.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use drover_core::ids::DeviceId;
use tokio::time::Instant;

/// Failures are counted for so long, from the first one on.
const WINDOW: Duration = Duration::from_mins(1);
/// An address may fail as often as so many devices.
const DEVICES_AT_AN_ADDRESS: u32 = 10;
/// Devices, and addresses, that are remembered: with 32 bytes each, half a megabyte.
const ENTRIES_MAX: usize = 16_384;
/// A full table is swept no more often than this.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// What a refusal waits that comes too often. The socket keeps its place among the half-open ones meanwhile.
pub(super) const REFUSAL_PAUSE: Duration = Duration::from_secs(2);

/// The failures of all listeners of a node.
#[derive(Debug)]
pub(super) struct Attempts {
    /// Of one device at one address; `None` is no limit.
    failures_max: Option<u32>,
    /// Seeded by the process, so that nobody can choose ids whose hashes are equal.
    hasher: RandomState,
    devices: Mutex<Failures>,
    addresses: Mutex<Failures>,
}

impl Attempts {
    /// 0 is no limit.
    pub(super) fn new(failures_max: u32, now: Instant) -> Self {
        Self {
            failures_max: (failures_max > 0).then_some(failures_max),
            hasher: RandomState::new(),
            devices: Mutex::new(Failures::new(now)),
            addresses: Mutex::new(Failures::new(now)),
        }
    }

    /// Whether a claim of this device is heard.
    pub(super) fn may_try(&self, address: IpAddr, device: &DeviceId, now: Instant) -> bool {
        let Some(failures_max) = self.failures_max else { return true };
        lock(&self.devices).count(self.device_key(address, device), now) < failures_max
    }

    /// Counts a claim that was not proved; says how long its refusal has to wait.
    pub(super) fn failed(&self, address: IpAddr, device: &DeviceId, now: Instant) -> Duration {
        let Some(failures_max) = self.failures_max else { return Duration::ZERO };
        lock(&self.devices).add(self.device_key(address, device), now);
        let at_address = lock(&self.addresses).add(self.hasher.hash_one(site(address)), now);
        let may_be_quick = at_address <= failures_max.saturating_mul(DEVICES_AT_AN_ADDRESS);
        if may_be_quick { Duration::ZERO } else { REFUSAL_PAUSE }
    }

    /// Forgets what the device has failed there before.
    pub(super) fn succeeded(&self, address: IpAddr, device: &DeviceId) {
        lock(&self.devices).forget(self.device_key(address, device));
    }

    fn device_key(&self, address: IpAddr, device: &DeviceId) -> u64 {
        self.hasher.hash_one((site(address), device.as_str()))
    }
}

/// A client has a whole network of addresses in IPv6.
fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => IpAddr::V4(address),
            None => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        },
    }
}

fn lock(failures: &Mutex<Failures>) -> MutexGuard<'_, Failures> {
    failures.lock().expect("nobody panics with the failures in hand")
}

/// Failures by the hash of who failed.
#[derive(Debug)]
struct Failures {
    windows: HashMap<u64, Window>,
    swept: Instant,
}

#[derive(Debug)]
struct Window {
    until: Instant,
    count: u32,
}

impl Failures {
    fn new(now: Instant) -> Self {
        Self { windows: HashMap::new(), swept: now }
    }

    fn count(&self, key: u64, now: Instant) -> u32 {
        let window = self.windows.get(&key).filter(|window| now < window.until);
        window.map_or(0, |window| window.count)
    }

    /// How many there are with this one. Where there is no room left it is not remembered: forgetting others for it would
    /// let whoever tries many ids forgive himself.
    fn add(&mut self, key: u64, now: Instant) -> u32 {
        if self.windows.len() >= ENTRIES_MAX {
            self.sweep(now);
        }
        let count = self.count(key, now).saturating_add(1);
        let has_room = self.windows.len() < ENTRIES_MAX;
        match self.windows.get_mut(&key) {
            Some(window) if count > 1 => window.count = count,
            Some(window) => *window = Window { until: now + WINDOW, count },
            None if has_room => {
                self.windows.insert(key, Window { until: now + WINDOW, count });
            }
            None => {}
        }
        count
    }

    fn forget(&mut self, key: u64) {
        self.windows.remove(&key);
    }

    fn sweep(&mut self, now: Instant) {
        if now < self.swept + SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        self.windows.retain(|_, window| now < window.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 10;
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn device(number: u32) -> DeviceId {
        format!("device-{number}").parse().expect("a legal id")
    }

    fn locked(address: IpAddr, id: &DeviceId, now: Instant) -> Attempts {
        let attempts = Attempts::new(LIMIT, now);
        for _ in 0..LIMIT {
            assert!(attempts.may_try(address, id, now));
            attempts.failed(address, id, now);
        }
        attempts
    }

    #[test]
    fn a_device_that_keeps_failing_is_not_heard_for_a_minute() {
        let now = Instant::now();
        let attempts = locked(HERE, &device(1), now);
        assert!(!attempts.may_try(HERE, &device(1), now));
        assert!(attempts.may_try(HERE, &device(1), now + WINDOW));
        assert_eq!(attempts.failed(HERE, &device(1), now + WINDOW), Duration::ZERO);
        assert!(attempts.may_try(HERE, &device(1), now + WINDOW), "it counts from one again");
    }

    #[test]
    fn it_locks_out_neither_its_neighbours_nor_itself_at_another_address() {
        let now = Instant::now();
        let attempts = locked(HERE, &device(1), now);
        assert!(attempts.may_try(HERE, &device(2), now));
        assert_eq!(attempts.failed(HERE, &device(2), now), Duration::ZERO);
        assert!(attempts.may_try(ELSEWHERE, &device(1), now));
    }

    #[test]
    fn a_success_forgives_what_failed_before() {
        let now = Instant::now();
        let attempts = Attempts::new(LIMIT, now);
        for _ in 0..3 * LIMIT {
            attempts.failed(HERE, &device(1), now);
            attempts.succeeded(HERE, &device(1));
        }
        assert!(attempts.may_try(HERE, &device(1), now));
    }

    #[test]
    fn an_address_that_tries_many_ids_gets_its_refusals_late_and_its_memory_is_bounded() {
        let now = Instant::now();
        let attempts = Attempts::new(LIMIT, now);
        let late = (0..100_000)
            .filter(|number| attempts.failed(HERE, &device(*number), now) == REFUSAL_PAUSE);
        assert_eq!(late.count(), 100_000 - (LIMIT * DEVICES_AT_AN_ADDRESS) as usize);
        assert_eq!(lock(&attempts.devices).windows.len(), ENTRIES_MAX);
        attempts.failed(HERE, &device(1), now + WINDOW);
        assert_eq!(lock(&attempts.devices).windows.len(), 1, "what is over makes room");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_no_limit_is_none() {
        let address = |text: &str| text.parse().expect("an address");
        assert_eq!(site(address("2001:db8::1")), site(address("2001:db8::2:1")));
        assert_ne!(site(address("2001:db8::1")), site(address("2001:db8:0:1::1")));
        assert_eq!(site(address("::ffff:10.0.0.1")), ELSEWHERE);
        let now = Instant::now();
        let attempts = Attempts::new(0, now);
        for _ in 0..1_000 {
            assert_eq!(attempts.failed(HERE, &device(1), now), Duration::ZERO);
        }
        assert!(attempts.may_try(HERE, &device(1), now));
    }
}
