//! Devices and back ends that send what is malformed, or just within or just over a limit, as fast as they can, among the
//! load. Each offence costs its own connection or call and nothing else; what is within its limits is accepted.
//!
//! A bystander is connected to the same node and sends as any device does. It must notice nothing, as long as no other fault
//! lasts that would explain it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drover_proto::admin::SendCommandRequest;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::fault::Seen;
use crate::fleet::Fleet;
use crate::mqtt::codec::{Connect, Packet, put_publish};
use crate::mqtt::link::Link;
use crate::nodes::Nodes;
use crate::nodes::admin::Admin;
use crate::nodes::commands::Failure;

/// Longer than any answer takes while all is well.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The bystander's, so that it does not hide a stall among its own messages.
const PACE: Duration = Duration::from_millis(100);
/// The largest message, properties and all, and the largest command (`spec/mqtt.md`, `commands.bytes`).
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
const COMMAND_BYTES_MAX: usize = 64 * 1024;
/// Deeper than any document may be.
const DEPTH: usize = 10_000;
const NAME: &str = "guest-poison-{n}";
const POISONER: usize = 0;
const BYSTANDER: usize = 1;
const TWIN_ANSWERS: &str = "$iothub/twin/res/#";

/// Registers the devices: to be done while all is well.
pub(super) async fn register(nodes: &Nodes) -> anyhow::Result<()> {
    nodes.admin().create_devices(&nodes.fleet(NAME), 0..BYSTANDER + 1).await
}

/// What is sent to one node, and through it.
pub(super) struct Poison {
    fleet: Fleet,
    admin: Admin,
    node: usize,
}

/// What an offence or an extreme must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Closed,
    Acknowledged,
    /// The twin is answered with this status.
    Status(&'static str),
}

impl Poison {
    pub(super) fn at(nodes: &Nodes, node: usize) -> Self {
        Self { fleet: nodes.fleet(NAME), admin: nodes.admin().clone(), node }
    }

    /// One after the other until it is `over`. Whatever is not answered at all is put down to other faults.
    pub(super) async fn spread(self, over: watch::Receiver<bool>) -> anyhow::Result<Seen> {
        let (mut right, mut wrong, mut open) = (0, None, 0);
        let poisoning = async {
            let id = self.fleet.id(POISONER);
            for ((what, bytes, fate), turn) in packets(&id).iter().cycle().zip(0_usize..) {
                if *over.borrow() {
                    break;
                }
                match self.send(bytes).await {
                    Ok(seen) if seen == *fate => right += 1,
                    Ok(seen) => wrong = Some(format!("{what}: {seen:?}, not {fate:?}")),
                    Err(_) => open += 1,
                }
                match self.command(turn.is_multiple_of(2)).await {
                    Some(Ok(())) => right += 1,
                    Some(Err(accepted)) => wrong = Some(accepted),
                    None => open += 1,
                }
            }
        };
        let ((), suffered) = tokio::join!(poisoning, self.stand_by(over.clone()));
        let detail = format!("{right} offences and extremes met their fate, {open} no answer");
        Ok(Seen::of(right, detail).complaining(wrong).suffering(suffered.err()))
    }

    /// Over a connection of its own.
    async fn send(&self, bytes: &[u8]) -> anyhow::Result<Fate> {
        let address = self.fleet.addresses[self.node];
        let mut link = timeout(ANSWER_MAX, self.fleet.connect_to(POISONER, address)).await??;
        link.subscribe(TWIN_ANSWERS, 1).await?;
        link.out.extend_from_slice(bytes);
        // The hub may have closed before it has read all.
        if link.flush().await.is_err() {
            return Ok(Fate::Closed);
        }
        timeout(ANSWER_MAX, fate(&mut link)).await?
    }

    /// A command within or over its limit. An error says what was accepted that must not be; `None`: it was refused for now.
    async fn command(&self, is_too_large: bool) -> Option<Result<(), String>> {
        let bytes = if is_too_large { COMMAND_BYTES_MAX + 1 } else { COMMAND_BYTES_MAX - 1024 };
        let request = SendCommandRequest {
            device_id: self.fleet.id(POISONER),
            body: vec![0xff; bytes],
            supersede_key: "poison".to_owned(),
            ..SendCommandRequest::default()
        };
        match (self.admin.send_command(self.node, request).await, is_too_large) {
            (Ok(_), true) => Some(Err(format!("a command of {bytes} bytes was accepted"))),
            (Err(Failure::Refused(status)), true) if status.code() == Code::InvalidArgument => {
                Some(Ok(()))
            }
            (Ok(_), false) => Some(Ok(())),
            (Err(_), _) => None,
        }
    }

    /// Sends until it is over, on one connection, and has each message acknowledged in time.
    async fn stand_by(&self, over: watch::Receiver<bool>) -> Result<(), String> {
        let address = self.fleet.addresses[self.node];
        let link = timeout(ANSWER_MAX, self.fleet.connect_to(BYSTANDER, address)).await;
        // Whoever cannot even connect suffers from another fault.
        let Ok(Ok(mut link)) = link else { return Ok(()) };
        let topic = self.fleet.topic(BYSTANDER);
        for id in (1..u16::MAX).cycle() {
            if *over.borrow() {
                break;
            }
            let begin = Instant::now();
            put_publish(&mut link.out, &topic, Some(id), b"as any device does");
            let acknowledged = timeout(ANSWER_MAX, acknowledged(&mut link, id)).await;
            match acknowledged {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(format!("a bystander was cut off: {error:#}")),
                Err(_) => return Err(format!("a bystander got no answer in {ANSWER_MAX:?}")),
            }
            sleep(PACE.saturating_sub(begin.elapsed())).await;
        }
        Ok(())
    }
}

async fn acknowledged(link: &mut Link, id: u16) -> anyhow::Result<()> {
    link.flush().await?;
    let answer = link.next().await?;
    ensure!(answer == Packet::PubAck { id }, "{answer:?} instead of a PUBACK");
    Ok(())
}

/// What becomes of the connection, or of what was sent on it.
async fn fate(link: &mut Link) -> anyhow::Result<Fate> {
    loop {
        let Ok(packet) = link.next().await else { return Ok(Fate::Closed) };
        match packet {
            Packet::PubAck { .. } => return Ok(Fate::Acknowledged),
            Packet::Publish { topic, .. } => {
                let topic = String::from_utf8_lossy(&topic).into_owned();
                let status = topic.strip_prefix("$iothub/twin/res/").context("a foreign topic")?;
                let known = ["204", "400"].into_iter().find(|known| status.starts_with(known));
                // All others are for now: busy, or no leader.
                let Some(known) = known else { bail!("answered with {topic}") };
                return Ok(Fate::Status(known));
            }
            Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::PingResp => {}
        }
    }
}

/// What device `id` sends, and what must become of it.
fn packets(id: &str) -> Vec<(&'static str, Vec<u8>, Fate)> {
    let own = format!("devices/{id}/messages/events/");
    let publish = |topic: &str, payload: &[u8]| {
        let mut packet = Vec::new();
        put_publish(&mut packet, topic, Some(77), payload);
        packet
    };
    let reported = |payload: &str| {
        let mut packet = Vec::new();
        let topic = "$iothub/twin/PATCH/properties/reported/?$rid=poison";
        put_publish(&mut packet, topic, None, payload.as_bytes());
        packet
    };
    let deep = [r#"{"a":"#.repeat(DEPTH), "1".to_owned(), "}".repeat(DEPTH)].concat();
    // Six texts of the longest kind, and null for them afterwards: within the limit, however often.
    let texts: Vec<String> = (0..6).map(|n| format!(r#""p{n}":"{}""#, "x".repeat(4096))).collect();
    let nulls: Vec<String> = (0..6).map(|n| format!(r#""p{n}":null"#)).collect();
    vec![
        ("the largest message", publish(&own, &vec![0; MESSAGE_BYTES_MAX]), Fate::Acknowledged),
        (
            "a message that is too large",
            publish(&own, &vec![0; MESSAGE_BYTES_MAX + 1]),
            Fate::Closed,
        ),
        ("an empty message", publish(&own, b""), Fate::Acknowledged),
        (
            "a message of another device",
            publish("devices/kill-0/messages/events/", b"x"),
            Fate::Closed,
        ),
        ("U+0000", publish(&format!("{own}\0"), b"x"), Fate::Closed),
        ("a wildcard", publish(&format!("{own}#"), b"x"), Fate::Closed),
        ("a first letter that is not ASCII", publish("é/messages", b"x"), Fate::Closed),
        ("a packet that announces 256 MB", vec![0x32, 0xff, 0xff, 0xff, 0x7f], Fate::Closed),
        ("a length of five bytes", vec![0x32, 0xff, 0xff, 0xff, 0xff, 0x01], Fate::Closed),
        ("a second CONNECT", connect_again(id), Fate::Closed),
        ("a patch that is too deep", reported(&deep), Fate::Status("400")),
        ("a patch that is no JSON", reported("{\"a\":"), Fate::Status("400")),
        ("a large patch", reported(&format!("{{{}}}", texts.join(","))), Fate::Status("204")),
        (
            "a patch that takes it back",
            reported(&format!("{{{}}}", nulls.join(","))),
            Fate::Status("204"),
        ),
    ]
}

fn connect_again(client_id: &str) -> Vec<u8> {
    let (username, password, clean_session, keep_alive_s) = (None, None, true, 60);
    let mut packet = Vec::new();
    Connect { client_id, username, password, clean_session, keep_alive_s }.encode(&mut packet);
    packet
}
