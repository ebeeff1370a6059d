//! Open loop: a fixed rate, whatever the answers do.
//!
//! Each message has a time at which it should leave, and its latency runs from then: a hub that stalls for a second
//! cannot hide it by making the generator wait (coordinated omission). A thread of its own keeps the times, because
//! tokio's timer ticks in milliseconds and a message is acknowledged in less.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::report::{Report, Tally};
use super::request::{Kind, Requests};
use crate::fleet::Fleet;
use crate::load::idle;
use crate::mqtt::link::Link;

/// Requests in flight on one connection, at most: then it lags, and the lag is measured.
const IN_FLIGHT_MAX: usize = 4096;
/// Due messages that wait for a connection's task.
const DUE_MAX: usize = 4096;
const GRACE: Duration = Duration::from_secs(10);

/// What to do and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub kind: Kind,
    pub connections: usize,
    /// Messages a second over all connections.
    pub rate: u32,
    pub payload_bytes: usize,
    pub warm_up: Duration,
    pub duration: Duration,
}

impl Plan {
    pub fn new(kind: Kind, connections: usize, rate: u32, duration: Duration) -> Self {
        let warm_up = Duration::from_secs(1);
        Self { kind, connections, rate, payload_bytes: 200, warm_up, duration }
    }
}

/// Runs the devices 0 to `plan.connections` of `fleet` to the end of the plan.
pub async fn run(fleet: &Fleet, plan: &Plan) -> anyhow::Result<Report> {
    ensure!(plan.rate > 0 && plan.connections > 0, "an open loop needs a rate and connections");
    let (links, _) = idle::connect(fleet, 0..plan.connections).await?;
    let start = Instant::now() + Duration::from_millis(50);
    let measure_from = start + plan.warm_up;
    let end = measure_from + plan.duration;
    let mut tasks = JoinSet::new();
    let mut queues = Vec::new();
    for (number, mut link) in links {
        let requests =
            Requests::prepare(plan.kind, fleet, number, plan.payload_bytes, &mut link).await?;
        let (due, queue) = mpsc::channel(DUE_MAX);
        queues.push(due);
        let connection = Connection {
            link,
            requests,
            due_at: vec![None; IN_FLIGHT_MAX],
            next: 0,
            in_flight: 0,
            measure_from,
            tally: Tally::new(),
        };
        tasks.spawn(connection.run(queue, end + GRACE));
    }
    let rate = plan.rate;
    let pacer = thread::spawn(move || pace(&queues, start, end, rate));
    let mut total = Tally::new();
    let mut failed = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let (tally, error) = joined.context("a connection's task panicked")?;
        total.merge(&tally);
        failed.extend(error.map(|error| format!("{error:#}")));
    }
    // It has ended: it held the senders whose end the connections have seen, or they are gone and it sends to nobody.
    pacer.join().map_err(|_| anyhow::anyhow!("the pacing thread panicked"))?;
    Ok(total.report(plan.duration, failed))
}

/// Tells the connections, in turn, when a message is due.
fn pace(queues: &[mpsc::Sender<Instant>], start: Instant, end: Instant, rate: u32) {
    let interval = Duration::from_secs(1) / rate;
    let mut due = start;
    for queue in queues.iter().cycle() {
        if due >= end {
            return;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A connection that failed takes nothing more; its report says so.
        if queue.blocking_send(due).is_err() && queues.iter().all(mpsc::Sender::is_closed) {
            return;
        }
        due += interval;
    }
}

struct Connection {
    link: Link,
    requests: Requests,
    /// By slot: when the request in flight was due.
    due_at: Vec<Option<Instant>>,
    next: usize,
    in_flight: u64,
    measure_from: Instant,
    tally: Tally,
}

impl Connection {
    async fn run(
        mut self,
        queue: mpsc::Receiver<Instant>,
        give_up: Instant,
    ) -> (Tally, Option<anyhow::Error>) {
        let ended = self.drive(queue, give_up).await;
        self.tally.unanswered = self.in_flight;
        (self.tally, ended.err())
    }

    async fn drive(
        &mut self,
        mut queue: mpsc::Receiver<Instant>,
        give_up: Instant,
    ) -> anyhow::Result<()> {
        let give_up = sleep_until(give_up);
        tokio::pin!(give_up);
        let mut open = true;
        while open || self.in_flight > 0 {
            let has_room = self.due_at[self.next].is_none();
            tokio::select! {
                due = queue.recv(), if open && has_room => match due {
                    Some(due) => {
                        self.put(due);
                        self.link.flush().await?;
                    }
                    None => open = false,
                },
                filled = self.link.fill() => {
                    filled?;
                    self.take_answers()?;
                }
                () = &mut give_up => return Ok(()),
            }
        }
        Ok(())
    }

    fn put(&mut self, due: Instant) {
        self.requests.put(self.next as u16, &mut self.link.out);
        self.due_at[self.next] = Some(due);
        self.next = (self.next + 1) % self.due_at.len();
        self.in_flight += 1;
    }

    fn take_answers(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        while let Some(packet) = self.link.arrived()? {
            let Some(slot) = self.requests.answered(&packet)? else { continue };
            let due = self.due_at.get_mut(usize::from(slot)).and_then(Option::take);
            let due = due.with_context(|| format!("an answer for {slot}, not in flight"))?;
            self.in_flight -= 1;
            if due >= self.measure_from {
                self.tally.record(now - due);
            }
        }
        Ok(())
    }
}
