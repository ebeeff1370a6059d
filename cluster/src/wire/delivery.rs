//! Deliveries to sessions on other nodes, and what nodes tell the leaders about their sessions.

use std::collections::BTreeSet;

use drover_core::change::Message;
use drover_core::delivery::{Delivery, EndReason, SentCommand};
use drover_core::ids::{CallId, DeliveryNumber, DeviceId, SessionEpoch, Version};
use drover_core::method::Call;
use drover_proto::cluster as proto;
use proto::deliver::Body;
use proto::end::Reason;

use super::record;

/// A moment at the leader of a shard: what it has learned before in this term has a smaller count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub term: u64,
    pub count: u64,
}

/// The devices that a part of a list is about: those after the one and up to the other, in order. Without a bound there
/// is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    pub after: Option<DeviceId>,
    pub until: Option<DeviceId>,
}

/// All that a node holds of the devices of a shard that the part covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldPart {
    pub covers: Coverage,
    pub sessions: Vec<HeldSession>,
    /// Devices of which a connection is being opened or closed.
    pub unsettled: BTreeSet<DeviceId>,
    /// A moment of the leader's that was known when the list was made.
    pub after: Option<Moment>,
}

/// What the leader answers to a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartAnswer {
    /// The sessions that are not live: end them.
    pub stale: Vec<(DeviceId, SessionEpoch)>,
    pub moment: Moment,
}

/// A session that a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSession {
    pub device: DeviceId,
    pub epoch: SessionEpoch,
    /// The newest desired version that the device was sent, or has read, over this connection.
    pub desired: Option<Version>,
    /// The newest delivery from the mailbox that has come for this connection.
    pub commands: DeliveryNumber,
}

pub fn encode_delivery(
    device: &DeviceId,
    epoch: SessionEpoch,
    delivery: &Delivery,
) -> proto::Deliver {
    let body = match delivery {
        Delivery::End(reason) => {
            let reason = match reason {
                EndReason::Replaced => Reason::Replaced,
                EndReason::Revoked => Reason::Revoked,
                EndReason::Stopping => Reason::Stopping,
                EndReason::Gap => Reason::Gap,
            };
            Body::End(proto::End { reason: reason.into() })
        }
        Delivery::Desired { version, patch } => Body::Desired(proto::DesiredPatch {
            version: version.get(),
            patch: record::object_to_bytes(patch),
        }),
        Delivery::Command(sent) => Body::Command(proto::DeliverCommand {
            number: sent.number.get(),
            follows: sent.follows.get(),
            command: record::command_to_bytes(&sent.command),
            message: sent.message.0.clone(),
        }),
        Delivery::Call(call) => Body::Call(proto::DeliverCall {
            call: call.id.get(),
            name: call.name.as_str().to_owned(),
            payload: call.payload.clone(),
        }),
    };
    proto::Deliver { device: device.as_str().to_owned(), epoch: epoch.get(), body: Some(body) }
}

/// `None`: it cannot be read. The session then has a gap, which the next delivery or announcement shows.
pub fn decode_delivery(deliver: proto::Deliver) -> Option<(DeviceId, SessionEpoch, Delivery)> {
    let delivery = match deliver.body? {
        Body::End(end) => Delivery::End(match end.reason() {
            Reason::Replaced | Reason::Unspecified => EndReason::Replaced,
            Reason::Revoked => EndReason::Revoked,
            Reason::Stopping => EndReason::Stopping,
            Reason::Gap => EndReason::Gap,
        }),
        Body::Desired(desired) => Delivery::Desired {
            version: Version::new(desired.version),
            patch: record::object_from_bytes(desired.patch).ok()?,
        },
        Body::Command(sent) => Delivery::Command(Box::new(SentCommand {
            number: DeliveryNumber::new(sent.number),
            follows: DeliveryNumber::new(sent.follows),
            command: record::command_from_bytes(sent.command).ok()?,
            message: Message(sent.message),
        })),
        Body::Call(call) => Delivery::Call(Call {
            id: CallId::new(call.call),
            name: call.name.parse().ok()?,
            payload: call.payload,
        }),
    };
    Some((DeviceId::from_key(&deliver.device).ok()?, SessionEpoch::new(deliver.epoch), delivery))
}

pub fn encode_announce(part: &HeldPart) -> proto::Announce {
    let text = |device: &DeviceId| device.as_str().to_owned();
    proto::Announce {
        sessions: part.sessions.iter().map(of_session).collect(),
        covers_after: part.covers.after.as_ref().map(text),
        covers_until: part.covers.until.as_ref().map(text),
        unsettled: part.unsettled.iter().map(text).collect(),
        after: part.after.map(of_moment),
    }
}

/// `None`: it cannot be read. To answer a part of a list would be to say that the rest is not held.
pub fn decode_announce(announce: proto::Announce) -> Option<HeldPart> {
    let device = |text: String| DeviceId::from_key(&text).ok();
    let bound = |text: Option<String>| text.map_or(Some(None), |text| device(text).map(Some));
    let covers =
        Coverage { after: bound(announce.covers_after)?, until: bound(announce.covers_until)? };
    Some(HeldPart {
        covers,
        sessions: announce.sessions.into_iter().map(session).collect::<Option<_>>()?,
        unsettled: announce.unsettled.into_iter().map(device).collect::<Option<_>>()?,
        after: announce.after.map(moment),
    })
}

pub fn encode_part_answer(answer: &PartAnswer) -> proto::AnnounceResponse {
    let stale = |(device, epoch): &(DeviceId, SessionEpoch)| proto::AnnouncedSession {
        device: device.as_str().to_owned(),
        epoch: epoch.get(),
        ..proto::AnnouncedSession::default()
    };
    proto::AnnounceResponse {
        stale: answer.stale.iter().map(stale).collect(),
        moment: Some(of_moment(answer.moment)),
        wanted: 0,
    }
}

pub fn decode_part_answer(response: proto::AnnounceResponse) -> Option<PartAnswer> {
    let stale = response.stale.into_iter().filter_map(session);
    let stale = stale.map(|session| (session.device, session.epoch)).collect();
    Some(PartAnswer { stale, moment: moment(response.moment?) })
}

/// That this node is there.
pub fn encode_beat() -> proto::Announce {
    proto::Announce::default()
}

/// The answer to it: a number that changes when all sessions are to be announced to the node that answers.
pub fn encode_wanted(wanted: u64) -> proto::AnnounceResponse {
    proto::AnnounceResponse { wanted, ..proto::AnnounceResponse::default() }
}

pub fn decode_wanted(response: &proto::AnnounceResponse) -> u64 {
    response.wanted
}

fn of_moment(moment: Moment) -> proto::Moment {
    proto::Moment { term: moment.term, count: moment.count }
}

fn moment(moment: proto::Moment) -> Moment {
    Moment { term: moment.term, count: moment.count }
}

fn of_session(session: &HeldSession) -> proto::AnnouncedSession {
    proto::AnnouncedSession {
        device: session.device.as_str().to_owned(),
        epoch: session.epoch.get(),
        desired_sent: session.desired.map(Version::get),
        commands_sent: session.commands.get(),
    }
}

fn session(session: proto::AnnouncedSession) -> Option<HeldSession> {
    Some(HeldSession {
        device: DeviceId::from_key(&session.device).ok()?,
        epoch: SessionEpoch::new(session.epoch),
        desired: session.desired_sent.map(Version::new),
        commands: DeliveryNumber::new(session.commands_sent),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_arrive_as_they_were_sent() {
        let device: DeviceId = "pump-7".parse().expect("a legal id");
        let epoch = SessionEpoch::new(4);
        let deliveries = [
            Delivery::End(EndReason::Replaced),
            Delivery::End(EndReason::Revoked),
            Delivery::End(EndReason::Stopping),
            Delivery::End(EndReason::Gap),
            Delivery::Desired { version: Version::new(9), patch: [].into() },
            Delivery::Call(Call {
                id: CallId::new(3),
                name: "reboot".parse().expect("a legal name"),
                payload: bytes::Bytes::from_static(b"null"),
            }),
        ];
        for delivery in deliveries {
            let sent = encode_delivery(&device, epoch, &delivery);
            assert_eq!(decode_delivery(sent), Some((device.clone(), epoch, delivery)));
        }
    }

    #[test]
    fn announced_sessions_arrive_as_they_were_sent() {
        let session = |desired| HeldSession {
            device: "pump-7".parse().expect("a legal id"),
            epoch: SessionEpoch::new(4),
            desired,
            commands: DeliveryNumber::new(7),
        };
        let part = HeldPart {
            covers: Coverage { after: None, until: Some("pump-8".parse().expect("a legal id")) },
            sessions: vec![session(None), session(Some(Version::new(2)))],
            unsettled: ["pump-6".parse().expect("a legal id")].into(),
            after: Some(Moment { term: 3, count: 5 }),
        };
        assert_eq!(decode_announce(encode_announce(&part)), Some(part.clone()));
        assert_eq!(
            decode_announce(encode_announce(&HeldPart::default())),
            Some(HeldPart::default())
        );
        let stale = vec![("pump-7".parse().expect("a legal id"), SessionEpoch::new(4))];
        let answer = PartAnswer { stale, moment: Moment { term: 3, count: 6 } };
        assert_eq!(decode_part_answer(encode_part_answer(&answer)), Some(answer));
        assert_eq!(decode_wanted(&encode_wanted(9)), 9);
    }

    #[test]
    fn a_list_that_cannot_be_read_whole_is_not_taken_for_a_shorter_one() {
        let session = |device: &str| proto::AnnouncedSession {
            device: device.to_owned(),
            ..proto::AnnouncedSession::default()
        };
        let sessions = vec![session("pump-7"), session("no device id: it has spaces")];
        let announce = proto::Announce { sessions, ..proto::Announce::default() };
        assert_eq!(decode_announce(announce), None);
    }
}
