//! Devices that take what a back end sends them: they acknowledge commands and answer methods, at once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::idle;
use crate::fleet::Fleet;
use crate::mqtt::codec::{self, Packet};
use crate::mqtt::link::Link;

const METHOD_CALLS: &str = "$iothub/methods/POST/";
const BODY_BYTES: usize = 200;
/// Acknowledged commands that wait to be counted.
const TAKEN_MAX: usize = 65_536;
/// Without any acknowledgement for so long, no more are to be expected.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What they listen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    Commands,
    Methods,
}

/// A command that a device has acknowledged, by the number in its body.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    pub number: u64,
    pub at: Instant,
}

/// Connected devices. Dropping it ends their connections.
pub struct Recipients {
    pub taken: mpsc::Receiver<Taken>,
    devices: JoinSet<anyhow::Result<()>>,
}

impl Recipients {
    /// Connects the devices 0 to `count`, as fast as the hub lets them.
    pub async fn connect(
        fleet: &Fleet,
        count: usize,
        listening: Listening,
    ) -> anyhow::Result<Self> {
        let (links, storm) = idle::connect(fleet, 0..count).await?;
        tracing::info!(%storm, "recipients are connected");
        let (tell, taken) = mpsc::channel(TAKEN_MAX);
        let mut subscribing = JoinSet::new();
        for (number, mut link) in links {
            let filter = match listening {
                Listening::Commands => {
                    format!("devices/{}/messages/devicebound/#", fleet.id(number))
                }
                Listening::Methods => format!("{METHOD_CALLS}#"),
            };
            subscribing.spawn(async move {
                link.subscribe(&filter, 1).await?;
                anyhow::Ok(link)
            });
        }
        let mut devices = JoinSet::new();
        while let Some(link) = subscribing.join_next().await {
            devices.spawn(take(link.context("a subscribing task panicked")??, tell.clone()));
        }
        Ok(Self { taken, devices })
    }

    /// A device whose connection has ended spoils the measurement.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.devices.try_join_next() {
            None => Ok(()),
            Some(ended) => ended.context("a device's task panicked")?.context("a device"),
        }
    }
}

async fn take(mut link: Link, tell: mpsc::Sender<Taken>) -> anyhow::Result<()> {
    loop {
        let mut packet = Some(link.next().await?);
        while let Some(Packet::Publish { topic, id, payload, .. }) = packet {
            if let Some(topic) = std::str::from_utf8(&topic)?.strip_prefix(METHOD_CALLS) {
                let (_, rid) = topic.split_once("/?$rid=").context("a call without a $rid")?;
                let answer = format!("$iothub/methods/res/200/?$rid={rid}");
                codec::put_publish(&mut link.out, &answer, None, b"{}");
            } else {
                if let Some(id) = id {
                    codec::put_puback(&mut link.out, id);
                }
                let taken = Taken { number: number(&payload)?, at: Instant::now() };
                // Whoever counts may have counted enough.
                tell.send(taken).await.ok();
            }
            packet = link.arrived()?;
        }
        link.flush().await?;
    }
}

/// A body of 200 bytes that begins with a number and does not compress well.
pub(super) fn body(number: u64) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/";
    let mut body = format!("{number} ").into_bytes();
    let mut random = 0x9E37_79B9_7F4A_7C15 ^ number.wrapping_add(1);
    while body.len() < BODY_BYTES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        body.push(DIGITS[(random >> 32) as usize % DIGITS.len()]);
    }
    body
}

fn number(body: &[u8]) -> anyhow::Result<u64> {
    let number = body.split(|byte| *byte == b' ').next().unwrap_or_default();
    Ok(std::str::from_utf8(number)?.parse()?)
}

/// When each of so many commands was first acknowledged, by its number.
pub(super) async fn all_taken(
    taken: &mut mpsc::Receiver<Taken>,
    count: usize,
) -> anyhow::Result<BTreeMap<u64, Instant>> {
    let mut first = BTreeMap::new();
    while first.len() < count {
        let next = timeout(SILENCE_MAX, taken.recv()).await;
        let next = next.with_context(|| format!("only {} of {count}", first.len()))?;
        let Taken { number, at } = next.context("nobody is left to acknowledge")?;
        first.entry(number).or_insert(at);
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_its_number_and_has_its_length() {
        for given in [0, 1, 12_345_678, u64::MAX] {
            let body = body(given);
            assert_eq!((body.len(), number(&body).expect("it is there")), (BODY_BYTES, given));
        }
    }
}
