//! The times that mailboxes wait for: expiries, ends of locks, schedules.
//!
//! They stand in the store, sorted by time, so that a hundred thousand devices that are not connected cost no memory and no
//! scan. The leader of a shard holds one timer, for the first of them; a new leader begins by looking. What is due becomes
//! a change, and apply decides by the log's time, so a time that is noticed twice or by two leaders takes effect once.

use std::sync::Arc;
use std::time::Duration;

use drover_core::change::DeviceChange;
use drover_core::ids::{DeviceId, GroupId, LogTime};
use ractor::ActorRef;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::admission::Gauge;
use super::device::DeviceContext;
use super::serve;
use super::shard::ShardMsg;
use crate::storage::mailbox;

/// Mailboxes that are looked after together: a tenth of what one entry carries.
const TOGETHER_MAX: usize = 400;
/// Until what was proposed is applied, it stands in the store as due: look again after so long.
const AGAIN_AFTER_MS: u64 = 200;

/// The timer of a shard's leader.
#[derive(Debug)]
pub(super) struct DueTimer {
    /// What the running timer waits for.
    at: Option<LogTime>,
    task: Option<AbortOnDropHandle<()>>,
    /// Changes that have been proposed and not answered.
    gauge: Arc<Gauge>,
}

impl Default for DueTimer {
    fn default() -> Self {
        Self { at: None, task: None, gauge: Gauge::new(TOGETHER_MAX, usize::MAX) }
    }
}

impl DueTimer {
    /// Makes sure that the shard is told at this time, or earlier.
    pub(super) fn set(&mut self, shard: &ActorRef<ShardMsg>, context: &DeviceContext, at: LogTime) {
        if self.at.is_some_and(|sooner| sooner <= at) {
            return;
        }
        let wait_ms = at.get().saturating_sub(context.clock.now().get());
        let shard = shard.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            // A shard that has stopped has nothing due.
            drop(shard.send_message(ShardMsg::CommandsDue));
        });
        self.at = Some(at);
        self.task = Some(AbortOnDropHandle::new(task));
    }

    pub(super) fn stop(&mut self) {
        self.at = None;
        self.task = None;
    }

    /// Proposes what is due, and sets itself for what comes next.
    pub(super) fn run(&mut self, shard: &ActorRef<ShardMsg>, context: &DeviceContext) {
        self.stop();
        let now = context.clock.now();
        let group = GroupId::Shard(context.shard);
        let next = match mailbox::due(&*context.storage, group, TOGETHER_MAX) {
            Ok(due) => self.propose(context, due, now),
            Err(error) => {
                warn!(shard = %context.shard, %error, "what is due cannot be read");
                serve::unreadable(&context.group, error);
                Some(now.plus_ms(AGAIN_AFTER_MS))
            }
        };
        if let Some(at) = next {
            self.set(shard, context, at);
        }
    }

    /// Answers when to look again; `None`: when something new is due.
    fn propose(
        &self,
        context: &DeviceContext,
        due: Vec<(LogTime, DeviceId)>,
        now: LogTime,
    ) -> Option<LogTime> {
        let first = due.first().map(|(at, _)| *at)?;
        if first > now {
            return Some(first);
        }
        for (_, device) in due.into_iter().take_while(|(at, _)| *at <= now) {
            self.run_timers(context, device);
        }
        Some(now.plus_ms(AGAIN_AFTER_MS))
    }

    /// Not through the device's actor: a hundred thousand of them would be started for nothing.
    fn run_timers(&self, context: &DeviceContext, device: DeviceId) {
        // Whether it was applied is seen in the store.
        drop(context.propose_own(&self.gauge, device, DeviceChange::RunCommandTimers));
    }
}
