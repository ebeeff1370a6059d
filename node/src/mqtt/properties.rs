//! The property bag of a telemetry topic, and the message that it makes with the body (`spec/mqtt.md` section 7.1).
//!
//! The message is encoded once, as it will be stored ([`Content`]).

use std::borrow::Cow;

use bytes::Bytes;
use drover_cluster::wire::message::{Content, Property};
use drover_core::change::Message;
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The largest message: body, keys and values together.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// The longest message id, in characters.
const MESSAGE_ID_CHARACTERS_MAX: usize = 128;

/// Why a message cannot be taken. It closes the connection: MQTT 3.1.1 has no negative answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("a property is not UTF-8")]
    NotUtf8,
    #[error("the message id is longer than {MESSAGE_ID_CHARACTERS_MAX} characters")]
    MessageIdTooLong,
    #[error("the message is larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
}

/// What a device says about a message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    system: Vec<Property>,
    application: Vec<Property>,
    bytes: usize,
}

impl Properties {
    /// Reads a bag: items joined by `&`, keys and values escaped each on its own.
    pub fn parse(bag: &str) -> Result<Self, InvalidMessage> {
        let mut properties = Self::default();
        let bag = bag.strip_prefix('?').unwrap_or(bag);
        // The Node module client leaves a slash at the end.
        let bag = bag.strip_suffix('/').unwrap_or(bag);
        for item in bag.split('&').filter(|item| !item.is_empty()) {
            let (key, value) = match item.split_once('=') {
                Some((key, value)) => (decode(key)?, Some(decode(value)?)),
                None => (decode(item)?, None),
            };
            properties.add(&key, value)?;
        }
        Ok(properties)
    }

    fn add(&mut self, key: &str, value: Option<Cow<'_, str>>) -> Result<(), InvalidMessage> {
        match meaning(key) {
            Meaning::Application => self.add_application(key, value.map(Cow::into_owned)),
            Meaning::System(name) => {
                let Some(value) = value else { return Ok(()) };
                if name == "message-id" && value.chars().count() > MESSAGE_ID_CHARACTERS_MAX {
                    return Err(InvalidMessage::MessageIdTooLong);
                }
                self.add_system(name, value.into_owned());
            }
            Meaning::Time(name) => {
                // What cannot be read as a time is left out (spec/mqtt.md section 7.1).
                if let Some(time) = value.as_deref().and_then(normalize_time) {
                    self.add_system(name, time);
                }
            }
            Meaning::Nothing => {}
        }
        Ok(())
    }

    pub fn add_system(&mut self, name: &str, value: String) {
        self.bytes += name.len() + value.len();
        self.system.push((name.to_owned(), Some(value)));
    }

    pub fn add_application(&mut self, key: &str, value: Option<String>) {
        self.bytes += key.len() + value.as_ref().map_or(0, String::len);
        self.application.push((key.to_owned(), value));
    }

    /// The message with this body, encoded.
    pub fn with_body(self, body: &[u8]) -> Result<Message, InvalidMessage> {
        if self.bytes + body.len() > MESSAGE_BYTES_MAX {
            return Err(InvalidMessage::TooLarge);
        }
        let (system, application) = (self.system, self.application);
        Ok(Content { body: Bytes::copy_from_slice(body), system, application }.encode())
    }
}

enum Meaning {
    Application,
    System(&'static str),
    Time(&'static str),
    /// Unknown system keys, and those by which only a gateway may speak for others.
    Nothing,
}

/// What a key stands for, after decoding: system keys arrive with the `$` raw or escaped.
fn meaning(key: &str) -> Meaning {
    let Some(short) = key.strip_prefix("$.") else {
        return match key {
            "iothub-creation-time-utc" => Meaning::Time("iothub-creation-time-utc"),
            _ => Meaning::Application,
        };
    };
    match short {
        "mid" => Meaning::System("message-id"),
        "cid" => Meaning::System("correlation-id"),
        "uid" => Meaning::System("user-id"),
        "to" => Meaning::System("to"),
        "ct" => Meaning::System("content-type"),
        "ce" => Meaning::System("content-encoding"),
        "on" => Meaning::System("iothub-outputname"),
        "exp" => Meaning::Time("absolute-expiry-time"),
        "ctime" => Meaning::Time("iothub-creation-time-utc"),
        "sub" => Meaning::System("dt-subject"),
        "ifid" => Meaning::System("iothub-interface-id"),
        "schema" => Meaning::System("iothub-message-schema"),
        "diagid" => Meaning::System("Diagnostic-Id"),
        "diagctx" => Meaning::System("Correlation-Context"),
        _ => Meaning::Nothing,
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, InvalidMessage> {
    percent_decode_str(text).decode_utf8().map_err(|_| InvalidMessage::NotUtf8)
}

/// ISO 8601 in UTC; a time without an offset is taken as UTC.
fn normalize_time(text: &str) -> Option<String> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .ok()?;
    time.to_offset(time::UtcOffset::UTC).format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    type System = Vec<(String, String)>;
    type Application = Vec<(String, Option<String>)>;

    fn parse(bag: &str) -> (System, Application) {
        let message = Properties::parse(bag).expect("valid").with_body(b"body").expect("fits");
        let content = Content::decode(message).expect("encoded here");
        assert_eq!(&content.body[..], b"body");
        let system =
            content.system.into_iter().map(|(key, value)| (key, value.unwrap_or_default()));
        (system.collect(), content.application)
    }

    fn system(bag: &str) -> System {
        let (system, application) = parse(bag);
        assert!(application.is_empty(), "{application:?}");
        system
    }

    fn application(bag: &str) -> Application {
        let (system, application) = parse(bag);
        assert!(system.is_empty(), "{system:?}");
        application
    }

    fn text(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn keys_and_values_are_decoded_each_on_its_own() {
        let expected = vec![
            ("a&b".to_owned(), Some("c=d".to_owned())),
            ("e".to_owned(), Some("f=g".to_owned())),
            ("null".to_owned(), None),
            ("empty".to_owned(), Some(String::new())),
            ("é".to_owned(), Some("+ü".to_owned())),
        ];
        assert_eq!(application("a%26b=c%3Dd&e=f=g&null&empty=&%C3%A9=%2B%C3%BC"), expected);
    }

    #[test]
    fn system_keys_come_raw_or_escaped() {
        let expected = vec![
            text("message-id", "1"),
            text("content-type", "application/json"),
            text("content-encoding", "utf-8"),
            text("dt-subject", "c"),
        ];
        assert_eq!(system("$.mid=1&%24.ct=application%2Fjson&%24.ce=utf-8&$.sub=c"), expected);
    }

    #[test]
    fn a_device_cannot_speak_for_another_or_invent_system_keys() {
        assert_eq!(system("$.cdid=other&%24.cmid=m&$.anything=1&$.mid"), []);
    }

    #[test]
    fn a_slash_at_the_end_and_a_question_mark_at_the_start_are_noise() {
        assert_eq!(application("?a=b/"), [("a".to_owned(), Some("b".to_owned()))]);
        assert_eq!(application("/"), []);
        assert_eq!(application("&&"), []);
    }

    #[test]
    fn times_become_utc_and_other_texts_are_left_out() {
        let times = [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.5%2B01:00", "2026-01-02T02:04:05.5Z"),
            ("2026-01-02T03:04:05.1234567", "2026-01-02T03:04:05.1234567Z"),
        ];
        for (given, expected) in times {
            let expected = [text("absolute-expiry-time", expected)];
            assert_eq!(system(&format!("$.exp={given}")), expected, "{given}");
        }
        assert_eq!(system("$.exp=tomorrow&iothub-creation-time-utc=no"), []);
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        assert_eq!(Properties::parse("a=%FF"), Err(InvalidMessage::NotUtf8));
        let long = format!("$.mid={}", "m".repeat(129));
        assert_eq!(Properties::parse(&long), Err(InvalidMessage::MessageIdTooLong));
        assert!(Properties::parse(&long[..long.len() - 1]).is_ok());
        // A percent sign that begins no escape stands for itself.
        assert_eq!(application("a=100%"), [("a".to_owned(), Some("100%".to_owned()))]);
    }

    #[test]
    fn a_message_has_at_most_256_kib_with_its_properties() {
        let body = vec![0; MESSAGE_BYTES_MAX];
        assert!(Properties::default().with_body(&body).is_ok());
        let keyed = Properties::parse("k=v").expect("valid");
        assert_eq!(keyed.clone().with_body(&body), Err(InvalidMessage::TooLarge));
        assert!(keyed.with_body(&body[2..]).is_ok());
    }
}
