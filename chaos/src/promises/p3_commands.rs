//! P3: a command that was accepted is delivered at least once and in order until it ends, it ends once, and never comes
//! after its end (I-16 to I-21).
//!
//! Here each command's story is put together and its end is judged; [`deliveries`] judges when and how often it came. A
//! violation is claimed only where order proves it. A packet can be under way while a command ends, so that a device sees
//! it afterwards proves nothing; but each delivery is a lock for one connection, so
//!
//! - nothing comes over a connection that was begun after somebody had learned of the end,
//! - a command never comes more often than the hub has counted, at its end or in its answer to whoever cancelled it: one
//!   that was cancelled before it was sent never comes at all.

mod deliveries;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use drover_core::mailbox::{Ending, Settlement};
use serde::Serialize;

use super::Violation;
use crate::history::Moment;
use crate::history::commands::{
    CancelAnswer, CancelAttempt, Delivery, Ended, Ledger, MailboxHistory, SendAnswer, SendAttempt,
};

/// What the check counted and found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Commands {
    /// Commands that were accepted, each once.
    pub accepted: u64,
    /// Attempts that were answered with a command that was there already.
    pub repeated: u64,
    /// Attempts without an answer, of senders and of those who cancel.
    pub unknown: u64,
    pub delivered: u64,
    /// Deliveries beyond the first of a command.
    pub redelivered: u64,
    pub completed: u64,
    pub rejected: u64,
    pub expired: u64,
    /// Delivered as often as they may be.
    pub dead: u64,
    pub cancelled: u64,
    /// Of those, before they were ever sent.
    pub cancelled_unsent: u64,
    pub superseded: u64,
    pub purged: u64,
    pub violations: Vec<Violation>,
}

/// What held for the commands of a run.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How often a command is delivered before it is dead.
    pub deliveries_max: u32,
    /// By how much the clock that stamped deliveries may differ from the one that decides about expiry.
    pub skew_ms: u64,
}

/// Holds the histories against what the hub says became of the commands.
pub fn check(
    histories: &[MailboxHistory],
    ledgers: &BTreeMap<String, Ledger>,
    terms: Terms,
) -> Commands {
    let mut found = Commands::default();
    let empty = Ledger::default();
    for history in histories {
        let ledger = ledgers.get(&history.device).unwrap_or(&empty);
        let stories = stories(history, ledger);
        count(history, ledger, &stories, &mut found);
        let mut violate = |invariant, command: &str, seen: String| {
            let subject = format!("command {command} of {}", history.device);
            found.violations.push(Violation::new(invariant, subject, seen));
        };
        for story in stories.values() {
            check_acceptance(story, &mut violate);
            check_ending(history, story, &stories, terms, &mut violate);
            check_cancels(story, &mut violate);
        }
        deliveries::check(history, &stories, terms, &mut violate);
    }
    found
}

/// All that is known of one command.
#[derive(Debug, Default)]
struct Story<'a> {
    command: &'a str,
    key: Option<&'a str>,
    sends: Vec<&'a SendAttempt>,
    cancels: Vec<&'a CancelAttempt>,
    deliveries: Vec<&'a Delivery>,
    ended: Vec<&'a Ended>,
    is_waiting: bool,
}

type Stories<'a> = BTreeMap<&'a str, Story<'a>>;

/// What the hub has said about a command that it accepted.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    at: Moment,
    sequence: u64,
    repeated: bool,
    superseded: u32,
    expires_ms: u64,
    not_before_ms: Option<u64>,
}

fn stories<'a>(history: &'a MailboxHistory, ledger: &'a Ledger) -> Stories<'a> {
    fn of<'s, 'a>(stories: &'s mut Stories<'a>, command: &'a str) -> &'s mut Story<'a> {
        stories.entry(command).or_insert_with(|| Story { command, ..Story::default() })
    }
    let mut stories = Stories::new();
    for send in &history.sends {
        let story = of(&mut stories, &send.command);
        story.key = send.key.as_deref();
        story.sends.push(send);
    }
    for cancel in &history.cancels {
        of(&mut stories, &cancel.command).cancels.push(cancel);
    }
    for delivery in &history.deliveries {
        of(&mut stories, &delivery.command).deliveries.push(delivery);
    }
    for ended in &ledger.ended {
        of(&mut stories, &ended.command).ended.push(ended);
    }
    for waiting in &ledger.waiting {
        of(&mut stories, waiting).is_waiting = true;
    }
    stories
}

impl Story<'_> {
    fn answers(&self) -> impl Iterator<Item = Accepted> {
        self.sends.iter().filter_map(|send| match send.answer {
            SendAnswer::Accepted {
                at,
                sequence,
                repeated,
                superseded,
                expires_ms,
                not_before_ms,
            } => Some(Accepted { at, sequence, repeated, superseded, expires_ms, not_before_ms }),
            SendAnswer::Refused | SendAnswer::Unknown => None,
        })
    }

    fn accepted(&self) -> Option<Accepted> {
        self.answers().next()
    }

    /// Where it stands in the mailbox, if anybody was told.
    fn sequence(&self) -> Option<u64> {
        self.accepted().map(|accepted| accepted.sequence)
    }

    fn ending(&self) -> Option<Ending> {
        self.ended.first().map(|ended| ended.ending)
    }

    fn may_have_been_sent(&self) -> bool {
        self.sends.iter().any(|send| send.answer != SendAnswer::Refused)
    }

    fn was_settled(&self, settlement: Settlement) -> bool {
        self.deliveries.iter().any(|delivery| delivery.settled == Some(settlement))
    }

    /// When somebody first knew that it had ended.
    fn known_end(&self) -> Option<Moment> {
        let told = self.cancels.iter().filter_map(|cancel| match cancel.answer {
            CancelAnswer::Cancelled { at, .. } | CancelAnswer::Ended { at } => Some(at),
            CancelAnswer::Refused | CancelAnswer::Unknown => None,
        });
        let seen = self.deliveries.iter().filter_map(|delivery| delivery.ended);
        told.chain(seen).min()
    }
}

fn check_acceptance(story: &Story<'_>, violate: &mut impl FnMut(&'static str, &str, String)) {
    let command = story.command;
    let is_kept = !story.ended.is_empty() || story.is_waiting;
    if story.accepted().is_some() && !is_kept {
        violate("I-16 not lost", command, "it was accepted, and is nowhere".to_owned());
    }
    if !story.may_have_been_sent() && (is_kept || !story.deliveries.is_empty()) {
        violate("I-16 no phantom", command, "nobody sent it, or it was refused".to_owned());
    }
    let sequences: BTreeSet<u64> = story.answers().map(|answer| answer.sequence).collect();
    if sequences.len() > 1 {
        let seen = format!("it was accepted in the places {sequences:?}");
        violate("I-16 accepted once", command, seen);
    }
    let added = story.answers().filter(|answer| !answer.repeated).count();
    let is_alone = story.sends.len() == 1 && added == 0;
    if added > 1 || (is_alone && story.accepted().is_some()) {
        let attempts = story.sends.len();
        let seen = format!("{attempts} attempts, and {added} of them were the first");
        violate("I-16 accepted once", command, seen);
    }
}

fn check_ending(
    history: &MailboxHistory,
    story: &Story<'_>,
    stories: &Stories<'_>,
    terms: Terms,
    violate: &mut impl FnMut(&'static str, &str, String),
) {
    if story.is_waiting {
        violate("I-16 ends", story.command, "it waits when all is over".to_owned());
    }
    if story.ended.len() + usize::from(story.is_waiting) > 1 {
        let seen = format!("it has ended {} times", story.ended.len());
        violate("I-16 ends once", story.command, seen);
    }
    let Some(ended) = story.ended.first() else { return };
    let has_reason = match ended.ending {
        Ending::Completed => story.was_settled(Settlement::Complete),
        Ending::Rejected => story.was_settled(Settlement::Reject),
        Ending::Expired => {
            story.accepted().is_none_or(|accepted| ended.at_ms >= accepted.expires_ms)
        }
        Ending::DeliveryCountExceeded => ended.deliveries >= terms.deliveries_max,
        Ending::Purged => history.purged.is_some(),
        Ending::Cancelled => story.cancels.iter().any(|cancel| match cancel.answer {
            CancelAnswer::Cancelled { .. } | CancelAnswer::Unknown => true,
            CancelAnswer::Ended { .. } | CancelAnswer::Refused => false,
        }),
        Ending::Superseded => stories.values().any(|newer| may_replace(newer, story)),
    };
    if !has_reason {
        let seen = format!("it is {}, and nothing made it so", ended.ending);
        violate("I-16 ends for a reason", story.command, seen);
    }
    check_replaced(story, stories, violate);
}

/// Whether `newer` may have replaced `older`.
fn may_replace(newer: &Story<'_>, older: &Story<'_>) -> bool {
    let is_behind = newer.sequence().zip(older.sequence()).is_none_or(|(new, old)| new > old);
    newer.key.is_some()
        && newer.key == older.key
        && newer.command != older.command
        && newer.may_have_been_sent()
        && is_behind
}

/// Whoever was told that a command has replaced others finds so many that are superseded.
fn check_replaced(
    newer: &Story<'_>,
    stories: &Stories<'_>,
    violate: &mut impl FnMut(&'static str, &str, String),
) {
    let told = newer.answers().map(|answer| answer.superseded).max().unwrap_or(0);
    let is_replaced = |older: &&Story<'_>| {
        older.ending() == Some(Ending::Superseded) && may_replace(newer, older)
    };
    let replaced = if told == 0 { 0 } else { stories.values().filter(is_replaced).count() };
    if (replaced as u64) < u64::from(told) {
        let seen = format!("it is said to replace {told} older ones, and {replaced} are");
        violate("I-16 superseded", newer.command, seen);
    }
}

fn check_cancels(story: &Story<'_>, violate: &mut impl FnMut(&'static str, &str, String)) {
    let cancelled: Vec<Moment> = story
        .cancels
        .iter()
        .filter_map(|cancel| match cancel.answer {
            CancelAnswer::Cancelled { .. } => Some(cancel.begun),
            CancelAnswer::Ended { .. } | CancelAnswer::Refused | CancelAnswer::Unknown => None,
        })
        .collect();
    let is_another = !cancelled.is_empty() && story.ending() != Some(Ending::Cancelled);
    let is_late =
        cancelled.iter().any(|begun| story.known_end().is_some_and(|known_end| known_end < *begun));
    if is_another || is_late || cancelled.len() > 1 {
        let seen = format!(
            "it was cancelled {} times, is {:?}, and was known to have ended at {:?}",
            cancelled.len(),
            story.ending(),
            story.known_end()
        );
        violate("I-16 cancelled", story.command, seen);
    }
}

fn count(history: &MailboxHistory, ledger: &Ledger, stories: &Stories<'_>, found: &mut Commands) {
    for story in stories.values() {
        found.accepted += u64::from(story.accepted().is_some());
        found.repeated += story.answers().filter(|answer| answer.repeated).count() as u64;
        found.redelivered += (story.deliveries.len() as u64).saturating_sub(1);
    }
    found.delivered += history.deliveries.len() as u64;
    let sends = history.sends.iter().filter(|send| send.answer == SendAnswer::Unknown);
    let cancels = history.cancels.iter().filter(|cancel| cancel.answer == CancelAnswer::Unknown);
    found.unknown += (sends.count() + cancels.count()) as u64;
    for ended in &ledger.ended {
        let counter = match ended.ending {
            Ending::Completed => &mut found.completed,
            Ending::Rejected => &mut found.rejected,
            Ending::Expired => &mut found.expired,
            Ending::DeliveryCountExceeded => &mut found.dead,
            Ending::Purged => &mut found.purged,
            Ending::Cancelled => &mut found.cancelled,
            Ending::Superseded => &mut found.superseded,
        };
        *counter += 1;
        let is_unsent = ended.ending == Ending::Cancelled && ended.deliveries == 0;
        found.cancelled_unsent += u64::from(is_unsent);
    }
}
