//! An open connection: what the device has asked for, what the cluster is working on, what is to be sent.
//!
//! One request is with the cluster at a time, so that a device's changes are applied in the order in which it made them.
//! What arrives meanwhile waits, up to the window, and telemetry that waits together becomes one request. Answers leave in
//! the order of what they answer, and PUBACKs only after the cluster's (P1, P8).

use std::collections::VecDeque;
use std::time::Duration;

use drover_cluster::Error;
use drover_cluster::actors::session::{DELIVERIES_MAX, SentCommand};
use drover_cluster::wire::json;
use drover_cluster::wire::message::Content;
use drover_core::change::{Message, Refusal};
use drover_core::device::{Channel, Qos, Subscriptions};
use drover_core::document::{Object, Value};
use drover_core::ids::{CommandSequence, DeviceId, SessionEpoch, Version};
use drover_core::mailbox::Settlement;
use drover_core::method::{Call, CallReport, METHOD_PAYLOAD_BYTES_MAX, MethodResponse};
use drover_core::twin::{Section, Twin};
use mqtt_protocol_core::mqtt::packet::v3_1_1::Publish;
use mqtt_protocol_core::mqtt::result_code::ConnectReturnCode;
use tokio::time::Instant;

use super::commands::Commands;
use super::packet_ids::PacketIds;
use super::work::{
    Ack, CallReported, Settle, Subscribe, Telemetry, TwinRequest, Unsubscribe, Work,
};
use super::{Now, Opened, Outcome, Outgoing, Request};
use crate::mqtt::close::CloseReason;
use crate::mqtt::codec::{Packet, Reply};
use crate::mqtt::config::Config;
use crate::mqtt::devicebound;
use crate::mqtt::login::Terms;
use crate::mqtt::properties::{InvalidMessage, Properties};
use crate::mqtt::status::{self, INVALID_TWIN, Remedy, TwinStatus};
use crate::mqtt::topics::{self, Publication};

/// The longest that a silent connection is kept, whatever keep-alive it proposed (`spec/mqtt.md` section 6).
const SILENCE_MAX: Duration = Duration::from_secs(1767);

/// The wait before a throttled request is tried again, doubled each time up to the second figure.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);

/// How many packets may wait to be sent before no more are taken. Small ones fill a socket's buffer at about this many.
const REPLIES_MAX: usize = 256;

/// When an expiry is this near, the next look at the wall clock is at the expiry itself. Before that a look comes when
/// half of the time is over, because the clock may be set meanwhile and does not stand still with a suspended machine.
const EXPIRY_NEAR: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Live {
    device: DeviceId,
    epoch: SessionEpoch,
    subscriptions: Subscriptions,
    silence_max: Duration,
    model_id: Option<Box<str>>,
    /// Few have one.
    will: Option<Box<Message>>,
    expires_s: u64,
    /// When to look at the wall clock next.
    expiry_look: Instant,
    /// Received and not begun, in order.
    waiting: VecDeque<Work>,
    /// What waits and what is in flight: the use of the window.
    held_messages: usize,
    held_bytes: usize,
    in_flight: InFlight,
    throttle: Option<Throttle>,
    replies: VecDeque<Outgoing>,
    packet_ids: PacketIds,
    /// The newest desired version that was sent: a repeat or an older one is left out.
    desired_sent: Version,
    /// Patches that came while subscriptions were being changed.
    patches: VecDeque<(Version, Object)>,
    commands: Commands,
    /// Failed twin requests so far, for their tracking ids.
    failures: u64,
    ending: Option<Ending>,
}

/// What the cluster is working on.
#[derive(Debug)]
enum InFlight {
    Nothing,
    Telemetry(Vec<Telemetry>),
    ReadTwin(TwinRequest),
    PatchReported { request: TwinRequest, bytes: usize },
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Settle(Settle),
    ReportCall(CallReported),
}

/// A request that the cluster had no room for.
#[derive(Debug, Clone, Copy)]
struct Throttle {
    since: Instant,
    wait: Duration,
    /// `None` while it is tried again.
    retry: Option<Instant>,
}

/// The device has gone; what it sent before is still worked off.
#[derive(Debug, Clone, Copy)]
struct Ending {
    reason: CloseReason,
    give_up: Instant,
}

impl Live {
    /// CONNACK is its first packet.
    pub(super) fn new(device: DeviceId, terms: Terms, opened: Opened, now: Now) -> Self {
        let accepted = Reply::Connack {
            session_present: opened.session_present,
            code: ConnectReturnCode::Accepted,
        };
        Self {
            device,
            epoch: opened.epoch,
            subscriptions: opened.subscriptions,
            silence_max: silence_max(terms.keep_alive_s),
            model_id: terms.model_id,
            will: terms.will.map(Box::new),
            expires_s: opened.expires_s,
            expiry_look: next_look(opened.expires_s, now),
            waiting: VecDeque::new(),
            held_messages: 0,
            held_bytes: 0,
            in_flight: InFlight::Nothing,
            throttle: None,
            replies: VecDeque::from([accepted.into()]),
            packet_ids: PacketIds::default(),
            desired_sent: Version::new(0),
            patches: VecDeque::new(),
            commands: Commands::default(),
            failures: 0,
            ending: None,
        }
    }

    /// The window is open, nothing is throttled, and what is to be sent is being read.
    pub(super) fn wants_packets(&self, config: &Config) -> bool {
        self.ending.is_none()
            && self.throttle.is_none()
            && self.held_messages < config.window_messages
            && self.held_bytes < config.window_bytes
            && self.replies.len() < REPLIES_MAX
    }

    // ------------------------------------------------------------ packets

    pub(super) fn handle_packet(
        &mut self,
        packet: Packet,
        config: &Config,
        now: Instant,
    ) -> Result<(), CloseReason> {
        match packet {
            Packet::Publish(publish) => self.handle_publish(&publish, now)?,
            Packet::Puback(packet_id) => {
                self.packet_ids.release(packet_id);
                if let Some(sequence) = self.commands.acknowledge(packet_id) {
                    self.settle(sequence, Settlement::Complete);
                }
            }
            Packet::Subscribe { packet_id, filters } => {
                let filters = filters
                    .into_iter()
                    .map(|(filter, qos)| (topics::channel(&filter, &self.device), qos))
                    .collect();
                self.hold(Work::Subscribe(Subscribe { packet_id, filters }));
            }
            Packet::Unsubscribe { packet_id, filters } => {
                let channels = filters
                    .iter()
                    .filter_map(|filter| topics::channel(filter, &self.device))
                    .collect();
                self.hold(Work::Unsubscribe(Unsubscribe { packet_id, channels }));
            }
            Packet::Pingreq => self.replies.push_back(Reply::Pingresp.into()),
            Packet::Disconnect => self.end(CloseReason::Disconnected, now + config.drain_max),
            Packet::Connect(_) => return Err(CloseReason::Protocol),
        }
        Ok(())
    }

    fn handle_publish(&mut self, publish: &Publish, now: Instant) -> Result<(), CloseReason> {
        let ack = publish.packet_id().map(|packet_id| Ack { packet_id, received: now });
        let publication = topics::publication(publish.topic_name(), &self.device)
            .ok_or(CloseReason::IllegalPublish)?;
        let work = match publication {
            Publication::Telemetry { bag } => {
                let message =
                    self.message(bag, publish).map_err(|_| CloseReason::IllegalPublish)?;
                Work::Telemetry(Telemetry { message, ack })
            }
            Publication::ReadTwin { request_id } => {
                Work::ReadTwin(TwinRequest { id: request_id.into(), ack })
            }
            Publication::PatchReported { request_id, expected } => Work::PatchReported {
                request: TwinRequest { id: request_id.into(), ack },
                expected,
                payload: publish.payload().as_slice().into(),
            },
            Publication::MethodResponse { status, call } => {
                let report = method_report(status, publish.payload().as_slice());
                Work::ReportCall(CallReported { call, report, ack })
            }
        };
        self.hold(work);
        Ok(())
    }

    fn message(&self, bag: &str, publish: &Publish) -> Result<Message, InvalidMessage> {
        let mut properties = Properties::parse(bag)?;
        if publish.retain() {
            properties.add_application("mqtt-retain", Some("true".into()));
        }
        if let Some(model_id) = &self.model_id {
            properties.add_system("dt-dataschema", model_id.to_string());
        }
        properties.with_body(publish.payload().as_slice())
    }

    fn hold(&mut self, work: Work) {
        self.held_messages += 1;
        self.held_bytes += work.bytes();
        self.waiting.push_back(work);
    }

    fn release(&mut self, bytes: usize) {
        self.held_messages -= 1;
        self.held_bytes -= bytes;
    }

    // ------------------------------------------------------------ requests

    pub(super) fn poll_request(&mut self, config: &Config, now: Now) -> Option<Request> {
        if !matches!(self.in_flight, InFlight::Nothing) {
            return self.retry(now.instant);
        }
        // Ends, because each round takes one that waits.
        while let Some(work) = self.waiting.pop_front() {
            if let Some(request) = self.begin(work, config, now) {
                return Some(request);
            }
        }
        None
    }

    /// Begins a piece of work. `None` if it needs no cluster; it is answered then.
    fn begin(&mut self, work: Work, config: &Config, now: Now) -> Option<Request> {
        match work {
            Work::Telemetry(first) => Some(self.begin_batch(first, config)),
            Work::ReadTwin(request) => {
                self.in_flight = InFlight::ReadTwin(request);
                Some(Request::ReadTwin)
            }
            Work::PatchReported { request, expected, payload } => {
                match json::parse_object(&payload) {
                    Ok(patch) => {
                        self.in_flight = InFlight::PatchReported { request, bytes: payload.len() };
                        Some(Request::PatchReported { expected, patch })
                    }
                    Err(invalid) => {
                        self.release(payload.len());
                        self.fail_twin(&request, INVALID_TWIN, &invalid.problem, now.unix_ms);
                        None
                    }
                }
            }
            Work::ReportCall(reported) => self.begin_report(reported),
            Work::Subscribe(subscribe) => self.begin_subscribe(subscribe),
            Work::Unsubscribe(unsubscribe) => self.begin_unsubscribe(unsubscribe),
            Work::Settle(settle) => {
                self.in_flight = InFlight::Settle(settle);
                let Settle { sequence, settlement } = settle;
                Some(Request::Settle { sequence, settlement })
            }
        }
    }

    fn begin_report(&mut self, reported: CallReported) -> Option<Request> {
        let Some(call) = reported.call else {
            self.reported(&reported);
            return None;
        };
        let report = reported.report.clone();
        self.in_flight = InFlight::ReportCall(reported);
        Some(Request::ReportCall { call, report })
    }

    /// All telemetry that waits together, up to the limits of a batch. The first goes in any case.
    fn begin_batch(&mut self, first: Telemetry, config: &Config) -> Request {
        let mut bytes = first.message.0.len();
        let mut batch = vec![first];
        while batch.len() < config.batch_messages
            && let Some(Work::Telemetry(next)) = self.waiting.front()
            && bytes + next.message.0.len() <= config.batch_bytes
            && let Some(Work::Telemetry(next)) = self.waiting.pop_front()
        {
            bytes += next.message.0.len();
            batch.push(next);
        }
        let messages = messages_of(&batch);
        self.in_flight = InFlight::Telemetry(batch);
        Request::Append(messages)
    }

    /// What is granted already is durable already.
    fn begin_subscribe(&mut self, subscribe: Subscribe) -> Option<Request> {
        let wanted = subscribe.wanted();
        if wanted.iter().all(|(channel, qos)| self.subscriptions.get(channel) == Some(qos)) {
            self.grant(&subscribe);
            return None;
        }
        self.in_flight = InFlight::Subscribe(subscribe);
        Some(Request::Subscribe(wanted))
    }

    fn begin_unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Option<Request> {
        let is_held = |channel: &Channel| self.subscriptions.contains_key(channel);
        if !unsubscribe.channels.iter().any(is_held) {
            self.confirm_unsubscribe(&unsubscribe);
            return None;
        }
        let channels = unsubscribe.channels.clone();
        self.in_flight = InFlight::Unsubscribe(unsubscribe);
        Some(Request::Unsubscribe(channels))
    }

    /// The request in flight once more, if the cluster had no room for it and its wait is over.
    fn retry(&mut self, now: Instant) -> Option<Request> {
        let throttle = self.throttle.as_mut()?;
        throttle.retry.take_if(|retry| *retry <= now)?;
        match &self.in_flight {
            InFlight::Telemetry(batch) => Some(Request::Append(messages_of(batch))),
            InFlight::Subscribe(subscribe) => Some(Request::Subscribe(subscribe.wanted())),
            InFlight::Unsubscribe(unsubscribe) => {
                Some(Request::Unsubscribe(unsubscribe.channels.clone()))
            }
            InFlight::Settle(Settle { sequence, settlement }) => {
                Some(Request::Settle { sequence: *sequence, settlement: *settlement })
            }
            // Twin requests are answered with a status and not tried again, and a call has no time to lose.
            InFlight::Nothing
            | InFlight::ReadTwin(_)
            | InFlight::PatchReported { .. }
            | InFlight::ReportCall(_) => None,
        }
    }

    // ------------------------------------------------------------ outcomes

    pub(super) fn handle_outcome(
        &mut self,
        outcome: Outcome,
        config: &Config,
        now: Now,
    ) -> Result<(), CloseReason> {
        let in_flight = std::mem::replace(&mut self.in_flight, InFlight::Nothing);
        match (in_flight, outcome) {
            (InFlight::Telemetry(batch), Outcome::Appended(Ok(_))) => self.stored(batch),
            (InFlight::ReadTwin(request), Outcome::Twin(read)) => {
                self.release(0);
                self.answer_read(&request, read, now.unix_ms)?;
            }
            (InFlight::PatchReported { request, bytes }, Outcome::Reported(reported)) => {
                self.release(bytes);
                self.answer_patch(&request, reported, now.unix_ms)?;
            }
            (InFlight::Subscribe(subscribe), Outcome::Subscribed(Ok(subscriptions))) => {
                self.subscriptions = subscriptions;
                self.grant(&subscribe);
            }
            (InFlight::Unsubscribe(unsubscribe), Outcome::Subscribed(Ok(subscriptions))) => {
                self.subscriptions = subscriptions;
                self.confirm_unsubscribe(&unsubscribe);
            }
            // If the leader could not be told, the caller learns it by the time.
            (InFlight::ReportCall(reported), Outcome::CallReported(_)) => self.reported(&reported),
            (InFlight::Settle(_), Outcome::Settled(settled)) if is_settled(&settled) => {
                self.release(0);
            }
            (
                in_flight,
                Outcome::Appended(Err(error))
                | Outcome::Subscribed(Err(error))
                | Outcome::Settled(Err(error)),
            ) => {
                return self.postpone(in_flight, &error, config, now.instant);
            }
            // An answer to something else: nothing that follows could be trusted.
            (_, _) => return Err(CloseReason::UnknownOutcome),
        }
        self.throttle = None;
        self.flush_patches()
    }

    fn stored(&mut self, batch: Vec<Telemetry>) {
        for telemetry in batch {
            self.release(telemetry.message.0.len());
            self.acknowledge(telemetry.ack);
        }
    }

    fn acknowledge(&mut self, ack: Option<Ack>) {
        let Some(Ack { packet_id, received }) = ack else { return };
        self.replies
            .push_back(Outgoing { reply: Reply::Puback(packet_id), received: Some(received) });
    }

    fn grant(&mut self, subscribe: &Subscribe) {
        self.release(0);
        let reply = Reply::Suback { packet_id: subscribe.packet_id, granted: subscribe.granted() };
        self.replies.push_back(reply.into());
    }

    fn confirm_unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        self.release(0);
        self.replies.push_back(Reply::Unsuback(unsubscribe.packet_id).into());
    }

    /// What there was no room for is tried again with growing waits, and nothing is read meanwhile.
    fn postpone(
        &mut self,
        in_flight: InFlight,
        error: &Error,
        config: &Config,
        now: Instant,
    ) -> Result<(), CloseReason> {
        if let Remedy::Close(reason) = status::remedy(error) {
            return Err(reason);
        }
        let (since, wait) = match self.throttle {
            None => (now, BACK_OFF_MIN),
            Some(throttle) => (throttle.since, BACK_OFF_MAX.min(throttle.wait * 2)),
        };
        if now >= since + config.backlog_max {
            return Err(CloseReason::Throttled);
        }
        self.in_flight = in_flight;
        self.throttle = Some(Throttle { since, wait, retry: Some(now + wait) });
        Ok(())
    }

    // ------------------------------------------------------------ twins

    fn answer_read(
        &mut self,
        request: &TwinRequest,
        read: Result<Box<Twin>, Error>,
        unix_ms: u64,
    ) -> Result<(), CloseReason> {
        match read {
            Ok(twin) => {
                self.acknowledge(request.ack);
                let topic = topics::twin_response(200, &request.id, None);
                self.publish(Channel::TwinResponses, topic, || render_twin(*twin));
                Ok(())
            }
            Err(error) => self.answer_error(request, &error, unix_ms),
        }
    }

    fn answer_patch(
        &mut self,
        request: &TwinRequest,
        reported: Result<Version, Error>,
        unix_ms: u64,
    ) -> Result<(), CloseReason> {
        match reported {
            Ok(version) => {
                self.acknowledge(request.ack);
                let topic = topics::twin_response(204, &request.id, Some(version));
                self.publish(Channel::TwinResponses, topic, Vec::new);
                Ok(())
            }
            Err(error) => self.answer_error(request, &error, unix_ms),
        }
    }

    fn answer_error(
        &mut self,
        request: &TwinRequest,
        error: &Error,
        unix_ms: u64,
    ) -> Result<(), CloseReason> {
        if let Error::Refused(refusal) = error
            && let Some(reason) = status::ended_by(refusal)
        {
            return Err(reason);
        }
        self.fail_twin(request, status::twin_status(error), &error.to_string(), unix_ms);
        Ok(())
    }

    fn fail_twin(
        &mut self,
        request: &TwinRequest,
        status: TwinStatus,
        message: &str,
        unix_ms: u64,
    ) {
        self.acknowledge(request.ack);
        self.failures += 1;
        let tracking_id = format!("{}-{}-{}", self.device, self.epoch, self.failures);
        let topic = topics::twin_response(status.status, &request.id, None);
        self.publish(Channel::TwinResponses, topic, || {
            status::twin_error_body(status, message, &tracking_id, unix_ms)
        });
    }

    pub(super) fn handle_desired(
        &mut self,
        version: Version,
        patch: Object,
    ) -> Result<(), CloseReason> {
        if !self.is_changing_subscriptions() {
            return self.send_desired(version, patch);
        }
        if self.patches.len() >= DELIVERIES_MAX {
            return Err(CloseReason::Gap);
        }
        self.patches.push_back((version, patch));
        Ok(())
    }

    // ------------------------------------------------------------ methods

    /// A call goes to a device that listens, once, at the quality that it was granted. One that cannot go is given back.
    pub(super) fn handle_call(&mut self, call: &Call) {
        let listens = self.subscriptions.contains_key(&Channel::Methods);
        if !listens || self.ending.is_some() || self.replies.len() >= REPLIES_MAX {
            let (call, report) = (Some(call.id), CallReport::NotSent);
            return self.hold(Work::ReportCall(CallReported { call, report, ack: None }));
        }
        let topic = topics::method_call(&call.name, call.id);
        self.publish(Channel::Methods, topic, || call.payload.to_vec());
    }

    fn reported(&mut self, reported: &CallReported) {
        self.release(reported.bytes());
        self.acknowledge(reported.ack);
    }

    // ------------------------------------------------------------ commands

    pub(super) fn handle_command(&mut self, sent: Box<SentCommand>) -> Result<(), CloseReason> {
        self.commands.push(sent).map_err(|_| CloseReason::Unread)
    }

    fn settle(&mut self, sequence: CommandSequence, settlement: Settlement) {
        self.hold(Work::Settle(Settle { sequence, settlement }));
    }

    /// The next command as a packet, once all answers have left: to a device that listens, and not while that changes.
    fn next_command(&mut self, now: Now) -> Option<Outgoing> {
        if self.is_changing_subscriptions() {
            return None;
        }
        let Some(qos) = self.subscriptions.get(&Channel::Commands).copied() else {
            self.commands.stop();
            return None;
        };
        // Ends, because each round takes one that waits.
        while let Some(sent) = self.commands.next(now.unix_ms) {
            let (sequence, dup) = (sent.command.sequence, sent.command.deliveries > 1);
            let Some((topic, payload)) = rendered(&self.device, sent) else {
                self.commands.drop_next();
                self.settle(sequence, Settlement::Reject);
                continue;
            };
            let packet_id = match qos {
                Qos::AtLeastOnce => Some(self.packet_ids.allocate()?),
                Qos::AtMostOnce => None,
            };
            if let Some(packet_id) = packet_id {
                self.commands.open_next(packet_id);
            } else {
                self.commands.drop_next();
                self.settle(sequence, Settlement::Complete);
            }
            return Some(Reply::Publish { topic, packet_id, dup, payload }.into());
        }
        None
    }

    fn is_changing_subscriptions(&self) -> bool {
        matches!(self.in_flight, InFlight::Subscribe(_) | InFlight::Unsubscribe(_))
    }

    fn flush_patches(&mut self) -> Result<(), CloseReason> {
        while let Some((version, patch)) = self.patches.pop_front() {
            self.send_desired(version, patch)?;
        }
        Ok(())
    }

    /// The cluster may repeat itself, and its order is that of versions.
    fn send_desired(&mut self, version: Version, patch: Object) -> Result<(), CloseReason> {
        if version <= self.desired_sent {
            return Ok(());
        }
        if self.replies.len() >= REPLIES_MAX + DELIVERIES_MAX {
            return Err(CloseReason::Unread);
        }
        self.desired_sent = version;
        let topic = topics::desired_patch(version);
        self.publish(Channel::DesiredPatches, topic, || {
            json::render_object(&with_version(patch, version)).into_bytes()
        });
        Ok(())
    }

    /// To a device that listens on the channel, at the quality that it was granted.
    fn publish(&mut self, channel: Channel, topic: String, payload: impl FnOnce() -> Vec<u8>) {
        let packet_id = match self.subscriptions.get(&channel) {
            None => return,
            Some(Qos::AtMostOnce) => None,
            Some(Qos::AtLeastOnce) => self.packet_ids.allocate(),
        };
        self.replies
            .push_back(Reply::Publish { topic, packet_id, dup: false, payload: payload() }.into());
    }

    // ------------------------------------------------------------ time and the end

    pub(super) fn deadline(&self, heard: Instant) -> Instant {
        let silence = heard + self.silence_max;
        let retry = self.throttle.and_then(|throttle| throttle.retry);
        let give_up = self.ending.map(|ending| ending.give_up);
        let next = silence.min(self.expiry_look);
        [retry, give_up].into_iter().flatten().fold(next, Instant::min)
    }

    pub(super) fn handle_time(&mut self, heard: Instant, now: Now) -> Result<(), CloseReason> {
        if self.expires_s.saturating_mul(1000) <= now.unix_ms {
            return Err(CloseReason::TokenExpired);
        }
        if now.instant >= self.expiry_look {
            self.expiry_look = next_look(self.expires_s, now);
        }
        if let Some(ending) = self.ending.filter(|ending| now.instant >= ending.give_up) {
            return Err(ending.reason);
        }
        if now.instant >= heard + self.silence_max {
            return Err(CloseReason::KeepAlive);
        }
        Ok(())
    }

    /// No more packets are taken; what was taken is worked off.
    pub(super) fn end(&mut self, reason: CloseReason, give_up: Instant) {
        self.ending.get_or_insert(Ending { reason, give_up });
    }

    /// Why the connection has ended, once everything is worked off.
    pub(super) fn ended(&self) -> Option<CloseReason> {
        let is_done = self.waiting.is_empty() && matches!(self.in_flight, InFlight::Nothing);
        self.ending.filter(|_| is_done).map(|ending| ending.reason)
    }

    pub(super) fn poll_reply(&mut self, now: Now) -> Option<Outgoing> {
        self.replies.pop_front().or_else(|| self.next_command(now))
    }

    pub(super) fn into_rest(self) -> (Option<Message>, VecDeque<Outgoing>) {
        (self.will.map(|will| *will), self.replies)
    }

    pub(super) fn release_memory(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        if self.replies.is_empty() {
            self.replies = VecDeque::new();
        }
        if self.patches.is_empty() {
            self.patches = VecDeque::new();
        }
        self.commands.release_memory();
    }
}

/// Whether nothing is left to be said about a command. It may have ended by itself, or been sent elsewhere.
fn is_settled(settled: &Result<(), Error>) -> bool {
    match settled {
        Ok(()) => true,
        Err(Error::Refused(refusal)) => matches!(
            refusal,
            Refusal::CommandNotFound { .. }
                | Refusal::CommandEnded { .. }
                | Refusal::CommandNotLocked
        ),
        Err(_) => false,
    }
}

/// What a device has answered. No payload is the payload `null`.
fn method_report(status: i32, payload: &[u8]) -> CallReport {
    let payload = if payload.is_empty() { b"null" } else { payload };
    if payload.len() > METHOD_PAYLOAD_BYTES_MAX || !json::is_json(payload) {
        return CallReport::BadResponse;
    }
    CallReport::Answered(MethodResponse { status, payload: payload.to_vec().into() })
}

/// Topic and payload of a command. `None`: no packet can carry it.
fn rendered(device: &DeviceId, sent: &SentCommand) -> Option<(String, Vec<u8>)> {
    let content = Content::decode(sent.message.clone()).ok()?;
    let topic = devicebound::topic(device, &sent.command, &content)?;
    Some((topic, content.body.to_vec()))
}

/// One and a half times the keep-alive; none means the longest.
fn silence_max(keep_alive_s: u16) -> Duration {
    match keep_alive_s {
        0 => SILENCE_MAX,
        seconds => SILENCE_MAX.min(Duration::from_millis(1500 * u64::from(seconds))),
    }
}

/// When to look at the wall clock next.
fn next_look(expires_s: u64, now: Now) -> Instant {
    let left = Duration::from_millis(expires_s.saturating_mul(1000).saturating_sub(now.unix_ms));
    if left <= EXPIRY_NEAR { now.instant + left } else { now.instant + SILENCE_MAX.min(left / 2) }
}

fn messages_of(batch: &[Telemetry]) -> Vec<Message> {
    batch.iter().map(|telemetry| telemetry.message.clone()).collect()
}

fn render_twin(twin: Twin) -> Vec<u8> {
    let section =
        |section: Section| Value::Object(with_version(section.properties, section.version));
    let document = Object::from([
        ("desired".to_owned(), section(twin.desired)),
        ("reported".to_owned(), section(twin.reported)),
    ]);
    json::render_object(&document).into_bytes()
}

fn with_version(mut properties: Object, version: Version) -> Object {
    // Versions count writes from 1, so none comes near the end of i64.
    let version = i64::try_from(version.get()).unwrap_or(i64::MAX);
    properties.insert("$version".to_owned(), Value::Integer(version));
    properties
}
