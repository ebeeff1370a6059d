//! Devices and back ends that send what is malformed, or just within or just over a limit, as fast as they can, among the
//! load. Each offence costs its own connection or call and nothing else; what is within its limits is accepted.
//!
//! A bystander is connected to the same node and sends as any device does. It must notice nothing, as long as no other fault
//! lasts that would explain it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
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
/// Statuses of the twin by which a device is told to ask again: throttled, no leader.
const PASSING: [u16; 2] = [429, 503];
/// How many bytes, and what must become of it.
const COMMANDS: [(&str, usize, Fate); 2] = [
    ("a command that is too large", COMMAND_BYTES_MAX + 1, Fate::Refused),
    ("a large command", COMMAND_BYTES_MAX - 1024, Fate::Accepted),
];
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

/// What an offence or an extreme comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Closed,
    Acknowledged,
    /// The twin is answered with this status.
    Status(u16),
    /// A command that waits for its device.
    Accepted,
    /// A command that never will be accepted, whoever is asked when.
    Refused,
}

/// What all of them came to.
#[derive(Debug, Default)]
struct Tally {
    right: u64,
    /// Without an answer, or refused for now: put down to other faults.
    open: u64,
    wrong: Option<String>,
    /// An extreme that cost its connection, as another fault may have it, too.
    cut_off: Option<String>,
}

impl Tally {
    fn note(&mut self, what: &str, seen: Option<Fate>, due: Fate) {
        let told = |seen| Some(format!("{what}: {seen:?}, not {due:?}"));
        match seen {
            Some(seen) if seen == due => self.right += 1,
            Some(Fate::Closed) => self.cut_off = told(Fate::Closed),
            Some(seen) => self.wrong = told(seen),
            None => self.open += 1,
        }
    }

    /// `noticed`: by the bystander.
    fn judged(self, noticed: Option<String>) -> Seen {
        let Self { right, open, wrong, cut_off } = self;
        let detail = format!("{right} offences and extremes met their fate, {open} no answer");
        Seen::of(right, detail).complaining(wrong).suffering(cut_off.or(noticed))
    }
}

impl Poison {
    pub(super) fn at(nodes: &Nodes, node: usize) -> Self {
        Self { fleet: nodes.fleet(NAME), admin: nodes.admin().clone(), node }
    }

    /// One after the other until it is `over`.
    pub(super) async fn spread(self, over: watch::Receiver<bool>) -> anyhow::Result<Seen> {
        let mut tally = Tally::default();
        let poisoning = async {
            let id = self.fleet.id(POISONER);
            for ((what, bytes, due), turn) in packets(&id).iter().cycle().zip(0_usize..) {
                if *over.borrow() {
                    break;
                }
                tally.note(what, self.send(bytes).await.ok(), *due);
                let (what, bytes, due) = COMMANDS[turn % COMMANDS.len()];
                tally.note(what, self.command(bytes).await, due);
            }
        };
        let ((), suffered) = tokio::join!(poisoning, self.stand_by(&over));
        Ok(tally.judged(suffered.err()))
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

    async fn command(&self, bytes: usize) -> Option<Fate> {
        let request = SendCommandRequest {
            device_id: self.fleet.id(POISONER),
            body: vec![0xff; bytes],
            supersede_key: "poison".to_owned(),
            ..SendCommandRequest::default()
        };
        fate_of_command(&self.admin.send_command(self.node, request).await)
    }

    /// A device as any other, at the same node, until it is over.
    async fn stand_by(&self, over: &watch::Receiver<bool>) -> Result<(), String> {
        let address = self.fleet.addresses[self.node];
        let link = timeout(ANSWER_MAX, self.fleet.connect_to(BYSTANDER, address)).await;
        let Ok(Ok(mut link)) = link else { return Err("a bystander cannot connect".to_owned()) };
        publish_in_peace(&mut link, &self.fleet.topic(BYSTANDER), over).await
    }
}

/// Publishes on one connection until it is `over`, and has each message acknowledged in time.
async fn publish_in_peace(
    link: &mut Link,
    topic: &str,
    over: &watch::Receiver<bool>,
) -> Result<(), String> {
    for id in (1..u16::MAX).cycle() {
        if *over.borrow() {
            break;
        }
        let begin = Instant::now();
        put_publish(&mut link.out, topic, Some(id), b"as any device does");
        match timeout(ANSWER_MAX, acknowledged(link, id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("a bystander was cut off: {error:#}")),
            Err(_) => return Err(format!("a bystander got no answer in {ANSWER_MAX:?}")),
        }
        sleep(PACE.saturating_sub(begin.elapsed())).await;
    }
    Ok(())
}

async fn acknowledged(link: &mut Link, id: u16) -> anyhow::Result<()> {
    link.flush().await?;
    let answer = link.next().await?;
    ensure!(answer == Packet::PubAck { id }, "{answer:?} instead of a PUBACK");
    Ok(())
}

/// What becomes of the connection, or of what was sent on it. An error: nothing can be said for now.
async fn fate(link: &mut Link) -> anyhow::Result<Fate> {
    loop {
        let Ok(packet) = link.next().await else { return Ok(Fate::Closed) };
        match packet {
            Packet::PubAck { .. } => return Ok(Fate::Acknowledged),
            Packet::Publish { topic, .. } => {
                let topic = String::from_utf8_lossy(&topic).into_owned();
                let answer = topic.strip_prefix("$iothub/twin/res/").context("a foreign topic")?;
                let (status, _) = answer.split_once('/').context("an answer without a status")?;
                let status = status.parse().context("a status that is no number")?;
                ensure!(!PASSING.contains(&status), "answered with {status} for now");
                return Ok(Fate::Status(status));
            }
            Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::PingResp => {}
        }
    }
}

fn fate_of_command<T>(answer: &Result<T, Failure>) -> Option<Fate> {
    match answer {
        Ok(_) => Some(Fate::Accepted),
        Err(Failure::Refused(status)) if status.code() == Code::InvalidArgument => {
            Some(Fate::Refused)
        }
        Err(Failure::Refused(_) | Failure::Unknown(_)) => None,
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
        ("a patch that is too deep", reported(&deep), Fate::Status(400)),
        ("a patch that is no JSON", reported("{\"a\":"), Fate::Status(400)),
        ("a large patch", reported(&format!("{{{}}}", texts.join(","))), Fate::Status(204)),
        (
            "a patch that takes it back",
            reported(&format!("{{{}}}", nulls.join(","))),
            Fate::Status(204),
        ),
    ]
}

fn connect_again(client_id: &str) -> Vec<u8> {
    let (username, password, clean_session, keep_alive_s) = (None, None, true, 60);
    let mut packet = Vec::new();
    Connect { client_id, username, password, clean_session, keep_alive_s }.encode(&mut packet);
    packet
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
    use tonic::Status;

    use super::*;

    const ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];
    const FIRST_ACKNOWLEDGED: [u8; 4] = [0x40, 2, 0, 1];

    /// A connection to a hub that accepts it and then says `bytes`, and nothing more. It lasts as long as the hub's end of it.
    async fn hub_that_says(bytes: &[u8]) -> (Link, DuplexStream) {
        let (ours, mut of_hub) = duplex(4096);
        of_hub.write_all(&[&ACCEPTED, bytes].concat()).await.expect("there is room");
        let connect = Connect {
            client_id: "guest",
            username: None,
            password: None,
            clean_session: true,
            keep_alive_s: 60,
        };
        (Link::over(ours, &connect).await.expect("accepted"), of_hub)
    }

    async fn fate_if_the_hub_says(bytes: &[u8]) -> Option<Fate> {
        let (mut link, _of_hub) = hub_that_says(bytes).await;
        timeout(ANSWER_MAX, fate(&mut link)).await.ok()?.ok()
    }

    fn twin_answer(status: &str) -> Vec<u8> {
        let mut packet = Vec::new();
        put_publish(&mut packet, &format!("$iothub/twin/res/{status}/?$rid=poison"), None, b"");
        packet
    }

    #[test]
    fn whatever_meets_another_fate_than_its_own_is_a_complaint() {
        let judged = |seen, due| {
            let mut tally = Tally::default();
            tally.note("a wildcard", seen, due);
            tally.judged(None)
        };
        let accepted = judged(Some(Fate::Acknowledged), Fate::Closed);
        assert_eq!(accepted.complaint(), Some("a wildcard: Acknowledged, not Closed"));
        assert!(judged(Some(Fate::Accepted), Fate::Refused).complaint().is_some());
        assert!(judged(Some(Fate::Refused), Fate::Accepted).complaint().is_some());
        assert!(judged(Some(Fate::Status(204)), Fate::Status(400)).complaint().is_some());
        let right = judged(Some(Fate::Closed), Fate::Closed);
        assert_eq!((right.evidence, right.complaint(), right.suffered()), (1, None, None));
        let open = judged(None, Fate::Closed);
        assert_eq!((open.evidence, open.complaint()), (0, None), "it proves nothing");
        let cut_off = judged(Some(Fate::Closed), Fate::Acknowledged);
        assert_eq!((cut_off.evidence, cut_off.complaint()), (0, None));
        assert!(cut_off.suffered().is_some(), "a complaint if no other fault explains it");
    }

    #[test]
    fn what_the_bystander_noticed_is_not_lost() {
        let noticed = Tally::default().judged(Some("no answer".to_owned()));
        assert_eq!(noticed.suffered(), Some("no answer"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fate_is_what_the_hub_says_or_that_it_closes() {
        assert_eq!(fate_if_the_hub_says(&FIRST_ACKNOWLEDGED).await, Some(Fate::Acknowledged));
        for status in [204, 400, 413, 500] {
            let answer = twin_answer(&status.to_string());
            assert_eq!(fate_if_the_hub_says(&answer).await, Some(Fate::Status(status)));
        }
        assert_eq!(fate_if_the_hub_says(&twin_answer("503")).await, None, "for now");
        assert_eq!(fate_if_the_hub_says(b"").await, None, "it says nothing");
        let (mut link, of_hub) = hub_that_says(b"").await;
        drop(of_hub);
        assert_eq!(fate(&mut link).await.ok(), Some(Fate::Closed));
    }

    #[test]
    fn a_command_is_accepted_or_refused_for_good_and_everything_else_is_open() {
        let refused = |code| Err(Failure::Refused(Status::new(code, "")));
        assert_eq!(fate_of_command(&Ok(())), Some(Fate::Accepted));
        assert_eq!(fate_of_command::<()>(&refused(Code::InvalidArgument)), Some(Fate::Refused));
        assert_eq!(fate_of_command::<()>(&refused(Code::Unavailable)), None);
        assert_eq!(fate_of_command::<()>(&Err(Failure::Unknown(String::new()))), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bystander_notices_silence_another_answer_and_the_end_of_its_connection() {
        let (_not_over, over) = watch::channel(false);
        let (mut link, of_hub) = hub_that_says(&FIRST_ACKNOWLEDGED).await;
        let noticed = publish_in_peace(&mut link, "telemetry", &over).await;
        assert!(
            noticed.is_err_and(|what| what.contains("no answer")),
            "the second is not answered"
        );
        drop(of_hub);
        let noticed = publish_in_peace(&mut link, "telemetry", &over).await;
        assert!(noticed.is_err_and(|what| what.contains("cut off")));
        let (mut link, _of_hub) = hub_that_says(&[0x40, 2, 0, 9]).await;
        let noticed = publish_in_peace(&mut link, "telemetry", &over).await;
        assert!(noticed.is_err_and(|what| what.contains("instead of a PUBACK")));
        let (_is_over, over) = watch::channel(true);
        publish_in_peace(&mut link, "telemetry", &over).await.expect("it has nothing more to do");
    }
}
