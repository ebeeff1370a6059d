//! Bytes to packets and back: our own framing, the gate, and the packet layer of mqtt-protocol-core.
//!
//! No MQTT codec enforces the standard alone, so each frame passes a gate of rules before it is parsed, and its strings
//! after that. The size limit is checked from the fixed header, before anything is allocated. Every error closes the
//! connection, as the standard wants. What topics mean is `topics`' work, when a packet may come is `session`'s.

use std::sync::Arc;

use mqtt_protocol_core::mqtt::packet::Qos as PacketQos;
use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, ConnectReturnCode, SubackReturnCode,
};

use drover_core::device::Qos;

/// The longest CONNECT: a will of 64 KiB with its topic, and names and a token in the rest. It is smaller than
/// [`PACKET_BYTES_MAX`] because nothing is known yet of who sends it.
pub const CONNECT_BYTES_MAX: usize = 80 * 1024;

/// The longest packet after CONNECT: a message of 256 KiB (`spec/mqtt.md` section 1) and the longest topic that MQTT
/// can say.
pub const PACKET_BYTES_MAX: usize = 256 * 1024 + 64 * 1024 + 16;

/// How many filters one SUBSCRIBE or UNSUBSCRIBE may name. Five serve all that SDKs do.
pub const FILTERS_MAX: usize = 50;

/// What a device may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Connect(Box<v3_1_1::Connect>),
    Publish(v3_1_1::Publish),
    /// Of something that the hub published.
    Puback(u16),
    Subscribe {
        packet_id: u16,
        filters: Vec<(String, Qos)>,
    },
    Unsubscribe {
        packet_id: u16,
        filters: Vec<String>,
    },
    Pingreq,
    Disconnect,
}

/// What the hub sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Connack {
        session_present: bool,
        code: ConnectReturnCode,
    },
    /// To a client that speaks MQTT 5: this version is not served.
    ConnackVersion5,
    Puback(u16),
    /// The granted quality of each filter; `None` for one that is refused.
    Suback {
        packet_id: u16,
        granted: Vec<Option<Qos>>,
    },
    Unsuback(u16),
    Pingresp,
    Publish {
        topic: String,
        /// Set for quality 1.
        packet_id: Option<u16>,
        /// It may have been delivered before.
        dup: bool,
        payload: Vec<u8>,
    },
}

/// Why a connection has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a packet is longer than allowed")]
    TooLong,
    #[error("the first packet is not CONNECT")]
    NotConnect,
    #[error("the packet breaks the rule: {0}")]
    Malformed(&'static str),
    #[error("quality of service 2 is not served")]
    QosTwo,
    #[error("protocol level {level} is not served")]
    UnsupportedLevel { level: u8 },
}

/// What a connection accepts at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    Connect,
    Anything,
}

/// Takes the first packet from `bytes`: the packet and its length, or `None` if more bytes are needed.
pub fn decode(bytes: &[u8], expects: Expects) -> Result<Option<(Packet, usize)>, Error> {
    let Some(frame) = frame(bytes, expects)? else { return Ok(None) };
    let packet = parse(bytes[0], &bytes[frame.body..frame.end])?;
    Ok(Some((packet, frame.end)))
}

struct Frame {
    body: usize,
    end: usize,
}

fn frame(bytes: &[u8], expects: Expects) -> Result<Option<Frame>, Error> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    check_flags(first)?;
    let bytes_max = match expects {
        Expects::Connect if first >> 4 == CONNECT => CONNECT_BYTES_MAX,
        Expects::Connect => return Err(Error::NotConnect),
        Expects::Anything => PACKET_BYTES_MAX,
    };
    let Some((length, width)) = remaining_length(rest)? else { return Ok(None) };
    let body = 1 + width;
    let end = body + length;
    if end > bytes_max {
        return Err(Error::TooLong);
    }
    Ok((bytes.len() >= end).then_some(Frame { body, end }))
}

/// A length in at most four bytes, and in no more than it needs.
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Error> {
    let mut length = 0;
    for width in 1..=4 {
        let Some(&byte) = bytes.get(width - 1) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (width - 1));
        if byte & 0x80 == 0 {
            return if byte == 0 && width > 1 {
                Err(Error::Malformed("a remaining length is as short as it can be"))
            } else {
                Ok(Some((length, width)))
            };
        }
    }
    Err(Error::Malformed("a remaining length has at most four bytes"))
}

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

/// The rules of the first byte: types that a device may send, with the flags that each must have.
fn check_flags(first: u8) -> Result<(), Error> {
    let flags = first & 0x0f;
    match (first >> 4, flags) {
        (CONNECT | PUBACK | PINGREQ | DISCONNECT, 0) | (SUBSCRIBE | UNSUBSCRIBE, 2) => Ok(()),
        (CONNECT | PUBACK | PINGREQ | DISCONNECT | SUBSCRIBE | UNSUBSCRIBE, _) => {
            Err(Error::Malformed("reserved flags of the fixed header are as the standard says"))
        }
        (PUBLISH, _) => match flags >> 1 & 3 {
            0 if flags & 8 != 0 => Err(Error::Malformed("a publish of quality 0 is no duplicate")),
            0 | 1 => Ok(()),
            2 => Err(Error::QosTwo),
            _ => Err(Error::Malformed("there is no quality of service 3")),
        },
        (5..=7, _) => Err(Error::QosTwo),
        _ => Err(Error::Malformed("a device sends packets of a client")),
    }
}

fn parse(first: u8, body: &[u8]) -> Result<Packet, Error> {
    match first >> 4 {
        CONNECT => parse_connect(body),
        PUBLISH => parse_publish(first & 0x0f, body),
        PUBACK => match body {
            &[high, low] => Ok(Packet::Puback(packet_id(high, low)?)),
            _ => Err(Error::Malformed("a PUBACK has two bytes")),
        },
        SUBSCRIBE => parse_subscribe(body),
        UNSUBSCRIBE => parse_unsubscribe(body),
        PINGREQ if body.is_empty() => Ok(Packet::Pingreq),
        DISCONNECT if body.is_empty() => Ok(Packet::Disconnect),
        _ => Err(Error::Malformed("PINGREQ and DISCONNECT are empty")),
    }
}

fn packet_id(high: u8, low: u8) -> Result<u16, Error> {
    match u16::from_be_bytes([high, low]) {
        0 => Err(Error::Malformed("a packet id is not zero")),
        id => Ok(id),
    }
}

fn unparsable<E>(_: E) -> Error {
    Error::Malformed("the fields of a packet fill it")
}

// ---------------------------------------------------------------- CONNECT

fn parse_connect(body: &[u8]) -> Result<Packet, Error> {
    let flags = check_connect_header(body)?;
    check_connect_flags(flags)?;
    let (connect, length) = v3_1_1::Connect::parse(body).map_err(unparsable)?;
    if length != body.len() {
        return Err(Error::Malformed("nothing follows the fields of a CONNECT"));
    }
    check_text(connect.client_id())?;
    check_text(connect.user_name().unwrap_or_default())?;
    if let Some(topic) = connect.will_topic() {
        check_topic_name(topic)?;
    }
    Ok(Packet::Connect(Box::new(connect)))
}

/// The connect flags, once name and level are those of MQTT 3.1.1.
fn check_connect_header(body: &[u8]) -> Result<u8, Error> {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, flags, ..] => Ok(*flags),
        [0, 4, b'M', b'Q', b'T', b'T', level, ..]
        | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', level, ..] => {
            Err(Error::UnsupportedLevel { level: *level })
        }
        _ => Err(Error::Malformed("the protocol is named MQTT")),
    }
}

fn check_connect_flags(flags: u8) -> Result<(), Error> {
    let (will, will_details) = (flags & 0x04 != 0, flags & 0x38);
    let (user_name, password) = (flags & 0x80 != 0, flags & 0x40 != 0);
    if flags & 0x01 != 0 {
        return Err(Error::Malformed("the reserved connect flag is zero"));
    }
    if !will && will_details != 0 {
        return Err(Error::Malformed("without a will its flags are zero"));
    }
    if flags & 0x18 == 0x18 {
        return Err(Error::Malformed("there is no quality of service 3"));
    }
    if password && !user_name {
        return Err(Error::Malformed("without a user name there is no password"));
    }
    Ok(())
}

// ---------------------------------------------------------------- the others

fn parse_publish(flags: u8, body: &[u8]) -> Result<Packet, Error> {
    let (publish, _) = v3_1_1::Publish::parse(flags, Arc::from(body)).map_err(unparsable)?;
    check_topic_name(publish.topic_name())?;
    if publish.packet_id() == Some(0) {
        return Err(Error::Malformed("a packet id is not zero"));
    }
    Ok(Packet::Publish(publish))
}

fn parse_subscribe(body: &[u8]) -> Result<Packet, Error> {
    let (subscribe, length) = v3_1_1::Subscribe::parse(body).map_err(unparsable)?;
    if length != body.len() || subscribe.packet_id() == 0 {
        return Err(Error::Malformed("a packet id is not zero"));
    }
    let entries = subscribe.entries();
    if entries.len() > FILTERS_MAX {
        return Err(Error::Malformed("a SUBSCRIBE names at most 50 filters"));
    }
    let mut filters = Vec::with_capacity(entries.len());
    for entry in entries {
        check_filter(entry.topic_filter())?;
        // The parser knows MQTT 5, where the upper bits mean something.
        if entry.sub_opts().to_buffer()[0] & 0xfc != 0 {
            return Err(Error::Malformed("reserved bits of a subscription are zero"));
        }
        filters.push((entry.topic_filter().to_owned(), grantable(entry.sub_opts().qos())));
    }
    Ok(Packet::Subscribe { packet_id: subscribe.packet_id(), filters })
}

/// Quality 2 is granted as 1.
fn grantable(qos: PacketQos) -> Qos {
    match qos {
        PacketQos::AtMostOnce => Qos::AtMostOnce,
        PacketQos::AtLeastOnce | PacketQos::ExactlyOnce => Qos::AtLeastOnce,
    }
}

fn parse_unsubscribe(body: &[u8]) -> Result<Packet, Error> {
    let (unsubscribe, length) = v3_1_1::Unsubscribe::parse(body).map_err(unparsable)?;
    if length != body.len() || unsubscribe.packet_id() == 0 {
        return Err(Error::Malformed("a packet id is not zero"));
    }
    if unsubscribe.entries().len() > FILTERS_MAX {
        return Err(Error::Malformed("an UNSUBSCRIBE names at most 50 filters"));
    }
    let mut filters = Vec::with_capacity(unsubscribe.entries().len());
    for filter in unsubscribe.entries() {
        check_filter(filter.as_str())?;
        filters.push(filter.as_str().to_owned());
    }
    Ok(Packet::Unsubscribe { packet_id: unsubscribe.packet_id(), filters })
}

// ---------------------------------------------------------------- strings

fn check_text(text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(Error::Malformed("no string contains U+0000"));
    }
    Ok(())
}

fn check_topic_name(topic: &str) -> Result<(), Error> {
    if topic.is_empty() {
        return Err(Error::Malformed("a topic has at least one character"));
    }
    if topic.bytes().any(|byte| matches!(byte, 0 | b'+' | b'#')) {
        return Err(Error::Malformed("a topic name has no wildcard and no U+0000"));
    }
    Ok(())
}

/// A wildcard stands alone in its level, and `#` in the last one.
fn check_filter(filter: &str) -> Result<(), Error> {
    check_text(filter)?;
    if filter.is_empty() {
        return Err(Error::Malformed("a filter has at least one character"));
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        if level.contains('+') && level != "+" || level.contains('#') && !(level == "#" && is_last)
        {
            return Err(Error::Malformed("a wildcard stands alone in its level, # in the last"));
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- encoding

/// Appends a packet to `output`.
pub fn encode(reply: Reply, output: &mut Vec<u8>) {
    match reply {
        Reply::Connack { session_present, code } => {
            let packet = v3_1_1::Connack::builder()
                .session_present(session_present)
                .return_code(code)
                .build()
                .expect("both fields are set");
            output.extend(packet.to_continuous_buffer());
        }
        Reply::ConnackVersion5 => {
            let packet = v5_0::Connack::builder()
                .session_present(false)
                .reason_code(ConnectReasonCode::UnsupportedProtocolVersion)
                .build()
                .expect("both fields are set");
            output.extend(packet.to_continuous_buffer());
        }
        Reply::Puback(packet_id) => {
            let packet = v3_1_1::Puback::builder()
                .packet_id(packet_id)
                .build()
                .expect("the gate lets no packet id of zero through");
            output.extend(packet.to_continuous_buffer());
        }
        Reply::Suback { packet_id, granted } => {
            let packet = v3_1_1::Suback::builder()
                .packet_id(packet_id)
                .return_codes(granted.into_iter().map(return_code).collect())
                .build()
                .expect("a SUBSCRIBE has a packet id and at least one filter");
            output.extend(packet.to_continuous_buffer());
        }
        Reply::Unsuback(packet_id) => {
            let packet = v3_1_1::Unsuback::builder()
                .packet_id(packet_id)
                .build()
                .expect("the gate lets no packet id of zero through");
            output.extend(packet.to_continuous_buffer());
        }
        Reply::Pingresp => output.extend(v3_1_1::Pingresp::new().to_continuous_buffer()),
        Reply::Publish { topic, packet_id, dup, payload } => {
            encode_publish(&topic, packet_id, dup, payload, output);
        }
    }
}

fn encode_publish(
    topic: &str,
    packet_id: Option<u16>,
    dup: bool,
    payload: Vec<u8>,
    output: &mut Vec<u8>,
) {
    let builder = v3_1_1::Publish::builder()
        .topic_name(topic)
        .expect(
            "topics are made from fixed text and bounded ids, and those of commands are measured",
        )
        .payload(payload);
    let builder = match packet_id {
        Some(id) => builder.qos(PacketQos::AtLeastOnce).packet_id(id).dup(dup),
        None => builder.qos(PacketQos::AtMostOnce),
    };
    let packet = builder.build().expect("a topic, and a packet id exactly for quality 1");
    output.extend(packet.to_continuous_buffer());
}

fn return_code(granted: Option<Qos>) -> SubackReturnCode {
    match granted {
        Some(Qos::AtMostOnce) => SubackReturnCode::SuccessMaximumQos0,
        Some(Qos::AtLeastOnce) => SubackReturnCode::SuccessMaximumQos1,
        None => SubackReturnCode::Failure,
    }
}

#[cfg(test)]
mod tests;
