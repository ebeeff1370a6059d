//! A device of the kill test that only sends: it sends at its pace, and when its connection breaks it goes to another node and sends
//! again what was not answered.
//!
//! It keeps no time-out for a message: it waits as long as the connection stands, and a connection on which nothing was
//! acknowledged for [`SILENCE_MAX`] is given up. Whatever was not answered is unknown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::plan::Plan;
use crate::fleet::Fleet;
use crate::history::{DeviceHistory, Home, PATCH_SLOTS, PatchAttempt, Transmission, TwinRead};
use crate::mqtt::codec::{Packet, put_publish};
use crate::mqtt::link::Link;

const SILENCE_MAX: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A device that waits for so many answers sends nothing new.
const IN_FLIGHT_MAX: usize = 64;
/// One patch to so many messages.
const MESSAGES_PER_PATCH: u64 = 10;
/// When the run is over: time for the last answers.
const FINISH_MAX: Duration = Duration::from_secs(30);
const TWIN_ANSWERS: &str = "$iothub/twin/res/#";

pub(super) struct Device {
    number: usize,
    fleet: Arc<Fleet>,
    begin: Instant,
    pace: Duration,
    random: StdRng,
    history: DeviceHistory,
    /// Sent and not acknowledged, oldest first.
    unanswered: VecDeque<u64>,
    next_sequence: u64,
    acked_version: u64,
}

impl Device {
    pub(super) fn new(
        number: usize,
        shard: u32,
        fleet: Arc<Fleet>,
        plan: &Plan,
        begin: Instant,
    ) -> Self {
        let device = fleet.id(number);
        Self {
            number,
            fleet,
            begin,
            pace: Duration::from_secs(1) / plan.rate,
            random: StdRng::seed_from_u64(plan.seed.wrapping_add(number as u64)),
            history: DeviceHistory { device, shard, ..DeviceHistory::default() },
            unanswered: VecDeque::new(),
            next_sequence: 0,
            acked_version: 0,
        }
    }

    /// Lives until it is stopped and everything that it sent has been acknowledged.
    pub(super) async fn run(mut self, mut stopped: watch::Receiver<bool>) -> DeviceHistory {
        let mut address = self.number;
        let mut deadline = None;
        loop {
            let ended = match self.connect(address).await {
                Ok(link) => Session::new(&mut self, link).run(&mut stopped).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return self.history,
                Err(error) => tracing::debug!(device = self.history.device, "{error:#}"),
            }
            if *stopped.borrow()
                && Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + FINISH_MAX)
            {
                self.history.complaints.push("no answer after the last heal".to_owned());
                return self.history;
            }
            // Any other, or all would follow each other to one node.
            address += self.random.random_range(1..self.fleet.addresses.len().max(2));
            sleep(Duration::from_millis(self.random.random_range(20..200))).await;
        }
    }

    async fn connect(&mut self, address: usize) -> anyhow::Result<Link> {
        let addresses = &self.fleet.addresses;
        let home = address % addresses.len();
        let (address, node) = (addresses[home], home as u32 + 1);
        self.history.dials.push(Home { node, from_ms: self.now_ms() });
        let link = timeout(CONNECT_TIMEOUT, self.fleet.connect_to(self.number, address)).await??;
        self.history.connections += 1;
        self.history.homes.push(Home { node, from_ms: self.now_ms() });
        Ok(link)
    }

    fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }
}

/// One connection of the device.
struct Session<'a> {
    device: &'a mut Device,
    link: Link,
    connection: u32,
    position: u32,
    /// Where in the history the transmissions of this connection stand that have no answer, in the order they were sent.
    in_flight: VecDeque<usize>,
    patch_sent_at: Option<Instant>,
    heard_at: Instant,
}

impl<'a> Session<'a> {
    fn new(device: &'a mut Device, link: Link) -> Self {
        let connection = device.history.connections;
        Self {
            device,
            link,
            connection,
            position: 0,
            in_flight: VecDeque::new(),
            patch_sent_at: None,
            heard_at: Instant::now(),
        }
    }

    async fn run(mut self, stopped: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        self.link.subscribe(TWIN_ANSWERS, 1).await?;
        timeout(SILENCE_MAX, self.read_twin()).await??;
        for sequence in self.device.unanswered.clone() {
            self.publish(sequence);
        }
        let mut ticks = interval(self.device.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.link.flush().await?;
            let is_over = *stopped.borrow();
            if is_over && self.in_flight.is_empty() && self.patch_sent_at.is_none() {
                return Ok(());
            }
            tokio::select! {
                filled = self.link.fill() => {
                    filled?;
                    self.take_answers()?;
                }
                _ = ticks.tick() => self.tick(is_over)?,
            }
        }
    }

    /// A read after an acknowledgement must see it, at whichever node this is.
    async fn read_twin(&mut self) -> anyhow::Result<()> {
        let acked_version = self.device.acked_version;
        put_publish(&mut self.link.out, "$iothub/twin/GET/?$rid=read", Some(1), b"");
        self.link.flush().await?;
        loop {
            let Packet::Publish { topic, id, payload, .. } = self.link.next().await? else {
                continue;
            };
            self.acknowledge(id);
            let topic = String::from_utf8_lossy(&topic).into_owned();
            ensure!(
                topic.starts_with("$iothub/twin/res/200/?$rid=read"),
                "read answered with {topic}"
            );
            let twin: Value = serde_json::from_slice(&payload)?;
            let version =
                twin["reported"]["$version"].as_u64().context("a twin without version")?;
            self.device.history.twin_reads.push(TwinRead { acked_version, version });
            return Ok(());
        }
    }

    fn acknowledge(&mut self, id: Option<u16>) {
        if let Some(id) = id {
            crate::mqtt::codec::put_puback(&mut self.link.out, id);
        }
    }

    fn tick(&mut self, is_over: bool) -> anyhow::Result<()> {
        let patch_waits = self.patch_sent_at.is_some_and(|sent| sent.elapsed() > SILENCE_MAX);
        let messages_wait = !self.in_flight.is_empty() && self.heard_at.elapsed() > SILENCE_MAX;
        if patch_waits || messages_wait {
            bail!("no answer in {SILENCE_MAX:?}");
        }
        if !is_over && self.in_flight.len() < IN_FLIGHT_MAX {
            let sequence = self.device.next_sequence;
            self.device.next_sequence += 1;
            self.device.unanswered.push_back(sequence);
            self.publish(sequence);
            if sequence.is_multiple_of(MESSAGES_PER_PATCH) && self.patch_sent_at.is_none() {
                self.patch();
            }
        }
        Ok(())
    }

    fn publish(&mut self, sequence: u64) {
        if self.in_flight.is_empty() {
            self.heard_at = Instant::now();
        }
        let device = &mut *self.device;
        let (connection, position) = (self.connection, self.position);
        let id = &device.history.device;
        let topic = format!("devices/{id}/messages/events/c={connection}&p={position}");
        let packet_id = packet_id(position);
        put_publish(&mut self.link.out, &topic, Some(packet_id), body(id, sequence).as_bytes());
        let sent_ms = device.now_ms();
        self.in_flight.push_back(device.history.transmissions.len());
        let sent = Transmission { sequence, connection, position, sent_ms, acked_ms: None };
        device.history.transmissions.push(sent);
        self.position += 1;
    }

    fn patch(&mut self) {
        let number = self.device.history.patches.len() as u64 + 1;
        let body = format!(r#"{{"last":{number},"s{}":{number}}}"#, number % PATCH_SLOTS);
        let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={number}");
        put_publish(&mut self.link.out, &topic, None, body.as_bytes());
        let sent_ms = self.device.now_ms();
        self.device.history.patches.push(PatchAttempt { number, sent_ms, acked_version: None });
        self.patch_sent_at = Some(Instant::now());
    }

    fn take_answers(&mut self) -> anyhow::Result<()> {
        while let Some(packet) = self.link.arrived()? {
            self.heard_at = Instant::now();
            match packet {
                Packet::PubAck { id } => self.acked(id)?,
                Packet::Publish { topic, id, .. } => {
                    self.acknowledge(id);
                    self.patched(&String::from_utf8_lossy(&topic))?;
                }
                Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::PingResp => {}
            }
        }
        Ok(())
    }

    fn acked(&mut self, id: u16) -> anyhow::Result<()> {
        // Reading the twin was a QoS 1 message too.
        if id == 1 {
            return Ok(());
        }
        let history = &mut self.device.history;
        let index = self.in_flight.pop_front().context("a PUBACK for nothing")?;
        let sent = &mut history.transmissions[index];
        if packet_id(sent.position) != id {
            history.complaints.push(format!("PUBACK {id} came out of order"));
            bail!("PUBACK {id} out of order");
        }
        sent.acked_ms = Some(self.device.begin.elapsed().as_millis() as u64);
        let sequence = sent.sequence;
        self.device.unanswered.retain(|open| *open != sequence);
        Ok(())
    }

    fn patched(&mut self, topic: &str) -> anyhow::Result<()> {
        let Some(answer) = topic.strip_prefix("$iothub/twin/res/") else { return Ok(()) };
        let (status, query) = answer.split_once("/?").context("an answer without a query")?;
        let item = |name: &str| {
            query.split('&').find_map(|item| item.strip_prefix(name)?.strip_prefix('='))
        };
        let number: usize = item("$rid").context("an answer without $rid")?.parse()?;
        self.patch_sent_at = None;
        let history = &mut self.device.history;
        let patch = history.patches.get_mut(number.wrapping_sub(1)).context("a foreign $rid")?;
        match status {
            "204" => {
                let version =
                    item("$version").context("an accepted patch without version")?.parse()?;
                patch.acked_version = Some(version);
                self.device.acked_version = version;
            }
            // Whether it was applied is unknown; so it stays.
            "429" | "500" | "503" | "504" => {}
            _ => history.complaints.push(format!("patch {number} was refused with {status}")),
        }
        Ok(())
    }
}

/// Packet ids from 2 on, 1 being that of the first read; so many transmissions are never in flight that two meet.
pub(super) fn packet_id(position: u32) -> u16 {
    (position % 60_000) as u16 + 2
}

/// What message `sequence` of a device says, whenever it is sent: 200 bytes or a little more.
pub(super) fn body(device: &str, sequence: u64) -> String {
    let pad = (0..160).map(|index| char::from(b'a' + ((sequence + index) % 26) as u8));
    format!(r#"{{"device":"{device}","sequence":{sequence},"pad":"{}"}}"#, pad.collect::<String>())
}
