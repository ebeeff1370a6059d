//! Who is speaking: the only maker of proven identities (P5).
//!
//! Every protocol hands over what a client presented and gets back a type that says what was proved, or one refusal
//! that does not say why, so that ids cannot be probed. It relies on the registry's record of the device and on the
//! access policies and certificate authorities of the meta group, and leaves it to apply to refuse a proof that has become
//! stale meanwhile; what rests on the meta group is a [`Grant`], to be looked after by whoever relies on the proof. Which
//! kind of proof counts is the device's record's to say; shared access signatures are here, certificates in
//! [`certificate`].

pub mod certificate;
pub mod connection_string;
mod grant;
pub mod token;

use std::collections::BTreeSet;

use drover_core::access::{Permission, ProvenDevice};
use drover_core::device::{Authentication, Device, Key, Status};
use drover_core::ids::{DeviceId, Etag};
use drover_core::meta::{Meta, Policy};
use rustls_pki_types::CertificateDer;

pub use connection_string::ConnectionString;
pub use grant::Grant;
pub use token::{Token, sign};

use self::token::Resource;

/// The clocks of devices run ahead and behind: a token is taken this long after its expiry (`spec/mqtt.md` section 3).
pub const SKEW_S: u64 = 5 * 60;

/// A device's proof, and until when it is worth anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProof {
    pub proven: ProvenDevice,
    /// Seconds since 1970 when what was proved ends, skew included: the connection ends then, too.
    pub expires_s: u64,
    /// Who else has to stand by it: not the device's own record, which apply looks at, but the meta state.
    pub grant: Option<Grant>,
}

/// What a client presents: either may be empty.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    pub token: &'a [u8],
    /// Its own certificate first; the handshake has proved that it holds the key of that one.
    pub certificates: &'a [CertificateDer<'static>],
}

/// A back end or an operator, as the holder of a key of an access policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyIdentity {
    pub name: String,
    pub permissions: BTreeSet<Permission>,
    /// Seconds since 1970, skew included.
    pub expires_s: u64,
}

/// Why a credential proves nothing. For logs and counters only: a client is told no more than that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token or certificate has expired, or is not valid yet")]
    Expired,
    #[error("the token or certificate is for another resource")]
    OtherResource,
    #[error("no key of the identity made this signature")]
    WrongSignature,
    #[error("the device is unknown")]
    UnknownDevice,
    #[error("the device is disabled")]
    Disabled,
    #[error("the device authenticates in another way")]
    OtherAuthentication,
    #[error("neither a token nor a certificate was presented")]
    Nothing,
    #[error("the certificate is none of the device's")]
    OtherCertificate,
    #[error("no authority that may vouch for devices has signed the certificate: {0}")]
    NotVouchedFor(&'static str),
    #[error("the policy is unknown")]
    UnknownPolicy,
    #[error("the policy lacks the permission")]
    NoPermission,
}

/// What a device's credential is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Registry<'a> {
    /// The record of the device that the client names, if there is one.
    pub identity: Option<&'a Device>,
    pub meta: Option<&'a Meta>,
    /// The names that this hub answers to, in any case, without ports.
    pub host_names: &'a [String],
}

/// Checks what is presented for `device`. If that is a token and a certificate, the device's record says which counts.
pub fn verify_device(
    device: &DeviceId,
    registry: Registry<'_>,
    presented: Presented<'_>,
    now_s: u64,
) -> Result<DeviceProof, Denied> {
    let has_certificate = !presented.certificates.is_empty();
    let wants_certificate =
        registry.identity.is_some_and(|identity| is_by_certificate(&identity.authentication));
    if has_certificate && (wants_certificate || presented.token.is_empty()) {
        return certificate::verify(device, registry, presented.certificates, now_s);
    }
    if presented.token.is_empty() {
        return Err(Denied::Nothing);
    }
    verify_token(device, registry, presented.token, now_s)
}

fn is_by_certificate(authentication: &Authentication) -> bool {
    match authentication {
        Authentication::SelfSigned { .. } | Authentication::CertificateAuthority => true,
        Authentication::Sas { .. } | Authentication::None => false,
    }
}

/// A token signed by the device's own key or by a policy that may connect devices. The signature is computed also for
/// unknown and disabled devices, so that they cannot be told apart by time.
fn verify_token(
    device: &DeviceId,
    registry: Registry<'_>,
    token: &[u8],
    now_s: u64,
) -> Result<DeviceProof, Denied> {
    let token = std::str::from_utf8(token).map_err(|_| Denied::Malformed)?;
    let token = Token::parse(token).ok_or(Denied::Malformed)?;
    let expires_s = unexpired(&token, now_s)?;
    let resource = token.resource(registry.host_names).ok_or(Denied::OtherResource)?;
    let grant = match token.policy() {
        None => {
            verify_own_key(device, registry.identity, &token, &resource)?;
            None
        }
        Some(name) => Some(verify_on_behalf(device, registry.meta, name, &token, &resource)?),
    };
    let credentials = connectable(registry.identity)?;
    let proven = ProvenDevice { device: device.clone(), credentials };
    Ok(DeviceProof { proven, expires_s, grant })
}

/// Checks a token that a policy signed for the whole hub, as service calls need it.
pub fn verify_policy(
    meta: &Meta,
    token: &str,
    host_names: &[String],
    now_s: u64,
) -> Result<PolicyIdentity, Denied> {
    let token = Token::parse(token).ok_or(Denied::Malformed)?;
    let expires_s = unexpired(&token, now_s)?;
    let resource = token.resource(host_names).ok_or(Denied::OtherResource)?;
    let name = token.policy().ok_or(Denied::UnknownPolicy)?;
    let policy = meta.policies.get(name);
    let (primary, secondary) = keys_of_policy(policy);
    let signed = token.is_signed_by_either(primary, secondary);
    let policy = policy.ok_or(Denied::UnknownPolicy)?;
    if !signed {
        return Err(Denied::WrongSignature);
    }
    if resource != Resource::Hub {
        return Err(Denied::OtherResource);
    }
    Ok(PolicyIdentity { name: name.to_owned(), permissions: policy.permissions.clone(), expires_s })
}

fn unexpired(token: &Token<'_>, now_s: u64) -> Result<u64, Denied> {
    let expires_s = token.expires_s().saturating_add(SKEW_S);
    if expires_s <= now_s { Err(Denied::Expired) } else { Ok(expires_s) }
}

fn verify_own_key(
    device: &DeviceId,
    identity: Option<&Device>,
    token: &Token<'_>,
    resource: &Resource,
) -> Result<(), Denied> {
    let keys = identity.map(|identity| &identity.authentication);
    let (primary, secondary) = match keys {
        Some(Authentication::Sas { primary, secondary }) => {
            (primary.as_bytes(), secondary.as_bytes())
        }
        Some(
            Authentication::SelfSigned { .. }
            | Authentication::CertificateAuthority
            | Authentication::None,
        )
        | None => (NO_KEY, NO_KEY),
    };
    let signed = token.is_signed_by_either(primary, secondary);
    if identity.is_none() {
        return Err(Denied::UnknownDevice);
    }
    if primary == NO_KEY {
        return Err(Denied::OtherAuthentication);
    }
    if !signed {
        return Err(Denied::WrongSignature);
    }
    // A key speaks for its own device or module and for nothing above or below it.
    if resource.is_exactly(device) { Ok(()) } else { Err(Denied::OtherResource) }
}

fn verify_on_behalf(
    device: &DeviceId,
    meta: Option<&Meta>,
    name: &str,
    token: &Token<'_>,
    resource: &Resource,
) -> Result<Grant, Denied> {
    let policy = meta.and_then(|meta| meta.policies.get(name));
    let (primary, secondary) = keys_of_policy(policy);
    let signed = token.is_signed_by_either(primary, secondary);
    let policy = policy.ok_or(Denied::UnknownPolicy)?;
    if !signed {
        return Err(Denied::WrongSignature);
    }
    if !policy.permissions.contains(&Permission::DeviceConnect) {
        return Err(Denied::NoPermission);
    }
    if !resource.covers(device) {
        return Err(Denied::OtherResource);
    }
    // Which of the two it was is nobody's secret any more.
    let is_by_primary = token.is_signed_by_either(primary, primary);
    let key = if is_by_primary { &policy.primary } else { &policy.secondary };
    Ok(Grant::Policy { name: name.to_owned(), key: key.clone() })
}

/// Stands in for the keys of an identity that has none, so that checking takes as long as with keys. Real keys have at
/// least 16 bytes.
const NO_KEY: &[u8] = b"";

fn keys_of_policy(policy: Option<&Policy>) -> (&[u8], &[u8]) {
    policy
        .map_or((NO_KEY, NO_KEY), |policy| (policy.primary.as_bytes(), policy.secondary.as_bytes()))
}

fn connectable(identity: Option<&Device>) -> Result<Etag, Denied> {
    let identity = identity.ok_or(Denied::UnknownDevice)?;
    match identity.status {
        Status::Enabled => Ok(identity.etag),
        Status::Disabled => Err(Denied::Disabled),
    }
}

/// A token for one device or module, made with one of its keys: what `drover devices sas-token` prints.
pub fn device_token(host_name: &str, device: &DeviceId, key: &Key, expires_s: u64) -> String {
    let (device, module) = device.names();
    let mut resource = format!("{host_name}/devices/{}", token::percent_encode(device));
    if let Some(module) = module {
        resource.push_str("/modules/");
        resource.push_str(&token::percent_encode(module));
    }
    sign(&resource, key, None, expires_s)
}

/// A token for the whole hub, made with a key of a policy.
pub fn policy_token(host_name: &str, policy: &str, key: &Key, expires_s: u64) -> String {
    sign(host_name, key, Some(policy), expires_s)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use drover_core::device::Presence;
    use drover_core::ids::{GenerationId, LogTime, ShardCount};
    use drover_core::level::Levels;
    use drover_core::membership::Membership;

    use super::*;

    const NOW_S: u64 = 1_700_000_000;

    fn key(letter: u8) -> Key {
        Key::new(vec![letter; 32]).expect("32 bytes")
    }

    fn id(text: &str) -> DeviceId {
        text.parse().expect("a legal id")
    }

    fn device(name: &str, status: Status, authentication: Authentication) -> Device {
        Device {
            id: id(name),
            generation: GenerationId::new(1),
            etag: Etag::new(7),
            status,
            status_reason: None,
            status_updated: LogTime::new(0),
            authentication,
            presence: Presence::default(),
            mailbox: drover_core::mailbox::Head::default(),
            modules: BTreeSet::new(),
        }
    }

    fn pump() -> Device {
        let authentication = Authentication::Sas { primary: key(b'p'), secondary: key(b's') };
        device("pump", Status::Enabled, authentication)
    }

    fn meta() -> Meta {
        let policy = |letter, permissions: &[Permission]| Policy {
            primary: key(letter),
            secondary: key(letter + 1),
            permissions: permissions.iter().copied().collect(),
        };
        Meta {
            cluster_id: "test".into(),
            name: String::new(),
            shard_count: ShardCount::new(1).expect("1 is a legal count"),
            replication_factor: 1,
            members: BTreeMap::new(),
            placement: BTreeMap::new(),
            policies: BTreeMap::from([
                ("device".into(), policy(b'd', &[Permission::DeviceConnect])),
                ("service".into(), policy(b'x', &[Permission::ServiceConnect])),
            ]),
            authorities: BTreeMap::new(),
            membership: Membership::default(),
            levels: Levels::default(),
            restoring: None,
            version: 1,
        }
    }

    fn hosts() -> Vec<String> {
        vec!["hub".into()]
    }

    fn check(identity: Option<&Device>, token: &str) -> Result<u64, Denied> {
        let (meta, host_names) = (meta(), hosts());
        let registry = Registry { identity, meta: Some(&meta), host_names: &host_names };
        let presented = Presented { token: token.as_bytes(), certificates: &[] };
        verify_device(&id("pump"), registry, presented, NOW_S).map(|proof| {
            assert_eq!(proof.proven.device, id("pump"));
            proof.proven.credentials.get()
        })
    }

    #[test]
    fn either_key_of_a_device_proves_it() {
        for letter in [b'p', b's'] {
            let token = device_token("hub", &id("pump"), &key(letter), NOW_S + 1);
            assert_eq!(check(Some(&pump()), &token), Ok(7));
        }
        let token = device_token("hub", &id("pump"), &key(b'?'), NOW_S + 1);
        assert_eq!(check(Some(&pump()), &token), Err(Denied::WrongSignature));
    }

    #[test]
    fn a_token_is_for_its_own_device_alone() {
        for other in ["pum", "pumpx", "PUMP"] {
            let token = device_token("hub", &id(other), &key(b'p'), NOW_S + 1);
            assert_eq!(check(Some(&pump()), &token), Err(Denied::OtherResource), "{other}");
        }
        let token = device_token("elsewhere", &id("pump"), &key(b'p'), NOW_S + 1);
        assert_eq!(check(Some(&pump()), &token), Err(Denied::OtherResource));
        let token = sign("hub", &key(b'p'), None, NOW_S + 1);
        assert_eq!(check(Some(&pump()), &token), Err(Denied::OtherResource), "wider than the key");
    }

    #[test]
    fn a_module_and_its_device_do_not_speak_for_each_other() {
        let module = id("pump").module(&"ai".parse().expect("a legal id"));
        // Even if both have the same keys.
        let registered = Device { id: module.clone(), ..pump() };
        let check = |id: &DeviceId, registered: &Device, token: &str| {
            let (meta, host_names) = (meta(), hosts());
            let registry =
                Registry { identity: Some(registered), meta: Some(&meta), host_names: &host_names };
            let presented = Presented { token: token.as_bytes(), certificates: &[] };
            verify_device(id, registry, presented, NOW_S).map(|proof| proof.proven.device)
        };
        let of_module = device_token("hub", &module, &key(b'p'), NOW_S + 1);
        let of_device = device_token("hub", &id("pump"), &key(b'p'), NOW_S + 1);
        assert_eq!(check(&module, &registered, &of_module), Ok(module.clone()));
        assert_eq!(check(&module, &registered, &of_device), Err(Denied::OtherResource));
        assert_eq!(check(&id("pump"), &pump(), &of_module), Err(Denied::OtherResource));
        let of_policy = sign("hub/devices/pump", &key(b'd'), Some("device"), NOW_S + 1);
        assert_eq!(check(&module, &registered, &of_policy), Ok(module));
    }

    #[test]
    fn a_token_ends_five_minutes_after_its_expiry() {
        let token = |expires_s| device_token("hub", &id("pump"), &key(b'p'), expires_s);
        assert_eq!(check(Some(&pump()), &token(NOW_S - SKEW_S + 1)), Ok(7));
        assert_eq!(check(Some(&pump()), &token(NOW_S - SKEW_S)), Err(Denied::Expired));
        assert_eq!(check(Some(&pump()), &token(0)), Err(Denied::Expired));
        assert_eq!(check(Some(&pump()), &token(u64::MAX)), Ok(7));
    }

    #[test]
    fn devices_that_may_not_connect_prove_nothing() {
        let token = device_token("hub", &id("pump"), &key(b'p'), NOW_S + 1);
        assert_eq!(check(None, &token), Err(Denied::UnknownDevice));
        let disabled = device("pump", Status::Disabled, pump().authentication);
        assert_eq!(check(Some(&disabled), &token), Err(Denied::Disabled));
        let other = device("pump", Status::Enabled, Authentication::None);
        assert_eq!(check(Some(&other), &token), Err(Denied::OtherAuthentication));
    }

    #[test]
    fn an_empty_key_opens_nothing() {
        let resource = "hub/devices/pump";
        let signature = {
            use base64::Engine;
            use hmac::Mac;
            let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"").expect("any length");
            mac.update(format!("{resource}\n{}", NOW_S + 1).as_bytes());
            base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes())
        };
        let end = NOW_S + 1;
        let token = format!("SharedAccessSignature sr={resource}&sig={signature}&se={end}");
        assert_eq!(check(None, &token), Err(Denied::UnknownDevice));
        let other = device("pump", Status::Enabled, Authentication::None);
        assert_eq!(check(Some(&other), &token), Err(Denied::OtherAuthentication));
        let by_policy = format!("{token}&skn=nobody");
        assert_eq!(check(Some(&pump()), &by_policy), Err(Denied::UnknownPolicy));
    }

    #[test]
    fn a_policy_speaks_for_devices_only_with_the_permission() {
        for resource in ["hub", "hub/devices", "hub/devices/pump"] {
            let token = sign(resource, &key(b'd'), Some("device"), NOW_S + 1);
            assert_eq!(check(Some(&pump()), &token), Ok(7), "{resource}");
        }
        let token = sign("hub/devices/other", &key(b'd'), Some("device"), NOW_S + 1);
        assert_eq!(check(Some(&pump()), &token), Err(Denied::OtherResource));
        let token = sign("hub", &key(b'x'), Some("service"), NOW_S + 1);
        assert_eq!(check(Some(&pump()), &token), Err(Denied::NoPermission));
        let token = sign("hub", &key(b'x'), Some("device"), NOW_S + 1);
        assert_eq!(check(Some(&pump()), &token), Err(Denied::WrongSignature));
        assert_eq!(
            check(None, &sign("hub", &key(b'd'), Some("device"), NOW_S + 1)).err(),
            Some(Denied::UnknownDevice)
        );
    }

    #[test]
    fn service_calls_need_a_policy_token_for_the_whole_hub() {
        let verify = |token: &str| verify_policy(&meta(), token, &hosts(), NOW_S);
        let identity =
            verify(&policy_token("hub", "service", &key(b'y'), NOW_S + 1)).expect("valid");
        assert_eq!(identity.name, "service");
        assert_eq!(identity.permissions, BTreeSet::from([Permission::ServiceConnect]));
        assert_eq!(identity.expires_s, NOW_S + 1 + SKEW_S);
        let refused = |token: &str| verify(token).expect_err("refused");
        let narrow = sign("hub/devices/pump", &key(b'x'), Some("service"), NOW_S + 1);
        assert_eq!(refused(&narrow), Denied::OtherResource);
        let of_device = device_token("hub", &id("pump"), &key(b'p'), NOW_S + 1);
        assert_eq!(refused(&of_device), Denied::UnknownPolicy);
        let wrong = policy_token("hub", "service", &key(b'?'), NOW_S + 1);
        assert_eq!(refused(&wrong), Denied::WrongSignature);
        let old = policy_token("hub", "service", &key(b'x'), NOW_S - SKEW_S);
        assert_eq!(refused(&old), Denied::Expired);
    }
}
