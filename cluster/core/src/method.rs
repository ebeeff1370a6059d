//! Direct methods: a back end calls, the connected device answers, and nobody remembers (`spec/mqtt.md` section 7.4).
//!
//! What a call is and how it can fail. Nothing of it is durable: who waits for whom is `actors::methods`'s.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::CallId;

/// The longest name of a method, in characters (Azure IoT Hub, direct methods).
pub const METHOD_NAME_CHARACTERS_MAX: usize = 100;
/// The largest payload of a call, and of an answer (Azure IoT Hub, direct methods).
pub const METHOD_PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// Why a text does not name a method.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMethodName {
    #[error("the name is empty: give it 1 to {METHOD_NAME_CHARACTERS_MAX} characters")]
    Empty,
    #[error("the name has {length} characters: at most {METHOD_NAME_CHARACTERS_MAX} are allowed")]
    TooLong { length: usize },
    #[error(
        "the name has the character {character:?}: use printable ASCII except spaces and $ ( ) < > @ , ; : \\ \" / [ ] ? = {{ }} # +"
    )]
    Character { character: char },
}

/// The name of a method: 1 to 100 printable ASCII characters except spaces and `$ ( ) < > @ , ; : \ " / [ ] ? = { }`. `#`
/// and `+` are not allowed either, because the name stands in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodName(Arc<str>);

impl MethodName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MethodName {
    type Err = InvalidMethodName;

    fn from_str(text: &str) -> Result<Self, InvalidMethodName> {
        if text.is_empty() {
            return Err(InvalidMethodName::Empty);
        }
        let is_legal = |c: &char| c.is_ascii_graphic() && !"$()<>@,;:\\\"/[]?={}#+".contains(*c);
        if let Some(character) = text.chars().find(|character| !is_legal(character)) {
            return Err(InvalidMethodName::Character { character });
        }
        // Every character is one byte from here on.
        if text.len() > METHOD_NAME_CHARACTERS_MAX {
            return Err(InvalidMethodName::TooLong { length: text.len() });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A call on its way to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Comes back with the answer.
    pub id: CallId,
    pub name: MethodName,
    /// JSON text.
    pub payload: Bytes,
}

/// What a device has answered to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodResponse {
    /// The device's own code, whatever it means to it.
    pub status: i32,
    /// JSON text.
    pub payload: Bytes,
}

/// What the node of a connection reports of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallReport {
    Answered(MethodResponse),
    /// The device has answered with what is not JSON, or is too large.
    BadResponse,
    /// The device has certainly not been sent it.
    NotSent,
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MethodFailure {
    #[error("the device is not connected, and did not connect in time: it was not called")]
    NotConnected,
    #[error("the device is connected and has not subscribed to methods: it was not called")]
    NotSubscribed,
    #[error("the device's connection is moving to another node: it was not called, try again")]
    Moving,
    #[error("the device has not answered in time: it may have carried out the call or not")]
    NoResponse,
    #[error(
        "the device's connection was lost before it answered: it may have carried out the call or not"
    )]
    ConnectionLost,
    #[error("the device's answer is not JSON, or larger than {METHOD_PAYLOAD_BYTES_MAX} bytes")]
    BadResponse,
    #[error("{limit} calls of the device wait already: it was not called, try again later")]
    TooManyCalls { limit: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_100_characters_that_a_topic_can_carry() {
        for name in ["reboot", "a*b", "x.y-z_1!'|~%&^`", &"n".repeat(100)] {
            assert!(name.parse::<MethodName>().is_ok(), "{name}");
        }
        for character in "$()<>@,;:\\\"/[]?={}#+ \t\u{7f}é".chars() {
            let name = format!("a{character}");
            let expected = InvalidMethodName::Character { character };
            assert_eq!(name.parse::<MethodName>(), Err(expected), "{name}");
        }
        assert_eq!("".parse::<MethodName>(), Err(InvalidMethodName::Empty));
        let length = 101;
        let long = "n".repeat(length).parse::<MethodName>();
        assert_eq!(long, Err(InvalidMethodName::TooLong { length }));
    }
}
