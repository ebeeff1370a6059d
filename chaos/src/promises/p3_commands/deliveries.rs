//! When, how often and in which order a command came (I-17 to I-20).

use std::collections::{BTreeMap, BTreeSet};

use drover_core::mailbox::Ending;

use super::{Stories, Story, Terms};
use crate::history::Moment;
use crate::history::commands::{CancelAnswer, Delivery, MailboxHistory};

pub(super) fn check(
    history: &MailboxHistory,
    stories: &Stories<'_>,
    terms: Terms,
    violate: &mut impl FnMut(&'static str, &str, String),
) {
    let begun: BTreeMap<u64, Moment> =
        history.connections.iter().map(|opened| (opened.number, opened.begun)).collect();
    for story in stories.values() {
        check_count(story, violate);
        check_times(story, terms, violate);
        check_repeats(story, violate);
        let known_end = story.known_end();
        let replaced = replaced_at(story, stories);
        for delivery in &story.deliveries {
            // A connection that is not in the history never was: nothing comes over it.
            let begun = begun.get(&delivery.connection).copied().unwrap_or(Moment::MAX);
            if known_end.is_some_and(|known_end| known_end < begun) {
                let seen = format!(
                    "connection {} was begun after its end was known, and brought it",
                    delivery.connection
                );
                violate("I-19 not after its end", story.command, seen);
            }
            if replaced.is_some_and(|replaced| replaced < begun) {
                let seen = format!(
                    "connection {} was begun after a newer one of its key was accepted, and brought it",
                    delivery.connection
                );
                violate("I-19 not after a newer one", story.command, seen);
            }
        }
    }
    check_order(history, stories, violate);
}

/// Each delivery is one that the hub has counted.
fn check_count(story: &Story<'_>, violate: &mut impl FnMut(&'static str, &str, String)) {
    let seen = story.deliveries.len() as u64;
    let at_end = story.ended.iter().map(|ended| ended.deliveries);
    let at_cancel = story.cancels.iter().filter_map(|cancel| match cancel.answer {
        CancelAnswer::Cancelled { deliveries, .. } => Some(deliveries),
        CancelAnswer::Ended { .. } | CancelAnswer::Refused | CancelAnswer::Unknown => None,
    });
    if let Some(counted) = at_end.chain(at_cancel).min().map(u64::from)
        && seen > counted
    {
        let seen = format!("it came {seen} times, and the hub has sent it {counted} times");
        violate("I-19 each delivery is counted", story.command, seen);
    }
}

/// Not before its schedule, and not after its expiry.
fn check_times(
    story: &Story<'_>,
    terms: Terms,
    violate: &mut impl FnMut(&'static str, &str, String),
) {
    let Some(accepted) = story.accepted() else { return };
    for delivery in &story.deliveries {
        if delivery.earliest_ms > accepted.expires_ms + terms.skew_ms {
            let seen = format!(
                "it was sent at {} or later, and expired at {}",
                delivery.earliest_ms, accepted.expires_ms
            );
            violate("I-18 not after its expiry", story.command, seen);
        }
        let not_before_ms = accepted.not_before_ms.unwrap_or(0);
        if delivery.latest_ms + terms.skew_ms < not_before_ms {
            let seen = format!(
                "it was sent at {} or earlier, and was not to be before {not_before_ms}",
                delivery.latest_ms
            );
            violate("P3 not before its time", story.command, seen);
        }
    }
}

/// Once over a connection; and again only with the mark that it is again.
fn check_repeats(story: &Story<'_>, violate: &mut impl FnMut(&'static str, &str, String)) {
    for (index, delivery) in story.deliveries.iter().enumerate() {
        let mut before = story.deliveries[..index].iter();
        if before.clone().any(|former| former.connection == delivery.connection) {
            let seen = format!("it came twice over connection {}", delivery.connection);
            violate("I-19 once over a connection", story.command, seen);
        }
        if !delivery.is_marked && before.any(|former| former.connection < delivery.connection) {
            let seen = format!("connection {} brought it again, unmarked", delivery.connection);
            violate("P3 a repeat is marked", story.command, seen);
        }
    }
}

/// From when on it was known that a newer command of its key was there, which then was carried out: older ones do not come
/// over new connections any more.
fn replaced_at(older: &Story<'_>, stories: &Stories<'_>) -> Option<Moment> {
    let place = older.sequence()?;
    older.key?;
    let newer = stories.values().filter(|newer| {
        newer.key == older.key
            && newer.sequence().is_some_and(|sequence| sequence > place)
            && newer.ending() == Some(Ending::Completed)
    });
    newer.flat_map(Story::answers).map(|answer| answer.at).min()
}

/// Over a connection in the order of the mailbox, and the first of each before the first of any newer one. What was
/// scheduled comes when its time has come.
fn check_order(
    history: &MailboxHistory,
    stories: &Stories<'_>,
    violate: &mut impl FnMut(&'static str, &str, String),
) {
    let place = |delivery: &Delivery| {
        let accepted = stories.get(delivery.command.as_str())?.accepted()?;
        Some((accepted.sequence, accepted.not_before_ms.is_some()))
    };
    // The newest command that each connection has brought so far.
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seen_before = BTreeSet::new();
    for delivery in &history.deliveries {
        let Some((sequence, is_scheduled)) = place(delivery) else { continue };
        let is_first = seen_before.insert(delivery.command.as_str());
        let overtaken_by = newest.iter().find(|(connection, newest)| {
            let is_same = **connection == delivery.connection && !delivery.may_be_relocked;
            let is_older = is_first && **connection < delivery.connection;
            (is_same || is_older) && **newest > sequence
        });
        if let Some((connection, newer)) = overtaken_by.filter(|_| !is_scheduled) {
            let seen = format!(
                "it is number {sequence}, and number {newer} came before it, over connection {connection}"
            );
            violate("I-20 in order", &delivery.command, seen);
        }
        if !delivery.may_be_relocked {
            let newest = newest.entry(delivery.connection).or_default();
            *newest = sequence.max(*newest);
        }
    }
}
