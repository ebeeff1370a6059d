//! Device identities: protobuf to typed requests and back.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use drover_cluster::actors::cluster::{DevicePage, DeviceUpdate};
use drover_cluster::core::change::{Condition, DeviceSpec, Event};
use drover_cluster::core::device::{Authentication, Device, Key, Presence, Status};
use drover_cluster::core::ids::{DeviceId, ShardCount, ShardId};
use drover_proto::admin::{self, DeviceEventKind, authentication::Kind};
use rand::Rng as _;

use super::documents;
use crate::grpc::status::Invalid;

/// The longest reason for a status, in characters (Azure IoT Hub, identity registry).
const STATUS_REASON_CHARACTERS_MAX: usize = 128;
/// Keys that are made here have the length that Azure IoT Hub gives them.
const GENERATED_KEY_BYTES: usize = 32;

/// A device to be registered.
pub(crate) struct CreateDevice {
    pub(crate) id: DeviceId,
    pub(crate) spec: DeviceSpec,
}

impl TryFrom<admin::CreateDeviceRequest> for CreateDevice {
    type Error = Invalid;

    fn try_from(request: admin::CreateDeviceRequest) -> Result<Self, Invalid> {
        let spec = DeviceSpec {
            status: status(request.status)?.unwrap_or(Status::Enabled),
            status_reason: status_reason(request.status_reason)?,
            authentication: authentication_or_keys(request.authentication)?,
            tags: documents::object("tags", request.tags.unwrap_or_default())?,
            desired: documents::object("desired", request.desired.unwrap_or_default())?,
        };
        Ok(Self { id: super::device_id("id", &request.id)?, spec })
    }
}

/// A change of an identity. Keys that are left empty are those of the device as it is, so the authentication can be
/// finished only beside it.
pub(crate) struct UpdateDevice {
    pub(crate) id: DeviceId,
    pub(crate) if_match: Condition,
    status: Option<Status>,
    #[expect(
        clippy::option_option,
        reason = "as in the cluster's own update: kept, cleared or set"
    )]
    status_reason: Option<Option<String>>,
    authentication: Option<admin::Authentication>,
}

impl TryFrom<admin::UpdateDeviceRequest> for UpdateDevice {
    type Error = Invalid;

    fn try_from(request: admin::UpdateDeviceRequest) -> Result<Self, Invalid> {
        Ok(Self {
            id: super::device_id("id", &request.id)?,
            if_match: super::condition("if_match", &request.if_match)?,
            status: status(request.status)?,
            status_reason: request.status_reason.map(status_reason).transpose()?,
            authentication: request.authentication,
        })
    }
}

impl UpdateDevice {
    /// A change of nothing but the credentials.
    pub(crate) fn of_credentials(
        id: DeviceId,
        if_match: Condition,
        authentication: Option<admin::Authentication>,
    ) -> Self {
        Self { id, if_match, status: None, status_reason: None, authentication }
    }

    /// Whether the change says all by itself.
    pub(crate) fn is_complete(&self) -> bool {
        let kind = self.authentication.as_ref().and_then(|given| given.kind.as_ref());
        let Some(Kind::Sas(keys)) = kind else { return true };
        !keys.primary_key.is_empty() && !keys.secondary_key.is_empty()
    }

    /// The change, with what is missing in it taken from the device as it is.
    pub(crate) fn over(&self, current: Option<&Device>) -> Result<DeviceUpdate, Invalid> {
        let kept = current.map(|device| &device.authentication);
        let authentication =
            self.authentication.clone().map(|given| authentication(given, kept)).transpose()?;
        Ok(DeviceUpdate {
            status: self.status,
            status_reason: self.status_reason.clone(),
            authentication,
        })
    }
}

/// Which keys of a device to replace.
pub(crate) struct RotateKeys {
    pub(crate) id: DeviceId,
    pub(crate) if_match: Condition,
    primary: bool,
    secondary: bool,
}

impl TryFrom<admin::RotateKeysRequest> for RotateKeys {
    type Error = Invalid;

    fn try_from(request: admin::RotateKeysRequest) -> Result<Self, Invalid> {
        let id = super::device_id("id", &request.id)?;
        let if_match = super::condition("if_match", &request.if_match)?;
        Self::new(id, if_match, request.primary, request.secondary)
    }
}

impl RotateKeys {
    pub(crate) fn new(
        id: DeviceId,
        if_match: Condition,
        primary: bool,
        secondary: bool,
    ) -> Result<Self, Invalid> {
        if !primary && !secondary {
            return Err(Invalid::new(
                "primary",
                "say which key to replace: primary, secondary or both",
            ));
        }
        Ok(Self { id, if_match, primary, secondary })
    }

    /// The change for the device as it is.
    pub(crate) fn over(&self, current: &Device) -> Result<DeviceUpdate, Invalid> {
        let Authentication::Sas { primary, secondary } = &current.authentication else {
            return Err(Invalid::new(
                "id",
                format!("device {} has no keys: it authenticates in another way", current.id),
            ));
        };
        let next = |key: &Key, replace| if replace { random_key() } else { key.clone() };
        let authentication = Authentication::Sas {
            primary: next(primary, self.primary),
            secondary: next(secondary, self.secondary),
        };
        Ok(DeviceUpdate { authentication: Some(authentication), ..DeviceUpdate::default() })
    }
}

fn status(status: i32) -> Result<Option<Status>, Invalid> {
    match admin::DeviceStatus::try_from(status) {
        Ok(admin::DeviceStatus::Unspecified) => Ok(None),
        Ok(admin::DeviceStatus::Enabled) => Ok(Some(Status::Enabled)),
        Ok(admin::DeviceStatus::Disabled) => Ok(Some(Status::Disabled)),
        Err(_) => {
            Err(Invalid::new("status", "use DEVICE_STATUS_ENABLED or DEVICE_STATUS_DISABLED"))
        }
    }
}

fn status_reason(reason: String) -> Result<Option<String>, Invalid> {
    let characters = reason.chars().count();
    if characters > STATUS_REASON_CHARACTERS_MAX {
        let problem = format!("it has {characters} characters: at most 128 are allowed");
        return Err(Invalid::new("status_reason", problem));
    }
    Ok(Some(reason).filter(|reason| !reason.is_empty()))
}

/// What is given or, if nothing is, keys that are made here.
pub(crate) fn authentication_or_keys(
    given: Option<admin::Authentication>,
) -> Result<Authentication, Invalid> {
    match given {
        None => Ok(generated_keys()),
        Some(given) => authentication(given, None),
    }
}

/// `kept`: where empty keys come from; without it they are made.
fn authentication(
    given: admin::Authentication,
    kept: Option<&Authentication>,
) -> Result<Authentication, Invalid> {
    match given.kind {
        Some(Kind::Sas(keys)) => {
            let (primary, secondary) = match kept {
                Some(Authentication::Sas { primary, secondary }) => {
                    (Some(primary), Some(secondary))
                }
                _ => (None, None),
            };
            Ok(Authentication::Sas {
                primary: key("authentication.sas.primary_key", &keys.primary_key, primary)?,
                secondary: key("authentication.sas.secondary_key", &keys.secondary_key, secondary)?,
            })
        }
        Some(Kind::SelfSigned(thumbprints)) => self_signed(&thumbprints),
        Some(Kind::CertificateAuthority(_)) => Ok(Authentication::CertificateAuthority),
        Some(Kind::None(_)) => Ok(Authentication::None),
        None => Err(Invalid::new(
            "authentication",
            "set one of sas, self_signed, certificate_authority, none",
        )),
    }
}

fn self_signed(thumbprints: &admin::Thumbprints) -> Result<Authentication, Invalid> {
    let primary = thumbprint("authentication.self_signed.primary", &thumbprints.primary)?;
    let secondary = thumbprint("authentication.self_signed.secondary", &thumbprints.secondary)?;
    if primary.is_none() && secondary.is_none() {
        return Err(Invalid::new("authentication.self_signed", "give at least one thumbprint"));
    }
    Ok(Authentication::SelfSigned { primary, secondary })
}

/// Lower-case hex without the colons that some tools print.
fn thumbprint(field: &str, text: &str) -> Result<Option<String>, Invalid> {
    let digits: String =
        text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    match digits.len() {
        0 => Ok(None),
        40 | 64 if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => Ok(Some(digits)),
        _ => Err(Invalid::new(field, "a thumbprint has 40 (SHA-1) or 64 (SHA-256) hex digits")),
    }
}

/// A key from its base64 text. The text is not repeated in the error: it may be half of a secret.
pub(crate) fn key(field: &str, text: &str, otherwise: Option<&Key>) -> Result<Key, Invalid> {
    if text.is_empty() {
        return Ok(otherwise.cloned().unwrap_or_else(random_key));
    }
    STANDARD
        .decode(text)
        .ok()
        .and_then(Key::new)
        .ok_or_else(|| Invalid::new(field, "a key is base64 of 16 to 64 bytes"))
}

pub(crate) fn key_text(key: &Key) -> String {
    STANDARD.encode(key.as_bytes())
}

pub(crate) fn random_key() -> Key {
    let mut bytes = vec![0; GENERATED_KEY_BYTES];
    rand::rng().fill(bytes.as_mut_slice());
    Key::new(bytes).expect("32 bytes are between 16 and 64")
}

fn generated_keys() -> Authentication {
    Authentication::Sas { primary: random_key(), secondary: random_key() }
}

pub(crate) fn device(device: Device) -> admin::Device {
    let status = match device.status {
        Status::Enabled => admin::DeviceStatus::Enabled,
        Status::Disabled => admin::DeviceStatus::Disabled,
    };
    admin::Device {
        id: device.id.to_string(),
        generation_id: device.generation.to_string(),
        etag: device.etag.to_string(),
        status: status.into(),
        status_reason: device.status_reason.unwrap_or_default(),
        status_updated: Some(super::timestamp(device.status_updated)),
        authentication: Some(shown(device.authentication)),
        connected: device.presence.connected_since.is_some(),
        connection_state_updated: device.presence.changed.map(super::timestamp),
        connected_node: connected_node(&device.presence),
        last_activity: device.presence.active.map(super::timestamp),
    }
}

pub(crate) fn shown(authentication: Authentication) -> admin::Authentication {
    let kind = match authentication {
        Authentication::Sas { primary, secondary } => Kind::Sas(admin::SymmetricKeys {
            primary_key: key_text(&primary),
            secondary_key: key_text(&secondary),
        }),
        Authentication::SelfSigned { primary, secondary } => Kind::SelfSigned(admin::Thumbprints {
            primary: primary.unwrap_or_default(),
            secondary: secondary.unwrap_or_default(),
        }),
        Authentication::CertificateAuthority => {
            Kind::CertificateAuthority(admin::CertificateAuthority {})
        }
        Authentication::None => Kind::None(admin::NoAuthentication {}),
    };
    admin::Authentication { kind: Some(kind) }
}

pub(crate) fn page(page: DevicePage) -> admin::ListDevicesResponse {
    admin::ListDevicesResponse {
        devices: page.devices.into_iter().map(device).collect(),
        next_page_token: page.next.map(page_token).unwrap_or_default(),
    }
}

/// Where a page begins: its shard, and the device after which it goes on there.
pub(crate) type PageStart = (ShardId, Option<DeviceId>);

/// Opaque to clients. Inside: the shard and the last device, which cannot contain a slash.
fn page_token((shard, device): PageStart) -> String {
    let device = device.map(|device| device.to_string()).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(format!("{shard}/{device}"))
}

pub(crate) fn page_start(token: &str, shards: ShardCount) -> Result<Option<PageStart>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    parse_page_token(token, shards).map(Some).ok_or_else(|| {
        Invalid::new("page_token", "use the next_page_token of the page before, unchanged")
    })
}

fn parse_page_token(token: &str, shards: ShardCount) -> Option<PageStart> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (shard, device) = text.split_once('/')?;
    let shard = ShardId::new(shard.parse().ok()?, shards)?;
    let device = if device.is_empty() { None } else { Some(device.parse().ok()?) };
    Some((shard, device))
}

pub(super) fn connected_node(presence: &Presence) -> String {
    let node = presence.node.filter(|_| presence.connected_since.is_some());
    node.map(|node| node.to_string()).unwrap_or_default()
}

/// What happened to a device.
pub(crate) fn event(event: Event) -> admin::DeviceEvent {
    let shown = |kind: DeviceEventKind, device: DeviceId, at| {
        let (device_id, module_id) = super::names(&device);
        let time = Some(super::timestamp(at));
        admin::DeviceEvent {
            kind: kind.into(),
            device_id,
            module_id,
            time,
            ..admin::DeviceEvent::default()
        }
    };
    match event {
        Event::Created { device, at } => shown(DeviceEventKind::Created, device, at),
        Event::Deleted { device, at } => shown(DeviceEventKind::Deleted, device, at),
        Event::Connected { device, epoch, node, at } => admin::DeviceEvent {
            epoch: epoch.get(),
            node: node.map(|node| node.to_string()).unwrap_or_default(),
            ..shown(DeviceEventKind::Connected, device, at)
        },
        Event::Disconnected { device, epoch, at } => admin::DeviceEvent {
            epoch: epoch.get(),
            ..shown(DeviceEventKind::Disconnected, device, at)
        },
        Event::TwinChanged { device, version, at } => admin::DeviceEvent {
            twin_version: version.get(),
            ..shown(DeviceEventKind::TwinChanged, device, at)
        },
    }
}

#[cfg(test)]
mod tests {
    use drover_cluster::core::device::Presence;
    use drover_cluster::core::ids::{Etag, GenerationId, LogTime};

    use super::*;

    fn create(id: &str) -> admin::CreateDeviceRequest {
        admin::CreateDeviceRequest { id: id.to_owned(), ..Default::default() }
    }

    fn sas(primary: &str, secondary: &str) -> admin::Authentication {
        let keys = admin::SymmetricKeys {
            primary_key: primary.to_owned(),
            secondary_key: secondary.to_owned(),
        };
        admin::Authentication { kind: Some(Kind::Sas(keys)) }
    }

    fn stored() -> Device {
        Device {
            id: "pump".parse().expect("a legal id"),
            generation: GenerationId::new(1),
            etag: Etag::new(2),
            status: Status::Enabled,
            status_reason: None,
            status_updated: LogTime::new(0),
            authentication: generated_keys(),
            presence: Presence::default(),
            mailbox: drover_core::mailbox::Head::default(),
            modules: std::collections::BTreeSet::new(),
        }
    }

    fn keys(authentication: &Authentication) -> (String, String) {
        let Authentication::Sas { primary, secondary } = authentication else {
            panic!("{authentication:?} has no keys")
        };
        (key_text(primary), key_text(secondary))
    }

    #[test]
    fn a_device_that_says_nothing_gets_two_different_keys_and_is_enabled() {
        let created = CreateDevice::try_from(create("pump")).expect("it is valid");
        let (primary, secondary) = keys(&created.spec.authentication);
        assert_ne!(primary, secondary);
        assert_eq!(created.spec.status, Status::Enabled);
    }

    #[test]
    fn a_refused_device_names_its_field_and_never_repeats_a_key() {
        let field = |request: admin::CreateDeviceRequest| {
            CreateDevice::try_from(request).err().expect("refused").field
        };
        assert_eq!(field(create("a/b")), "id");
        assert_eq!(field(admin::CreateDeviceRequest { status: 9, ..create("a") }), "status");
        let reason = "x".repeat(129);
        assert_eq!(
            field(admin::CreateDeviceRequest { status_reason: reason, ..create("a") }),
            "status_reason"
        );
        let short = STANDARD.encode([7; 15]);
        let request =
            admin::CreateDeviceRequest { authentication: Some(sas(&short, "")), ..create("a") };
        let refused = CreateDevice::try_from(request).err().expect("15 bytes are too few");
        assert_eq!(refused.field, "authentication.sas.primary_key");
        assert!(!refused.problem.contains(&short));
    }

    #[test]
    fn keys_that_an_update_leaves_empty_stay_as_they_are() {
        let device = stored();
        let given = key_text(&random_key());
        let request = admin::UpdateDeviceRequest {
            id: "pump".to_owned(),
            authentication: Some(sas(&given, "")),
            ..Default::default()
        };
        let update = UpdateDevice::try_from(request).expect("it is valid");
        assert!(!update.is_complete());
        let changed = update.over(Some(&device)).expect("it is valid").authentication;
        let (primary, secondary) = keys(&changed.expect("keys were given"));
        assert_eq!((primary, secondary), (given, keys(&device.authentication).1));
    }

    #[test]
    fn rotation_replaces_the_keys_that_were_named_and_no_other() {
        let device = stored();
        let request =
            admin::RotateKeysRequest { id: "pump".to_owned(), primary: true, ..Default::default() };
        let update = RotateKeys::try_from(request).expect("it is valid").over(&device);
        let changed = keys(&update.expect("it has keys").authentication.expect("new keys"));
        let before = keys(&device.authentication);
        assert_ne!(changed.0, before.0);
        assert_eq!(changed.1, before.1);
    }

    #[test]
    fn thumbprints_are_taken_with_colons_and_in_either_case() {
        let printed = "AB:".repeat(20);
        assert_eq!(thumbprint("t", &printed), Ok(Some("ab".repeat(20))));
        assert!(thumbprint("t", "abc").is_err());
        assert!(thumbprint("t", &"xy".repeat(20)).is_err());
    }

    #[test]
    fn a_page_token_comes_back_as_the_place_it_was_made_from() {
        let shards = ShardCount::new(4).expect("4 is a legal count");
        let shard = ShardId::new(3, shards).expect("3 is below 4");
        for device in [None, Some("a:b%/".trim_end_matches('/').parse().expect("a legal id"))] {
            let token = page_token((shard, device.clone()));
            assert_eq!(page_start(&token, shards), Ok(Some((shard, device))));
        }
        assert_eq!(page_start("", shards), Ok(None));
        let fewer = ShardCount::new(3).expect("3 is a legal count");
        for bad in [page_token((shard, None)), "%%%".to_owned(), URL_SAFE_NO_PAD.encode("3")] {
            assert!(page_start(&bad, fewer).is_err(), "{bad}");
        }
    }
}
