//! What certificates prove, and what not (S-14). Each refusal is for its own reason.

use std::collections::BTreeMap;

use bytes::Bytes;
use drover_core::authority::Possession;
use drover_core::device::{Device, Key, Presence, Status};
use drover_core::ids::{Etag, GenerationId, LogTime, ShardCount};
use drover_core::level::Levels;
use drover_core::mailbox::Head;
use drover_core::membership::Membership;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use time::{Duration, OffsetDateTime};

use super::*;
use crate::identity::{Presented, device_token, verify_device};

const NOW_S: u64 = 1_800_000_000;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(NOW_S.try_into().expect("small")).expect("a date")
}

/// A certificate for `name`, good for a day before and after now.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now() - Duration::days(1);
    params.not_after = now() + Duration::days(1);
    params
}

fn ca_params(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(constraints);
    params
}

struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str) -> Self {
        Self::with(ca_params(name, BasicConstraints::Unconstrained))
    }

    fn with(params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed").der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, params: CertificateParams) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        params.signed_by(&key, &self.issuer).expect("signed").der().clone()
    }

    fn registered(&self) -> Authority {
        Authority {
            certificate: Bytes::copy_from_slice(&self.certificate),
            possession: Possession::Proven,
            status: Status::Enabled,
        }
    }
}

fn self_signed(params: CertificateParams) -> CertificateDer<'static> {
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("signed").der().clone()
}

fn meta(authorities: impl IntoIterator<Item = (&'static str, Authority)>) -> Meta {
    let authorities = authorities.into_iter();
    Meta {
        cluster_id: "test".into(),
        name: String::new(),
        shard_count: ShardCount::new(1).expect("1 is a legal count"),
        replication_factor: 1,
        members: BTreeMap::new(),
        placement: BTreeMap::new(),
        policies: BTreeMap::new(),
        authorities: authorities.map(|(name, authority)| (name.to_owned(), authority)).collect(),
        membership: Membership::default(),
        levels: Levels::default(),
        restoring: None,
        version: 1,
    }
}

fn pump(authentication: Authentication) -> Device {
    Device {
        id: "pump".parse().expect("a legal id"),
        generation: GenerationId::new(1),
        etag: Etag::new(7),
        status: Status::Enabled,
        status_reason: None,
        status_updated: LogTime::new(0),
        authentication,
        presence: Presence::default(),
        mailbox: Head::default(),
        modules: std::collections::BTreeSet::new(),
    }
}

fn known_by(thumbprint: &str) -> Device {
    pump(Authentication::SelfSigned { primary: Some(thumbprint.to_owned()), secondary: None })
}

fn ca_signed() -> Device {
    pump(Authentication::CertificateAuthority)
}

fn sas() -> Device {
    let key = |letter| Key::new(vec![letter; 32]).expect("32 bytes");
    pump(Authentication::Sas { primary: key(b'p'), secondary: key(b's') })
}

fn check(
    device: Option<&Device>,
    meta: &Meta,
    chain: &[CertificateDer<'static>],
) -> Result<DeviceProof, Denied> {
    check_with_token(device, meta, chain, "")
}

fn check_with_token(
    identity: Option<&Device>,
    meta: &Meta,
    certificates: &[CertificateDer<'static>],
    token: &str,
) -> Result<DeviceProof, Denied> {
    let host_names = ["hub".to_owned()];
    let registry = Registry { identity, meta: Some(meta), host_names: &host_names };
    let presented = Presented { token: token.as_bytes(), certificates };
    verify_device(&"pump".parse().expect("a legal id"), registry, presented, NOW_S)
}

/// Why a device that a CA has to vouch for is refused with this chain, where `ca` is the only authority.
fn refusal(ca: &Ca, chain: &[CertificateDer<'static>]) -> Denied {
    check(Some(&ca_signed()), &meta([("factory", ca.registered())]), chain).expect_err("refused")
}

fn token() -> String {
    let key = Key::new(vec![b'p'; 32]).expect("32 bytes");
    device_token("hub", &"pump".parse().expect("a legal id"), &key, NOW_S + 60)
}

#[test]
fn either_thumbprint_by_either_digest_proves_a_device() {
    let certificate = self_signed(params("whatever it says"));
    let other = "0".repeat(64);
    let Thumbprints { sha1, sha256 } = Thumbprints::of(&certificate);
    for thumbprint in [sha1, sha256] {
        for (primary, secondary) in [
            (Some(thumbprint.clone()), None),
            (None, Some(thumbprint.clone())),
            (Some(other.clone()), Some(thumbprint.clone())),
        ] {
            let device = pump(Authentication::SelfSigned { primary, secondary });
            let proof = check(Some(&device), &meta([]), std::slice::from_ref(&certificate));
            let proof = proof.expect("registered");
            assert_eq!(proof.proven.credentials, Etag::new(7));
            assert_eq!(proof.expires_s, NOW_S + 24 * 3600, "no longer than the certificate");
            assert_eq!(proof.grant, None);
        }
    }
}

#[test]
fn a_self_signed_certificate_that_is_not_registered_proves_nothing() {
    let chain = [self_signed(params("pump"))];
    let registered = known_by(&Thumbprints::of(&self_signed(params("pump"))).sha256);
    for (device, denied) in [
        (Some(registered), Denied::OtherCertificate),
        (Some(ca_signed()), Denied::NotVouchedFor("unknown issuer")),
        (Some(pump(Authentication::None)), Denied::OtherAuthentication),
        (None, Denied::UnknownDevice),
    ] {
        assert_eq!(check(device.as_ref(), &meta([]), &chain), Err(denied));
    }
}

#[test]
fn a_registered_certificate_behind_another_one_proves_nothing() {
    let registered = self_signed(params("pump"));
    let device = known_by(&Thumbprints::of(&registered).sha256);
    let chain = [self_signed(params("pump")), registered];
    assert_eq!(check(Some(&device), &meta([]), &chain), Err(Denied::OtherCertificate));
}

#[test]
fn a_thumbprint_proves_only_while_its_certificate_is_valid() {
    for (from, until) in [(-2, -1), (1, 2)] {
        let mut params = params("pump");
        params.not_before = now() + Duration::days(from);
        params.not_after = now() + Duration::days(until);
        let certificate = self_signed(params);
        let device = known_by(&Thumbprints::of(&certificate).sha256);
        assert_eq!(check(Some(&device), &meta([]), &[certificate]), Err(Denied::Expired), "{from}");
    }
}

#[test]
fn an_authority_vouches_for_the_device_that_it_names() {
    let ca = Ca::new("factory");
    let proof = check(
        Some(&ca_signed()),
        &meta([("other", Ca::new("other").registered()), ("factory", ca.registered())]),
        &[ca.sign(params("pump"))],
    )
    .expect("signed");
    let certificate = ca.registered().certificate;
    assert_eq!(proof.grant, Some(Grant::Authority { name: "factory".to_owned(), certificate }));
    for name in ["pumps", "pum", "PUMP", "pump\n", "pump\0", ""] {
        assert_eq!(refusal(&ca, &[ca.sign(params(name))]), Denied::OtherResource, "{name:?}");
    }
}

#[test]
fn of_two_common_names_none_counts() {
    let ca = Ca::new("factory");
    let mut two = CertificateParams::default();
    two.distinguished_name = DistinguishedName::new();
    two.distinguished_name.push(DnType::CommonName, "pump");
    two.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "valve");
    two.not_before = params("").not_before;
    two.not_after = params("").not_after;
    assert_eq!(refusal(&ca, &[ca.sign(two)]), Denied::OtherResource);
}

#[test]
fn intermediates_lead_to_an_authority_if_they_are_shown() {
    let ca = Ca::new("root");
    let line = ca.below(ca_params("line 1", BasicConstraints::Unconstrained));
    let own = line.sign(params("pump"));
    let meta = meta([("root", ca.registered())]);
    let chain = [own.clone(), line.certificate.clone()];
    assert!(check(Some(&ca_signed()), &meta, &chain).is_ok());
    assert_eq!(refusal(&ca, &[own]), Denied::NotVouchedFor("unknown issuer"));
}

#[test]
fn an_intermediate_authority_can_be_registered_without_its_root() {
    let line = Ca::new("root").below(ca_params("line 1", BasicConstraints::Unconstrained));
    let meta = meta([("line", line.registered())]);
    assert!(check(Some(&ca_signed()), &meta, &[line.sign(params("pump"))]).is_ok());
}

#[test]
fn a_path_that_is_longer_than_its_authority_allows_is_refused() {
    let root = Ca::new("root");
    let limited = root.below(ca_params("limited", BasicConstraints::Constrained(0)));
    let below = limited.below(ca_params("below", BasicConstraints::Unconstrained));
    let chain =
        [below.sign(params("pump")), below.certificate.clone(), limited.certificate.clone()];
    assert!(matches!(refusal(&root, &chain), Denied::NotVouchedFor(_)));
}

#[test]
fn a_device_cannot_sign_for_another_one() {
    let ca = Ca::new("factory");
    let valve = ca.below(params("valve"));
    let chain = [valve.sign(params("pump")), valve.certificate.clone()];
    assert!(matches!(refusal(&ca, &chain), Denied::NotVouchedFor(_)));
}

#[test]
fn an_authority_that_has_the_name_and_not_the_key_proves_nothing() {
    let (ca, impostor) = (Ca::new("factory"), Ca::new("factory"));
    assert!(matches!(refusal(&ca, &[impostor.sign(params("pump"))]), Denied::NotVouchedFor(_)));
}

#[test]
fn the_authority_itself_is_no_device() {
    let ca = Ca::new("pump");
    assert!(matches!(
        refusal(&ca, std::slice::from_ref(&ca.certificate)),
        Denied::NotVouchedFor(_)
    ));
}

#[test]
fn a_certificate_for_servers_alone_is_refused_and_one_for_anything_is_not() {
    let ca = Ca::new("factory");
    let with = |usages: &[ExtendedKeyUsagePurpose]| {
        let mut params = params("pump");
        params.extended_key_usages = usages.to_vec();
        ca.sign(params)
    };
    assert_eq!(
        refusal(&ca, &[with(&[ExtendedKeyUsagePurpose::ServerAuth])]),
        Denied::NotVouchedFor("not for clients")
    );
    let meta = meta([("factory", ca.registered())]);
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    for usages in [&[][..], &both] {
        assert!(check(Some(&ca_signed()), &meta, &[with(usages)]).is_ok(), "{usages:?}");
    }
}

#[test]
fn every_certificate_of_a_path_must_be_valid_now() {
    let expired = |mut params: CertificateParams| {
        params.not_before = now() - Duration::days(3);
        params.not_after = now() - Duration::seconds(1);
        params
    };
    let ca = Ca::new("root");
    assert_eq!(refusal(&ca, &[ca.sign(expired(params("pump")))]), Denied::Expired);
    let mut early = params("pump");
    early.not_before = now() + Duration::hours(1);
    assert_eq!(refusal(&ca, &[ca.sign(early)]), Denied::Expired);

    let line = ca.below(expired(ca_params("line 1", BasicConstraints::Unconstrained)));
    let chain = [line.sign(params("pump")), line.certificate.clone()];
    assert_eq!(refusal(&ca, &chain), Denied::Expired);

    let old = Ca::with(expired(ca_params("old", BasicConstraints::Unconstrained)));
    assert!(matches!(refusal(&old, &[old.sign(params("pump"))]), Denied::NotVouchedFor(_)));
}

#[test]
fn an_authority_that_is_not_proven_or_is_disabled_vouches_for_nobody() {
    let ca = Ca::new("factory");
    let chain = [ca.sign(params("pump"))];
    let unproven = Possession::Unproven { code: "c".to_owned() };
    for authority in [
        Authority { possession: unproven, ..ca.registered() },
        Authority { status: Status::Disabled, ..ca.registered() },
    ] {
        let meta = meta([("factory", authority)]);
        let denied = check(Some(&ca_signed()), &meta, &chain);
        assert_eq!(denied, Err(Denied::NotVouchedFor("unknown issuer")));
    }
}

#[test]
fn a_disabled_device_is_refused_whatever_it_shows() {
    let ca = Ca::new("factory");
    let certificate = self_signed(params("pump"));
    let mut by_thumbprint = known_by(&Thumbprints::of(&certificate).sha256);
    by_thumbprint.status = Status::Disabled;
    let mut by_authority = ca_signed();
    by_authority.status = Status::Disabled;
    let meta = meta([("factory", ca.registered())]);
    assert_eq!(check(Some(&by_thumbprint), &meta, &[certificate]), Err(Denied::Disabled));
    let chain = [ca.sign(params("pump"))];
    assert_eq!(check(Some(&by_authority), &meta, &chain), Err(Denied::Disabled));
}

#[test]
fn a_device_with_keys_is_not_let_in_by_a_certificate_and_is_by_its_token_beside_one() {
    let ca = Ca::new("factory");
    let meta = meta([("factory", ca.registered())]);
    let chain = [ca.sign(params("pump"))];
    assert_eq!(check(Some(&sas()), &meta, &chain), Err(Denied::OtherAuthentication));
    assert!(check_with_token(Some(&sas()), &meta, &chain, &token()).is_ok());
}

#[test]
fn a_device_with_a_certificate_is_not_let_in_by_a_token_and_a_token_does_not_harm() {
    let certificate = self_signed(params("pump"));
    let device = known_by(&Thumbprints::of(&certificate).sha256);
    let meta = meta([]);
    let by_token = |device| check_with_token(Some(device), &meta, &[], &token());
    assert_eq!(by_token(&device), Err(Denied::OtherAuthentication));
    assert_eq!(by_token(&ca_signed()), Err(Denied::OtherAuthentication));
    assert!(check_with_token(Some(&device), &meta, &[certificate], &token()).is_ok());
    let stranger = [self_signed(params("pump"))];
    let denied = check_with_token(Some(&device), &meta, &stranger, &token());
    assert_eq!(denied, Err(Denied::OtherCertificate), "the certificate counts, not the token");
}

#[test]
fn whoever_presents_nothing_proves_nothing() {
    for device in [Some(&sas()), Some(&ca_signed()), None] {
        assert_eq!(check(device, &meta([]), &[]), Err(Denied::Nothing));
    }
}

#[test]
fn what_is_no_certificate_is_refused() {
    let garbage = CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 1]);
    let meta = meta([]);
    for device in [Some(&known_by("00")), Some(&ca_signed()), None] {
        let chain = std::slice::from_ref(&garbage);
        assert_eq!(check(device, &meta, chain), Err(Denied::Malformed));
    }
}

#[test]
fn a_grant_holds_until_its_authority_is_taken_back() {
    let ca = Ca::new("factory");
    let grant =
        Grant::Authority { name: "factory".to_owned(), certificate: ca.registered().certificate };
    assert!(grant.holds(&meta([("factory", ca.registered())])));
    let disabled = Authority { status: Status::Disabled, ..ca.registered() };
    for meta in [
        meta([]),
        meta([("factory", disabled)]),
        meta([("factory", Ca::new("factory").registered())]),
    ] {
        assert!(!grant.holds(&meta));
    }
}

#[test]
fn only_an_authority_that_is_valid_can_be_registered() {
    let ca = Ca::new("factory");
    assert_eq!(check_authority(&ca.certificate, NOW_S), Ok(()));
    assert_eq!(check_authority(&ca.certificate, NOW_S + 3 * 24 * 3600), Err(Unfit::Expired));
    assert_eq!(check_authority(&self_signed(params("x")), NOW_S), Err(Unfit::NoAuthority));
    assert_eq!(check_authority(b"nonsense", NOW_S), Err(Unfit::Unreadable));
    let more = [&ca.certificate[..], &[0]].concat();
    assert_eq!(check_authority(&more, NOW_S), Err(Unfit::Unreadable));
}

#[test]
fn possession_is_proved_by_a_certificate_that_the_authority_has_signed_for_the_code() {
    let ca = Ca::new("factory");
    let proves =
        |proof: &CertificateDer<'_>, now_s| check_possession(&ca.certificate, "c0de", proof, now_s);
    let proof = ca.sign(params("c0de"));
    assert_eq!(proves(&proof, NOW_S), Ok(()));
    assert_eq!(proves(&proof, NOW_S + 3 * 24 * 3600), Err(Unfit::Expired));
    let (found, code) = ("c0de2".to_owned(), "c0de".to_owned());
    let other = proves(&ca.sign(params("c0de2")), NOW_S);
    assert_eq!(other, Err(Unfit::OtherCode { found, code }));
    let impostor = Ca::new("factory").sign(params("c0de"));
    assert_eq!(proves(&impostor, NOW_S), Err(Unfit::NotSigned));
    assert_eq!(proves(&self_signed(params("c0de")), NOW_S), Err(Unfit::NotSigned));
    assert_eq!(proves(&CertificateDer::from(vec![1]), NOW_S), Err(Unfit::Unreadable));
}
