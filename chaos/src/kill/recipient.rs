//! A device of the kill test that commands and calls come to: it deals with most, forgets some, and breaks its connection
//! off in between.
//!
//! It subscribes once and never again: later connections live on the stored subscriptions (I-26). Its telemetry is a probe:
//! a session answers in order, so the PUBACK of a message says that what the device sent before has been dealt with, and
//! that whatever the hub sends afterwards was sent after the message.

mod session;

pub(super) use self::session::LOCK_MAX;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use self::session::{End, Session};
use super::clock::Clock;
use crate::fleet::Fleet;
use crate::history::commands::{Delivery, Opened};
use crate::history::methods::Execution;
use crate::history::{DeviceHistory, Moment};
use crate::mqtt::link::Link;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A device that breaks off comes back after this long, or sleeps for a while.
const AWAY_MS: std::ops::Range<u64> = 20..200;
const ASLEEP_MS: std::ops::Range<u64> = 500..2_500;

/// How the devices are to behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// As the seed wants it.
    Moody,
    /// Faults are over: deal with everything at once.
    Diligent,
    Done,
}

pub(super) struct Recipient {
    number: usize,
    fleet: Arc<Fleet>,
    clock: Clock,
    random: StdRng,
    seen: Seen,
    is_subscribed: bool,
    next_sequence: u64,
    answers: u64,
}

/// What a recipient did and saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) telemetry: DeviceHistory,
    pub(super) connections: Vec<Opened>,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) executions: Vec<Execution>,
}

impl Recipient {
    pub(super) fn new(
        number: usize,
        shard: u32,
        fleet: Arc<Fleet>,
        clock: Clock,
        seed: u64,
    ) -> Self {
        let device = fleet.id(number);
        let telemetry = DeviceHistory { device, shard, ..DeviceHistory::default() };
        let seen = Seen { telemetry, ..Seen::default() };
        let random = StdRng::seed_from_u64(seed);
        let (next_sequence, answers, is_subscribed) = (0, 0, false);
        Self { number, fleet, clock, random, seen, is_subscribed, next_sequence, answers }
    }

    /// Lives until it is done.
    pub(super) async fn run(mut self, mut mood: watch::Receiver<Mood>) -> Seen {
        let mut address = self.number;
        while *mood.borrow() != Mood::Done {
            let end = match self.connect(address).await {
                Ok((link, begun)) => Session::new(&mut self, link, begun).run(&mut mood).await,
                Err(error) => Err(error),
            };
            let sleeps = match end {
                Ok(End::Done) => break,
                Ok(End::BrokenOff) => self.random.random_bool(0.4),
                Err(error) => {
                    tracing::debug!(device = self.seen.telemetry.device, "{error:#}");
                    false
                }
            };
            address += 1;
            let sleeps = sleeps && *mood.borrow() == Mood::Moody;
            let away_ms = self.random.random_range(if sleeps { ASLEEP_MS } else { AWAY_MS });
            sleep(Duration::from_millis(away_ms)).await;
        }
        self.seen
    }

    async fn connect(&mut self, address: usize) -> anyhow::Result<(Link, Moment)> {
        let addresses = &self.fleet.addresses;
        let address = addresses[address % addresses.len()];
        let begun = self.clock.moment();
        let link = timeout(CONNECT_TIMEOUT, self.fleet.connect_to(self.number, address)).await??;
        self.seen.telemetry.connections += 1;
        let number = u64::from(self.seen.telemetry.connections);
        self.seen.connections.push(Opened { number, begun });
        Ok((link, begun))
    }
}
