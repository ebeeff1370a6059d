//! Azure's device SDKs, unmodified: each client over each transport, with each kind of credential, through the renewal of its
//! token and the death of its node. What a device does is in `tests/clients`; what is expected of it is here.
//!
//! `docs/compatibility.md` says which of their functions work; it names these tests.

use anyhow::{Context, Result, ensure};
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::{self, CommandState, Property, SendCommandRequest, Thumbprints};
use drover_tests::balancer::Balancer;
use drover_tests::certificates::{Authority, Identity};
use drover_tests::clients::{ANSWER_TIMEOUT, Admin, HOST, number};
use drover_tests::nodes::Nodes;
use drover_tests::programs::{self, Running};
use drover_tests::{until, until_ok};
use futures::future::try_join_all;
use serde_json::{Value, json};

/// What every SDK is told to send (`tests/clients`), by the names under which it is stored.
const SYSTEM_PROPERTIES: [(&str, &str); 13] = [
    ("message-id", "m 1/ü"),
    ("correlation-id", "c&1"),
    ("user-id", "u=1"),
    ("to", "/back/end"),
    ("content-type", "text/plain"),
    ("content-encoding", "utf-8"),
    ("iothub-outputname", "output-1"),
    ("absolute-expiry-time", "2030-01-02T03:04:05Z"),
    ("dt-subject", "thermostat1"),
    ("iothub-interface-id", "urn:azureiot:Security:SecurityAgent:1"),
    ("iothub-message-schema", "recordType"),
    ("Diagnostic-Id", "trace-1"),
    ("Correlation-Context", "creationtimeutc=1,k=v"),
];
/// Short, and still longer than an SDK takes to begin on a busy machine.
const RENEW_TOKEN_AFTER_S: u32 = 4;

#[derive(Debug, Clone, Copy)]
enum Sdk {
    PythonAsyncio,
    PythonSync,
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Mqtt,
    Websocket,
}

/// Every client over every transport, by the id of its device.
const EACH: [(&str, Sdk, Transport); 6] = [
    ("asyncio-mqtt", Sdk::PythonAsyncio, Transport::Mqtt),
    ("asyncio-websocket", Sdk::PythonAsyncio, Transport::Websocket),
    ("sync-mqtt", Sdk::PythonSync, Transport::Mqtt),
    ("sync-websocket", Sdk::PythonSync, Transport::Websocket),
    ("node-mqtt", Sdk::Node, Transport::Mqtt),
    ("node-websocket", Sdk::Node, Transport::Websocket),
];

impl Transport {
    fn address(self, nodes: &Nodes, node: usize) -> std::net::SocketAddr {
        match self {
            Self::Mqtt => nodes.mqtts(node),
            Self::Websocket => nodes.https(node),
        }
    }
}

/// What a device proves itself with, registered, as a part of its script's argument.
struct Credential(Value);

impl Credential {
    async fn with_key(admin: &Admin, id: &str) -> Result<Self> {
        let key = admin.create_device(id).await?;
        let connection_string = format!("HostName={HOST};DeviceId={id};SharedAccessKey={key}");
        Ok(Self(json!({ "connectionString": connection_string })))
    }

    async fn with_certificate(
        nodes: &Nodes,
        id: &str,
        certificate: Identity,
        kind: Kind,
    ) -> Result<Self> {
        nodes.admin(0)?.create_device_with(id, kind).await?;
        let (certificate, key) = certificate.write(nodes.folder(), id)?;
        let connection_string = format!("HostName={HOST};DeviceId={id};x509=true");
        Ok(Self(json!({
            "connectionString": connection_string,
            "certificate": certificate,
            "key": key,
        })))
    }

    /// A token that is renewed that often.
    fn renewed_after(mut self, seconds: u32) -> Self {
        self.0["renewTokenAfter"] = seconds.into();
        self
    }

    fn start(&self, sdk: Sdk, transport: Transport, nodes: &Nodes, port: u16) -> Result<Running> {
        let mut given = self.0.clone();
        given["ca"] = json!(nodes.ca());
        given["port"] = port.into();
        given["websocket"] = (transport == Transport::Websocket).into();
        let mut script = match sdk {
            Sdk::PythonAsyncio => programs::python("device_sdk.py"),
            Sdk::PythonSync => programs::python("device_sdk_sync.py"),
            Sdk::Node => programs::node("device_sdk.js"),
        };
        Running::start(script.arg(given.to_string()))
    }
}

/// Telemetry with every property, the twin read, reported and desired properties, a command, a method.
async fn does_its_job(admin: &Admin, device: &mut Running, id: &str) -> Result<()> {
    device.says("telemetry acknowledged").await?;
    let message = admin.messages_of(id).await?.pop().context("a message was acknowledged")?;
    assert_eq!(message.body, b"hello from the SDK");
    let value_of = |properties: &[Property], key| {
        let property = properties.iter().find(|property| property.key == key);
        property.and_then(|property| property.value.clone())
    };
    for (key, value) in SYSTEM_PROPERTIES {
        let stored = value_of(&message.system_properties, key);
        assert_eq!(stored.as_deref(), Some(value), "{key} of {id}");
    }
    let created = value_of(&message.system_properties, "iothub-creation-time-utc");
    assert_eq!(created.as_deref(), Some("2026-01-02T03:04:05Z"));
    let color = value_of(&message.application_properties, "color");
    assert_eq!(color.as_deref(), Some("light blue"));
    assert_eq!(message.application_properties.len(), 1, "the others are the system's");

    assert!(device.says_json("twin").await?["desired"].is_object());
    device.says("reported").await?;
    assert_eq!(number(admin.twin(id).await?.reported.as_ref(), "answer"), Some(42.0));

    device.says("listening").await?;
    hears_a_patch(admin, device, id, 1).await?;
    gets_a_command_with_properties(admin, device, id).await?;
    answers_a_method(admin, device, id).await
}

/// Node's SDK also hands over what it has read, so a patch is not the first that is said.
async fn hears_a_patch(admin: &Admin, device: &mut Running, id: &str, round: u32) -> Result<()> {
    admin.patch_desired(id, &json!({ "round": round })).await?;
    while device.says_json("desired").await?["round"] != round {}
    Ok(())
}

async fn gets_a_command_with_properties(
    admin: &Admin,
    device: &mut Running,
    id: &str,
) -> Result<()> {
    let property = Property { key: "a/b".to_owned(), value: Some("c d".to_owned()) };
    let command = SendCommandRequest {
        device_id: id.to_owned(),
        message_id: "c:1".to_owned(),
        body: b"open".to_vec(),
        content_type: "text/plain".to_owned(),
        application_properties: vec![property],
        ..SendCommandRequest::default()
    };
    admin.commands.clone().send_command(command).await?;
    let command = device.says_json("command").await?;
    assert_eq!((&command["body"], &command["id"]), (&json!("open"), &json!("c:1")));
    assert_eq!(
        (&command["type"], &command["properties"]["a/b"]),
        (&json!("text/plain"), &json!("c d"))
    );
    is_completed(admin, id, "c:1").await;
    Ok(())
}

async fn is_completed(admin: &Admin, device: &str, id: &str) {
    let state = async || admin.command(device, id).await.ok().map(|command| command.state());
    let is_completed = |state: &Option<_>| *state == Some(CommandState::Completed);
    until(&format!("{device} to complete {id}"), state, is_completed).await;
}

async fn answers_a_method(admin: &Admin, device: &mut Running, id: &str) -> Result<()> {
    let calling = admin.invoke_within(id, "blink", r#"{"times":3}"#, ANSWER_TIMEOUT);
    let (answer, asked) = tokio::join!(calling, device.says_json("method"));
    assert_eq!(asked?, json!({ "name": "blink", "payload": { "times": 3 } }));
    let answer = answer?;
    let payload: Value = serde_json::from_str(&answer.payload)?;
    assert_eq!((answer.status, payload), (200, json!({ "echo": { "times": 3 } })));
    Ok(())
}

/// One client over both transports with every kind of credential, all at once.
async fn by_each_credential(sdk: Sdk) -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let factory = Authority::new("factory CA")?;
    admin.register_authority("factory", &factory).await?;
    let line = factory.intermediate("line 1")?;
    let vouched = || Kind::CertificateAuthority(admin::CertificateAuthority {});

    let mut devices = Vec::new();
    for transport in [Transport::Mqtt, Transport::Websocket] {
        let id = |credential| format!("{credential}-{transport:?}").to_lowercase();
        let own = Identity::self_signed("any name")?;
        let thumbprints = Thumbprints { primary: own.sha256()?, secondary: String::new() };
        let by_thumbprint = Kind::SelfSigned(thumbprints);
        let [key, thumbprint, authority, chain] =
            ["key", "thumbprint", "authority", "chain"].map(id);
        let (signed, chained) = (factory.sign(&authority)?, line.sign_with_chain(&chain)?);
        let with = Credential::with_certificate;
        for (credential, id) in [
            (Credential::with_key(&admin, &key).await?, key),
            (with(&nodes, &thumbprint, own, by_thumbprint).await?, thumbprint),
            (with(&nodes, &authority, signed, vouched()).await?, authority),
            (with(&nodes, &chain, chained, vouched()).await?, chain),
        ] {
            devices.push((id, credential, transport));
        }
    }
    let jobs = devices.iter().map(async |(id, credential, transport)| {
        let port = transport.address(&nodes, 0).port();
        let mut device = credential.start(sdk, *transport, &nodes, port)?;
        does_its_job(&admin, &mut device, id).await.with_context(|| format!("{sdk:?} {id}"))
    });
    try_join_all(jobs).await.map(drop)
}

#[tokio::test]
async fn the_asyncio_client_for_python_does_its_whole_job_with_each_credential() -> Result<()> {
    by_each_credential(Sdk::PythonAsyncio).await
}

#[tokio::test]
async fn the_sync_client_for_python_does_its_whole_job_with_each_credential() -> Result<()> {
    by_each_credential(Sdk::PythonSync).await
}

#[tokio::test]
async fn the_client_for_node_does_its_whole_job_with_each_credential() -> Result<()> {
    by_each_credential(Sdk::Node).await
}

/// While commands come in, a client replaces its token twice, each time with a new connection. Node's tokens would have
/// ended in between.
#[tokio::test]
async fn every_client_renews_its_token_and_loses_no_command() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let jobs = EACH.map(async |(id, sdk, transport)| {
        let balancer = Balancer::start(transport.address(&nodes, 0)).await?;
        let credential = Credential::with_key(&admin, id).await?.renewed_after(RENEW_TOKEN_AFTER_S);
        let mut device = credential.start(sdk, transport, &nodes, balancer.port())?;
        device.says("listening").await?;
        let mut sent = 0;
        while device.times_heard("renewed") < 2 || balancer.connections() < 3 {
            sent += 1;
            let command = format!("{id}-{sent}");
            admin.send_command(id, &command).await?;
            // An acknowledgement that is lost with a connection brings its command again.
            while device.says_json("command").await?["id"] != command {}
            is_completed(&admin, id, &command).await;
        }
        ensure!(balancer.connections() <= 1 + device.times_heard("renewed") as u32 + 1);
        hears_a_patch(&admin, &mut device, id, 1).await?;
        answers_a_method(&admin, &mut device, id).await.with_context(|| id.to_owned())
    });
    try_join_all(jobs).await.map(drop)
}

/// The node of all connections dies and stays dead. A command that was accepted while a device was nowhere reaches it at
/// another node, and so does all that comes later.
#[tokio::test]
async fn every_client_goes_on_at_another_node_after_its_own_was_killed() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let admin = nodes.admin(1)?;
    let mqtt = Balancer::start(nodes.mqtts(0)).await?;
    let websocket = Balancer::start(nodes.https(0)).await?;
    let mut devices = Vec::new();
    for (id, sdk, transport) in EACH {
        let balancer = if transport == Transport::Mqtt { &mqtt } else { &websocket };
        let credential = Credential::with_key(&admin, id).await?;
        devices.push((id, credential.start(sdk, transport, &nodes, balancer.port())?));
    }
    for (id, device) in &mut devices {
        device.says("listening").await?;
        admin.send_command(id, "before").await?;
        assert_eq!(device.says_json("command").await?["id"], "before");
        is_completed(&admin, id, "before").await;
    }
    mqtt.set_target(None);
    websocket.set_target(None);
    nodes.kill(0)?;
    for (id, _) in &devices {
        until_ok("a command to be accepted", async || admin.send_command(id, "between").await)
            .await;
    }
    mqtt.set_target(Some(nodes.mqtts(2)));
    websocket.set_target(Some(nodes.https(2)));
    let goes_on = devices.iter_mut().map(async |(id, device)| {
        assert_eq!(device.says_json("command").await?["id"], "between", "{id}");
        hears_a_patch(&admin, device, id, 2).await?;
        answers_a_method(&admin, device, id).await?;
        admin.send_command(id, "after").await?;
        assert_eq!(device.says_json("command").await?["id"], "after", "{id}");
        is_completed(&admin, id, "after").await;
        is_completed(&admin, id, "between").await;
        anyhow::Ok(())
    });
    try_join_all(goes_on).await.map(drop)
}
