//! Commands: how long one takes from being sent to its device and to its completion, many with one call, mailboxes that fill.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_proto::admin::read_feedback_request::From as ReadFrom;
use drover_proto::admin::send_commands_result::Result as Sent;
use drover_proto::admin::{
    Acknowledgement, ReadFeedbackRequest, SendCommandRequest, SendCommandsRequest,
};
use futures::{Stream, stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::recipients::{Recipients, Taken, all_taken, body};
use super::report::{Report, Tally};
use crate::fleet::Fleet;
use crate::nodes::backend::Backend;

/// Commands in one message of a call that sends many.
const TOGETHER: usize = 100;
/// Mailboxes that one call fills together, each a command at a time. Few, so that the end of the time is kept.
const GROUP: usize = 10;
/// Commands and endings that wait for a task.
const QUEUE_MAX: usize = 4096;

/// Commands at a fixed rate, whatever becomes of them.
#[derive(Debug, Clone)]
pub struct Pace {
    pub devices: usize,
    /// Commands a second over all devices.
    pub rate: u32,
    pub duration: Duration,
    /// How many nodes on from that of its connection a device's commands are sent: 0 is the same node.
    pub away: usize,
    pub shards: u32,
}

/// Latencies run from when a command should have been sent.
#[derive(Debug)]
pub struct Latencies {
    pub delivered: Report,
    /// Until a reader of the feedback knows it.
    pub completed: Report,
}

/// When which command should be sent.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    start: Instant,
    interval: Duration,
    count: u32,
}

impl Schedule {
    fn new(plan: &Pace) -> Self {
        let interval = Duration::from_secs(1) / plan.rate;
        let count = (f64::from(plan.rate) * plan.duration.as_secs_f64()) as u32;
        Self { start: Instant::now() + Duration::from_millis(50), interval, count }
    }

    fn due(&self, number: u32) -> Instant {
        self.start + self.interval * number
    }

    /// Says each number when it is due, from a thread of its own: tokio's timer ticks in milliseconds.
    fn run(self) -> mpsc::Receiver<u32> {
        let (ticks, ticking) = mpsc::channel(QUEUE_MAX);
        thread::spawn(move || {
            for number in 0..self.count {
                thread::sleep(self.due(number).saturating_duration_since(Instant::now()));
                if ticks.blocking_send(number).is_err() {
                    return;
                }
            }
        });
        ticking
    }

    fn report(&self, times: &BTreeMap<u64, Instant>) -> Report {
        let mut tally = Tally::new();
        for (number, at) in (0..self.count).zip(times.values()) {
            tally.record(at.saturating_duration_since(self.due(number)));
        }
        tally.report(self.interval * self.count, Vec::new())
    }
}

/// Sends to recipients that were connected by this fleet.
pub async fn pace(
    fleet: &Fleet,
    backends: &[Backend],
    recipients: &mut Recipients,
    plan: &Pace,
) -> anyhow::Result<Latencies> {
    let (endings, mut completed) = follow_feedback(&backends[0], plan.shards).await?;
    let schedule = Schedule::new(plan);
    let mut ticking = schedule.run();
    let mut sends = JoinSet::new();
    while let Some(number) = ticking.recv().await {
        let device = number as usize % plan.devices;
        let mut commands = backends[(device + plan.away) % backends.len()].commands.clone();
        let request = SendCommandRequest {
            acknowledgement: Acknowledgement::Positive.into(),
            ..command(fleet, device, number.into())
        };
        sends.spawn(async move { commands.send_command(request).await });
    }
    while let Some(sent) = sends.join_next().await {
        sent.context("a sending task panicked")?.context("a command was refused")?;
    }
    let taken = all_taken(&mut recipients.taken, schedule.count as usize).await?;
    let ended = all_taken(&mut completed, schedule.count as usize).await?;
    drop(endings);
    recipients.check()?;
    Ok(Latencies { delivered: schedule.report(&taken), completed: schedule.report(&ended) })
}

/// Commands that are completed from now on, by their numbers, for as long as the tasks are kept.
async fn follow_feedback(
    backend: &Backend,
    shards: u32,
) -> anyhow::Result<(JoinSet<anyhow::Result<()>>, mpsc::Receiver<Taken>)> {
    let (tell, completed) = mpsc::channel(QUEUE_MAX);
    let mut readers = JoinSet::new();
    for shard in 0..shards {
        let from = Some(ReadFrom::End(true));
        let request = ReadFeedbackRequest { shard, from, follow: true };
        let mut feedback = backend.commands.clone().read_feedback(request).await?.into_inner();
        let tell = tell.clone();
        readers.spawn(async move {
            while let Some(page) = feedback.message().await? {
                let at = Instant::now();
                for ended in page.feedback {
                    tell.send(Taken { number: ended.message_id.parse()?, at }).await?;
                }
            }
            Ok(())
        });
    }
    Ok((readers, completed))
}

/// How long one call took that sent a command to each of many devices.
#[derive(Debug)]
pub struct FanOut {
    /// Until the last command was durable.
    pub queued: Duration,
    /// Until the last device had acknowledged its command.
    pub taken: Duration,
}

/// One command to each of the devices 0 to `count`, with one call at one node.
pub async fn fan_out(
    fleet: &Fleet,
    backend: &Backend,
    recipients: &mut Recipients,
    count: usize,
) -> anyhow::Result<FanOut> {
    let numbers: Vec<usize> = (0..count).collect();
    let requests: Vec<_> = numbers
        .chunks(TOGETHER)
        .map(|chunk| SendCommandsRequest {
            commands: chunk.iter().map(|number| command(fleet, *number, *number as u64)).collect(),
        })
        .collect();
    let start = Instant::now();
    let call = async {
        let queued = send_many(backend, stream::iter(requests)).await?;
        ensure!(queued == count, "only {queued} of {count} were queued");
        Ok(start.elapsed())
    };
    let (queued, taken) = tokio::try_join!(call, all_taken(&mut recipients.taken, count))?;
    recipients.check()?;
    let last = taken.values().max().context("nothing was sent")?;
    Ok(FanOut { queued, taken: *last - start })
}

/// Fills the mailboxes of the devices 0 to `devices` to `depth`, a call at each node, until all are full or the time is up.
/// Answers how many mailboxes are full; none is left half full.
pub async fn fill(
    fleet: &Fleet,
    backends: &[Backend],
    devices: usize,
    depth: usize,
    until: Instant,
) -> anyhow::Result<usize> {
    let next = Arc::new(AtomicUsize::new(0));
    let calls = backends.iter().map(async |backend| {
        let (next, fleet) = (Arc::clone(&next), fleet.clone());
        let groups = std::iter::from_fn(move || {
            let first = next.fetch_add(GROUP, Ordering::Relaxed);
            let group = first..(first + GROUP).min(devices);
            (first < devices && Instant::now() < until).then_some(group)
        });
        let requests = groups.flat_map(move |group| {
            let fleet = fleet.clone();
            (0..depth as u64).map(move |number| SendCommandsRequest {
                commands: group.clone().map(|device| command(&fleet, device, number)).collect(),
            })
        });
        send_many(backend, stream::iter(requests)).await
    });
    let queued: usize = futures::future::try_join_all(calls).await?.into_iter().sum();
    Ok(queued / depth)
}

/// Sends with one call; answers how many were queued. A refusal is an error.
async fn send_many(
    backend: &Backend,
    requests: impl Stream<Item = SendCommandsRequest> + Send + 'static,
) -> anyhow::Result<usize> {
    let mut answers = backend.commands.clone().send_commands(requests).await?.into_inner();
    let mut queued = 0;
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            match result.result {
                Some(Sent::Sent(_)) => queued += 1,
                refused => anyhow::bail!("command {} was not queued: {refused:?}", result.index),
            }
        }
    }
    Ok(queued)
}

fn command(fleet: &Fleet, device: usize, number: u64) -> SendCommandRequest {
    SendCommandRequest {
        device_id: fleet.id(device),
        message_id: number.to_string(),
        body: body(number),
        ..SendCommandRequest::default()
    }
}
