//! The part of a kill test that talks to devices: recipients, the back ends that send them commands, and their callers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use drover_core::ids::{DeviceId, ShardCount, ShardId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::HEAL_TIMEOUT;
use super::backend::BackEnd;
use super::caller::{CALLERS, Caller};
use super::clock::Clock;
use super::plan::Plan;
use super::recipient::{Mood, Recipient, Seen};
use crate::fleet::Fleet;
use crate::history::commands::{CancelAnswer, MailboxHistory, SendAnswer};
use crate::history::methods::{CallAnswer, CallHistory, MethodCall};
use crate::history::{DeviceHistory, Moment};
use crate::nodes::admin::Admin;
use crate::nodes::commands::PATIENCE;

const POLL: Duration = Duration::from_millis(200);

/// Recipients and those who talk to them, at work.
pub(super) struct Talk {
    admin: Admin,
    devices: Vec<String>,
    mood: watch::Sender<Mood>,
    stop: watch::Sender<bool>,
    recipients: JoinSet<Seen>,
    back_ends: JoinSet<MailboxHistory>,
    callers: JoinSet<(String, Vec<MethodCall>)>,
}

/// What they did and saw, device by device.
#[derive(Debug, Default)]
pub(super) struct Talked {
    pub(super) telemetry: Vec<DeviceHistory>,
    pub(super) mailboxes: Vec<MailboxHistory>,
    pub(super) calls: Vec<CallHistory>,
}

impl Talk {
    /// Devices of `fleet` that are registered.
    pub(super) fn start(
        plan: &Plan,
        fleet: &Arc<Fleet>,
        admin: &Admin,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let shards = ShardCount::new(plan.shards).context("a cluster has 1 to 4096 shards")?;
        let (mood, moods) = watch::channel(Mood::Moody);
        let (stop, stopped) = watch::channel(false);
        let mut talk = Self {
            admin: admin.clone(),
            devices: (0..plan.recipients).map(|number| fleet.id(number)).collect(),
            mood,
            stop,
            recipients: JoinSet::new(),
            back_ends: JoinSet::new(),
            callers: JoinSet::new(),
        };
        for (number, device) in talk.devices.iter().enumerate() {
            let id: DeviceId = device.parse()?;
            let shard = ShardId::of(&id, shards).number();
            // Far from the seeds of the devices that only send.
            let seed = plan.seed.wrapping_add(1_000_000 * (1 + number as u64));
            let recipient = Recipient::new(number, shard, Arc::clone(fleet), clock, seed);
            talk.recipients.spawn(recipient.run(moods.clone()));
            let back_end = BackEnd::new(admin.clone(), device, clock, seed + 1);
            talk.back_ends.spawn(back_end.run(stopped.clone()));
            for caller in 0..CALLERS {
                let seed = seed + 2 + caller;
                let caller = Caller::new(admin.clone(), device, clock, seed, caller);
                let (device, stopped) = (device.clone(), stopped.clone());
                talk.callers.spawn(async move { (device, caller.run(stopped).await) });
            }
        }
        Ok(talk)
    }

    /// Nobody sends or calls any more, and the devices deal with everything that waits. Faults must be over.
    pub(super) async fn finish(mut self) -> anyhow::Result<Talked> {
        self.mood.send_replace(Mood::Diligent);
        self.stop.send_replace(true);
        let mut mailboxes = joined(&mut self.back_ends).await?;
        let calls = joined(&mut self.callers).await?;
        self.until_nothing_waits().await?;
        self.mood.send_replace(Mood::Done);
        let mut talked = Talked::default();
        for seen in joined(&mut self.recipients).await? {
            let device = seen.telemetry.device.clone();
            let place = mailboxes.iter().position(|mailbox| mailbox.device == device);
            let mut mailbox = mailboxes.swap_remove(place.context("each device has a back end")?);
            mailbox.connections = seen.connections;
            mailbox.deliveries = seen.deliveries;
            talked.mailboxes.push(mailbox);
            let of_device = calls.iter().filter(|(called, _)| *called == device);
            let calls = of_device.flat_map(|(_, calls)| calls).cloned().collect();
            talked.calls.push(CallHistory { device, calls, executions: seen.executions });
            talked.telemetry.push(seen.telemetry);
        }
        Ok(talked)
    }

    /// Or until it has taken too long: what waits then is found by the check.
    async fn until_nothing_waits(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        for device in &self.devices {
            while begun.elapsed() < HEAL_TIMEOUT
                && !self.admin.waiting_commands(device).await?.is_empty()
            {
                sleep(POLL).await;
            }
        }
        Ok(())
    }
}

async fn joined<T: 'static>(tasks: &mut JoinSet<T>) -> anyhow::Result<Vec<T>> {
    let mut all = Vec::with_capacity(tasks.len());
    // Each bounds its own end; this bounds a bug in it.
    timeout(HEAL_TIMEOUT * 2, async {
        while let Some(ended) = tasks.join_next().await {
            all.push(ended.context("a client's task panicked")?);
        }
        anyhow::Ok(())
    })
    .await
    .context("the clients do not end")??;
    Ok(all)
}

impl Talked {
    /// Clocks jumped further than a lock lasts: any delivery may have been sent again on its connection.
    pub(super) fn allow_relocking(&mut self) {
        for delivery in self.mailboxes.iter_mut().flat_map(|mailbox| &mut mailbox.deliveries) {
            delivery.may_be_relocked = true;
        }
    }

    /// When each operation was under way. One without an answer was, until nobody waited for it.
    pub(super) fn under_way(&self) -> UnderWay {
        let given_up = |begun: u64| begun + PATIENCE.as_micros() as u64;
        let sends = self.mailboxes.iter().flat_map(|mailbox| &mailbox.sends).map(|send| {
            let ended = match send.answer {
                SendAnswer::Accepted { at, .. } => at,
                SendAnswer::Refused => send.begun,
                SendAnswer::Unknown => given_up(send.begun),
            };
            (send.begun, ended)
        });
        let cancels = self.mailboxes.iter().flat_map(|mailbox| &mailbox.cancels).map(|cancel| {
            let ended = match cancel.answer {
                CancelAnswer::Cancelled { at, .. } | CancelAnswer::Ended { at } => at,
                CancelAnswer::Refused => cancel.begun,
                CancelAnswer::Unknown => given_up(cancel.begun),
            };
            (cancel.begun, ended)
        });
        let calls = self.calls.iter().flat_map(|history| &history.calls).map(|call| {
            let ended = match call.answer {
                CallAnswer::Answered { at, .. } => at,
                CallAnswer::NotCalled => call.begun,
                CallAnswer::Unknown => given_up(call.begun),
            };
            (call.begun, ended)
        });
        UnderWay(sends.chain(cancels).chain(calls).collect())
    }
}

/// From when to when operations were under way.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(Vec<(Moment, Moment)>);

impl UnderWay {
    /// How many were at one of these moments, in milliseconds since the run began.
    pub fn at(&self, times_ms: &[u64]) -> u64 {
        let is_hit = |(begun, ended): &&(Moment, Moment)| {
            times_ms.iter().any(|at_ms| (*begun..*ended).contains(&(at_ms * 1_000)))
        };
        self.0.iter().filter(is_hit).count() as u64
    }
}
