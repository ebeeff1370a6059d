//! One connection of a recipient.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drover_core::mailbox::Settlement;
use rand::Rng as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::super::caller;
use super::super::device::{body, packet_id};
use super::{Mood, Recipient};
use crate::history::commands::Delivery;
use crate::history::methods::{Execution, Response};
use crate::history::{Moment, Transmission};
use crate::mqtt::codec::{Packet, put_puback, put_publish};
use crate::mqtt::link::Link;

/// Five probes a second.
const PROBE_EVERY: Duration = Duration::from_millis(200);
const PROBES_MAX: usize = 8;
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// What the hub locks a command for unless it is told otherwise. A connection that is older may have seen a lock run out.
pub(in super::super) const LOCK_MAX: Duration = Duration::from_mins(1);

/// How a connection ended, if the device ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    BrokenOff,
    Done,
}

/// What the device does with a command.
enum Treatment {
    Complete,
    CompleteLater,
    BreakOff,
    /// The PUBACK leaves, and the connection breaks.
    CompleteAndBreakOff,
}

pub(super) struct Session<'a> {
    device: &'a mut Recipient,
    link: Link,
    connection: u32,
    opened: Instant,
    position: u32,
    /// Places in the history of probes that have no answer.
    in_flight: VecDeque<usize>,
    heard: Instant,
    /// What the hub sends from now on it sends after this.
    proved: Moment,
    /// Deliveries and packet ids that are to be completed later.
    held: Vec<(usize, u16)>,
    /// Deliveries that were completed, and the place of the next probe then.
    settling: VecDeque<(usize, u32)>,
    breaks_off: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(device: &'a mut Recipient, link: Link, begun: Moment) -> Self {
        let connection = device.seen.telemetry.connections;
        Self {
            device,
            link,
            connection,
            opened: Instant::now(),
            position: 0,
            in_flight: VecDeque::new(),
            heard: Instant::now(),
            proved: begun,
            held: Vec::new(),
            settling: VecDeque::new(),
            breaks_off: false,
        }
    }

    pub(super) async fn run(mut self, mood: &mut watch::Receiver<Mood>) -> anyhow::Result<End> {
        self.subscribe().await?;
        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.link.flush().await?;
            let now = *mood.borrow();
            if self.breaks_off {
                return Ok(End::BrokenOff);
            }
            if now == Mood::Done && self.in_flight.is_empty() {
                return Ok(End::Done);
            }
            tokio::select! {
                filled = self.link.fill() => filled?,
                _ = probes.tick() => self.tick(now)?,
            }
            self.take_packets(now)?;
        }
    }

    /// Once in the device's life. Commands may come before that is granted: they wait in the link.
    async fn subscribe(&mut self) -> anyhow::Result<()> {
        if self.device.is_subscribed {
            return Ok(());
        }
        let commands =
            format!("devices/{}/messages/devicebound/#", self.device.seen.telemetry.device);
        self.link.subscribe(&commands, 1).await?;
        self.link.subscribe("$iothub/methods/POST/#", 0).await?;
        self.device.is_subscribed = true;
        Ok(())
    }

    // ------------------------------------------------------------ probes

    fn tick(&mut self, mood: Mood) -> anyhow::Result<()> {
        if !self.in_flight.is_empty() && self.heard.elapsed() > SILENCE_MAX {
            bail!("no answer in {SILENCE_MAX:?}");
        }
        for (delivery, id) in std::mem::take(&mut self.held) {
            self.complete(delivery, id);
        }
        if mood != Mood::Done && self.in_flight.len() < PROBES_MAX {
            self.probe();
        }
        Ok(())
    }

    fn probe(&mut self) {
        if self.in_flight.is_empty() {
            self.heard = Instant::now();
        }
        let sequence = self.device.next_sequence;
        self.device.next_sequence += 1;
        let (connection, position) = (self.connection, self.position);
        self.position += 1;
        let history = &mut self.device.seen.telemetry;
        let id = &history.device;
        let topic = format!("devices/{id}/messages/events/c={connection}&p={position}");
        let packet = Some(packet_id(position));
        put_publish(&mut self.link.out, &topic, packet, body(id, sequence).as_bytes());
        let sent_ms = self.device.clock.moment() / 1_000;
        self.in_flight.push_back(history.transmissions.len());
        let sent = Transmission { sequence, connection, position, sent_ms, acked_ms: None };
        history.transmissions.push(sent);
    }

    /// What was sent before the probe has been dealt with.
    fn probed(&mut self, id: u16) -> anyhow::Result<()> {
        let seen = &mut self.device.seen;
        let index = self.in_flight.pop_front().context("a PUBACK for nothing")?;
        let now = self.device.clock.moment();
        let probe = &mut seen.telemetry.transmissions[index];
        ensure!(packet_id(probe.position) == id, "PUBACK {id} out of order");
        probe.acked_ms = Some(now / 1_000);
        self.proved = self.proved.max(probe.sent_ms * 1_000);
        while let Some((delivery, position)) = self.settling.front().copied()
            && position <= probe.position
        {
            seen.deliveries[delivery].ended = Some(now);
            self.settling.pop_front();
        }
        Ok(())
    }

    // ------------------------------------------------------------ what comes

    fn take_packets(&mut self, mood: Mood) -> anyhow::Result<()> {
        while let Some(packet) = self.link.arrived()? {
            self.heard = Instant::now();
            match packet {
                Packet::PubAck { id } => self.probed(id)?,
                Packet::Publish { topic, id, dup, payload } => {
                    let topic = String::from_utf8_lossy(&topic).into_owned();
                    let content: Value = serde_json::from_slice(&payload)?;
                    let id_of_device = &self.device.seen.telemetry.device;
                    if content["device"].as_str() != Some(id_of_device) {
                        let complaint = format!("got what is another's: {topic}");
                        self.device.seen.telemetry.complaints.push(complaint);
                    }
                    match topic.strip_prefix("$iothub/methods/POST/") {
                        Some(call) => self.called(call, &content, mood)?,
                        None => self.commanded(id, dup, &content, mood)?,
                    }
                }
                Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::PingResp => {}
            }
            if self.breaks_off {
                return Ok(());
            }
        }
        Ok(())
    }

    fn commanded(
        &mut self,
        id: Option<u16>,
        is_marked: bool,
        content: &Value,
        mood: Mood,
    ) -> anyhow::Result<()> {
        let id = id.context("a command at quality 0")?;
        let command = content["command"].as_str().context("a command without its id")?;
        let device = &mut *self.device;
        let delivery = device.seen.deliveries.len();
        device.seen.deliveries.push(Delivery {
            command: command.to_owned(),
            connection: self.connection.into(),
            earliest_ms: device.clock.unix_ms_at(self.proved),
            latest_ms: device.clock.unix_ms(),
            is_marked,
            may_be_relocked: self.opened.elapsed() >= LOCK_MAX,
            settled: None,
            ended: None,
        });
        match self.treatment(mood) {
            Treatment::Complete => self.complete(delivery, id),
            Treatment::CompleteLater => self.held.push((delivery, id)),
            Treatment::BreakOff => self.breaks_off = true,
            Treatment::CompleteAndBreakOff => {
                self.complete(delivery, id);
                self.breaks_off = true;
            }
        }
        Ok(())
    }

    fn treatment(&mut self, mood: Mood) -> Treatment {
        if mood != Mood::Moody {
            return Treatment::Complete;
        }
        match self.device.random.random_range(0..100) {
            0..85 => Treatment::Complete,
            85..93 => Treatment::CompleteLater,
            93..97 => Treatment::BreakOff,
            _ => Treatment::CompleteAndBreakOff,
        }
    }

    fn complete(&mut self, delivery: usize, id: u16) {
        put_puback(&mut self.link.out, id);
        self.device.seen.deliveries[delivery].settled = Some(Settlement::Complete);
        self.settling.push_back((delivery, self.position));
    }

    fn called(&mut self, call: &str, content: &Value, mood: Mood) -> anyhow::Result<()> {
        let (_, rid) = call.split_once("/?$rid=").context("a call without $rid")?;
        let number = content["call"].as_u64().context("a call without its number")?;
        let device = &mut *self.device;
        let received = device.clock.moment();
        let forgets = mood == Mood::Moody && device.random.random_bool(0.05);
        self.breaks_off = mood == Mood::Moody && device.random.random_bool(0.03);
        let answered = (!forgets && !self.breaks_off).then(|| {
            device.answers += 1;
            let number = device.answers;
            // Only that the hub passes it on matters: any status is the device's own.
            let response = Response { status: 200 + (number % 90) as i32, number };
            let topic = format!("$iothub/methods/res/{}/?$rid={rid}", response.status);
            put_publish(&mut self.link.out, &topic, None, caller::answer(number).as_bytes());
            (response, device.clock.moment())
        });
        let connection = self.connection.into();
        device.seen.executions.push(Execution { call: number, connection, received, answered });
        Ok(())
    }
}
