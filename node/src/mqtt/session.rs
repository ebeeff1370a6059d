//! A connection as a pure state machine: packets, outcomes and deliveries in; packets and requests out.
//!
//! It does no IO and reads no clock: `connection` carries bytes between it, the socket and the cluster. Here is the life
//! of a connection: CONNECT first and once, nothing handled before CONNACK, an end for whoever falls silent. What a device
//! may do in between is [`live`]'s. Whether a change is allowed is the cluster's to say.

mod commands;
mod live;
mod packet_ids;
#[cfg(test)]
mod tests;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;

use drover_cluster::Error;
use drover_cluster::actors::session::Delivery;
use drover_core::change::Message;
use drover_core::device::{Channel, Subscriptions};
use drover_core::document::Object;
use drover_core::ids::{CallId, CommandSequence, DeviceId, SessionEpoch, Version};
use drover_core::mailbox::Settlement;
use drover_core::method::CallReport;
use drover_core::twin::Twin;
use mqtt_protocol_core::mqtt::packet::v3_1_1::Connect;
use mqtt_protocol_core::mqtt::result_code::ConnectReturnCode;
use tokio::time::Instant;

use self::live::Live;
use super::close::CloseReason;
use super::codec::{self, Expects, Packet, Reply};
use super::config::Config;
use super::login::{self, Login, Terms};
use super::status;

/// The time of an input: one clock to wait by, one to compare with what clients wrote.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub unix_ms: u64,
}

/// What the session asks of the cluster. One request is with the cluster at a time.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Check the claim, and make this the live connection of the device.
    Open(Login),
    Append(Vec<Message>),
    ReadTwin,
    PatchReported {
        expected: Option<Version>,
        patch: Object,
    },
    Subscribe(Subscriptions),
    Unsubscribe(Vec<Channel>),
    Settle {
        sequence: CommandSequence,
        settlement: Settlement,
    },
    ReportCall {
        call: CallId,
        report: CallReport,
    },
}

/// What came of the request.
#[derive(Debug)]
pub enum Outcome {
    Opened(Result<Opened, OpenError>),
    /// How many messages.
    Appended(Result<u64, Error>),
    Twin(Result<Box<Twin>, Error>),
    Reported(Result<Version, Error>),
    /// To both changes of subscriptions: all of them as they are now.
    Subscribed(Result<Subscriptions, Error>),
    Settled(Result<(), Error>),
    CallReported(Result<(), Error>),
}

/// A connection that has become the live one of its device.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    pub epoch: SessionEpoch,
    pub session_present: bool,
    pub subscriptions: Subscriptions,
    /// When what the device proved is worth nothing any more, in seconds since 1970.
    pub expires_s: u64,
}

/// Why it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// The claim was not proved; the client learns no more.
    Denied,
    /// The claim could not be checked, or not be made durable.
    Unavailable,
}

/// A packet to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub reply: Reply,
    /// When what it answers came in; set for PUBACKs.
    pub received: Option<Instant>,
}

impl From<Reply> for Outgoing {
    fn from(reply: Reply) -> Self {
        Self { reply, received: None }
    }
}

/// The state machine of one connection.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    phase: Phase,
    /// When a packet came last.
    heard: Instant,
}

#[derive(Debug)]
enum Phase {
    /// Nothing but CONNECT is taken.
    Silent,
    /// `claim` is there until it is polled.
    Opening(Box<Opening>),
    Live(Box<Live>),
    Closed(Box<Closed>),
}

#[derive(Debug)]
struct Opening {
    claim: Option<Login>,
    device: DeviceId,
    terms: Terms,
}

/// What is left when a connection has ended: the last packets, and the will, if the end calls for it.
#[derive(Debug)]
struct Closed {
    reason: CloseReason,
    will: Option<Message>,
    replies: VecDeque<Outgoing>,
}

impl Session {
    pub fn new(config: Arc<Config>, now: Now) -> Self {
        Self { config, phase: Phase::Silent, heard: now.instant }
    }

    /// Which packets may come.
    pub fn expects(&self) -> Expects {
        match self.phase {
            Phase::Silent => Expects::Connect,
            Phase::Opening(_) | Phase::Live(_) | Phase::Closed(_) => Expects::Anything,
        }
    }

    /// Whether a packet can be taken. Before CONNACK none is: it waits as bytes, unread.
    pub fn wants_packets(&self) -> bool {
        match &self.phase {
            Phase::Silent => true,
            Phase::Opening(_) | Phase::Closed(_) => false,
            Phase::Live(live) => live.wants_packets(&self.config),
        }
    }

    /// Whether the cluster is making this connection the live one. Until it has answered, the connection stays.
    pub fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening(_))
    }

    /// Why the connection has ended, once it has. What [`Session::poll_reply`] still gives is to be sent.
    pub fn closed(&self) -> Option<CloseReason> {
        match &self.phase {
            Phase::Closed(closed) => Some(closed.reason),
            Phase::Silent | Phase::Opening(_) | Phase::Live(_) => None,
        }
    }

    /// The message that the end of the connection sends.
    pub fn take_will(&mut self) -> Option<Message> {
        match &mut self.phase {
            Phase::Closed(closed) => closed.will.take(),
            Phase::Silent | Phase::Opening(_) | Phase::Live(_) => None,
        }
    }

    // ------------------------------------------------------------ inputs

    /// Only while [`Session::wants_packets`].
    pub fn handle_packet(&mut self, packet: Packet, now: Now) {
        self.heard = now.instant;
        let taken = match (&mut self.phase, packet) {
            (Phase::Silent, Packet::Connect(connect)) => {
                self.claim(&connect);
                Ok(())
            }
            (Phase::Live(live), packet) => live.handle_packet(packet, &self.config, now.instant),
            (Phase::Silent | Phase::Opening(_), _) => Err(CloseReason::Protocol),
            (Phase::Closed(_), _) => Ok(()),
        };
        self.close_if(taken);
    }

    /// Bytes that are no packet.
    pub fn handle_malformed(&mut self, error: codec::Error) {
        let reply = match (&self.phase, error) {
            (Phase::Silent, codec::Error::UnsupportedLevel { level: 5 }) => {
                Some(Reply::ConnackVersion5)
            }
            (Phase::Silent, codec::Error::UnsupportedLevel { .. }) => {
                Some(refusal(ConnectReturnCode::UnacceptableProtocolVersion))
            }
            _ => None,
        };
        self.close_with(CloseReason::Protocol, reply);
    }

    /// The device has closed the socket, or it has broken. What was received before is still worked off.
    pub fn handle_hang_up(&mut self, now: Now) {
        self.end(CloseReason::Lost, now);
    }

    pub fn handle_outcome(&mut self, outcome: Outcome, now: Now) {
        let handled = match (&mut self.phase, outcome) {
            (Phase::Opening(_), Outcome::Opened(opened)) => {
                self.open(opened, now);
                Ok(())
            }
            (Phase::Live(live), outcome) => live.handle_outcome(outcome, &self.config, now),
            (Phase::Silent | Phase::Opening(_) | Phase::Closed(_), _) => Ok(()),
        };
        self.close_if(handled);
    }

    /// `None`: the cluster has given the connection up, which it does when it cannot deliver.
    pub fn handle_delivery(&mut self, delivery: Option<Delivery>) {
        let handled = match (&mut self.phase, delivery) {
            (_, None) => Err(CloseReason::Gap),
            (_, Some(Delivery::End(reason))) => Err(reason.into()),
            (Phase::Live(live), Some(Delivery::Desired { version, patch })) => {
                live.handle_desired(version, patch)
            }
            (Phase::Live(live), Some(Delivery::Command(sent))) => live.handle_command(sent),
            (Phase::Live(live), Some(Delivery::Call(call))) => {
                live.handle_call(&call);
                Ok(())
            }
            (Phase::Silent | Phase::Opening(_) | Phase::Closed(_), Some(_)) => Ok(()),
        };
        self.close_if(handled);
    }

    /// The node is stopping. What was received is still worked off, so that its PUBACKs leave.
    pub fn handle_stop(&mut self, now: Now) {
        self.end(CloseReason::Stopping, now);
    }

    /// What the connection cannot go on after, found outside: a device that does not read, say.
    pub fn handle_failure(&mut self, reason: CloseReason) {
        self.close(reason);
    }

    /// [`Session::deadline`] has come.
    pub fn handle_time(&mut self, now: Now) {
        let is_reading = self.wants_packets();
        let checked = match &mut self.phase {
            Phase::Silent if now.instant >= self.heard + self.config.connect_timeout => {
                Err(CloseReason::ConnectTimeout)
            }
            Phase::Live(live) => {
                if !is_reading {
                    // Nobody can be heard who is not listened to.
                    self.heard = now.instant;
                }
                live.handle_time(self.heard, now)
            }
            Phase::Silent | Phase::Opening(_) | Phase::Closed(_) => Ok(()),
        };
        self.close_if(checked);
    }

    // ------------------------------------------------------------ outputs

    /// When [`Session::handle_time`] is to be called; `None` while an answer of the cluster comes first.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Silent => Some(self.heard + self.config.connect_timeout),
            Phase::Live(live) => Some(live.deadline(self.heard)),
            Phase::Opening(_) | Phase::Closed(_) => None,
        }
    }

    /// The next request. None comes while one is with the cluster.
    pub fn poll_request(&mut self, now: Now) -> Option<Request> {
        match &mut self.phase {
            Phase::Opening(opening) => opening.claim.take().map(Request::Open),
            Phase::Live(live) => {
                let request = live.poll_request(&self.config, now);
                if let Some(reason) = live.ended() {
                    self.close(reason);
                }
                request
            }
            Phase::Silent | Phase::Closed(_) => None,
        }
    }

    /// The next packet to send.
    pub fn poll_reply(&mut self, now: Now) -> Option<Outgoing> {
        match &mut self.phase {
            Phase::Live(live) => live.poll_reply(now),
            Phase::Closed(closed) => closed.replies.pop_front(),
            Phase::Silent | Phase::Opening(_) => None,
        }
    }

    /// Gives back the memory of queues that are empty: most connections are idle most of the time.
    pub fn release_memory(&mut self) {
        if let Phase::Live(live) = &mut self.phase {
            live.release_memory();
        }
    }

    // ------------------------------------------------------------ the phases

    fn claim(&mut self, connect: &Connect) {
        match login::read(connect, &self.config.host_names) {
            Ok((login, terms)) => {
                let device = login.device.clone();
                let opening = Opening { claim: Some(login), device, terms };
                self.phase = Phase::Opening(Box::new(opening));
            }
            Err(code) => self.close_with(CloseReason::ConnectRefused, Some(refusal(code))),
        }
    }

    fn open(&mut self, opened: Result<Opened, OpenError>, now: Now) {
        match (std::mem::replace(&mut self.phase, Phase::Silent), opened) {
            (Phase::Opening(opening), Ok(opened)) => {
                self.heard = now.instant;
                let Opening { device, terms, .. } = *opening;
                self.phase = Phase::Live(Box::new(Live::new(device, terms, opened, now)));
            }
            (_, Ok(_)) => self.close(CloseReason::Protocol),
            (_, Err(error)) => {
                let reply = refusal(status::return_code(error));
                self.close_with(CloseReason::ConnectRefused, Some(reply));
            }
        }
    }

    fn end(&mut self, reason: CloseReason, now: Now) {
        match &mut self.phase {
            Phase::Live(live) => live.end(reason, now.instant + self.config.drain_max),
            Phase::Silent | Phase::Opening(_) | Phase::Closed(_) => self.close(reason),
        }
    }

    fn close_if(&mut self, result: Result<(), CloseReason>) {
        if let Err(reason) = result {
            self.close(reason);
        }
    }

    fn close(&mut self, reason: CloseReason) {
        self.close_with(reason, None);
    }

    fn close_with(&mut self, reason: CloseReason, reply: Option<Reply>) {
        let (will, mut replies) = match std::mem::replace(&mut self.phase, Phase::Silent) {
            Phase::Live(live) => live.into_rest(),
            // The first reason counts.
            closed @ Phase::Closed(_) => {
                self.phase = closed;
                return;
            }
            Phase::Silent | Phase::Opening(_) => (None, VecDeque::new()),
        };
        replies.extend(reply.map(Outgoing::from));
        // Whose right has ended has no last word either (S-8).
        let will =
            will.filter(|_| !matches!(reason, CloseReason::Disconnected | CloseReason::Revoked));
        self.phase = Phase::Closed(Box::new(Closed { reason, will, replies }));
    }
}

fn refusal(code: ConnectReturnCode) -> Reply {
    Reply::Connack { session_present: false, code }
}
