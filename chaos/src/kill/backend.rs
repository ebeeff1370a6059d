//! A back end of the kill test: it sends commands to one device, at any node, sends again what was not answered, and takes
//! some back.
//!
//! It does one thing after the other. So when it sends a command again, that is the newest of its mailbox, which the hub
//! still remembers.

use std::time::Duration;

use drover_proto::admin::send_command_request::Expiry;
use drover_proto::admin::{Acknowledgement, CancelCommandRequest, Command, SendCommandRequest};
use prost_types::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::clock::Clock;
use crate::history::commands::{
    CancelAnswer, CancelAttempt, MailboxHistory, SendAnswer, SendAttempt,
};
use crate::nodes::admin::Admin;
use crate::nodes::commands::Failure;

/// Between two commands: about five in two seconds.
const PAUSE_MS: std::ops::Range<u64> = 150..650;
/// An outage is over by then, or the run has failed anyway.
const RESEND_MAX: Duration = Duration::from_secs(30);
/// A time to live that a connected device is well within, and one that is away for a moment is not.
const BRIEF_MS: std::ops::Range<u64> = 100..700;
/// How far ahead a command is scheduled: it can be taken back meanwhile.
const AHEAD_MS: std::ops::Range<u64> = 500..2_000;
/// Who cancels, cancels one of so many newest.
const CANCELLED_OF: usize = 4;

pub(super) struct BackEnd {
    admin: Admin,
    clock: Clock,
    random: StdRng,
    history: MailboxHistory,
}

impl BackEnd {
    pub(super) fn new(admin: Admin, device: &str, clock: Clock, seed: u64) -> Self {
        let history = MailboxHistory { device: device.to_owned(), ..MailboxHistory::default() };
        Self { admin, clock, random: StdRng::seed_from_u64(seed), history }
    }

    /// Works until it is stopped, and then until it knows what became of its last command.
    pub(super) async fn run(mut self, stopped: watch::Receiver<bool>) -> MailboxHistory {
        let mut sent: Vec<String> = Vec::new();
        while !*stopped.borrow() {
            sleep(Duration::from_millis(self.random.random_range(PAUSE_MS))).await;
            let request = self.draw(sent.len());
            sent.push(request.message_id.clone());
            self.send_until_answered(&request).await;
            if self.random.random_bool(0.05) {
                self.send(&request).await;
            }
            if self.random.random_bool(0.2) {
                let newest = &sent[sent.len().saturating_sub(CANCELLED_OF)..];
                let command = newest[self.random.random_range(0..newest.len())].clone();
                self.cancel(command).await;
            }
        }
        self.history
    }

    fn draw(&mut self, number: usize) -> SendCommandRequest {
        let command = format!("c-{number}");
        let ahead = self.random.random_bool(0.15).then(|| self.random.random_range(AHEAD_MS));
        let brief = self.random.random_bool(0.2).then(|| self.random.random_range(BRIEF_MS));
        let key = if self.random.random_bool(0.25) { "rate" } else { "" };
        SendCommandRequest {
            device_id: self.history.device.clone(),
            body: body(&self.history.device, &command).into_bytes(),
            message_id: command,
            acknowledgement: Acknowledgement::Full as i32,
            supersede_key: key.to_owned(),
            scheduled_for: ahead.map(|ms| timestamp(self.clock.unix_ms() + ms)),
            expiry: brief.map(|ms| Expiry::TimeToLive(duration(ms))),
            ..SendCommandRequest::default()
        }
    }

    async fn send_until_answered(&mut self, request: &SendCommandRequest) {
        let begun = Instant::now();
        while !self.send(request).await && begun.elapsed() < RESEND_MAX {
            sleep(Duration::from_millis(self.random.random_range(20..200))).await;
        }
    }

    /// Whether it is known what became of it.
    async fn send(&mut self, request: &SendCommandRequest) -> bool {
        let begun = self.clock.moment();
        let node = self.random.random_range(0..self.admin.node_count());
        let answer = self.admin.send_command(node, request.clone()).await;
        let is_passing = answer.as_ref().is_err_and(Failure::is_passing);
        let answer = match answer {
            Ok(response) => {
                let command = response.command.unwrap_or_default();
                SendAnswer::Accepted {
                    at: self.clock.moment(),
                    sequence: command.sequence,
                    repeated: response.repeated,
                    superseded: response.superseded,
                    expires_ms: expires_ms(&command),
                    not_before_ms: command.scheduled_for.as_ref().map(unix_ms),
                }
            }
            Err(Failure::Refused(_)) => SendAnswer::Refused,
            Err(Failure::Unknown(_)) => SendAnswer::Unknown,
        };
        let command = request.message_id.clone();
        let key = Some(request.supersede_key.clone()).filter(|key| !key.is_empty());
        self.history.sends.push(SendAttempt { command, key, begun, answer });
        !is_passing
    }

    async fn cancel(&mut self, command: String) {
        let begun = self.clock.moment();
        let node = self.random.random_range(0..self.admin.node_count());
        let device_id = self.history.device.clone();
        let request = CancelCommandRequest {
            device_id,
            message_id: command.clone(),
            ..CancelCommandRequest::default()
        };
        let answer = self.admin.cancel_command(node, request).await;
        let at = self.clock.moment();
        let answer = match answer {
            Ok(response) => {
                let deliveries = response.command.map_or(0, |command| command.delivery_count);
                CancelAnswer::Cancelled { at, deliveries }
            }
            Err(failure) if failure.is_command_ended() => CancelAnswer::Ended { at },
            Err(Failure::Refused(_)) => CancelAnswer::Refused,
            Err(Failure::Unknown(_)) => CancelAnswer::Unknown,
        };
        self.history.cancels.push(CancelAttempt { command, begun, answer });
    }
}

/// What a command says: which one it is, and whose.
pub(super) fn body(device: &str, command: &str) -> String {
    format!(r#"{{"device":"{device}","command":"{command}"}}"#)
}

fn expires_ms(command: &Command) -> u64 {
    command.expires.as_ref().map_or(u64::MAX, unix_ms)
}

/// Milliseconds since 1970. The hub's times are after that.
pub(super) fn unix_ms(time: &Timestamp) -> u64 {
    (time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000) as u64
}

fn timestamp(unix_ms: u64) -> Timestamp {
    Timestamp { seconds: (unix_ms / 1_000) as i64, nanos: (unix_ms % 1_000) as i32 * 1_000_000 }
}

fn duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000) as i32 * 1_000_000 }
}
