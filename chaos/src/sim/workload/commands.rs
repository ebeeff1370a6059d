//! Commands: back ends send, repeat and cancel them at one node, and devices deal with them at another.
//!
//! A device publishes each command that reaches its connection once, as the session of a protocol would.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;

use drover_cluster::Error;
use drover_cluster::actors::commands::{Queued, SendCommand};
use drover_cluster::actors::session::{SentCommand, Settlement};
use drover_cluster::core::change::{Message, Refusal};
use drover_cluster::core::device::{Channel, Qos, Subscriptions};
use drover_cluster::core::ids::{CommandSequence, DeviceId, LogTime};
use drover_cluster::core::mailbox::{Ack, Command, Expiry, State};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::content::{is_fenced, is_unknown, next_after, text};
use super::devices::Connection;
use super::{POLL, Workload};
use crate::history::commands::{CancelAnswer, CancelAttempt, Delivery, SendAnswer, SendAttempt};
use crate::promises::Violation;

/// Whoever cancels, cancels one of so many newest.
const CANCELLED_OF: usize = 6;

/// Commands of one connection.
#[derive(Default)]
pub(super) struct Received {
    seen: BTreeSet<CommandSequence>,
    /// Not settled, with their places in the history.
    open: VecDeque<(CommandSequence, usize)>,
}

/// What a back end remembers of its commands.
#[derive(Default)]
pub(super) struct Sender {
    last: Option<(DeviceId, SendCommand)>,
    /// The newest time that the hub has told.
    told: LogTime,
}

impl Workload {
    // ------------------------------------------------------------ back ends

    /// A new command, or the last one again.
    pub(super) async fn send_command(
        &self,
        device: &DeviceId,
        sender: &mut Sender,
        draw: &mut StdRng,
    ) {
        let (device, command) = match sender.last.take() {
            Some(last) if draw.random_bool(0.2) => last,
            Some(_) | None => (device.clone(), self.draw_command(device, sender.told, draw)),
        };
        // Whoever does not know asks once more.
        let mut answer = self.send_once(&device, &command, sender).await;
        if answer == SendAnswer::Unknown {
            answer = self.send_once(&device, &command, sender).await;
        }
        if answer != SendAnswer::Refused {
            sender.last = Some((device, command));
        }
    }

    fn draw_command(&self, device: &DeviceId, told: LogTime, draw: &mut StdRng) -> SendCommand {
        let id = self.history.lock().mailboxes.next_id(device);
        let key = draw.random_bool(0.3).then(|| format!("key-{}", draw.random_range(0..2)));
        let brief = draw.random_bool(0.3).then(|| draw.random_range(50..2_000));
        let ahead = draw.random_bool(0.2).then(|| draw.random_range(100..2_000));
        SendCommand {
            key,
            ack: Ack::Full,
            expiry: brief.map(|ms| Expiry::After { ms }),
            not_before: ahead.filter(|_| told > LogTime::default()).map(|ms| told.plus_ms(ms)),
            message: body(device, &id),
            id: Some(id.parse().expect("a legal id")),
        }
    }

    async fn send_once(
        &self,
        device: &DeviceId,
        command: &SendCommand,
        sender: &mut Sender,
    ) -> SendAnswer {
        let id = command.id.as_ref().expect("the workload names its commands");
        let place = {
            let mut history = self.history.lock();
            let begun = history.note(format_args!(
                "{device}: send {id} {:?} {:?} after {:?}",
                command.key, command.expiry, command.not_before
            ));
            let (command, key) = (id.to_string(), command.key.clone());
            let sends = &mut history.mailboxes.of(device).sends;
            sends.push(SendAttempt { command, key, begun, answer: SendAnswer::Unknown });
            sends.len() - 1
        };
        let answer = self.cluster.send_command(device, command.clone()).await;
        let mut history = self.history.lock();
        let shown = answer.as_ref().map(|queued| (queued.command.sequence, queued.repeated));
        let at = history.note(format_args!("{device}: sent {id}: {shown:?}"));
        let answer = match answer {
            Ok(Queued { command, repeated, superseded }) => {
                sender.told = sender.told.max(command.queued);
                SendAnswer::Accepted {
                    at,
                    sequence: command.sequence.get(),
                    repeated,
                    superseded,
                    expires_ms: command.expires.get(),
                    not_before_ms: command.not_before.map(LogTime::get),
                }
            }
            Err(error) if is_unknown(&error) => SendAnswer::Unknown,
            Err(_) => SendAnswer::Refused,
        };
        history.mailboxes.of(device).sends[place].answer = answer;
        answer
    }

    /// Takes one of the newest back, whoever has sent it.
    pub(super) async fn cancel_command(&self, device: &DeviceId, draw: &mut StdRng) {
        let (command, place) = {
            let mut history = self.history.lock();
            let sends = &history.mailboxes.of(device).sends;
            let newest = &sends[sends.len().saturating_sub(CANCELLED_OF)..];
            if newest.is_empty() {
                return;
            }
            let command = newest[draw.random_range(0..newest.len())].command.clone();
            let begun = history.note(format_args!("{device}: cancel {command}"));
            let cancels = &mut history.mailboxes.of(device).cancels;
            let answer = CancelAnswer::Unknown;
            cancels.push(CancelAttempt { command: command.clone(), begun, answer });
            (command, cancels.len() - 1)
        };
        let id = command.parse().expect("a legal id");
        let answer = self.cluster.cancel_command(device, id).await;
        let mut history = self.history.lock();
        let shown = answer.as_ref().map(|cancelled| cancelled.deliveries);
        let at = history.note(format_args!("{device}: cancelled {command}: {shown:?}"));
        let answer = match answer {
            Ok(Command { deliveries, .. }) => CancelAnswer::Cancelled { at, deliveries },
            Err(Error::Refused(Refusal::CommandEnded { .. })) => CancelAnswer::Ended { at },
            Err(error) if is_unknown(&error) => CancelAnswer::Unknown,
            Err(_) => CancelAnswer::Refused,
        };
        history.mailboxes.of(device).cancels[place].answer = answer;
    }

    // ------------------------------------------------------------ devices

    pub(super) fn receive_command(
        &self,
        device: &DeviceId,
        connection: &mut Connection,
        sent: &SentCommand,
    ) {
        let epoch = connection.session.epoch().get();
        let Command { sequence, id, deliveries, attempts, .. } = &sent.command;
        let is_new = connection.commands.seen.insert(*sequence);
        let mut history = self.history.lock();
        let word = if is_new { "gets" } else { "has already" };
        history.note(format_args!("{device} as {epoch} {word} {id} as {}", sent.number));
        if !is_new {
            return;
        }
        if sent.message != body(device, id.as_str()) {
            let subject = format!("{device} as {epoch}");
            let seen = format!("command {id} came with what nobody sent");
            history.violations.push(Violation::new("I-16 no phantom", subject, seen));
        }
        let locked_ms = attempts.last().map_or(0, |attempt| attempt.at.get());
        let mailbox = history.mailboxes.of(device);
        connection.commands.open.push_back((*sequence, mailbox.deliveries.len()));
        mailbox.deliveries.push(Delivery {
            command: id.to_string(),
            connection: epoch,
            earliest_ms: locked_ms,
            latest_ms: locked_ms,
            is_marked: *deliveries > 1,
            may_be_relocked: self.plan.locks_may_run_out(),
            settled: None,
            ended: None,
        });
    }

    /// Deals with the oldest command of the connection, if there is one.
    pub(super) async fn settle_next(
        &self,
        device: &DeviceId,
        connection: &mut Connection,
        settlement: Settlement,
    ) -> ControlFlow<()> {
        let Some((sequence, place)) = connection.commands.open.pop_front() else {
            return ControlFlow::Continue(());
        };
        let epoch = connection.session.epoch().get();
        let begun = {
            let mut history = self.history.lock();
            // If its node is lost meanwhile, this may have been carried out.
            history.mailboxes.of(device).deliveries[place].settled = Some(settlement);
            history.note(format_args!("{device} as {epoch} settles {sequence}: {settlement:?}"))
        };
        let answer = connection.session.settle(sequence, settlement).await;
        let mut history = self.history.lock();
        let at = history.note(format_args!("{device} as {epoch} settled {sequence}: {answer:?}"));
        let is_replaced = history.is_replaced(device.as_str(), epoch, begun);
        history.counts.checks.fences += u64::from(is_replaced);
        if is_replaced && answer.is_ok() {
            let subject = format!("{device} as {epoch}");
            let seen = format!("it settled {sequence}, and was replaced before");
            history.violations.push(Violation::new("I-22 fenced", subject, seen));
        }
        let next = match &answer {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) if is_unknown(error) => return ControlFlow::Break(()),
            Err(error) => {
                history.counts.operations.fenced += u64::from(is_fenced(error));
                next_after(error)
            }
        };
        let has_ended = matches!(answer, Err(Error::Refused(Refusal::CommandEnded { .. })));
        let delivery = &mut history.mailboxes.of(device).deliveries[place];
        if answer.is_ok() || has_ended {
            delivery.ended = Some(at);
        } else {
            delivery.settled = None;
        }
        if has_ended { ControlFlow::Continue(()) } else { next }
    }

    // ------------------------------------------------------------ the end

    /// Deals with all commands that can be delivered, and takes back what is scheduled: with the clocks of the run its time
    /// may be an hour away. That it ends is checked from outside.
    pub(super) async fn empty_mailbox(&self, device: &DeviceId) {
        while self.try_to_empty(device).await.is_break() {
            sleep(POLL).await;
        }
    }

    async fn try_to_empty(&self, device: &DeviceId) -> ControlFlow<()> {
        let Some(mut connection) = self.open(device).await else { return ControlFlow::Break(()) };
        let listens = Subscriptions::from([(Channel::Commands, Qos::AtLeastOnce)]);
        if connection.session.subscribe(listens).await.is_err() {
            return ControlFlow::Break(());
        }
        while self.can_be_delivered(device).await? {
            sleep(POLL).await;
            self.receive(device, &mut connection);
            while !connection.commands.open.is_empty() {
                self.settle_next(device, &mut connection, Settlement::Complete).await?;
            }
            if connection.has_ended {
                return ControlFlow::Break(());
            }
        }
        let at = self.history.note(format_args!("{device}: purge"));
        self.history.lock().mailboxes.of(device).purged.get_or_insert(at);
        match self.cluster.purge_commands(device).await {
            Ok(_) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Whether a command waits that the hub will deliver by itself.
    async fn can_be_delivered(&self, device: &DeviceId) -> ControlFlow<(), bool> {
        let first = CommandSequence::default();
        let Ok(page) = self.cluster.commands(device, first, 1000, false).await else {
            return ControlFlow::Break(());
        };
        let can = |command: &Command| match command.state {
            State::Queued => command.not_before.is_none(),
            State::Locked { .. } => true,
            State::Ended { .. } => false,
        };
        ControlFlow::Continue(page.commands.iter().any(|(command, _)| can(command)))
    }
}

/// What a command says: which one it is, and whose.
fn body(device: &DeviceId, command: &str) -> Message {
    text(format!("{device} {command}"))
}
