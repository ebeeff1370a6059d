//! Azure's device SDKs, unmodified: each language over each transport with each kind of credential.
//!
//! `docs/compatibility.md` says which of their functions work; it names these tests.

use anyhow::{Context, Result};
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::{
    self, Authentication, CommandState, CreateAuthorityRequest, CreateDeviceRequest, Thumbprints,
    VerifyAuthorityRequest,
};
use drover_tests::certificates::{Authority, Identity};
use drover_tests::clients::{Admin, HOST, number};
use drover_tests::nodes::Nodes;
use drover_tests::programs::{self, Running};
use drover_tests::until;
use serde_json::json;
use tokio::process::Command;

#[derive(Debug, Clone, Copy)]
enum Sdk {
    Python,
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Mqtt,
    Websocket,
}

/// What a device proves itself with, registered.
struct Credential {
    connection_string: String,
    certificate: Option<Identity>,
}

impl Sdk {
    fn script(self) -> Command {
        match self {
            Self::Python => programs::python("device_sdk.py"),
            Self::Node => programs::node("device_sdk.js"),
        }
    }

    fn start(
        self,
        nodes: &Nodes,
        transport: Transport,
        credential: &Credential,
    ) -> Result<Running> {
        let (name, address) = match transport {
            Transport::Mqtt => ("mqtt", nodes.mqtts(0)),
            Transport::Websocket => ("websocket", nodes.https(0)),
        };
        let mut script = self.script();
        script.arg(nodes.ca()).arg(address.port().to_string()).arg(name);
        script.arg(&credential.connection_string);
        if let Some(certificate) = &credential.certificate {
            let (certificate, key) = certificate.write(nodes.folder(), "device")?;
            script.arg(certificate).arg(key);
        }
        Running::start(&mut script)
    }
}

async fn with_key(admin: &Admin, id: &str) -> Result<Credential> {
    let key = admin.create_device(id).await?;
    let connection_string = format!("HostName={HOST};DeviceId={id};SharedAccessKey={key}");
    Ok(Credential { connection_string, certificate: None })
}

async fn with_certificate(
    admin: &Admin,
    id: &str,
    certificate: Identity,
    kind: Kind,
) -> Result<Credential> {
    let authentication = Some(Authentication { kind: Some(kind) });
    let request =
        CreateDeviceRequest { id: id.to_owned(), authentication, ..CreateDeviceRequest::default() };
    admin.devices.clone().create_device(request).await?;
    let connection_string = format!("HostName={HOST};DeviceId={id};x509=true");
    Ok(Credential { connection_string, certificate: Some(certificate) })
}

async fn self_signed(admin: &Admin, id: &str) -> Result<Credential> {
    let certificate = Identity::self_signed(id)?;
    let primary = certificate.sha256()?;
    let kind = Kind::SelfSigned(Thumbprints { primary, secondary: String::new() });
    with_certificate(admin, id, certificate, kind).await
}

async fn signed(admin: &Admin, authority: &Authority, id: &str) -> Result<Credential> {
    let kind = Kind::CertificateAuthority(admin::CertificateAuthority {});
    with_certificate(admin, id, authority.sign(id)?, kind).await
}

async fn register(admin: &Admin, authority: &Authority) -> Result<()> {
    let mut authorities = admin.authorities.clone();
    let name = "factory".to_owned();
    let certificate_pem = authority.certificate.clone();
    let request = CreateAuthorityRequest { name: name.clone(), certificate_pem };
    let code = authorities.create_authority(request).await?.into_inner().verification_code;
    let certificate_pem = authority.sign(&code)?.certificate;
    authorities.verify_authority(VerifyAuthorityRequest { name, certificate_pem }).await?;
    Ok(())
}

/// Telemetry with properties, the twin read, reported properties, a desired patch, a command.
async fn does_its_job(admin: &Admin, device: &mut Running, id: &str) -> Result<()> {
    device.says("telemetry acknowledged").await?;
    let message = admin.messages_of(id).await?.pop().context("a message was acknowledged")?;
    assert_eq!(message.body, b"hello from the SDK");
    let color = message.application_properties.iter().find(|property| property.key == "color");
    assert_eq!(color.and_then(|property| property.value.as_deref()), Some("light blue"));
    let kind = message.system_properties.iter().find(|property| property.key == "content-type");
    assert_eq!(kind.and_then(|property| property.value.as_deref()), Some("text/plain"));

    assert!(device.says("twin").await?.contains("\"desired\""));
    device.says("reported").await?;
    assert_eq!(number(admin.twin(id).await?.reported.as_ref(), "answer"), Some(42.0));

    device.says("listening").await?;
    admin.patch_desired(id, &json!({ "round": 1 })).await?;
    until_it_says_round(device, 1).await?;

    admin.send_command(id, "open-the-valve").await?;
    assert!(device.says("command").await?.contains("open-the-valve"));
    let state = async || admin.command(id, "open-the-valve").await.expect("it is known").state;
    let is_completed = |state: &i32| *state == CommandState::Completed as i32;
    until("the SDK to complete the command", state, is_completed).await;
    Ok(())
}

/// Node's SDK also hands over what it has read, so a patch is not the first that is said.
async fn until_it_says_round(device: &mut Running, round: u32) -> Result<()> {
    loop {
        let patch: serde_json::Value = serde_json::from_str(&device.says("desired").await?)?;
        if patch["round"] == round {
            return Ok(());
        }
    }
}

async fn by_each_credential(sdk: Sdk, transport: Transport) -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let authority = Authority::new("factory CA")?;
    register(&admin, &authority).await?;
    for (id, credential) in [
        ("by-key", with_key(&admin, "by-key").await?),
        ("by-thumbprint", self_signed(&admin, "by-thumbprint").await?),
        ("by-authority", signed(&admin, &authority, "by-authority").await?),
    ] {
        let mut device = sdk.start(&nodes, transport, &credential)?;
        let done = does_its_job(&admin, &mut device, id).await;
        done.with_context(|| format!("{sdk:?} over {transport:?} {id}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn the_python_sdk_over_mqtt_by_key_thumbprint_and_authority() -> Result<()> {
    by_each_credential(Sdk::Python, Transport::Mqtt).await
}

#[tokio::test]
async fn the_python_sdk_over_websocket_by_key_thumbprint_and_authority() -> Result<()> {
    by_each_credential(Sdk::Python, Transport::Websocket).await
}

#[tokio::test]
async fn the_node_sdk_over_mqtt_by_key_thumbprint_and_authority() -> Result<()> {
    by_each_credential(Sdk::Node, Transport::Mqtt).await
}

#[tokio::test]
async fn the_node_sdk_over_websocket_by_key_thumbprint_and_authority() -> Result<()> {
    by_each_credential(Sdk::Node, Transport::Websocket).await
}

#[tokio::test]
async fn the_python_sdk_reconnects_over_websocket_and_subscribes_nothing_again() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let credential = with_key(&admin, "python").await?;
    let mut device = Sdk::Python.start(&nodes, Transport::Websocket, &credential)?;
    device.says("listening").await?;
    nodes.kill(0)?;
    device.says("disconnected").await?;
    nodes.restart(0)?;
    nodes.until_ready().await;
    device.says("connected").await?;
    nodes.admin(0)?.patch_desired("python", &json!({ "round": 2 })).await?;
    until_it_says_round(&mut device, 2).await
}

#[tokio::test]
async fn the_node_sdk_reconnects_by_itself() -> Result<()> {
    for transport in [Transport::Mqtt, Transport::Websocket] {
        let mut nodes = Nodes::start(1).await?;
        let admin = nodes.admin(0)?;
        let credential = with_key(&admin, "node").await?;
        let mut device = Sdk::Node.start(&nodes, transport, &credential)?;
        device.says("listening").await?;
        nodes.kill(0)?;
        nodes.restart(0)?;
        nodes.until_ready().await;
        // It does not say that it is connected again: the patch waits for it in the twin, which it reads then.
        nodes.admin(0)?.patch_desired("node", &json!({ "round": 2 })).await?;
        until_it_says_round(&mut device, 2).await?;
    }
    Ok(())
}
