//! One MQTT connection of a simulated device, as the device sees it.
//!
//! It sends messages and waits for their PUBACKs or does not, sends again what a former connection had no answer to,
//! completes commands, breaks off in the middle of a packet, and now and then publishes to a neighbour's topic, for
//! which it must be cut off.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Context as _;
use drover_cluster::core::ids::DeviceId;
use drover_cluster::core::mailbox::Settlement;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::{Fleet, ids};
use crate::history::commands::Delivery;
use crate::mqtt::codec::{Packet, put_disconnect, put_puback, put_publish};
use crate::mqtt::link::Link;
use crate::promises::Violation;
use crate::sim::history::{Append, AppendEnd, Begun, Phase};

/// Steps of a connection, at the most.
const STEPS_MAX: u32 = 40;
/// What a device remembers to send again; it gives up older messages.
const UNANSWERED_MAX: usize = 6;
/// A connection on which nothing was answered for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(8);
/// In the first byte of a PUBLISH.
const DUP: u8 = 8;
/// Of a message that must never be answered.
const FOREIGN_PACKET: u16 = 60_000;

/// What a body of a device remembers from connection to connection.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Messages without an answer, oldest first.
    unanswered: VecDeque<u64>,
}

/// A message on the wire.
struct InFlight {
    packet: u16,
    sequence: u64,
    /// Its place in the history.
    place: usize,
}

pub(super) struct Session<'a> {
    fleet: &'a Fleet,
    device: &'a DeviceId,
    connection: u64,
    link: Link,
    body: &'a mut Body,
    position: u32,
    in_flight: VecDeque<InFlight>,
    heard: Instant,
    /// The newest desired version that came.
    desired: u64,
    /// Commands that are not completed: packet ids, and places in the history.
    open: VecDeque<(u16, usize)>,
    is_offender: bool,
}

/// Whether a connection goes on.
type Next = anyhow::Result<ControlFlow<()>>;

impl<'a> Session<'a> {
    pub(super) fn new(
        fleet: &'a Fleet,
        device: &'a DeviceId,
        connection: u64,
        link: Link,
        body: &'a mut Body,
    ) -> Self {
        Self {
            fleet,
            device,
            connection,
            link,
            body,
            position: 0,
            in_flight: VecDeque::new(),
            heard: Instant::now(),
            desired: 0,
            open: VecDeque::new(),
            is_offender: false,
        }
    }

    /// Until it breaks, or is broken off.
    pub(super) async fn run(mut self, draw: &mut StdRng) {
        let ended = self.live(draw).await;
        let is_cut_off = ended.as_ref().is_err_and(anyhow::Error::is::<io::Error>);
        let how = ended.map_or_else(|error| format!("{error:#}"), |()| "by itself".to_owned());
        let (device, connection) = (self.device, self.connection);
        self.fleet.history.note(format_args!("{device} as {connection} has ended: {how}"));
        let mut history = self.fleet.history.lock();
        history.counts.operations.unknown += self.in_flight.len() as u64;
        history.counts.sockets.offenders_cut_off += u64::from(self.is_offender && is_cut_off);
    }

    async fn live(&mut self, draw: &mut StdRng) -> anyhow::Result<()> {
        if draw.random_bool(0.7) {
            let commands = format!("devices/{}/messages/devicebound/#", self.device);
            self.link.subscribe(&commands, 1).await?;
            self.link.subscribe("$iothub/twin/PATCH/properties/desired/#", 0).await?;
        }
        for sequence in self.body.unanswered.clone() {
            self.fleet.history.lock().counts.sockets.sent_again += 1;
            self.publish(sequence, DUP);
        }
        for _ in 0..draw.random_range(1..=STEPS_MAX) {
            self.link.flush().await?;
            self.listen(draw).await?;
            if self.fleet.history.phase() != Phase::Load || self.step(draw).await?.is_break() {
                break;
            }
        }
        if draw.random_bool(0.5) {
            put_disconnect(&mut self.link.out);
        }
        self.link.flush().await?;
        Ok(())
    }

    /// Takes what comes until the next step.
    async fn listen(&mut self, draw: &mut StdRng) -> anyhow::Result<()> {
        let pause = Duration::from_millis(draw.random_range(0..=self.fleet.plan.pause_ms_max));
        let waits = sleep(pause);
        tokio::pin!(waits);
        loop {
            tokio::select! {
                biased;
                filled = self.link.fill() => {
                    filled?;
                    while let Some(packet) = self.link.arrived()? {
                        self.heard = Instant::now();
                        self.take(packet)?;
                    }
                }
                () = &mut waits => break,
            }
        }
        let waits = !self.in_flight.is_empty() || self.is_offender;
        anyhow::ensure!(!waits || self.heard.elapsed() < SILENCE_MAX, "nothing is answered");
        Ok(())
    }

    async fn step(&mut self, draw: &mut StdRng) -> Next {
        if self.is_offender {
            // Whatever follows is not heard any more.
            return Ok(ControlFlow::Continue(()));
        }
        if self.in_flight.is_empty() {
            self.heard = Instant::now();
        }
        match draw.random_range(0..100) {
            0..60 => {
                for _ in 0..draw.random_range(1..=3) {
                    let sequence = self.next_sequence();
                    self.publish(sequence, 0);
                }
            }
            60..90 => self.complete_next(),
            90..97 => return self.break_off_in_a_packet(draw).await,
            _ => self.offend(),
        }
        Ok(ControlFlow::Continue(()))
    }

    // ------------------------------------------------------------ what it sends

    /// A message that is new, and remembered until it is answered.
    fn next_sequence(&mut self) -> u64 {
        let unanswered = &mut self.body.unanswered;
        if unanswered.len() == UNANSWERED_MAX {
            unanswered.pop_front();
        }
        let sequence = self.fleet.history.lock().take_sequences(self.device.as_str(), 1);
        unanswered.push_back(sequence);
        sequence
    }

    fn publish(&mut self, sequence: u64, flags: u8) {
        let (device, connection, position) = (self.device, self.connection, self.position);
        self.position += 1;
        let mut history = self.fleet.history.lock();
        let begun = history
            .note(format_args!("{device} as {connection} publishes {sequence} at {position}"));
        let append = Append {
            device: device.to_string(),
            epoch: connection,
            positions: position..position + 1,
            first_sequence: sequence,
            begun,
            end: AppendEnd::Unknown,
        };
        let place = history.begin_append(append).place;
        drop(history);
        let packet = position as u16 + 1;
        self.in_flight.push_back(InFlight { packet, sequence, place });
        let topic = format!("devices/{device}/messages/events/");
        let text = format!("{device} {connection} {position} {sequence}");
        let begin = self.link.out.len();
        put_publish(&mut self.link.out, &topic, Some(packet), text.as_bytes());
        self.link.out[begin] |= flags;
    }

    /// The socket is closed when a part of a message has left it.
    async fn break_off_in_a_packet(&mut self, draw: &mut StdRng) -> Next {
        let sequence = self.next_sequence();
        let whole = self.link.out.len();
        self.publish(sequence, 0);
        let cut = draw.random_range(whole + 1..self.link.out.len());
        self.link.out.truncate(cut);
        self.fleet.history.lock().counts.sockets.broken_off_in_a_packet += 1;
        self.link.flush().await?;
        Err(anyhow::anyhow!("broken off in the middle of message {sequence}"))
    }

    /// Publishes for a neighbour whose id begins as its own, or the other way round.
    fn offend(&mut self) {
        let neighbours: Vec<DeviceId> =
            ids(self.fleet.devices.len()).filter(|id| id != self.device).collect();
        let Some(neighbour) = neighbours.first() else { return };
        let topic = format!("devices/{neighbour}/messages/events/");
        put_publish(&mut self.link.out, &topic, Some(FOREIGN_PACKET), b"foreign");
        let (device, connection) = (self.device, self.connection);
        self.fleet.history.note(format_args!("{device} as {connection} speaks for {neighbour}"));
        self.is_offender = true;
        self.heard = Instant::now();
    }

    fn complete_next(&mut self) {
        let Some((packet, place)) = self.open.pop_front() else { return };
        put_puback(&mut self.link.out, packet);
        let mut history = self.fleet.history.lock();
        history.mailboxes.of(self.device).deliveries[place].settled = Some(Settlement::Complete);
    }

    // ------------------------------------------------------------ what it gets

    fn take(&mut self, packet: Packet) -> anyhow::Result<()> {
        match packet {
            Packet::PubAck { id } => self.acknowledged(id),
            Packet::Publish { topic, id, dup, payload } => {
                let topic = std::str::from_utf8(&topic)?;
                match topic.strip_prefix("$iothub/twin/PATCH/properties/desired/?$version=") {
                    Some(version) => self.desired(version.parse()?),
                    None => self.commanded(id, dup, std::str::from_utf8(&payload)?)?,
                }
                Ok(())
            }
            Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::PingResp => Ok(()),
        }
    }

    fn acknowledged(&mut self, id: u16) -> anyhow::Result<()> {
        if id == FOREIGN_PACKET {
            self.violate("I-27 own topics only", "what it published for another was acknowledged");
            return Ok(());
        }
        let first = self.in_flight.pop_front().context("a PUBACK for nothing")?;
        if first.packet != id {
            self.violate("I-7 each answered in order", &format!("PUBACK {id} came out of order"));
            anyhow::bail!("PUBACK {id} out of order");
        }
        self.body.unanswered.retain(|sequence| *sequence != first.sequence);
        let mut history = self.fleet.history.lock();
        let (device, connection) = (self.device, self.connection);
        let at =
            history.note(format_args!("{device} as {connection}: {} is stored", first.sequence));
        history.end_append(Begun { place: first.place }, AppendEnd::Acknowledged { at });
        Ok(())
    }

    fn desired(&mut self, version: u64) {
        {
            let mut history = self.fleet.history.lock();
            history.counts.sockets.desired_delivered += 1;
            history.counts.checks.deliveries += u64::from(self.desired > 0);
        }
        if version <= self.desired {
            self.violate("I-14 rising", &format!("version {version} after {}", self.desired));
        }
        self.desired = version;
    }

    fn commanded(&mut self, id: Option<u16>, is_marked: bool, text: &str) -> anyhow::Result<()> {
        let id = id.context("a command at quality 0")?;
        let (owner, command) = text.split_once(' ').context("a command that nobody sent")?;
        if owner != self.device.as_str() {
            self.violate("I-27 own commands only", &format!("it got command {text}"));
        }
        let mut history = self.fleet.history.lock();
        let (device, connection) = (self.device, self.connection);
        history.note(format_args!("{device} as {connection} gets {command} marked {is_marked}"));
        history.counts.sockets.commands_delivered += 1;
        history.counts.sockets.commands_marked += u64::from(is_marked);
        let deliveries = &mut history.mailboxes.of(device).deliveries;
        self.open.push_back((id, deliveries.len()));
        deliveries.push(Delivery {
            command: command.to_owned(),
            connection,
            // Packets do not say when they were locked, and the clocks of the run are far apart.
            earliest_ms: 0,
            latest_ms: u64::MAX,
            is_marked,
            may_be_relocked: self.fleet.plan.locks_may_run_out(),
            settled: None,
            ended: None,
        });
        Ok(())
    }

    fn violate(&self, invariant: &'static str, seen: &str) {
        let subject = format!("{} as {}", self.device, self.connection);
        self.fleet.history.violate(Violation::new(invariant, subject, seen));
    }
}
