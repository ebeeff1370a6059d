//! MQTT over WebSocket on the HTTPS port: the same as over TLS, and what bad clients get (S-28).

use anyhow::Result;
use drover_chaos::mqtt::link::Tls;
use drover_tests::clients::{Device, HOST, Login};
use drover_tests::nodes::Nodes;
use drover_tests::websocket::{Opcode, PATH, WebSocket};
use serde_json::json;

const MQTT: &str = "Sec-WebSocket-Protocol: mqtt\r\n";
const PINGREQ: &[u8] = &[0xc0, 0];

fn tls(nodes: &Nodes) -> Result<Tls> {
    Tls::new(&std::fs::read(nodes.ca())?, HOST)
}

#[tokio::test]
async fn telemetry_and_twin_work_over_websocket_however_packets_are_cut_into_frames() -> Result<()>
{
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    for frame_bytes in [1, 7, 64 * 1024] {
        let id = format!("behind-a-firewall-{frame_bytes}");
        let key = admin.create_device(&id).await?;
        let socket = WebSocket::open(nodes.https(0), &tls(&nodes)?).await?;
        let stream = socket.into_stream(frame_bytes);
        let mut device = Device::log_in_over(stream, Login::new(&id, &key)?).await?;
        device.send("through the proxy").await?;
        let message = admin.messages_of(&id).await?.remove(0);
        assert_eq!(message.body, b"through the proxy");
        device.subscribe_twin().await?;
        assert_eq!(device.report(r#"{"pressure":3}"#).await?, 204);
        admin.patch_desired(&id, &json!({ "speed": 7 })).await?;
        assert_eq!(device.desired().await?.1["speed"], 7);
    }
    Ok(())
}

#[tokio::test]
async fn the_largest_packet_passes_in_one_frame_and_a_longer_message_does_not() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("camera").await?;
    let socket = WebSocket::open(nodes.https(0), &tls(&nodes)?).await?;
    let mut device =
        Device::log_in_over(socket.into_stream(300 * 1024), Login::new("camera", &key)?).await?;
    let body = "x".repeat(255 * 1024);
    device.send(&body).await?;
    assert_eq!(admin.messages_of("camera").await?.remove(0).body.len(), body.len());

    let mut socket = WebSocket::open(nodes.https(0), &tls(&nodes)?).await?;
    let half = "x".repeat(200 * 1024).into_bytes();
    for opcode in [Opcode::Binary, Opcode::Continuation] {
        socket.send(opcode, false, &half).await?;
    }
    assert_eq!(socket.close_code().await?, Some(1009), "a message of two fragments");
    Ok(())
}

#[tokio::test]
async fn an_upgrade_that_is_not_in_order_is_refused_with_the_reason() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let tls = tls(&nodes)?;
    let foreign = format!("{MQTT}Origin: https://evil.example\r\n");
    let own = format!("{MQTT}Origin: https://{HOST}:443\r\n");
    for (path, headers, status) in [
        (PATH, MQTT, "101"),
        ("/%24iothub/websocket?iothub-no-client-cert=true", MQTT, "101"),
        (PATH, "Sec-WebSocket-Protocol: chat, mqtt\r\n", "101"),
        (PATH, own.as_str(), "101"),
        (PATH, foreign.as_str(), "403"),
        (PATH, "Origin: null\r\nSec-WebSocket-Protocol: mqtt\r\n", "403"),
        (PATH, "", "400"),
        (PATH, "Sec-WebSocket-Protocol: mqttv3.1\r\n", "400"),
        (PATH, "Sec-WebSocket-Protocol: MQTT\r\n", "400"),
        ("/", MQTT, "404"),
        ("/$iothub/websocket/more", MQTT, "404"),
    ] {
        let (head, _) = WebSocket::ask(nodes.https(0), &tls, path, headers).await?;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers}: {head}");
        if status == "101" {
            assert!(head.to_lowercase().contains("sec-websocket-protocol: mqtt\r\n"), "{head}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn frames_that_no_device_sends_end_the_connection_with_the_code_for_it() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let tls = tls(&nodes)?;
    let unmasked = [0x82, 2, 0xc0, 0];
    let reserved_opcode = [0x83, 0x80, 0, 0, 0, 0];
    let of_16_eib = [0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let of_400_kib = [0x82, 0xff, 0, 0, 0, 0, 0, 6, 0x40, 0, 0, 0, 0, 0];
    for (what, bytes, code) in [
        ("unmasked", &unmasked[..], 1002),
        ("reserved opcode", &reserved_opcode, 1002),
        ("400 KiB", &of_400_kib, 1009),
        ("16 EiB", &of_16_eib, 1009),
    ] {
        let mut socket = WebSocket::open(nodes.https(0), &tls).await?;
        socket.write(bytes).await?;
        assert_eq!(socket.close_code().await?, Some(code), "{what}");
        socket.until_closed().await?;
    }
    let mut socket = WebSocket::open(nodes.https(0), &tls).await?;
    socket.send(Opcode::Text, true, b"hello").await?;
    assert_eq!(socket.close_code().await?, Some(1003), "text");
    // Not MQTT, or not CONNECT first.
    for payload in [PINGREQ, &[0xff; 16]] {
        let mut socket = WebSocket::open(nodes.https(0), &tls).await?;
        socket.send(Opcode::Binary, true, payload).await?;
        socket.until_closed().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_ping_between_the_fragments_of_a_packet_is_answered() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("pinger").await?;
    let mut socket = WebSocket::open(nodes.https(0), &tls(&nodes)?).await?;
    let connect = Login::new("pinger", &key)?.packet();
    let (first, second) = connect.split_at(20);
    socket.send(Opcode::Binary, false, first).await?;
    socket.send(Opcode::Ping, true, b"are you there").await?;
    assert_eq!(socket.next().await?, (Opcode::Pong, b"are you there".to_vec()));
    socket.send(Opcode::Continuation, true, second).await?;
    let connack = vec![0x20, 2, 0, 0];
    assert_eq!(socket.next().await?, (Opcode::Binary, connack));
    for _ in 0..1000 {
        socket.send(Opcode::Ping, true, b"flood").await?;
    }
    socket.send(Opcode::Binary, true, PINGREQ).await?;
    while socket.next().await? != (Opcode::Binary, vec![0xd0, 0]) {}
    Ok(())
}

#[tokio::test]
async fn whoever_says_nothing_is_closed_before_and_after_the_upgrade() -> Result<()> {
    let settings = [("limits.connect_timeout", "300ms"), ("limits.handshake_timeout", "300ms")];
    let nodes = Nodes::start_with(1, &settings).await?;
    let tls = tls(&nodes)?;
    let mut upgraded = WebSocket::open(nodes.https(0), &tls).await?;
    upgraded.until_closed().await?;
    for begun in [&b""[..], b"GET / HTTP/1.1\r\nhost: "] {
        drover_tests::clients::until_closed(tls.connect(nodes.https(0)).await?, begun).await?;
    }
    let silent = tokio::net::TcpStream::connect(nodes.https(0)).await?;
    drover_tests::clients::until_closed(silent, b"").await
}
