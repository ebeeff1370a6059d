//! Closed loop: each connection keeps a window of requests in flight for a while.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::report::{Report, Tally};
use super::request::{Kind, Requests};
use crate::fleet::Fleet;
use crate::load::idle;
use crate::mqtt::link::Link;

/// After the end of a run its last requests get this long to be answered.
const GRACE: Duration = Duration::from_secs(10);

/// What to do and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub kind: Kind,
    pub connections: usize,
    /// Requests in flight on each connection: 1 to 65,534.
    pub window: u16,
    pub payload_bytes: usize,
    /// Not measured: caches fill, leaders settle.
    pub warm_up: Duration,
    pub duration: Duration,
    /// End earlier once each connection has sent so many.
    pub requests_max: Option<u64>,
}

impl Plan {
    /// 200-byte messages, a second of warming up.
    pub fn new(kind: Kind, connections: usize, window: u16, duration: Duration) -> Self {
        let warm_up = Duration::from_secs(1);
        let requests_max = None;
        Self { kind, connections, window, payload_bytes: 200, warm_up, duration, requests_max }
    }
}

/// Runs the devices 0 to `plan.connections` of `fleet` to the end of the plan.
pub async fn run(fleet: &Fleet, plan: &Plan) -> anyhow::Result<Report> {
    ensure!((1..u16::MAX).contains(&plan.window), "the window must be 1 to 65,534");
    let (links, _) = idle::connect(fleet, 0..plan.connections).await?;
    let mut loops = Vec::new();
    for (number, mut link) in links {
        let requests =
            Requests::prepare(plan.kind, fleet, number, plan.payload_bytes, &mut link).await?;
        loops.push(Loop::new(link, requests, plan.window));
    }
    let times = Times::from_now(plan);
    let mut tasks = JoinSet::new();
    for connection in loops {
        tasks.spawn(connection.run(times));
    }
    let mut total = Tally::new();
    let mut failed = Vec::new();
    let mut last = times.measure_from;
    while let Some(joined) = tasks.join_next().await {
        let (tally, ended, error) = joined.context("a connection's task panicked")?;
        total.merge(&tally);
        last = last.max(ended);
        failed.extend(error.map(|error| format!("{error:#}")));
    }
    let elapsed = last.min(times.end).saturating_duration_since(times.measure_from);
    ensure!(!elapsed.is_zero(), "nothing was measured: {failed:?}");
    Ok(total.report(elapsed, failed))
}

#[derive(Clone, Copy)]
struct Times {
    measure_from: Instant,
    end: Instant,
    requests_max: u64,
}

impl Times {
    fn from_now(plan: &Plan) -> Self {
        let measure_from = Instant::now() + plan.warm_up;
        let requests_max = plan.requests_max.unwrap_or(u64::MAX);
        Self { measure_from, end: measure_from + plan.duration, requests_max }
    }
}

/// One connection.
struct Loop {
    link: Link,
    requests: Requests,
    sent_at: Vec<Option<Instant>>,
    in_flight: u64,
    sent: u64,
    tally: Tally,
}

impl Loop {
    fn new(link: Link, requests: Requests, window: u16) -> Self {
        let sent_at = vec![None; usize::from(window)];
        Self { link, requests, sent_at, in_flight: 0, sent: 0, tally: Tally::new() }
    }

    async fn run(mut self, times: Times) -> (Tally, Instant, Option<anyhow::Error>) {
        let ended = self.drive(times).await;
        self.tally.unanswered = self.in_flight;
        (self.tally, Instant::now(), ended.err())
    }

    async fn drive(&mut self, times: Times) -> anyhow::Result<()> {
        let start = Instant::now();
        for slot in 0..self.sent_at.len() {
            self.put(slot as u16, start);
        }
        let give_up = sleep_until(times.end + GRACE);
        tokio::pin!(give_up);
        while self.in_flight > 0 {
            self.link.flush().await?;
            tokio::select! {
                filled = self.link.fill() => filled?,
                () = &mut give_up => return Ok(()),
            }
            let now = Instant::now();
            while let Some(packet) = self.link.arrived()? {
                if let Some(slot) = self.requests.answered(&packet)? {
                    self.answered(slot, now, times)?;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, slot: u16, now: Instant) {
        self.requests.put(slot, &mut self.link.out);
        self.sent_at[usize::from(slot)] = Some(now);
        self.in_flight += 1;
        self.sent += 1;
    }

    fn answered(&mut self, slot: u16, now: Instant, times: Times) -> anyhow::Result<()> {
        let sent = self.sent_at.get_mut(usize::from(slot)).and_then(Option::take);
        let sent = sent.with_context(|| format!("an answer for {slot}, which is not in flight"))?;
        self.in_flight -= 1;
        if now >= times.measure_from && now < times.end {
            self.tally.record(now - sent);
        }
        if now < times.end && self.sent < times.requests_max {
            self.put(slot, now);
        }
        Ok(())
    }
}
