//! A caller of the kill test: it calls one device's method, at any node, again and again, and each call once.

use std::time::Duration;

use drover_proto::admin::{InvokeMethodRequest, InvokeMethodResponse};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

use super::clock::Clock;
use crate::history::methods::{CallAnswer, MethodCall, Response};
use crate::nodes::admin::Admin;
use crate::nodes::commands::Failure;

/// Calls of one device that may be under way together.
pub(super) const CALLERS: u64 = 2;
const PAUSE_MS: std::ops::Range<u64> = 300..1_000;
/// A device that answers, answers at once.
const RESPONSE_MAX: prost_types::Duration = prost_types::Duration { seconds: 2, nanos: 0 };
/// Some wait for a device that is away.
const CONNECT_MAX: prost_types::Duration = prost_types::Duration { seconds: 1, nanos: 0 };

pub(super) struct Caller {
    admin: Admin,
    device: String,
    clock: Clock,
    random: StdRng,
    /// Of its next call: all numbers of all callers of a device differ.
    next: u64,
    calls: Vec<MethodCall>,
}

impl Caller {
    pub(super) fn new(admin: Admin, device: &str, clock: Clock, seed: u64, number: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { admin, device: device.to_owned(), clock, random, next: number, calls: Vec::new() }
    }

    /// Calls until it is stopped.
    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) -> Vec<MethodCall> {
        while !*stopped.borrow() {
            sleep(Duration::from_millis(self.random.random_range(PAUSE_MS))).await;
            self.call().await;
        }
        self.calls
    }

    async fn call(&mut self) {
        let number = self.next;
        self.next += CALLERS;
        let waits = self.random.random_bool(0.3);
        let request = InvokeMethodRequest {
            device_id: self.device.clone(),
            method_name: "work".to_owned(),
            payload: payload(&self.device, number),
            connect_timeout: waits.then_some(CONNECT_MAX),
            response_timeout: Some(RESPONSE_MAX),
            ..InvokeMethodRequest::default()
        };
        let begun = self.clock.moment();
        let node = self.random.random_range(0..self.admin.node_count());
        let answer = match self.admin.invoke_method(node, request).await {
            Ok(response) => {
                CallAnswer::Answered { at: self.clock.moment(), response: of(&response) }
            }
            Err(Failure::Refused(_)) => CallAnswer::NotCalled,
            Err(Failure::Unknown(_)) => CallAnswer::Unknown,
        };
        self.calls.push(MethodCall { number, begun, answer });
    }
}

/// What a call says: which one it is, and whose.
pub(super) fn payload(device: &str, call: u64) -> String {
    format!(r#"{{"device":"{device}","call":{call}}}"#)
}

/// What a device says in its answer.
pub(super) fn answer(number: u64) -> String {
    format!(r#"{{"answer":{number}}}"#)
}

/// An answer that no device of the run gives has a number that none uses.
fn of(response: &InvokeMethodResponse) -> Response {
    let content: Value = serde_json::from_str(&response.payload).unwrap_or_default();
    Response { status: response.status, number: content["answer"].as_u64().unwrap_or(u64::MAX) }
}
