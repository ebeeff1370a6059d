//! The content of a device's message, for the edges that make or show one.
//!
//! An edge encodes a message once, as it will be stored; every later layer copies its bytes and none looks inside. What
//! the hub itself says about a message (device, time, authentication) is not in it, so that no device can say it.

use bytes::Bytes;
use drover_core::change::Message;
use drover_proto::record;
use prost::Message as _;

use super::Invalid;

/// What a device says in a message and about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    pub body: Bytes,
    /// By the names of Azure IoT Hub: `message-id`, `content-type`, ….
    pub system: Vec<Property>,
    pub application: Vec<Property>,
}

/// A property; no value is not the same as an empty one.
pub type Property = (String, Option<String>);

impl Content {
    /// The message as it will be stored.
    pub fn encode(self) -> Message {
        let property = |(key, value): Property| record::Property { key, value };
        let message = record::Message {
            body: self.body,
            system: self.system.into_iter().map(property).collect(),
            application: self.application.into_iter().map(property).collect(),
        };
        Message(message.encode_to_vec().into())
    }

    /// Reads a stored message. The body is a view of its bytes, not a copy.
    pub fn decode(message: Message) -> Result<Self, Invalid> {
        let message = record::Message::decode(message.0)
            .map_err(|error| Invalid::new("message", error.to_string()))?;
        let property = |property: record::Property| (property.key, property.value);
        Ok(Self {
            body: message.body,
            system: message.system.into_iter().map(property).collect(),
            application: message.application.into_iter().map(property).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn properties() -> impl Strategy<Value = Vec<Property>> {
        prop::collection::vec((".{0,4}", prop::option::of(".{0,4}")), 0..4)
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_same(
            body: Vec<u8>, system in properties(), application in properties(),
        ) {
            let content = Content { body: body.into(), system, application };
            prop_assert_eq!(Content::decode(content.clone().encode()), Ok(content));
        }
    }

    #[test]
    fn decoding_does_not_copy_the_body() {
        let content = Content { body: Bytes::from(vec![7; 100]), ..Content::default() };
        let message = content.encode();
        let stored = message.0.as_ptr_range();
        let body = Content::decode(message).expect("encoded above").body;
        assert!(stored.contains(&body.as_ptr()), "the body is a part of what was stored");
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        Content::decode(Message(Bytes::from_static(b"\xff"))).expect_err("a cut tag");
    }
}
