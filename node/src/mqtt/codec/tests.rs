//! The rules of the gate, each on input that is otherwise in order, and inputs that nobody wrote.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A frame: first byte, remaining length, body from parts.
fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut bytes = vec![first];
    let mut rest = body.len();
    loop {
        let more = rest > 127;
        bytes.push((rest & 127) as u8 | if more { 128 } else { 0 });
        rest >>= 7;
        if !more {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("short");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

const TOPIC: &str = "devices/d/messages/events/";

fn connect(flags: u8, rest: &[&[u8]]) -> Vec<u8> {
    let head = [&text("MQTT")[..], &[4, flags, 0, 60], &text("d")].concat();
    packet(0x10, &[&[&head[..]], rest].concat())
}

fn publish(first: u8, topic: &str, rest: &[u8]) -> Vec<u8> {
    packet(first, &[&text(topic), rest])
}

fn subscribe(filter: &str, options: u8) -> Vec<u8> {
    packet(0x82, &[&[0, 1], &text(filter), &[options]])
}

fn whole(bytes: &[u8], expects: Expects) -> Result<Packet, Error> {
    decode(bytes, expects).map(|taken| {
        let (packet, length) = taken.expect("a whole packet");
        assert_eq!(length, bytes.len());
        packet
    })
}

#[test]
fn packets_in_order_are_taken() {
    let user_and_password = [text("hub/d"), text("\u{1}token")].concat();
    for bytes in [
        connect(0x02, &[]),
        connect(0x00, &[]),
        connect(0xc2, &[&user_and_password]),
        connect(0x2e, &[&text(TOPIC), &text("gone")]),
    ] {
        let taken = whole(&bytes, Expects::Connect);
        assert!(matches!(taken, Ok(Packet::Connect(_))), "{bytes:?}: {taken:?}");
    }
    for bytes in [
        publish(0x30, TOPIC, b""),
        publish(0x30, TOPIC, b"body"),
        publish(0x3b, TOPIC, b"\0\x01body"),
        publish(0x32, "é", b"\0\x01"),
        publish(0x30, "日本/x", b""),
        publish(0x30, &"/".repeat(65_535), b""),
    ] {
        let taken = whole(&bytes, Expects::Anything);
        assert!(matches!(taken, Ok(Packet::Publish(_))), "{taken:?}");
    }
    assert_eq!(whole(&[0x40, 2, 0, 7], Expects::Anything), Ok(Packet::Puback(7)));
    assert_eq!(whole(&[0xc0, 0], Expects::Anything), Ok(Packet::Pingreq));
    assert_eq!(whole(&[0xe0, 0], Expects::Anything), Ok(Packet::Disconnect));
    let filters =
        [("a/#", 2, Qos::AtLeastOnce), ("+/b", 1, Qos::AtLeastOnce), ("#", 0, Qos::AtMostOnce)];
    for (filter, options, qos) in filters {
        let expected = Packet::Subscribe { packet_id: 1, filters: vec![(filter.into(), qos)] };
        assert_eq!(whole(&subscribe(filter, options), Expects::Anything), Ok(expected));
    }
    let unsubscribe = packet(0xa2, &[&[0, 9], &text("a"), &text("b")]);
    let expected = Packet::Unsubscribe { packet_id: 9, filters: vec!["a".into(), "b".into()] };
    assert_eq!(whole(&unsubscribe, Expects::Anything), Ok(expected));
}

#[test]
fn each_broken_rule_of_connect_is_refused() {
    let long = text(&"w".repeat(65_535));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("reserved flag", connect(0x03, &[])),
        ("will quality 3", connect(0x1e, &[&text(TOPIC), &text("")])),
        ("will quality without will", connect(0x0a, &[])),
        ("will retain without will", connect(0x22, &[])),
        ("password without user name", connect(0x42, &[&text("p")])),
        ("wildcard in will topic", connect(0x06, &[&text("a/#"), &text("")])),
        ("empty will topic", connect(0x06, &[&text(""), &text("")])),
        ("U+0000 in user name", connect(0x82, &[&text("a\0b")])),
        ("trailing bytes", connect(0x02, &[&[0]])),
        ("missing user name", connect(0x82, &[])),
        ("invalid UTF-8", connect(0x82, &[&[0, 1, 0xff]])),
        ("a surrogate", connect(0x82, &[&[0, 3, 0xed, 0xa0, 0x80]])),
        ("fixed-header flags", packet(0x11, &[&connect(0x02, &[])[2..]])),
        ("another name", packet(0x10, &[&text("MQTX"), &[4, 2, 0, 60], &text("d")])),
        ("empty", packet(0x10, &[])),
        ("too long", connect(0x06, &[&text(TOPIC), &long, &long])),
    ];
    for (rule, bytes) in cases {
        let refused = decode(&bytes, Expects::Connect);
        assert!(
            matches!(refused, Err(Error::Malformed(_) | Error::TooLong)),
            "{rule}: {refused:?}"
        );
    }
}

#[test]
fn other_versions_are_told_apart() {
    for (name, level) in [("MQIsdp", 3), ("MQTT", 5), ("MQTT", 3), ("MQTT", 6), ("MQTT", 0x84)] {
        let bytes = packet(0x10, &[&text(name), &[level, 2, 0, 60], &text("d")]);
        assert_eq!(whole(&bytes, Expects::Connect), Err(Error::UnsupportedLevel { level }));
    }
}

#[test]
fn each_broken_rule_of_the_others_is_refused() {
    let fifty_one = vec![text("a"); FILTERS_MAX + 1];
    let entries: Vec<u8> = fifty_one.iter().flat_map(|f| [&f[..], &[0]].concat()).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("publish: quality 3", publish(0x36, TOPIC, b"\0\x01")),
        ("publish: duplicate at quality 0", publish(0x38, TOPIC, b"")),
        ("publish: packet id 0", publish(0x32, TOPIC, b"\0\0")),
        ("publish: no packet id", publish(0x32, TOPIC, b"\0")),
        ("publish: empty topic", publish(0x30, "", b"")),
        ("publish: wildcard +", publish(0x30, "devices/+/messages/events/", b"")),
        ("publish: wildcard #", publish(0x30, "devices/d/messages/events/#", b"")),
        ("publish: U+0000", publish(0x30, "devices/d/messages/events/\0", b"")),
        ("publish: invalid UTF-8", packet(0x30, &[&[0, 2, 0xc3, 0x28]])),
        ("publish: topic longer than packet", packet(0x30, &[&[0, 9, b'a']])),
        ("publish: no topic", packet(0x30, &[&[0]])),
        ("puback: packet id 0", vec![0x40, 2, 0, 0]),
        ("puback: short", vec![0x40, 1, 1]),
        ("puback: long", vec![0x40, 3, 0, 1, 0]),
        ("puback: flags", vec![0x42, 2, 0, 1]),
        ("subscribe: flags", packet(0x80, &[&[0, 1], &text("a"), &[0]])),
        ("subscribe: packet id 0", packet(0x82, &[&[0, 0], &text("a"), &[0]])),
        ("subscribe: quality 3", subscribe("a", 3)),
        ("subscribe: no local", subscribe("a", 4)),
        ("subscribe: reserved bits", subscribe("a", 0x80)),
        ("subscribe: nothing", packet(0x82, &[&[0, 1]])),
        ("subscribe: no options", packet(0x82, &[&[0, 1], &text("a")])),
        ("subscribe: empty filter", subscribe("", 0)),
        ("subscribe: a/#/b", subscribe("a/#/b", 0)),
        ("subscribe: a+", subscribe("a+", 0)),
        ("subscribe: a#", subscribe("a#", 0)),
        ("subscribe: U+0000", subscribe("a\0", 0)),
        ("subscribe: 51 filters", packet(0x82, &[&[0, 1], &entries])),
        ("unsubscribe: flags", packet(0xa0, &[&[0, 1], &text("a")])),
        ("unsubscribe: packet id 0", packet(0xa2, &[&[0, 0], &text("a")])),
        ("unsubscribe: nothing", packet(0xa2, &[&[0, 1]])),
        ("unsubscribe: 51 filters", packet(0xa2, &[&[0, 1], &fifty_one.concat()])),
        ("pingreq: body", vec![0xc0, 1, 0]),
        ("pingreq: flags", vec![0xc1, 0]),
        ("disconnect: body", vec![0xe0, 1, 0]),
        ("disconnect: flags", vec![0xe2, 0]),
        ("connack", vec![0x20, 2, 0, 0]),
        ("the three bytes that stopped another broker", vec![0x20, 1, 0]),
        ("suback", vec![0x90, 3, 0, 1, 0]),
        ("unsuback", vec![0xb0, 2, 0, 1]),
        ("pingresp", vec![0xd0, 0]),
        ("auth", vec![0xf0, 0]),
        ("type 0", vec![0x00, 0]),
        ("length in two bytes for one", vec![0xc0, 0x80, 0]),
        ("length in five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x7f]),
    ];
    for (rule, bytes) in cases {
        let refused = decode(&bytes, Expects::Anything);
        assert!(matches!(refused, Err(Error::Malformed(_))), "{rule}: {refused:?}");
    }
}

#[test]
fn quality_2_is_not_served() {
    for bytes in [
        publish(0x34, TOPIC, b"\0\x01"),
        vec![0x50, 2, 0, 1],
        vec![0x62, 2, 0, 1],
        vec![0x70, 2, 0, 1],
    ] {
        assert_eq!(decode(&bytes, Expects::Anything), Err(Error::QosTwo));
    }
}

#[test]
fn a_liar_about_length_is_found_out_by_the_header() {
    let announced = [0x30, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(decode(&announced, Expects::Anything), Err(Error::TooLong));
    assert_eq!(decode(&announced[..1], Expects::Connect), Err(Error::NotConnect));
    assert_eq!(decode(&[0x10, 0xff, 0xff, 0xff, 0x7f], Expects::Connect), Err(Error::TooLong));
    assert!(decode(&[0x30, 0xff, 0xff, 0xff, 0xff], Expects::Anything).is_err());
}

#[test]
fn the_largest_message_fits() {
    let topic = format!("{TOPIC}{}", "k".repeat(65_535 - TOPIC.len()));
    let bytes = publish(0x32, &topic, &[&[0, 1][..], &vec![7; 256 * 1024]].concat());
    assert!(whole(&bytes, Expects::Anything).is_ok());
}

#[test]
fn only_connect_comes_first() {
    for first in 0..=255_u8 {
        let decoded = decode(&[first, 0], Expects::Connect);
        assert!(decoded.is_err(), "{first:#x}: {decoded:?}");
    }
}

#[test]
fn part_of_a_packet_waits_for_the_rest() {
    let bytes = publish(0x32, TOPIC, b"\0\x01a message");
    for end in 0..bytes.len() {
        assert_eq!(decode(&bytes[..end], Expects::Anything), Ok(None), "{end} bytes");
    }
    let two = [bytes.clone(), bytes.clone()].concat();
    let (_, length) = decode(&two, Expects::Anything).expect("in order").expect("whole");
    assert_eq!(length, bytes.len());
}

#[test]
fn what_the_hub_sends_is_what_the_standard_says() {
    let encoded = |reply| {
        let mut output = Vec::new();
        encode(reply, &mut output);
        output
    };
    let connack = |session_present, code| encoded(Reply::Connack { session_present, code });
    assert_eq!(connack(true, ConnectReturnCode::Accepted), [0x20, 2, 1, 0]);
    assert_eq!(connack(false, ConnectReturnCode::NotAuthorized), [0x20, 2, 0, 5]);
    assert_eq!(encoded(Reply::ConnackVersion5), [0x20, 3, 0, 0x84, 0]);
    assert_eq!(encoded(Reply::Puback(258)), [0x40, 2, 1, 2]);
    assert_eq!(encoded(Reply::Unsuback(258)), [0xb0, 2, 1, 2]);
    assert_eq!(encoded(Reply::Pingresp), [0xd0, 0]);
    let granted = vec![Some(Qos::AtMostOnce), None, Some(Qos::AtLeastOnce)];
    let suback = Reply::Suback { packet_id: 1, granted };
    assert_eq!(encoded(suback), [0x90, 5, 0, 1, 0, 0x80, 1]);
    let publish =
        |packet_id| Reply::Publish { topic: "t".into(), packet_id, dup: false, payload: vec![9] };
    assert_eq!(encoded(publish(None)), [0x30, 4, 0, 1, b't', 9]);
    assert_eq!(encoded(publish(Some(1))), [0x32, 6, 0, 1, b't', 0, 1, 9]);
}

/// Bytes at random, and packets in order with a few bytes changed, cut out or doubled.
#[test]
fn no_input_panics_or_takes_more_than_it_has() {
    let seeds = [
        connect(0xee, &[&text(TOPIC), &text("gone"), &text("hub/d/?a=b"), &text("token")]),
        publish(0x32, TOPIC, b"\0\x01body"),
        subscribe("$iothub/twin/res/#", 1),
        packet(0xa2, &[&[0, 9], &text("a"), &text("b")]),
        vec![0x40, 2, 0, 7],
        vec![0x20, 1, 0],
        packet(0x10, &[&text("MQTT"), &[5, 2, 0, 60, 3, 0x22, 0, 0], &text("d")]),
    ];
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..400_000 {
        let mut bytes = if round % 4 == 0 {
            let length = random.random_range(0..40);
            (0..length).map(|_| random.random()).collect()
        } else {
            seeds[random.random_range(0..seeds.len())].clone()
        };
        for _ in 0..random.random_range(0..4) {
            mutate(&mut bytes, &mut random);
        }
        for expects in [Expects::Connect, Expects::Anything] {
            if let Ok(Some((_, length))) = decode(&bytes, expects) {
                assert!((2..=bytes.len()).contains(&length), "{bytes:?}");
            }
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    if bytes.is_empty() {
        bytes.push(random.random());
        return;
    }
    let at = random.random_range(0..bytes.len());
    match random.random_range(0..4) {
        0 => bytes[at] = random.random(),
        1 => bytes[at] ^= 1 << random.random_range(0..8),
        2 => drop(bytes.drain(at..)),
        _ => bytes.extend_from_within(at..),
    }
}
