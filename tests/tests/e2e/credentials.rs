//! Who is let in: tokens, disabled devices, calls without credentials (P5).

use anyhow::Result;
use drover_chaos::sas;
use drover_proto::admin::{DeviceStatus, ListDevicesRequest, UpdateDeviceRequest};
use drover_tests::clients::{Admin, Device, HOST, Login};
use drover_tests::nodes::Nodes;
use tonic::Code;

/// The return code for every failed authentication, so that ids cannot be probed.
const NOT_AUTHORIZED: &str = "CONNACK 5";
const LONG_AGO_S: u64 = 1_000_000_000;
const OTHER_KEY: &str = "b3RoZXIga2V5IG9mIDMyIGJ5dGVzLCBub3QgdGhpcyE=";

async fn refusal(nodes: &Nodes, login: Login<'_>) -> String {
    match Device::log_in(nodes.mqtt(0), None, login).await {
        Ok(_) => "accepted".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

#[tokio::test]
async fn every_bad_credential_is_refused_with_the_same_code() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("lock").await?;
    let other_key = nodes.admin(0)?.create_device("locksmith").await?;
    let with_password =
        |password: String| Login { password, ..Login::new("lock", &key).expect("a key") };
    let own = format!("{HOST}/devices/lock");
    let token = sas::token(&own, &key, None)?;
    let cases = [
        ("an expired token", with_password(sas::token_until(&own, &key, None, LONG_AGO_S)?)),
        ("a key of nobody", with_password(sas::token(&own, OTHER_KEY, None)?)),
        ("another device's key", with_password(sas::token(&own, &other_key, None)?)),
        (
            "another device's token",
            with_password(sas::token(&format!("{HOST}/devices/locksmith"), &other_key, None)?),
        ),
        (
            "a prefix of the resource",
            with_password(sas::token(&format!("{HOST}/devices/loc"), &key, None)?),
        ),
        ("a cut token", with_password(token[..token.len() - 3].to_owned())),
        ("no token at all", with_password(String::new())),
        ("an unknown device", Login::new("ghost", &key)?),
    ];
    for (what, login) in cases {
        let refusal = refusal(&nodes, login).await;
        assert!(refusal.contains(NOT_AUTHORIZED), "{what}: {refusal}");
    }
    Device::connect(nodes.mqtt(0), "lock", &key).await?;
    Ok(())
}

#[tokio::test]
async fn a_device_that_keeps_failing_is_not_heard_and_its_neighbour_is() -> Result<()> {
    let nodes = Nodes::start_with(1, &[("limits.login_failures", "3")]).await?;
    let admin = nodes.admin(0)?;
    let (key, other_key) = (admin.create_device("lock").await?, admin.create_device("door").await?);
    for _ in 0..3 {
        let refused = refusal(&nodes, Login::new("lock", OTHER_KEY)?).await;
        assert!(refused.contains(NOT_AUTHORIZED), "{refused}");
    }
    let refused = refusal(&nodes, Login::new("lock", &key)?).await;
    assert!(refused.contains(NOT_AUTHORIZED), "with the right key, within the minute: {refused}");
    Device::connect(nodes.mqtt(0), "door", &other_key).await?.send("from the same address").await?;
    let metrics = nodes.get(0, "/metrics").await?;
    assert!(metrics.contains("drover_mqtt_unheard_logins_total 1"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn disabling_a_device_ends_its_connection_and_keeps_it_out() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("lock").await?;
    let mut device = Device::connect(nodes.mqtt(1), "lock", &key).await?;
    device.send("while enabled").await?;
    let mut update = UpdateDeviceRequest {
        id: "lock".to_owned(),
        status: DeviceStatus::Disabled as i32,
        ..UpdateDeviceRequest::default()
    };
    admin.devices.clone().update_device(update.clone()).await?;
    device.until_closed().await?;
    let refusal = refusal(&nodes, Login::new("lock", &key)?).await;
    assert!(refusal.contains(NOT_AUTHORIZED), "{refusal}");
    update.status = DeviceStatus::Enabled as i32;
    admin.devices.clone().update_device(update).await?;
    Device::connect(nodes.mqtt(2), "lock", &key).await?.send("enabled again").await
}

#[tokio::test]
async fn a_call_without_credentials_is_refused_and_says_what_to_send() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let forged = sas::token(HOST, OTHER_KEY, Some("nobody"))?;
    let (ca, address) = (nodes.ca(), nodes.grpc(0));
    for credential in
        [None, Some("Bearer guess"), Some("SharedAccessSignature sr=a"), Some(&*forged)]
    {
        let stranger = Admin::with_credential(&ca, address, credential)?;
        let call = stranger.devices.clone().list_devices(ListDevicesRequest::default()).await;
        let refused = call.expect_err("a stranger must not list devices");
        assert_eq!(refused.code(), Code::Unauthenticated, "{credential:?}: {refused:?}");
        assert!(!refused.message().is_empty());
    }
    Ok(())
}
