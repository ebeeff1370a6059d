//! An honest story of a mailbox, and each way to break it.

use super::*;
use crate::history::commands::Opened;

const TERMS: Terms = Terms { deliveries_max: 10, skew_ms: 5 };

/// A story: what clients saw, and what the hub says in the end.
struct Run {
    history: MailboxHistory,
    ledger: Ledger,
}

fn sent(command: &str, sequence: u64) -> SendAttempt {
    let answer = SendAnswer::Accepted {
        at: 10 * sequence + 1,
        sequence,
        repeated: false,
        superseded: 0,
        expires_ms: 1_000,
        not_before_ms: None,
    };
    SendAttempt { command: command.to_owned(), key: None, begun: 10 * sequence, answer }
}

fn delivered(command: &str, connection: u64) -> Delivery {
    Delivery {
        command: command.to_owned(),
        connection,
        earliest_ms: 100,
        latest_ms: 200,
        is_marked: connection > 1,
        may_be_relocked: false,
        settled: Some(Settlement::Complete),
        ended: None,
    }
}

fn ended(command: &str, ending: Ending, deliveries: u32) -> Ended {
    Ended { command: command.to_owned(), ending, at_ms: 1_000, deliveries }
}

/// Both attempts to send `twice` are accepted, and it comes twice; `late` is cancelled before its time, `old` replaced by
/// `new`, `brief` expires, `bad` is rejected. Connections 1 and 2 begin at 100 and 200.
fn honest() -> Run {
    let scheduled = |answer: &mut SendAnswer| {
        if let SendAnswer::Accepted { not_before_ms, .. } = answer {
            *not_before_ms = Some(150);
        }
    };
    let mut repeated = sent("twice", 2);
    repeated.answer = accepted_again(&repeated.answer);
    let unknown = SendAttempt { answer: SendAnswer::Unknown, ..sent("twice", 2) };
    let mut late = sent("late", 3);
    scheduled(&mut late.answer);
    let keyed = |send: SendAttempt| SendAttempt { key: Some("rate".to_owned()), ..send };
    let mut new = keyed(sent("new", 5));
    if let SendAnswer::Accepted { superseded, .. } = &mut new.answer {
        *superseded = 1;
    }
    let cancel = CancelAttempt {
        command: "late".to_owned(),
        begun: 40,
        answer: CancelAnswer::Cancelled { at: 41, deliveries: 0 },
    };
    let history = MailboxHistory {
        device: "d".to_owned(),
        sends: vec![
            sent("plain", 1),
            unknown,
            repeated,
            late,
            keyed(sent("old", 4)),
            new,
            sent("brief", 6),
            sent("bad", 7),
        ],
        cancels: vec![cancel],
        purged: None,
        connections: [(1, 100), (2, 200)].map(|(number, begun)| Opened { number, begun }).to_vec(),
        deliveries: vec![
            Delivery { ended: Some(150), ..delivered("plain", 1) },
            Delivery { settled: None, ..delivered("twice", 1) },
            delivered("twice", 2),
            Delivery { is_marked: false, ..delivered("new", 2) },
            Delivery { settled: Some(Settlement::Reject), ..delivered("bad", 2) },
        ],
    };
    let ledger = Ledger {
        ended: vec![
            ended("plain", Ending::Completed, 1),
            ended("twice", Ending::Completed, 2),
            ended("late", Ending::Cancelled, 0),
            ended("old", Ending::Superseded, 0),
            ended("new", Ending::Completed, 1),
            ended("brief", Ending::Expired, 0),
            ended("bad", Ending::Rejected, 1),
        ],
        waiting: vec![],
    };
    Run { history, ledger }
}

fn accepted_again(answer: &SendAnswer) -> SendAnswer {
    match *answer {
        SendAnswer::Accepted { at, sequence, superseded, expires_ms, not_before_ms, .. } => {
            let repeated = true;
            let at = at + 2;
            SendAnswer::Accepted { at, sequence, repeated, superseded, expires_ms, not_before_ms }
        }
        SendAnswer::Refused | SendAnswer::Unknown => *answer,
    }
}

fn judged(run: &Run) -> Commands {
    let ledgers = BTreeMap::from([("d".to_owned(), run.ledger.clone())]);
    check(std::slice::from_ref(&run.history), &ledgers, TERMS)
}

/// The invariants that break when `damage` is done to the honest story.
fn broken_by(damage: impl FnOnce(&mut Run)) -> Vec<&'static str> {
    let mut run = honest();
    damage(&mut run);
    judged(&run).violations.iter().map(|violation| violation.invariant).collect()
}

impl Run {
    fn ended(&mut self, command: &str) -> &mut Ended {
        let mut of_command = self.ledger.ended.iter_mut();
        of_command.find(|ended| ended.command == command).expect("it has ended")
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.history.deliveries.push(delivery);
    }
}

#[test]
fn an_honest_run_breaks_nothing_and_is_counted() {
    let found = judged(&honest());
    assert_eq!(found.violations, []);
    assert_eq!((found.accepted, found.repeated, found.unknown), (7, 1, 1));
    assert_eq!((found.delivered, found.redelivered), (5, 1));
    assert_eq!((found.completed, found.rejected, found.expired, found.dead), (3, 1, 1, 0));
    assert_eq!((found.cancelled, found.cancelled_unsent, found.superseded), (1, 1, 1));
}

#[test]
fn a_lost_command_is_found() {
    assert_eq!(broken_by(|run| drop(run.ledger.ended.remove(5))), ["I-16 not lost"]);
}

#[test]
fn a_command_that_never_ends_is_found() {
    let broken = broken_by(|run| {
        run.ledger.ended.remove(5);
        run.ledger.waiting.push("brief".to_owned());
    });
    assert_eq!(broken, ["I-16 ends"]);
}

#[test]
fn a_command_that_ends_twice_is_found() {
    let again = |run: &mut Run| run.ledger.ended.push(ended("brief", Ending::Expired, 0));
    assert_eq!(broken_by(again), ["I-16 ends once"]);
}

#[test]
fn a_command_that_nobody_sent_or_that_was_refused_is_found() {
    let foreign = |run: &mut Run| run.ledger.ended.push(ended("foreign", Ending::Expired, 0));
    assert_eq!(broken_by(foreign), ["I-16 no phantom"]);
    let refused = broken_by(|run| run.history.sends[6].answer = SendAnswer::Refused);
    assert_eq!(refused, ["I-16 no phantom"]);
}

#[test]
fn a_command_that_was_added_twice_is_found() {
    let broken = broken_by(|run| run.history.sends[1] = sent("twice", 2));
    assert_eq!(broken, [""; 0], "the first attempt may have been the one");
    let twice = broken_by(|run| {
        run.history.sends[1] = sent("twice", 2);
        run.history.sends[2] = sent("twice", 2);
    });
    assert_eq!(twice, ["I-16 accepted once"]);
    let elsewhere = broken_by(|run| run.history.sends[1] = sent("twice", 1));
    assert!(elsewhere.contains(&"I-16 accepted once"), "{elsewhere:?}");
    let of_nothing = broken_by(|run| drop(run.history.sends.remove(1)));
    assert_eq!(of_nothing, ["I-16 accepted once"], "it repeats what nobody has tried");
}

#[test]
fn an_ending_without_a_reason_is_found() {
    for ending in [
        Ending::Completed,
        Ending::Rejected,
        Ending::DeliveryCountExceeded,
        Ending::Purged,
        Ending::Cancelled,
        Ending::Superseded,
    ] {
        let broken = broken_by(|run| run.ended("brief").ending = ending);
        assert_eq!(broken, ["I-16 ends for a reason"], "{ending}");
    }
    let early = broken_by(|run| run.ended("brief").at_ms = 999);
    assert_eq!(early, ["I-16 ends for a reason"]);
}

#[test]
fn a_replaced_command_that_has_not_ended_so_is_found() {
    let broken = broken_by(|run| run.ended("old").ending = Ending::Expired);
    assert_eq!(broken, ["I-16 superseded"]);
}

#[test]
fn a_cancelled_command_that_ends_otherwise_is_found() {
    let broken = broken_by(|run| run.ended("late").ending = Ending::Expired);
    assert_eq!(broken, ["I-16 cancelled"]);
    let late = broken_by(|run| {
        let answer = CancelAnswer::Ended { at: 39 };
        run.history.cancels.push(CancelAttempt { answer, ..run.history.cancels[0].clone() });
    });
    assert_eq!(late, ["I-16 cancelled"], "it had ended before it was cancelled");
}

#[test]
fn a_completed_command_that_comes_again_is_found() {
    // The hub owns up to it.
    let broken = broken_by(|run| {
        run.ended("plain").deliveries = 2;
        run.history.deliveries.insert(2, delivered("plain", 2));
    });
    assert_eq!(broken, ["I-19 not after its end"]);
}

#[test]
fn a_cancelled_command_that_comes_afterwards_is_found() {
    let first = |command| Delivery { is_marked: false, earliest_ms: 160, ..delivered(command, 1) };
    // By its count alone: when it came proves nothing.
    let unsent = broken_by(|run| {
        run.history.connections[0].begun = 30;
        run.history.deliveries.insert(2, first("late"));
    });
    assert_eq!(unsent, ["I-19 each delivery is counted"]);
    // By the connection alone: it is one of those that were counted.
    let sent = broken_by(|run| {
        run.ended("late").deliveries = 1;
        run.history.cancels[0].answer = CancelAnswer::Cancelled { at: 41, deliveries: 1 };
        run.history.deliveries.insert(2, first("late"));
    });
    assert_eq!(sent, ["I-19 not after its end"]);
}

#[test]
fn a_delivery_that_was_under_way_when_its_command_was_cancelled_is_none() {
    let broken = broken_by(|run| {
        run.history.connections[0].begun = 30;
        run.ended("late").deliveries = 1;
        run.history.cancels[0].answer = CancelAnswer::Cancelled { at: 41, deliveries: 1 };
        run.history.deliveries.insert(2, Delivery { is_marked: false, ..delivered("late", 1) });
    });
    assert_eq!(broken, [""; 0]);
}

#[test]
fn a_delivery_that_the_hub_does_not_know_of_is_found() {
    let broken = broken_by(|run| run.ended("twice").deliveries = 1);
    assert_eq!(broken, ["I-19 each delivery is counted"]);
}

#[test]
fn a_superseded_command_that_comes_afterwards_is_found() {
    let broken = broken_by(|run| {
        run.ended("old").deliveries = 1;
        run.history.deliveries.insert(2, Delivery { is_marked: false, ..delivered("old", 1) });
    });
    assert_eq!(broken, ["I-19 not after a newer one"]);
}

#[test]
fn an_older_command_may_come_again_if_the_newer_one_was_taken_back() {
    let broken = broken_by(|run| {
        run.ended("old").deliveries = 1;
        run.ended("new").ending = Ending::Expired;
        run.history.deliveries.insert(2, Delivery { is_marked: false, ..delivered("old", 1) });
    });
    assert_eq!(broken, [""; 0]);
}

#[test]
fn a_delivery_after_the_expiry_is_found_and_one_within_the_skew_is_not() {
    let at = |ms| broken_by(move |run| run.history.deliveries[2].earliest_ms = ms);
    assert_eq!(at(1_006), ["I-18 not after its expiry"]);
    assert_eq!(at(1_005), [""; 0]);
}

#[test]
fn a_delivery_before_its_schedule_is_found() {
    let broken = |latest_ms| {
        broken_by(move |run| {
            run.history.connections[0].begun = 30;
            run.ended("late").deliveries = 1;
            run.history.cancels.clear();
            run.ended("late").ending = Ending::Completed;
            let early = Delivery { is_marked: false, latest_ms, ..delivered("late", 1) };
            run.history.deliveries.insert(2, early);
        })
    };
    assert_eq!(broken(144), ["P3 not before its time"]);
    assert_eq!(broken(145), [""; 0]);
}

#[test]
fn a_command_that_comes_twice_over_a_connection_is_found() {
    let broken = broken_by(|run| {
        run.ended("twice").deliveries = 3;
        run.history.deliveries.insert(2, delivered("twice", 1));
    });
    assert_eq!(broken, ["I-19 once over a connection"]);
}

#[test]
fn a_repeat_without_its_mark_is_found() {
    let broken = broken_by(|run| run.history.deliveries[2].is_marked = false);
    assert_eq!(broken, ["P3 a repeat is marked"]);
}

#[test]
fn commands_in_the_wrong_order_are_found() {
    assert_eq!(broken_by(|run| run.history.deliveries.swap(0, 1)), ["I-20 in order"]);
    assert_eq!(broken_by(|run| run.history.deliveries.swap(2, 3)), ["I-20 in order"]);
    let skipped = broken_by(|run| {
        run.ended("bad").deliveries = 2;
        run.history.deliveries.insert(2, Delivery { is_marked: false, ..delivered("bad", 1) });
        run.history.deliveries[5].is_marked = true;
    });
    assert_eq!(skipped, ["I-20 in order"], "the first of `new` is behind that of `bad`");
}

#[test]
fn what_was_locked_anew_or_scheduled_may_have_lost_its_place() {
    let relocked = broken_by(|run| {
        run.history.deliveries.swap(0, 1);
        run.history.deliveries[1].may_be_relocked = true;
    });
    assert_eq!(relocked, [""; 0]);
    let scheduled = broken_by(|run| {
        run.ended("late").deliveries = 1;
        run.ended("late").ending = Ending::Completed;
        run.history.cancels.clear();
        run.deliver(Delivery { is_marked: false, ..delivered("late", 2) });
    });
    assert_eq!(scheduled, [""; 0]);
}

#[test]
fn a_delivery_over_a_connection_that_never_was_is_found() {
    let broken = broken_by(|run| run.history.connections.retain(|opened| opened.number > 1));
    assert_eq!(broken, ["I-19 not after its end"]);
}
