//! Live events between nodes, best effort: what cannot be read is counted as missed.

use bytes::Bytes;
use drover_core::change::{Event, Message};
use drover_core::ids::{
    DeviceId, GenerationId, LogTime, NodeId, Offset, SessionEpoch, ShardCount, ShardId, Version,
};
use drover_core::message::{Live, StoredMessage};
use drover_proto::cluster as proto;
use prost::Message as _;

/// Encodes live events in their order of kinds: messages first, then events, then what was missed.
pub fn encode_events(live: &[Live]) -> Bytes {
    let mut events = proto::Events::default();
    for live in live {
        match live {
            Live::Messages(messages) => {
                events.messages.extend(messages.iter().map(of_stored_message));
            }
            Live::Event(event) => events.events.push(of_event(event)),
            Live::Missed(count) => events.missed = events.missed.saturating_add(*count),
        }
    }
    events.encode_to_vec().into()
}

/// Decodes what [`encode_events`] has made. What is not understood is left out and counted.
pub fn decode_events(encoded: Bytes) -> Vec<Live> {
    let Ok(events) = proto::Events::decode(encoded) else { return vec![Live::Missed(1)] };
    let all = events.messages.len() + events.events.len();
    let messages: Vec<_> = events.messages.into_iter().filter_map(stored_message).collect();
    let happened: Vec<_> = events.events.into_iter().filter_map(event).collect();
    let lost = (all - messages.len() - happened.len()) as u64;
    let missed = events.missed.saturating_add(lost);
    let messages = (!messages.is_empty()).then_some(Live::Messages(messages));
    let happened = happened.into_iter().map(Live::Event);
    messages
        .into_iter()
        .chain(happened)
        .chain((missed > 0).then_some(Live::Missed(missed)))
        .collect()
}

pub(super) fn of_stored_message(stored: &StoredMessage) -> proto::StreamMessage {
    proto::StreamMessage {
        shard: stored.shard.number(),
        offset: stored.offset.get(),
        at_ms: stored.at.get(),
        device: stored.device.as_str().to_owned(),
        generation: stored.generation.get(),
        epoch: stored.epoch.map_or(0, SessionEpoch::get),
        authentication: stored.authentication.to_owned(),
        message: stored.message.0.clone(),
    }
}

pub(super) fn stored_message(message: proto::StreamMessage) -> Option<StoredMessage> {
    Some(StoredMessage {
        shard: ShardId::new(message.shard, ShardCount::new(ShardCount::MAX)?)?,
        offset: Offset::new(message.offset),
        at: LogTime::new(message.at_ms),
        device: DeviceId::from_key(&message.device).ok()?,
        generation: GenerationId::new(message.generation),
        epoch: (message.epoch > 0).then_some(SessionEpoch::new(message.epoch)),
        authentication: match message.authentication.as_str() {
            "sas" => "sas",
            "selfSigned" => "selfSigned",
            "certificateAuthority" => "certificateAuthority",
            _ => "none",
        },
        message: Message(message.message),
    })
}

fn of_event(event: &Event) -> proto::DeviceEvent {
    let mut at_node = None;
    let (kind, device, number, at) = match event {
        Event::Created { device, at } => ("created", device, 0, at),
        Event::Deleted { device, at } => ("deleted", device, 0, at),
        Event::Connected { device, epoch, node, at } => {
            at_node = node.map(NodeId::to_u64);
            ("connected", device, epoch.get(), at)
        }
        Event::Disconnected { device, epoch, at } => ("disconnected", device, epoch.get(), at),
        Event::TwinChanged { device, version, at } => ("twin_changed", device, version.get(), at),
    };
    proto::DeviceEvent {
        kind: kind.to_owned(),
        device: device.as_str().to_owned(),
        at_ms: at.get(),
        number,
        node: at_node,
    }
}

fn event(event: proto::DeviceEvent) -> Option<Event> {
    let device = DeviceId::from_key(&event.device).ok()?;
    let at = LogTime::new(event.at_ms);
    let epoch = SessionEpoch::new(event.number);
    Some(match event.kind.as_str() {
        "created" => Event::Created { device, at },
        "deleted" => Event::Deleted { device, at },
        "connected" => {
            Event::Connected { device, epoch, node: event.node.map(NodeId::from_u64), at }
        }
        "disconnected" => Event::Disconnected { device, epoch, at },
        "twin_changed" => Event::TwinChanged { device, version: Version::new(event.number), at },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_events_arrive_as_they_were_sent() {
        let device: DeviceId = "pump-7".parse().expect("a legal id");
        let at = LogTime::new(5);
        let message = StoredMessage {
            shard: ShardId::of(&device, ShardCount::new(16).expect("legal")),
            offset: Offset::new(3),
            at,
            device: device.clone(),
            generation: GenerationId::new(2),
            epoch: Some(SessionEpoch::new(4)),
            authentication: "sas",
            message: Message(Bytes::from_static(b"body")),
        };
        let (epoch, node) = (SessionEpoch::new(4), Some(NodeId::new(2, 1)));
        let live = vec![
            Live::Messages(vec![message]),
            Live::Event(Event::Created { device: device.clone(), at }),
            Live::Event(Event::Deleted { device: device.clone(), at }),
            Live::Event(Event::Connected { device: device.clone(), epoch, node, at }),
            Live::Event(Event::Connected { device: device.clone(), epoch, node: None, at }),
            Live::Event(Event::Disconnected { device: device.clone(), epoch, at }),
            Live::Event(Event::TwinChanged { device, version: Version::new(9), at }),
            Live::Missed(7),
        ];
        assert_eq!(decode_events(encode_events(&live)), live);
    }
}
