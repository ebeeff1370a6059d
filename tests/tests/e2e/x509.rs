//! Devices that prove themselves with certificates: who is let in, who is not, and the end of the right (S-14).

use anyhow::{Context, Result};
use drover_chaos::mqtt::link::Tls;
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::{
    self, Authentication, CreateAuthorityRequest, DeleteAuthorityRequest, DeviceStatus,
    SetAuthorityStatusRequest, Thumbprints, UpdateDeviceRequest, VerifyAuthorityRequest,
};
use drover_tests::certificates::{Authority, Identity};
use drover_tests::clients::{Device, Login};
use drover_tests::nodes::Nodes;
use drover_tests::until;
use drover_tests::websocket::WebSocket;
use tonic::Code;

/// The return code for every failed authentication, so that ids cannot be probed.
const NOT_AUTHORIZED: &str = "CONNACK 5";

fn by_authority() -> Kind {
    Kind::CertificateAuthority(admin::CertificateAuthority {})
}

fn by_thumbprints(primary: &Identity, secondary: &Identity) -> Result<Kind> {
    Ok(Kind::SelfSigned(Thumbprints { primary: primary.sha256()?, secondary: secondary.sha1()? }))
}

/// Connects as `id` with a certificate and no token; says why not.
async fn refusal(nodes: &Nodes, node: usize, id: &str, identity: &Identity) -> Result<String> {
    let tls = identity.tls(&nodes.ca())?;
    Ok(match Device::with_certificate(nodes.mqtts(node), &tls, id).await {
        Ok(_) => "accepted".to_owned(),
        Err(error) => format!("{error:#}"),
    })
}

/// A node may learn of an authority a moment later than the one that was told.
async fn connect(nodes: &Nodes, node: usize, id: &str, tls: &Tls) -> Device {
    let mut connected = None;
    until(
        "the node to know the authority",
        async || {
            let device = Device::with_certificate(nodes.mqtts(node), tls, id).await;
            connected = device.ok();
            connected.is_some()
        },
        |is_connected| *is_connected,
    )
    .await;
    connected.expect("that was the condition")
}

#[tokio::test]
async fn either_registered_thumbprint_lets_a_device_in_over_both_transports() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let (first, second) = (Identity::self_signed("any")?, Identity::self_signed("name")?);
    admin.create_device_with("meter", by_thumbprints(&first, &second)?).await?;
    for identity in [&first, &second] {
        let tls = identity.tls(&nodes.ca())?;
        let mut device = Device::with_certificate(nodes.mqtts(0), &tls, "meter").await?;
        device.send("by a certificate").await?;
        let stream = WebSocket::open(nodes.https(0), &tls).await?.into_stream(1024);
        let login = Login::without_password("meter");
        Device::log_in_over(stream, login).await?.send("over websocket").await?;
    }
    let stranger = Identity::self_signed("meter")?;
    let refused = refusal(&nodes, 0, "meter", &stranger).await?;
    assert!(refused.contains(NOT_AUTHORIZED), "{refused}");
    Ok(())
}

#[tokio::test]
async fn replacing_thumbprints_and_disabling_end_the_connection_at_any_node() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let admin = nodes.admin(0)?;
    let [first, second, third] =
        [Identity::self_signed("1")?, Identity::self_signed("2")?, Identity::self_signed("3")?];
    admin.create_device_with("meter", by_thumbprints(&first, &second)?).await?;
    let first_tls = first.tls(&nodes.ca())?;
    let mut device = Device::with_certificate(nodes.mqtts(1), &first_tls, "meter").await?;
    device.send("by the first").await?;

    let update = |authentication, status: DeviceStatus| UpdateDeviceRequest {
        id: "meter".to_owned(),
        status: status.into(),
        authentication,
        ..UpdateDeviceRequest::default()
    };
    let rotated = Some(Authentication { kind: Some(by_thumbprints(&second, &third)?) });
    admin.devices.clone().update_device(update(rotated, DeviceStatus::Unspecified)).await?;
    device.until_closed().await?;
    let refused = refusal(&nodes, 1, "meter", &first).await?;
    assert!(refused.contains(NOT_AUTHORIZED), "the old certificate: {refused}");
    let tls = third.tls(&nodes.ca())?;
    let mut device = Device::with_certificate(nodes.mqtts(2), &tls, "meter").await?;
    device.send("by the third").await?;

    admin.devices.clone().update_device(update(None, DeviceStatus::Disabled)).await?;
    device.until_closed().await?;
    let refused = refusal(&nodes, 2, "meter", &third).await?;
    assert!(refused.contains(NOT_AUTHORIZED), "disabled: {refused}");
    Ok(())
}

#[tokio::test]
async fn an_authority_vouches_only_after_its_possession_was_proved() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let authority = Authority::new("factory CA")?;
    admin.create_device_with("pump", by_authority()).await?;
    let pump = authority.sign("pump")?;
    let request = CreateAuthorityRequest {
        name: "factory".to_owned(),
        certificate_pem: authority.certificate.clone(),
    };
    let mut authorities = admin.authorities.clone();
    let made = authorities.create_authority(request.clone()).await?.into_inner();
    assert!(!made.verified && made.enabled);
    let refused = refusal(&nodes, 0, "pump", &pump).await?;
    assert!(refused.contains(NOT_AUTHORIZED), "before the proof: {refused}");
    let again = authorities.create_authority(request).await.expect_err("it is registered");
    assert_eq!(again.code(), Code::AlreadyExists);

    let code = made.verification_code;
    let verify = |proof: &Identity| VerifyAuthorityRequest {
        name: "factory".to_owned(),
        certificate_pem: proof.certificate.clone(),
    };
    for (what, proof) in [
        ("another code", authority.sign("not the code")?),
        ("another authority of the same name", Authority::new("factory CA")?.sign(&code)?),
        ("signed by itself", Identity::self_signed(&code)?),
        ("expired", authority.sign_expired(&code)?),
    ] {
        let refused = authorities.verify_authority(verify(&proof)).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
    }
    let proven = authorities.verify_authority(verify(&authority.sign(&code)?)).await?;
    assert!(proven.into_inner().verified);
    assert_eq!(refusal(&nodes, 0, "pump", &pump).await?, "accepted");
    Ok(())
}

#[tokio::test]
async fn every_certificate_that_is_not_in_order_is_refused_with_the_same_code() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let authority = Authority::new("factory CA")?;
    admin.register_authority("factory", &authority).await?;
    admin.create_device_with("pump", by_authority()).await?;
    let key = admin.create_device("by-key").await?;
    let line = authority.intermediate("line 1")?;
    let unknown = Authority::new("factory CA")?.intermediate("line 1")?;
    let shown = refusal(&nodes, 0, "pump", &line.sign_with_chain("pump")?).await?;
    assert_eq!(shown, "accepted", "with the intermediate that signed it");
    for (what, id, identity) in [
        ("another device's", "pump", authority.sign("valve")?),
        ("expired", "pump", authority.sign_expired("pump")?),
        ("of an unknown authority", "pump", Authority::new("factory CA")?.sign("pump")?),
        ("of an intermediate that it does not show", "pump", line.sign("pump")?),
        ("with the intermediate of an unknown authority", "pump", unknown.sign_with_chain("pump")?),
        ("signed by itself", "pump", Identity::self_signed("pump")?),
        ("of a device with keys", "by-key", authority.sign("by-key")?),
        ("of an unknown device", "ghost", authority.sign("ghost")?),
    ] {
        let refused = refusal(&nodes, 0, id, &identity).await?;
        assert!(refused.contains(NOT_AUTHORIZED), "{what}: {refused}");
    }
    // A token is not enough where a certificate is asked for, and a certificate does not spoil a token.
    let without = Device::log_in(nodes.mqtt(0), None, Login::new("pump", &key)?).await;
    let refused = format!("{:#}", without.err().context("a token let it in")?);
    assert!(refused.contains(NOT_AUTHORIZED), "{refused}");
    let tls = authority.sign("by-key")?.tls(&nodes.ca())?;
    Device::log_in(nodes.mqtts(0), Some(&tls), Login::new("by-key", &key)?).await?;
    Ok(())
}

#[tokio::test]
async fn disabling_or_deleting_an_authority_ends_the_connections_that_it_vouched_for() -> Result<()>
{
    let nodes = Nodes::start(3).await?;
    let admin = nodes.admin(0)?;
    let (factory, mill) = (Authority::new("factory CA")?, Authority::new("mill CA")?);
    admin.register_authority("factory", &factory).await?;
    admin.register_authority("mill", &mill).await?;
    admin.create_device_with("pump", by_authority()).await?;
    admin.create_device_with("saw", by_authority()).await?;
    let pump = factory.sign("pump")?;
    let saw_tls = mill.sign("saw")?.tls(&nodes.ca())?;
    let mut saw = connect(&nodes, 1, "saw", &saw_tls).await;
    let pump_tls = pump.tls(&nodes.ca())?;

    let mut authorities = admin.authorities.clone();
    let mut set = async |enabled| {
        let name = "factory".to_owned();
        authorities.set_authority_status(SetAuthorityStatusRequest { name, enabled }).await
    };
    let mut device = connect(&nodes, 1, "pump", &pump_tls).await;
    device.send("while it vouches").await?;
    set(false).await?;
    device.until_closed().await?;
    let refused = refusal(&nodes, 1, "pump", &pump).await?;
    assert!(refused.contains(NOT_AUTHORIZED), "disabled: {refused}");

    set(true).await?;
    let mut device = connect(&nodes, 2, "pump", &pump_tls).await;
    device.send("again").await?;
    let delete = DeleteAuthorityRequest { name: "factory".to_owned() };
    nodes.admin(2)?.authorities.clone().delete_authority(delete).await?;
    device.until_closed().await?;
    let refused = refusal(&nodes, 2, "pump", &pump).await?;
    assert!(refused.contains(NOT_AUTHORIZED), "deleted: {refused}");
    saw.send("the other authority's device stays").await?;
    Ok(())
}
