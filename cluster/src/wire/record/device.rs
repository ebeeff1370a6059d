//! Identities and presence.

use bytes::Bytes;
use drover_core::device::{
    Authentication, Channel, Device, Key, Presence, Qos, Status, Subscriptions,
};
use drover_core::ids::{DeviceId, Etag, GenerationId, LogTime, ModuleId, NodeId, SessionEpoch};
use drover_proto::record;

use super::mailbox::{head_from_record, head_to_record};
use super::{decode, encode, required};
use crate::wire::Invalid;

pub fn device_to_bytes(device: &Device) -> Bytes {
    let Presence { epoch, connected_since, changed, active, node, subscriptions } =
        &device.presence;
    encode(&record::Device {
        id: device.id.as_str().to_owned(),
        generation: device.generation.get(),
        etag: device.etag.get(),
        disabled: device.status == Status::Disabled,
        status_reason: device.status_reason.clone(),
        status_updated_ms: device.status_updated.get(),
        authentication: Some(authentication_to_record(&device.authentication)),
        epoch: epoch.get(),
        connected_since_ms: connected_since.map(LogTime::get),
        presence_changed_ms: changed.map(LogTime::get),
        active_ms: active.map(LogTime::get),
        subscriptions: subscriptions_to_record(subscriptions),
        node: node.map(NodeId::to_u64),
        mailbox: Some(head_to_record(&device.mailbox)),
        modules: device.modules.iter().map(ToString::to_string).collect(),
    })
}

pub fn device_from_bytes(bytes: Bytes) -> Result<Device, Invalid> {
    let device: record::Device = decode("device", bytes)?;
    let authentication = required("device.authentication", device.authentication)?;
    Ok(Device {
        id: device_id(&device.id)?,
        generation: GenerationId::new(device.generation),
        etag: Etag::new(device.etag),
        status: status(device.disabled),
        status_reason: device.status_reason,
        status_updated: LogTime::new(device.status_updated_ms),
        authentication: authentication_from_record(authentication)?,
        presence: Presence {
            epoch: SessionEpoch::new(device.epoch),
            connected_since: device.connected_since_ms.map(LogTime::new),
            changed: device.presence_changed_ms.map(LogTime::new),
            active: device.active_ms.map(LogTime::new),
            node: device.node.map(NodeId::from_u64),
            subscriptions: subscriptions_from_record(device.subscriptions)?,
        },
        mailbox: head_from_record(device.mailbox.unwrap_or_default()),
        modules: device.modules.iter().map(|id| module_id(id)).collect::<Result<_, _>>()?,
    })
}

pub(super) fn device_id(id: &str) -> Result<DeviceId, Invalid> {
    DeviceId::from_key(id).map_err(|problem| Invalid::new("device.id", problem))
}

fn module_id(id: &str) -> Result<ModuleId, Invalid> {
    id.parse().map_err(|problem| Invalid::new("device.modules", problem))
}

pub(super) fn status(disabled: bool) -> Status {
    if disabled { Status::Disabled } else { Status::Enabled }
}

/// The kind alone, as it is stored beside messages.
pub fn authentication_kind(authentication: &Authentication) -> record::AuthenticationKind {
    match authentication {
        Authentication::Sas { .. } => record::AuthenticationKind::Sas,
        Authentication::SelfSigned { .. } => record::AuthenticationKind::SelfSigned,
        Authentication::CertificateAuthority => record::AuthenticationKind::CertificateAuthority,
        Authentication::None => record::AuthenticationKind::None,
    }
}

pub(super) fn authentication_to_record(authentication: &Authentication) -> record::Authentication {
    let empty = record::Authentication {
        kind: authentication_kind(authentication).into(),
        ..record::Authentication::default()
    };
    match authentication {
        Authentication::Sas { primary, secondary } => record::Authentication {
            primary_key: key_to_record(primary),
            secondary_key: key_to_record(secondary),
            ..empty
        },
        Authentication::SelfSigned { primary, secondary } => record::Authentication {
            primary_thumbprint: primary.clone(),
            secondary_thumbprint: secondary.clone(),
            ..empty
        },
        Authentication::CertificateAuthority | Authentication::None => empty,
    }
}

pub(super) fn authentication_from_record(
    authentication: record::Authentication,
) -> Result<Authentication, Invalid> {
    Ok(match authentication.kind() {
        record::AuthenticationKind::Sas => Authentication::Sas {
            primary: key_from_record("primary_key", &authentication.primary_key)?,
            secondary: key_from_record("secondary_key", &authentication.secondary_key)?,
        },
        record::AuthenticationKind::SelfSigned => Authentication::SelfSigned {
            primary: authentication.primary_thumbprint,
            secondary: authentication.secondary_thumbprint,
        },
        record::AuthenticationKind::CertificateAuthority => Authentication::CertificateAuthority,
        record::AuthenticationKind::None => Authentication::None,
        record::AuthenticationKind::Unspecified => {
            return Err(Invalid::new("authentication.kind", "is not known"));
        }
    })
}

pub(super) fn key_to_record(key: &Key) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

pub(super) fn key_from_record(field: &str, key: &Bytes) -> Result<Key, Invalid> {
    Key::new(key.to_vec()).ok_or_else(|| Invalid::new(field, "a key has 16 to 64 bytes"))
}

pub(super) fn subscriptions_to_record(subscriptions: &Subscriptions) -> Vec<record::Subscription> {
    let subscription = |(channel, qos): (&Channel, &Qos)| record::Subscription {
        channel: channel_to_record(*channel).into(),
        qos: match qos {
            Qos::AtMostOnce => 0,
            Qos::AtLeastOnce => 1,
        },
    };
    subscriptions.iter().map(subscription).collect()
}

pub(super) fn subscriptions_from_record(
    subscriptions: Vec<record::Subscription>,
) -> Result<Subscriptions, Invalid> {
    let subscription = |subscription: record::Subscription| {
        let qos = match subscription.qos {
            0 => Qos::AtMostOnce,
            1 => Qos::AtLeastOnce,
            _ => return Err(Invalid::new("subscription.qos", "is neither 0 nor 1")),
        };
        Ok((channel_from_record(subscription.channel())?, qos))
    };
    subscriptions.into_iter().map(subscription).collect()
}

pub(super) fn channel_to_record(channel: Channel) -> record::Channel {
    match channel {
        Channel::Commands => record::Channel::Commands,
        Channel::TwinResponses => record::Channel::TwinResponses,
        Channel::DesiredPatches => record::Channel::DesiredPatches,
        Channel::Methods => record::Channel::Methods,
        Channel::Inputs => record::Channel::Inputs,
    }
}

pub(super) fn channel_from_record(channel: record::Channel) -> Result<Channel, Invalid> {
    match channel {
        record::Channel::Commands => Ok(Channel::Commands),
        record::Channel::TwinResponses => Ok(Channel::TwinResponses),
        record::Channel::DesiredPatches => Ok(Channel::DesiredPatches),
        record::Channel::Methods => Ok(Channel::Methods),
        record::Channel::Inputs => Ok(Channel::Inputs),
        record::Channel::Unspecified => Err(Invalid::new("channel", "is not known")),
    }
}
