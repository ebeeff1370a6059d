//! What a device asks under load, and how it knows the answer.

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;

use crate::fleet::Fleet;
use crate::mqtt::codec::{self, Packet};
use crate::mqtt::link::Link;

const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
const TWIN_ACCEPTED: &[u8] = b"$iothub/twin/res/204/?$rid=";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A QoS 1 message, answered by PUBACK.
    Telemetry,
    /// A patch of reported properties, answered with status 204.
    Reported,
}

/// The requests of one connection. A slot is a request in flight, and is named again once it is answered.
pub(super) struct Requests {
    kind: Kind,
    topic: String,
    payload: Vec<u8>,
    random: u64,
}

impl Requests {
    /// Prepares `link` to hear the answers.
    pub(super) async fn prepare(
        kind: Kind,
        fleet: &Fleet,
        number: usize,
        payload_bytes: usize,
        link: &mut Link,
    ) -> anyhow::Result<Self> {
        if kind == Kind::Reported {
            link.subscribe(TWIN_ANSWERS, 0).await?;
        }
        Ok(Self {
            kind,
            topic: fleet.topic(number),
            payload: vec![0; payload_bytes],
            random: 0x9E37_79B9_7F4A_7C15 ^ (number as u64 + 1),
        })
    }

    /// Appends the request of `slot` to what `out` will send.
    pub(super) fn put(&mut self, slot: u16, out: &mut Vec<u8>) {
        self.randomize();
        match self.kind {
            Kind::Telemetry => codec::put_publish(out, &self.topic, Some(slot + 1), &self.payload),
            Kind::Reported => {
                let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={slot}");
                let body = self.patch();
                codec::put_publish(out, &topic, None, &body);
            }
        }
    }

    /// The slot that `packet` answers, if it is an answer.
    pub(super) fn answered(&self, packet: &Packet) -> anyhow::Result<Option<u16>> {
        match (self.kind, packet) {
            (Kind::Telemetry, Packet::PubAck { id: 0 }) => bail!("a PUBACK with packet id 0"),
            (Kind::Telemetry, Packet::PubAck { id }) => Ok(Some(id - 1)),
            (Kind::Reported, Packet::Publish { topic, payload, .. }) => {
                let Some(rest) = topic.strip_prefix(TWIN_ACCEPTED) else {
                    let text = String::from_utf8_lossy(payload);
                    bail!("refused on {}: {text}", String::from_utf8_lossy(topic));
                };
                let digits = rest.split(|byte| *byte == b'&').next().unwrap_or_default();
                Ok(Some(std::str::from_utf8(digits)?.parse()?))
            }
            _ => Ok(None),
        }
    }

    /// Fresh bytes each time, so that no compression flatters what is measured.
    fn randomize(&mut self) {
        for chunk in self.payload.chunks_mut(8) {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            chunk.copy_from_slice(&self.random.to_le_bytes()[..chunk.len()]);
        }
    }

    /// A JSON object of as many bytes as the payload has.
    fn patch(&self) -> Vec<u8> {
        const FRAME: usize = r#"{"state":""}"#.len();
        const LETTERS: &[u8; 16] = b"abcdefghijklmnop";
        let text = self.payload.iter().skip(FRAME).map(|byte| LETTERS[usize::from(byte & 15)]);
        let mut body = br#"{"state":""#.to_vec();
        body.extend(text);
        body.extend_from_slice(br#""}"#);
        body
    }
}
