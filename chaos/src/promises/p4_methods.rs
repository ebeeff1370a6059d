//! P4 and I-21: a method is called at most once, over the connection that is live, and the answer that its caller gets is
//! the one that the device gave to this very call.
//!
//! A call carries its number to the device, and an answer carries the device's count of answers, so that an answer to
//! another call is told apart even if it says the same. An unknown call may have been carried out; one of which the hub
//! says that the device was not called must not have been.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Violation;
use crate::history::methods::{CallAnswer, CallHistory, Execution, MethodCall, Response};

#[derive(Debug, Clone, Default, Serialize)]
pub struct Methods {
    pub called: u64,
    pub answered: u64,
    pub not_called: u64,
    pub unknown: u64,
    pub executed: u64,
    /// Carried out, and their callers do not know it.
    pub executed_unknown: u64,
    pub violations: Vec<Violation>,
}

/// Holds what callers were told against what devices did.
pub fn check(histories: &[CallHistory]) -> Methods {
    let mut found = Methods::default();
    for history in histories {
        check_device(history, &mut found);
    }
    found
}

fn check_device(history: &CallHistory, found: &mut Methods) {
    let mut executions: BTreeMap<u64, Vec<&Execution>> = BTreeMap::new();
    for execution in &history.executions {
        executions.entry(execution.call).or_default().push(execution);
    }
    found.executed += history.executions.len() as u64;
    let mut violations: Vec<_> = check_connections(history).into_iter().collect();
    for call in &history.calls {
        let of_call = executions.remove(&call.number).unwrap_or_default();
        found.called += 1;
        match call.answer {
            CallAnswer::Answered { .. } => found.answered += 1,
            CallAnswer::NotCalled => found.not_called += 1,
            CallAnswer::Unknown => {
                found.unknown += 1;
                found.executed_unknown += u64::from(!of_call.is_empty());
            }
        }
        violations.extend(check_call(history, call, &of_call));
    }
    for call in executions.keys() {
        violations.push(violation(history, *call, "it was carried out, and nobody called it"));
    }
    found.violations.extend(violations);
}

fn violation(history: &CallHistory, call: u64, seen: impl Into<String>) -> Violation {
    Violation::new("I-21 called once", format!("call {call} of {}", history.device), seen)
}

fn check_call(
    history: &CallHistory,
    call: &MethodCall,
    executions: &[&Execution],
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut violate = |seen: String| violations.push(violation(history, call.number, seen));
    if executions.len() > 1 {
        violate(format!("it was carried out {} times", executions.len()));
    }
    if executions.iter().any(|execution| execution.received < call.begun) {
        violate("it was carried out before it was made".to_owned());
    }
    match call.answer {
        CallAnswer::Unknown => {}
        CallAnswer::NotCalled if executions.is_empty() => {}
        CallAnswer::NotCalled => violate("its caller was told that it was not made".to_owned()),
        CallAnswer::Answered { at, response } => {
            let given = |execution: &&Execution| {
                execution.answered.is_some_and(|(gave, left)| gave == response && left <= at)
            };
            if !executions.iter().any(given) {
                let gave: Vec<Option<(Response, u64)>> =
                    executions.iter().map(|execution| execution.answered).collect();
                violate(format!("its caller got {response:?} at {at}, the device gave {gave:?}"));
            }
        }
    }
    violations
}

/// Calls come over one connection at a time: never again over an older one once a newer one has had a call.
fn check_connections(history: &CallHistory) -> Option<Violation> {
    let in_order = history.executions.is_sorted_by_key(|execution| execution.connection);
    let invariant = "I-24 one connection";
    let seen = "calls came over a connection that had been replaced";
    (!in_order).then(|| Violation::new(invariant, &history.device, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Response = Response { status: 207, number: 1 };

    /// Call 1 was answered, call 2 was carried out and its answer lost, call 3 was not made.
    fn honest() -> CallHistory {
        let call = |number, answer| MethodCall { number, begun: number * 10, answer };
        let execution = |call, connection| Execution {
            call,
            connection,
            received: call * 10 + 1,
            answered: Some((Response { number: call, ..GIVEN }, call * 10 + 2)),
        };
        CallHistory {
            device: "d".to_owned(),
            calls: vec![
                call(1, CallAnswer::Answered { at: 13, response: GIVEN }),
                call(2, CallAnswer::Unknown),
                call(3, CallAnswer::NotCalled),
            ],
            executions: vec![execution(1, 1), execution(2, 2)],
        }
    }

    fn broken_by(damage: impl FnOnce(&mut CallHistory)) -> Vec<&'static str> {
        let mut history = honest();
        damage(&mut history);
        check(&[history]).violations.iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn an_honest_run_breaks_nothing() {
        let found = check(&[honest()]);
        assert_eq!(found.violations, []);
        assert_eq!((found.called, found.answered, found.unknown, found.not_called), (3, 1, 1, 1));
        assert_eq!((found.executed, found.executed_unknown), (2, 1));
    }

    #[test]
    fn an_unknown_call_may_not_have_been_made() {
        assert_eq!(broken_by(|history| history.executions.truncate(1)), [""; 0]);
    }

    #[test]
    fn a_call_that_is_carried_out_twice_is_found() {
        let twice = broken_by(|history| history.executions.push(history.executions[1]));
        assert_eq!(twice, ["I-21 called once"]);
    }

    #[test]
    fn the_answer_to_another_call_is_found() {
        let broken = broken_by(|history| {
            let response = Response { number: 2, ..GIVEN };
            history.calls[0].answer = CallAnswer::Answered { at: 13, response };
        });
        assert_eq!(broken, ["I-21 called once"]);
    }

    #[test]
    fn another_status_than_the_devices_is_found() {
        let broken = broken_by(|history| {
            let response = Response { status: 200, ..GIVEN };
            history.calls[0].answer = CallAnswer::Answered { at: 13, response };
        });
        assert_eq!(broken, ["I-21 called once"]);
    }

    #[test]
    fn an_answer_that_no_device_gave_is_found() {
        let broken = |execution: fn(&mut Execution)| {
            broken_by(|history| execution(&mut history.executions[0]))
        };
        assert_eq!(broken(|execution| execution.answered = None), ["I-21 called once"]);
        // It left after the caller had it.
        assert_eq!(
            broken(|execution| execution.answered = Some((GIVEN, 14))),
            ["I-21 called once"]
        );
        assert_eq!(
            broken_by(|history| history.executions.retain(|execution| execution.call > 1)),
            ["I-21 called once"]
        );
    }

    #[test]
    fn a_call_that_was_refused_and_made_all_the_same_is_found() {
        let broken = broken_by(|history| history.calls[1].answer = CallAnswer::NotCalled);
        assert_eq!(broken, ["I-21 called once"]);
    }

    #[test]
    fn a_call_that_nobody_made_is_found() {
        let unmade = broken_by(|history| {
            history.calls.remove(1);
        });
        assert_eq!(unmade, ["I-21 called once"]);
        let early = broken_by(|history| history.executions[1].received = 19);
        assert_eq!(early, ["I-21 called once"]);
    }

    #[test]
    fn a_call_over_a_replaced_connection_is_found() {
        let broken = broken_by(|history| history.executions[0].connection = 3);
        assert_eq!(broken, ["I-24 one connection"]);
    }
}
