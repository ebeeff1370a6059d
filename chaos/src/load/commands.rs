//! Commands: how long one takes from being sent to its device and to its completion, many with one call, mailboxes that fill.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_proto::admin::read_feedback_request::From as ReadFrom;
use drover_proto::admin::send_commands_result::Result as Sent;
use drover_proto::admin::{
    Acknowledgement, BulkError, ReadFeedbackRequest, SendCommandRequest, SendCommandsRequest,
};
use futures::stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::recipients::{Recipients, Taken, all_taken, body};
use super::report::{Report, Tally};
use crate::fleet::Fleet;
use crate::nodes::backend::Backend;

/// Commands in one message of a call that sends many.
const TOGETHER: usize = 100;
/// Mailboxes that one call fills together, each a command at a time. Few, so that the end of the time is kept.
const GROUP: usize = 10;
/// Calls that fill at a node side by side: while one ends, the other keeps the node busy.
const CALLS_A_NODE: usize = 2;
/// An outage is over by then, or the cluster is not well.
const RESEND_MAX: Duration = Duration::from_mins(1);
const RESEND_PAUSE: Duration = Duration::from_millis(100);
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
    let commands = (0..count).map(|number| command(fleet, number, number as u64)).collect();
    let start = Instant::now();
    let call = async {
        let again = send_many(backend, commands).await?;
        ensure!(again.is_empty(), "{} of {count} were not queued", again.len());
        Ok(start.elapsed())
    };
    let (queued, taken) = tokio::try_join!(call, all_taken(&mut recipients.taken, count))?;
    recipients.check()?;
    let last = taken.values().max().context("nothing was sent")?;
    Ok(FanOut { queued, taken: *last - start })
}

/// Fills the mailboxes of the devices 0 to `devices` to `depth`, some calls at each node, until all are full or the time is
/// up. Answers how many mailboxes are full; none is left half full.
///
/// What was not queued for a passing reason, or perhaps was, is sent again: message ids make that harmless.
pub async fn fill(
    fleet: &Fleet,
    backends: &[Backend],
    devices: usize,
    depth: usize,
    until: Instant,
) -> anyhow::Result<Filled> {
    let next = AtomicUsize::new(0);
    let again = AtomicUsize::new(0);
    let calls = (0..backends.len() * CALLS_A_NODE).map(async |call| {
        let backend = &backends[call % backends.len()];
        let mut full = 0;
        loop {
            let first = next.fetch_add(GROUP, Ordering::Relaxed);
            let group = first..(first + GROUP).min(devices);
            if group.is_empty() || Instant::now() >= until {
                return anyhow::Ok(full);
            }
            full += group.len();
            let numbers = (0..depth as u64)
                .flat_map(|number| group.clone().map(move |device| command(fleet, device, number)));
            again.fetch_add(send_all(backend, numbers.collect()).await?, Ordering::Relaxed);
        }
    });
    let mailboxes = futures::future::try_join_all(calls).await?.into_iter().sum();
    Ok(Filled { mailboxes, again: again.into_inner() })
}

/// What became of mailboxes that were filled.
#[derive(Debug)]
pub struct Filled {
    pub mailboxes: usize,
    /// Commands that were sent again because it was not known whether they had been queued.
    pub again: usize,
}

/// Sends until all are queued, with as many calls as that takes. Answers how many were sent again.
async fn send_all(
    backend: &Backend,
    mut commands: Vec<SendCommandRequest>,
) -> anyhow::Result<usize> {
    let (begun, mut again) = (Instant::now(), 0);
    loop {
        let sent = send_many(backend, commands).await?;
        if sent.is_empty() {
            return Ok(again);
        }
        ensure!(begun.elapsed() < RESEND_MAX, "{} commands are refused for ever", sent.len());
        again += sent.len();
        commands = sent;
        sleep(RESEND_PAUSE).await;
    }
}

/// Sends with one call; answers what should be sent again. A refusal that will not pass is an error.
async fn send_many(
    backend: &Backend,
    commands: Vec<SendCommandRequest>,
) -> anyhow::Result<Vec<SendCommandRequest>> {
    let chunks: Vec<_> = commands
        .chunks(TOGETHER)
        .map(|chunk| SendCommandsRequest { commands: chunk.to_vec() })
        .collect();
    let mut answers =
        backend.commands.clone().send_commands(stream::iter(chunks)).await?.into_inner();
    let (mut again, mut answered) = (Vec::new(), 0);
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            answered += 1;
            match result.result {
                Some(Sent::Sent(_)) => {}
                Some(Sent::Error(error)) if is_passing(&error) => {
                    again.push(commands[result.index as usize].clone());
                }
                refused => anyhow::bail!("command {} was not queued: {refused:?}", result.index),
            }
        }
    }
    ensure!(answered == commands.len(), "{answered} of {} were answered", commands.len());
    Ok(again)
}

/// Whether the same command can be sent again, with success if the cluster is well.
fn is_passing(error: &BulkError) -> bool {
    matches!(Code::from(error.code), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded)
}

fn command(fleet: &Fleet, device: usize, number: u64) -> SendCommandRequest {
    SendCommandRequest {
        device_id: fleet.id(device),
        message_id: number.to_string(),
        body: body(number),
        ..SendCommandRequest::default()
    }
}
