//! Devices that send one message after the other, whatever becomes of their nodes: what is lost is the connection, and they take the
//! next node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::fleet::Fleet;
use crate::mqtt::codec::{self, Packet};
use crate::mqtt::link::Link;

/// A hub answers with the end of the connection long before.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
const PAYLOAD_BYTES: usize = 200;

/// What has become of one device.
#[derive(Debug, Default)]
struct Seen {
    acked: AtomicU64,
    lost: AtomicU64,
    worst_us: AtomicU64,
}

/// Devices under way; they end when this is dropped.
pub struct Steady {
    seen: Vec<Arc<Seen>>,
    _devices: JoinSet<()>,
}

impl Steady {
    /// Starts the first `count` devices of the fleet, with one message in flight each and `pause` between an acknowledgement and
    /// the next message.
    pub fn start(fleet: &Fleet, count: usize, pause: Duration) -> Self {
        let mut devices = JoinSet::new();
        let seen: Vec<Arc<Seen>> = (0..count).map(|_| Arc::default()).collect();
        for (number, seen) in seen.iter().enumerate() {
            let device = Device { fleet: fleet.clone(), number, pause, seen: Arc::clone(seen) };
            devices.spawn(device.run());
        }
        Self { seen, _devices: devices }
    }

    /// Messages that were acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.seen.iter().map(|seen| seen.acked.load(Ordering::Relaxed)).sum()
    }

    /// Connections that ended so far.
    pub fn lost(&self) -> u64 {
        self.seen.iter().map(|seen| seen.lost.load(Ordering::Relaxed)).sum()
    }

    /// Of each device: the longest that an acknowledgement has taken since this was asked last. What waits still does not count.
    pub fn take_worst(&self) -> Vec<Duration> {
        let worst =
            |seen: &Arc<Seen>| Duration::from_micros(seen.worst_us.swap(0, Ordering::Relaxed));
        self.seen.iter().map(worst).collect()
    }
}

struct Device {
    fleet: Fleet,
    number: usize,
    pause: Duration,
    seen: Arc<Seen>,
}

impl Device {
    async fn run(self) {
        let topic = self.fleet.topic(self.number);
        for attempt in 0.. {
            let addresses = &self.fleet.addresses;
            let address = addresses[(self.number + attempt) % addresses.len()];
            let Ok(mut link) = self.fleet.connect_to(self.number, address).await else {
                sleep(RETRY).await;
                continue;
            };
            while self.send(&mut link, &topic).await.is_ok() {
                sleep(self.pause).await;
            }
            self.seen.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn send(&self, link: &mut Link, topic: &str) -> anyhow::Result<()> {
        let sent = Instant::now();
        codec::put_publish(&mut link.out, topic, Some(1), &[0; PAYLOAD_BYTES]);
        link.flush().await?;
        let acknowledged = async {
            while link.next().await? != (Packet::PubAck { id: 1 }) {}
            anyhow::Ok(())
        };
        timeout(ANSWER_TIMEOUT, acknowledged).await??;
        self.seen.acked.fetch_add(1, Ordering::Relaxed);
        let took = sent.elapsed().as_micros() as u64;
        self.seen.worst_us.fetch_max(took, Ordering::Relaxed);
        Ok(())
    }
}
