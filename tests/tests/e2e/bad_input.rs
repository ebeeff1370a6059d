//! What a device gets that sends what it must not: its connection is closed, nothing is stored, others go on (P5, P6).

use std::time::Duration;

use anyhow::{Context, Result};
use drover_chaos::mqtt::codec::{Connect, put_publish};
use drover_tests::clients::Device;
use drover_tests::nodes::Nodes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than any answer, shorter than a test's patience.
const CLOSED_WITHIN: Duration = Duration::from_secs(20);

fn publish(topic: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    put_publish(&mut packet, topic, Some(77), b"bad");
    packet
}

fn connect_again() -> Vec<u8> {
    let connect = Connect {
        client_id: "bad",
        username: None,
        password: None,
        clean_session: true,
        keep_alive_s: 60,
    };
    let mut packet = Vec::new();
    connect.encode(&mut packet);
    packet
}

/// Everything here is sent by a device that has logged in as `bad`.
fn offences() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a topic of another device", publish("devices/good/messages/events/")),
        ("a topic of one of its modules", publish("devices/bad/modules/m/messages/events/")),
        ("a topic that is no topic of the hub", publish("my/topic")),
        ("a wildcard in a topic name", publish("devices/bad/messages/events/#")),
        ("a single-level wildcard", publish("devices/+/messages/events/")),
        ("U+0000", publish("devices/bad/messages/events/\0")),
        ("a first letter that is not ASCII", publish("é/messages")),
        ("an empty topic", publish("")),
        ("quality of service 2", vec![0x34, 5, 0, 1, b'a', 0, 1]),
        ("quality of service 3", vec![0x36, 5, 0, 1, b'a', 0, 1]),
        ("a packet that announces 256 MB", vec![0x32, 0xff, 0xff, 0xff, 0x7f]),
        ("a length of five bytes", vec![0x32, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ("a second CONNECT", connect_again()),
        ("a packet that only hubs send", vec![0x20, 2, 0, 0]),
        ("reserved flags", vec![0xc1, 0]),
        ("packet id 0", vec![0x32, 5, 0, 1, b'a', 0, 0]),
        ("a topic longer than its packet", vec![0x30, 4, 0xff, 0xff, b'a', b'b']),
    ]
}

#[tokio::test]
async fn each_offence_closes_its_own_connection_and_stores_nothing() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let good_key = admin.create_device("good").await?;
    let bad_key = admin.create_device("bad").await?;
    let mut good = Device::connect(nodes.mqtt(0), "good", &good_key).await?;
    for (offence, bytes) in offences() {
        let mut bad = Device::connect(nodes.mqtt(0), "bad", &bad_key).await.context(offence)?;
        bad.write(&bytes).await.context(offence)?;
        bad.until_closed().await.context(offence)?;
        good.send(offence).await.with_context(|| format!("the other device after {offence}"))?;
    }
    assert_eq!(admin.messages_of("bad").await?, [], "nothing of it was stored");
    assert_eq!(admin.messages_of("good").await?.len(), offences().len());
    Ok(())
}

#[tokio::test]
async fn a_subscription_to_anything_foreign_is_refused() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("bad").await?;
    for filter in [
        "#",
        "+/#",
        "$SYS/#",
        "devices/good/messages/devicebound/#",
        "$share/g/devices/bad/#",
        "devices/bad/modules/m/#",
    ] {
        let mut bad = Device::connect(nodes.mqtt(0), "bad", &key).await?;
        assert!(bad.link.subscribe(filter, 1).await.is_err(), "{filter} was granted");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_does_not_begin_with_connect_is_cut_off() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    for (what, bytes) in [
        ("PUBLISH first", publish("devices/a/messages/events/")),
        ("PUBACK first", vec![0x40, 2, 0, 1]),
        ("CONNACK first", vec![0x20, 1, 0]),
        ("CONNECT of 256 MB", vec![0x10, 0xff, 0xff, 0xff, 0x7f]),
        ("HTTP", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
    ] {
        let mut stream = TcpStream::connect(nodes.mqtt(0)).await?;
        stream.write_all(&bytes).await?;
        let mut answer = Vec::new();
        // A reset is as good an end as an orderly one.
        timeout(CLOSED_WITHIN, stream.read_to_end(&mut answer)).await.context(what)?.ok();
        assert_eq!(answer, Vec::<u8>::new(), "{what}");
    }
    Ok(())
}
