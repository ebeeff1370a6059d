//! The topic under which a device or a module gets a command: its own, with the command's properties in a bag (`spec/mqtt.md` 7.2).

use drover_cluster::wire::message::Content;
use drover_core::ids::DeviceId;
use drover_core::mailbox::{Ack, Command};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::status::timestamp;
use super::topics;

/// What MQTT can say about the length of a topic.
const TOPIC_BYTES_MAX: usize = 65_535;

/// All is escaped but what RFC 3986 never reserves. Some SDKs compare keys as they are escaped, and one splits the topic at
/// slashes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// System properties that a device is told, by the names of Azure IoT Hub, and what they are called in a bag.
const TOLD: [(&str, &str); 6] = [
    ("correlation-id", "%24.cid"),
    ("user-id", "%24.uid"),
    ("content-type", "%24.ct"),
    ("content-encoding", "%24.ce"),
    ("absolute-expiry-time", "%24.exp"),
    ("iothub-creation-time-utc", "%24.ctime"),
];

/// The topic of a command; `None` if its properties make it longer than MQTT allows.
pub(super) fn topic(device: &DeviceId, command: &Command, content: &Content) -> Option<String> {
    let path = topics::path(device);
    let mut topic = format!("{path}/messages/devicebound/%24.to=");
    topic.extend(escaped(&format!("/{path}/messages/devicebound")));
    topic.push_str("&%24.mid=");
    topic.extend(escaped(command.id.as_str()));
    for (name, value) in &content.system {
        let told = TOLD.iter().find(|(told, _)| told == name);
        if let (Some((name, key)), Some(value)) = (told, value) {
            topic.push('&');
            topic.push_str(key);
            topic.push('=');
            topic.extend(escaped(&as_told(name, value)));
        }
    }
    if let Some(ack) = ack(command.ack) {
        topic.push_str("&iothub-ack=");
        topic.push_str(ack);
    }
    for (key, value) in &content.application {
        topic.push('&');
        topic.extend(escaped(key));
        if let Some(value) = value {
            topic.push('=');
            topic.extend(escaped(value));
        }
    }
    (topic.len() <= TOPIC_BYTES_MAX).then_some(topic)
}

fn escaped(text: &str) -> impl Iterator<Item = &str> {
    utf8_percent_encode(text, ESCAPED)
}

/// Times have seven fraction digits; everything else is as the sender gave it.
fn as_told(name: &str, value: &str) -> String {
    let is_time = matches!(name, "absolute-expiry-time" | "iothub-creation-time-utc");
    let time = is_time.then(|| OffsetDateTime::parse(value, &Rfc3339).ok()).flatten();
    let unix_ms = time.and_then(|time| u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok());
    unix_ms.map_or_else(|| value.to_owned(), timestamp)
}

fn ack(ack: Ack) -> Option<&'static str> {
    match ack {
        Ack::None => None,
        Ack::Positive => Some("positive"),
        Ack::Negative => Some("negative"),
        Ack::Full => Some("full"),
    }
}

#[cfg(test)]
mod tests {
    use drover_core::ids::{CommandSequence, LogTime};
    use drover_core::mailbox::State;

    use super::*;

    fn command(ack: Ack) -> Command {
        Command {
            sequence: CommandSequence::new(1),
            id: "m#1".parse().expect("a legal id"),
            key: None,
            ack,
            bytes: 0,
            queued: LogTime::new(0),
            not_before: None,
            expires: LogTime::new(1),
            lock_ms: 1,
            deliveries_max: 1,
            keep_ms: 1,
            state: State::Queued,
            deliveries: 0,
            attempts: Vec::new(),
        }
    }

    fn device() -> DeviceId {
        "d$1".parse().expect("a legal id")
    }

    #[test]
    fn keys_and_values_are_escaped_and_the_id_in_the_path_is_not() {
        let text = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        let content = Content {
            system: vec![
                text("content-type", "application/json"),
                text("absolute-expiry-time", "2026-01-02T03:04:05.5Z"),
                text("of-the-future", "x"),
            ],
            application: vec![text("$a/b", "c&d"), ("null".to_owned(), None), text("empty", "")],
            ..Content::default()
        };
        assert_eq!(
            topic(&device(), &command(Ack::Full), &content).expect("it is short"),
            "devices/d$1/messages/devicebound/%24.to=%2Fdevices%2Fd%241%2Fmessages%2Fdevicebound\
             &%24.mid=m%231&%24.ct=application%2Fjson&%24.exp=2026-01-02T03%3A04%3A05.5000000Z\
             &iothub-ack=full&%24a%2Fb=c%26d&null&empty="
        );
    }

    #[test]
    fn a_module_gets_its_commands_below_its_own_path() {
        let module = device().module(&"ai".parse().expect("a legal id"));
        assert_eq!(
            topic(&module, &command(Ack::None), &Content::default()).expect("it is short"),
            "devices/d$1/modules/ai/messages/devicebound/\
             %24.to=%2Fdevices%2Fd%241%2Fmodules%2Fai%2Fmessages%2Fdevicebound&%24.mid=m%231"
        );
    }

    #[test]
    fn a_topic_that_mqtt_cannot_carry_is_none() {
        let application = vec![("k".to_owned(), Some("/".repeat(22_000)))];
        let content = Content { application, ..Content::default() };
        assert_eq!(topic(&device(), &command(Ack::None), &content), None);
    }
}
