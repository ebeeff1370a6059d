//! Certificates: those of clients stand for policies, those of a node are replaced while it runs.

use std::fs;

use anyhow::Result;
use drover_chaos::mqtt::link::Tls;
use drover_chaos::nodes::authority::Authority;
use drover_proto::admin::{
    CreateDeviceRequest, GetDeviceRequest, Permission, Policy, PutPolicyRequest,
};
use drover_tests::clients::{Admin, Device, HOST, Login};
use drover_tests::nodes::Nodes;
use drover_tests::{until, until_ok};
use tempfile::TempDir;
use tonic::Code;

#[tokio::test]
async fn a_client_certificate_opens_what_the_policy_of_its_name_allows() -> Result<()> {
    let folder = TempDir::new()?;
    let (ours, stranger) = (Authority::new("clients")?, Authority::new("strangers")?);
    let ca = folder.path().join("clients-ca.pem");
    fs::write(&ca, &ours.pem)?;
    ours.sign(folder.path(), "reader", &["reader"])?;
    ours.sign(folder.path(), "nobody", &["nobody"])?;
    let foreign = TempDir::new()?;
    stranger.sign(foreign.path(), "reader", &["reader"])?;

    let nodes = Nodes::start_with(1, &[("tls.client_ca", &ca.to_string_lossy())]).await?;
    let owner = nodes.admin(0)?;
    owner.create_device("pump").await?;
    let policy = Policy {
        name: "reader".to_owned(),
        permissions: vec![Permission::RegistryRead as i32],
        ..Policy::default()
    };
    owner.cluster.clone().put_policy(PutPolicyRequest { policy: Some(policy) }).await?;

    let with = |folder: &TempDir, name: &str| {
        Admin::with_certificate(&nodes.ca(), nodes.grpc(0), folder.path(), name)
    };
    let get = async |admin: &Admin| {
        let request = GetDeviceRequest { id: "pump".to_owned() };
        admin.devices.clone().get_device(request).await.map(|device| device.into_inner().id)
    };
    let reader = with(&folder, "reader")?;
    assert_eq!(get(&reader).await?, "pump");
    let request = CreateDeviceRequest { id: "valve".to_owned(), ..CreateDeviceRequest::default() };
    let refused = reader.devices.clone().create_device(request).await.expect_err("it only reads");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    for (what, admin) in [
        ("a name without a policy", with(&folder, "nobody")?),
        ("another authority", with(&foreign, "reader")?),
        ("no certificate", nodes.stranger(0)?),
    ] {
        let refused = get(&admin).await.expect_err(what);
        assert_eq!(refused.code(), Code::Unauthenticated, "{what}: {refused:?}");
    }

    let name = "reader".to_owned();
    owner.cluster.clone().delete_policy(drover_proto::admin::DeletePolicyRequest { name }).await?;
    until(
        "the certificate to open nothing once its policy is deleted",
        async || get(&reader).await.map_err(|status| status.code()),
        |got| *got == Err(Code::Unauthenticated),
    )
    .await
    .expect_err("the condition was that it is refused");
    Ok(())
}

#[tokio::test]
async fn a_hang_up_serves_the_new_certificate_and_drops_no_device() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("pump").await?;
    let address = nodes.mqtts(0);
    let connect = async |ca: &str| {
        let tls = Tls::new(ca.as_bytes(), HOST)?;
        Device::log_in(address, Some(&tls), Login::new("pump", &key)?).await
    };
    let first_ca = fs::read_to_string(nodes.ca())?;
    let mut device = connect(&first_ca).await?;
    device.send("under the first certificate").await?;

    let second = Authority::new("another authority")?;
    second.sign(nodes.folder(), "server", &[HOST])?;
    nodes.hang_up(0)?;
    until_reload(&nodes, "certificates were read again").await;
    device.send("the same connection goes on").await?;
    assert!(connect(&first_ca).await.is_err(), "the former certificate is still shown");
    let mut device = connect(&second.pem).await?;
    device.send("under the second certificate").await?;
    let second_ca = nodes.folder().join("second-ca.pem");
    fs::write(&second_ca, &second.pem)?;
    let key = fs::read_to_string(nodes.folder().join("admin.key"))?;
    let admin = Admin::connect(&second_ca, nodes.grpc(0), Some(&key))?;
    assert_eq!(admin.messages_of("pump").await?.len(), 3, "the API shows it, too");

    fs::write(nodes.folder().join("server.pem"), "no certificate")?;
    nodes.hang_up(0)?;
    until_reload(&nodes, "not all certificates were replaced").await;
    device.send("the connection survives a bad file").await?;
    until_ok("new connections under the second certificate", async || {
        connect(&second.pem).await.map(drop)
    })
    .await;
    Ok(())
}

async fn until_reload(nodes: &Nodes, wanted: &str) {
    until(wanted, async || nodes.log(0), |log| log.contains(wanted)).await;
}
