//! Packets to bytes and back: what a device says and hears, no more.
//!
//! The encoder appends to a buffer that the caller flushes, so that a window of messages leaves in one write. The
//! decoder trusts lengths only as far as [`PACKET_BYTES_MAX`].

use bytes::{Buf, Bytes, BytesMut};

/// Nothing that a hub sends to a device is larger; a longer announcement is garbage.
pub const PACKET_BYTES_MAX: usize = 1 << 20;

/// What a hub says to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    ConnAck { code: u8 },
    PubAck { id: u16 },
    SubAck { id: u16, codes: Bytes },
    Publish { topic: Bytes, id: Option<u16>, dup: bool, payload: Bytes },
    PingResp,
}

/// The peer sent something that no hub sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed packet from the hub: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// What a CONNECT carries.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    pub client_id: &'a str,
    pub username: Option<&'a str>,
    pub password: Option<&'a str>,
    pub clean_session: bool,
    pub keep_alive_s: u16,
}

impl Connect<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let optional = |text: Option<&str>| text.map_or(0, |text| 2 + text.len());
        let length =
            10 + 2 + self.client_id.len() + optional(self.username) + optional(self.password);
        out.push(0x10);
        put_length(out, length);
        out.extend_from_slice(&[0, 4, b'M', b'Q', b'T', b'T', 4]);
        out.push(
            u8::from(self.username.is_some()) << 7
                | u8::from(self.password.is_some()) << 6
                | u8::from(self.clean_session) << 1,
        );
        out.extend_from_slice(&self.keep_alive_s.to_be_bytes());
        put_text(out, self.client_id.as_bytes());
        for text in [self.username, self.password].into_iter().flatten() {
            put_text(out, text.as_bytes());
        }
    }
}

/// A PUBLISH: QoS 1 with a packet id, QoS 0 without.
pub fn put_publish(out: &mut Vec<u8>, topic: &str, id: Option<u16>, payload: &[u8]) {
    out.push(0x30 | u8::from(id.is_some()) << 1);
    put_length(out, 2 + topic.len() + id.map_or(0, |_| 2) + payload.len());
    put_text(out, topic.as_bytes());
    if let Some(id) = id {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// A SUBSCRIBE to one filter.
pub fn put_subscribe(out: &mut Vec<u8>, id: u16, filter: &str, qos: u8) {
    out.push(0x82);
    put_length(out, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&id.to_be_bytes());
    put_text(out, filter.as_bytes());
    out.push(qos);
}

pub fn put_puback(out: &mut Vec<u8>, id: u16) {
    out.extend_from_slice(&[0x40, 2]);
    out.extend_from_slice(&id.to_be_bytes());
}

pub fn put_ping(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

pub fn put_disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xE0, 0]);
}

/// Takes the first whole packet out of `buffer`; `None` if there is none yet.
pub fn take_packet(buffer: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
    let Some((header_length, body_length)) = frame(buffer)? else { return Ok(None) };
    if buffer.len() < header_length + body_length {
        return Ok(None);
    }
    let first = buffer[0];
    if first == 0x40 && body_length == 2 {
        // By far the most frequent packet under load: no slicing.
        let id = u16::from_be_bytes([buffer[header_length], buffer[header_length + 1]]);
        buffer.advance(header_length + 2);
        return Ok(Some(Packet::PubAck { id }));
    }
    buffer.advance(header_length);
    let body = buffer.split_to(body_length).freeze();
    parse(first, body).map(Some)
}

/// The lengths of the fixed header and of what follows it.
fn frame(buffer: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0;
    for index in 0..4 {
        let Some(byte) = buffer.get(1 + index) else { return Ok(None) };
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            let fits = length <= PACKET_BYTES_MAX;
            return if fits { Ok(Some((2 + index, length))) } else { Err(Malformed("too long")) };
        }
    }
    Err(Malformed("length of five bytes"))
}

fn parse(first: u8, mut body: Bytes) -> Result<Packet, Malformed> {
    match first >> 4 {
        2 if body.len() == 2 => Ok(Packet::ConnAck { code: body[1] }),
        4 if body.len() == 2 => Ok(Packet::PubAck { id: body.get_u16() }),
        9 if body.len() >= 3 => Ok(Packet::SubAck { id: body.get_u16(), codes: body }),
        13 if body.is_empty() => Ok(Packet::PingResp),
        3 => parse_publish(first, body),
        _ => Err(Malformed("a packet that hubs do not send")),
    }
}

fn parse_publish(first: u8, mut body: Bytes) -> Result<Packet, Malformed> {
    let short = Malformed("short PUBLISH");
    let topic_length = usize::from(body.try_get_u16().map_err(|_| short.clone())?);
    if body.len() < topic_length {
        return Err(short);
    }
    let topic = body.split_to(topic_length);
    let id = match (first >> 1) & 3 {
        0 => None,
        1 => Some(body.try_get_u16().map_err(|_| short)?),
        _ => return Err(Malformed("QoS above 1")),
    };
    Ok(Packet::Publish { topic, id, dup: first & 8 != 0, payload: body })
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    assert!(length <= PACKET_BYTES_MAX, "the generator builds small packets");
    loop {
        let digit = (length & 0x7F) as u8;
        length >>= 7;
        if length == 0 {
            return out.push(digit);
        }
        out.push(digit | 0x80);
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let length = u16::try_from(text.len()).expect("topics and names are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_survives_the_round_trip_at_every_split() {
        let mut wire = Vec::new();
        put_publish(&mut wire, "devices/d/messages/events/", Some(7), &[9; 300]);
        put_puback(&mut wire, 513);
        for split in 0..wire.len() {
            let mut buffer = BytesMut::from(&wire[..split]);
            let mut packets = Vec::new();
            while let Some(packet) = take_packet(&mut buffer).unwrap() {
                packets.push(packet);
            }
            buffer.extend_from_slice(&wire[split..]);
            while let Some(packet) = take_packet(&mut buffer).unwrap() {
                packets.push(packet);
            }
            let publish = Packet::Publish {
                topic: Bytes::from_static(b"devices/d/messages/events/"),
                id: Some(7),
                dup: false,
                payload: Bytes::from(vec![9; 300]),
            };
            assert_eq!(packets, [publish, Packet::PubAck { id: 513 }], "split at {split}");
        }
    }

    #[test]
    fn a_length_of_five_bytes_is_malformed() {
        let mut buffer = BytesMut::from(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1][..]);
        assert!(take_packet(&mut buffer).is_err());
    }

    #[test]
    fn a_huge_announcement_is_refused_before_the_bytes_come() {
        let mut buffer = BytesMut::from(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F][..]);
        assert!(take_packet(&mut buffer).is_err());
    }

    #[test]
    fn a_connect_has_the_layout_of_the_standard() {
        let mut out = Vec::new();
        let connect = Connect {
            client_id: "ab",
            username: Some("u"),
            password: Some("pw"),
            clean_session: true,
            keep_alive_s: 60,
        };
        connect.encode(&mut out);
        assert_eq!(out, b"\x10\x15\x00\x04MQTT\x04\xC2\x00\x3C\x00\x02ab\x00\x01u\x00\x02pw");
    }
}
