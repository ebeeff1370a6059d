//! Deliveries to sessions on other nodes, and what nodes tell the leaders about their sessions.

use drover_core::change::Message;
use drover_core::delivery::{Delivery, EndReason, SentCommand};
use drover_core::ids::{CallId, DeliveryNumber, DeviceId, SessionEpoch, Version};
use drover_core::method::Call;
use drover_proto::cluster as proto;
use proto::deliver::Body;
use proto::end::Reason;

use super::record;

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

pub fn encode_announce(sessions: &[HeldSession]) -> proto::Announce {
    proto::Announce { sessions: sessions.iter().map(of_session).collect() }
}

pub fn decode_announce(announce: proto::Announce) -> Vec<HeldSession> {
    announce.sessions.into_iter().filter_map(session).collect()
}

pub fn encode_stale(sessions: &[HeldSession]) -> proto::AnnounceResponse {
    proto::AnnounceResponse { stale: sessions.iter().map(of_session).collect() }
}

pub fn decode_stale(response: proto::AnnounceResponse) -> Vec<HeldSession> {
    response.stale.into_iter().filter_map(session).collect()
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
        let sessions = vec![session(None), session(Some(Version::new(2)))];
        assert_eq!(decode_announce(encode_announce(&sessions)), sessions);
        assert_eq!(decode_stale(encode_stale(&sessions)), sessions);
    }
}
