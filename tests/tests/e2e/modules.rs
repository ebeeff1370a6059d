//! Modules: identities of their own under a device, from a back end, as raw clients and as Azure's SDKs.

use std::path::Path;

use anyhow::{Context, Result};
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::{
    self, Authentication, CommandState, CreateModuleRequest, DeleteDeviceRequest,
    DeleteModuleRequest, DeviceStatus, ListDevicesRequest, ListModulesRequest, Message,
    ReadHistoryRequest, Thumbprints, UpdateDeviceRequest,
};
use drover_tests::certificates::{Authority, Identity};
use drover_tests::clients::{ANSWER_TIMEOUT, Admin, Device, HOST, Login, number};
use drover_tests::nodes::{Nodes, program};
use drover_tests::programs::{self, Running};
use drover_tests::{until, until_ok};
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::{Code, Status};

fn bodies(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

async fn set_status(admin: &Admin, device: &str, status: DeviceStatus) -> Result<()> {
    let request = UpdateDeviceRequest {
        id: device.to_owned(),
        status: status.into(),
        ..UpdateDeviceRequest::default()
    };
    admin.devices.clone().update_device(request).await?;
    Ok(())
}

async fn history(admin: &Admin, device: &str, module: &str) -> Result<Vec<Message>> {
    let request = ReadHistoryRequest {
        device_id: device.to_owned(),
        module_id: module.to_owned(),
        ..ReadHistoryRequest::default()
    };
    Ok(admin.messages.clone().read_history(request).await?.into_inner().messages)
}

/// The ids of the modules of a device, with whether they are connected.
async fn list(admin: &Admin, device: &str) -> Result<Vec<(String, bool)>, Status> {
    let request = ListModulesRequest { device_id: device.to_owned() };
    let modules = admin.modules.clone().list_modules(request).await?.into_inner().modules;
    Ok(modules.into_iter().map(|module| (module.module_id, module.connected)).collect())
}

#[tokio::test]
async fn a_module_lives_beside_its_device_and_each_hears_only_what_is_its_own() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let admin = nodes.admin(0)?;
    let device_key = admin.create_device("pump").await?;
    let module_key = admin.create_module("pump/ai").await?;
    let mut device = Device::connect(nodes.mqtt(0), "pump", &device_key).await?;
    let mut module = Device::connect(nodes.mqtt(1), "pump/ai", &module_key).await?;
    for identity in [&mut device, &mut module] {
        identity.subscribe_twin().await?;
        identity.subscribe_methods().await?;
        identity.subscribe_commands(1).await?;
    }
    assert_eq!(list(&nodes.admin(2)?, "pump").await?, [("ai".to_owned(), true)]);

    device.send("of the device").await?;
    module.send("of the module").await?;
    assert_eq!(bodies(&admin.messages_of("pump").await?), ["of the device"]);
    assert_eq!(bodies(&admin.messages_of("pump/ai").await?), ["of the module"]);
    assert_eq!(bodies(&history(&admin, "pump", "").await?), ["of the device"]);
    assert_eq!(bodies(&history(&admin, "pump", "ai").await?), ["of the module"]);

    admin.patch_desired("pump", &json!({ "of": "device" })).await?;
    admin.patch_desired("pump/ai", &json!({ "of": "module" })).await?;
    assert_eq!(device.desired().await?.1["of"], "device");
    assert_eq!(module.desired().await?.1["of"], "module");
    assert_eq!(module.report(r#"{"answer":42}"#).await?, 204);
    assert_eq!(number(admin.twin("pump/ai").await?.reported.as_ref(), "answer"), Some(42.0));
    assert_eq!(number(admin.twin("pump").await?.reported.as_ref(), "answer"), None);

    let module_side = async {
        let (name, rid, _) = module.call().await?;
        assert_eq!(name, "blink");
        module.answer(&rid, 201, r#"{"by":"module"}"#).await
    };
    let backend = nodes.admin(2)?;
    let (answer, told) = tokio::join!(backend.invoke("pump/ai", "blink", "1"), module_side);
    told?;
    assert_eq!(answer?.payload, r#"{"by":"module"}"#);

    admin.send_command("pump", "for-the-device").await?;
    admin.send_command("pump/ai", "for-the-module").await?;
    for (identity, id, wanted) in
        [(&mut device, "pump", "for-the-device"), (&mut module, "pump/ai", "for-the-module")]
    {
        let command = identity.command().await?;
        assert_eq!(command.text(), wanted);
        identity.complete(&command).await?;
        let state = async || admin.command(id, wanted).await.expect("it is known").state;
        let is_completed = |state: &i32| *state == CommandState::Completed as i32;
        until("the command to be completed", state, is_completed).await;
    }

    let listed = admin.devices.clone().list_devices(ListDevicesRequest::default()).await?;
    let devices = listed.into_inner().devices;
    assert_eq!(devices.len(), 1, "modules are no devices: {devices:?}");
    Ok(())
}

#[tokio::test]
async fn what_befalls_a_device_befalls_its_modules() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    admin.create_device("pump").await?;
    let key = admin.create_module("pump/ai").await?;
    let connect = async || Device::connect(nodes.mqtt(0), "pump/ai", &key).await;

    let mut module = connect().await?;
    set_status(&admin, "pump", DeviceStatus::Disabled).await?;
    module.until_closed().await?;
    let refused = connect().await.expect_err("its device is disabled");
    assert!(format!("{refused:#}").contains("CONNACK 5"), "{refused:#}");

    set_status(&admin, "pump", DeviceStatus::Enabled).await?;
    let mut module = connect().await?;
    module.send("again").await?;
    let request = DeleteDeviceRequest { id: "pump".to_owned(), ..DeleteDeviceRequest::default() };
    admin.devices.clone().delete_device(request).await?;
    module.until_closed().await?;
    connect().await.expect_err("it went with its device");
    assert_eq!(admin.twin("pump/ai").await.map_err(|gone| gone.code()), Err(Code::NotFound));

    // What is made anew under the same names is something else.
    admin.create_device("pump").await?;
    assert_eq!(list(&admin, "pump").await?, []);
    admin.create_module("pump/ai").await?;
    connect().await.expect_err("it has another key");
    Ok(())
}

#[tokio::test]
async fn each_way_to_name_no_module_has_its_status_and_reason() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let create = async |device: &str, module: &str| {
        let request = CreateModuleRequest {
            device_id: device.to_owned(),
            module_id: module.to_owned(),
            ..CreateModuleRequest::default()
        };
        admin.modules.clone().create_module(request).await
    };
    let fails = |failed: Status, code: Code, why: &str| {
        assert_eq!(failed.code(), code, "{failed}");
        let details = String::from_utf8_lossy(failed.details());
        assert!(details.contains(why), "{details} does not say {why}");
    };
    fails(create("pump", "ai").await.expect_err("no device"), Code::NotFound, "DEVICE_NOT_FOUND");
    admin.create_device("pump").await?;
    for name in ["", "a/b", "$edgeHub", "é"] {
        let refused = create("pump", name).await.expect_err("it is no name");
        fails(refused, Code::InvalidArgument, "module_id");
    }
    for number in 0..50 {
        create("pump", &format!("m{number:02}")).await?;
    }
    let exists = create("pump", "m07").await.expect_err("it is there");
    fails(exists, Code::AlreadyExists, "MODULE_ALREADY_EXISTS");
    let refused = create("pump", "one-more").await.expect_err("there are 50");
    fails(refused, Code::ResourceExhausted, "TOO_MANY_MODULES");
    assert_eq!(list(&admin, "pump").await?.len(), 50);

    let delete = DeleteModuleRequest {
        device_id: "pump".to_owned(),
        module_id: "m07".to_owned(),
        ..DeleteModuleRequest::default()
    };
    let stale = DeleteModuleRequest { if_match: "999".to_owned(), ..delete.clone() };
    let refused = admin.modules.clone().delete_module(stale).await.expect_err("another etag");
    fails(refused, Code::Aborted, "ETAG_MISMATCH");
    admin.modules.clone().delete_module(delete).await?;
    create("pump", "one-more").await?;

    fails(list(&admin, "ghost").await.expect_err("no device"), Code::NotFound, "DEVICE_NOT_FOUND");
    for id in ["pump/ghost", "ghost/ghost"] {
        let none = admin.twin(id).await.expect_err("there is none");
        fails(none, Code::NotFound, "MODULE_NOT_FOUND");
        let none = admin.invoke(id, "blink", "1").await.expect_err("there is none");
        fails(none, Code::NotFound, "MODULE_NOT_FOUND");
    }
    Ok(())
}

#[tokio::test]
async fn a_module_and_its_device_cannot_speak_for_each_other() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let device_key = admin.create_device("pump").await?;
    let module_key = admin.create_module("pump/ai").await?;
    admin.create_module("pump/other").await?;
    for (id, key) in [
        ("pump/ai", &device_key),
        ("pump", &module_key),
        ("pump/other", &module_key),
        ("pump/ghost", &module_key),
    ] {
        Device::connect(nodes.mqtt(0), id, key).await.expect_err("the key of another");
    }
    // A token counts for the identity that it names, whoever's connection it comes over.
    let of_device = Login::new("pump", &device_key)?.password;
    let login = Login { password: of_device, ..Login::new("pump/ai", &module_key)? };
    Device::log_in(nodes.mqtt(0), None, login).await.expect_err("the token of the device");

    let connect = async || Device::connect(nodes.mqtt(0), "pump/ai", &module_key).await;
    for topic in [
        "devices/pump/messages/events/",
        "devices/pump/modules/other/messages/events/",
        "devices/pump/modules/ai2/messages/events/",
        "devices/pump/modules/ai/inputs/in/",
        "devices/pump/ai/messages/events/",
    ] {
        let mut module = connect().await?;
        module.publish(topic, b"bad").await.expect_err("it is closed for it");
    }
    for filter in [
        "devices/pump/messages/devicebound/#",
        "devices/pump/modules/other/#",
        "devices/pump/modules/#",
        "devices/pump/#",
    ] {
        let mut module = connect().await?;
        assert!(module.link.subscribe(filter, 1).await.is_err(), "{filter} was granted");
    }
    for filter in ["devices/pump/modules/ai/#", "devices/pump/modules/ai/inputs/#"] {
        connect().await?.link.subscribe(filter, 1).await?;
    }
    assert_eq!(admin.all_messages().await?, [], "nothing of it was stored");
    Ok(())
}

#[tokio::test]
async fn a_module_proves_itself_with_a_certificate_of_its_own() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    admin.create_device("pump").await?;
    let authority = Authority::new("factory CA")?;
    admin.register_authority("factory", &authority).await?;
    let create = async |module: &str, kind: Kind| {
        let request = CreateModuleRequest {
            device_id: "pump".to_owned(),
            module_id: module.to_owned(),
            authentication: Some(Authentication { kind: Some(kind) }),
            ..CreateModuleRequest::default()
        };
        admin.modules.clone().create_module(request).await
    };
    let own = Identity::self_signed("anything")?;
    let primary = own.sha256()?;
    create("pinned", Kind::SelfSigned(Thumbprints { primary, secondary: String::new() })).await?;
    create("signed", Kind::CertificateAuthority(admin::CertificateAuthority {})).await?;
    let connect = async |id: &str, identity: &Identity| {
        let tls = identity.tls(&nodes.ca())?;
        Device::with_certificate(nodes.mqtts(0), &tls, id).await
    };
    connect("pump/pinned", &own).await?.send("pinned").await?;
    connect("pump/signed", &authority.sign("pump/signed")?).await?.send("signed").await?;
    for name in ["signed", "pump", "pump/other", "pump/signed/x"] {
        let certificate = authority.sign(name)?;
        connect("pump/signed", &certificate).await.expect_err("it names another");
    }
    let kinds: Vec<String> =
        admin.all_messages().await?.into_iter().map(|message| message.authentication).collect();
    assert_eq!(kinds, ["selfSigned", "certificateAuthority"]);
    Ok(())
}

#[tokio::test]
async fn the_command_line_makes_shows_and_removes_modules() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let drover = async |arguments: &[&str]| {
        let mut command = Command::new(program()?);
        command.args(arguments).args(nodes.cli_arguments(0)?);
        programs::run(&mut command).await
    };
    drover(&["devices", "create", "pump"]).await?;
    let created = drover(&["modules", "create", "pump", "ai", "--json"]).await?;
    let created: Value = serde_json::from_str(&created)?;
    let key = created["authentication"]["symmetricKey"]["primaryKey"].as_str().context("a key")?;
    let text =
        drover(&["devices", "connection-string", "pump", "--module", "ai", "--host-name", HOST]);
    let expected = format!("HostName={HOST};DeviceId=pump;ModuleId=ai;SharedAccessKey={key}");
    assert_eq!(text.await?.trim(), expected);

    let token = drover(&["devices", "sas-token", "pump", "--module", "ai", "--host-name", HOST]);
    let password = token.await?.trim().to_owned();
    let login = Login { password, ..Login::new("pump/ai", key)? };
    let mut module = Device::log_in(nodes.mqtt(0), None, login).await?;
    module.send("{}").await?;
    let shown = drover(&["messages", "history", "pump", "--module", "ai"]).await?;
    assert!(shown.contains(" pump/ai {}"), "{shown}");
    let twin = drover(&["twins", "get", "pump", "--module", "ai", "--json"]).await?;
    assert_eq!(serde_json::from_str::<Value>(&twin)?["moduleId"], "ai");
    let listed = drover(&["modules", "list", "pump"]).await?;
    assert!(listed.contains("ai      yes"), "{listed}");

    drover(&["modules", "delete", "pump", "ai"]).await?;
    module.until_closed().await?;
    assert_eq!(drover(&["modules", "list", "pump", "--json"]).await?, "");
    Ok(())
}

/// What a module on an SDK does: telemetry with an output, its twin, a method.
async fn does_its_job(admin: &Admin, module: &mut Running, id: &str) -> Result<()> {
    module.says("telemetry acknowledged").await?;
    let message = admin.messages_of(id).await?.pop().context("a message was acknowledged")?;
    assert_eq!(message.body, b"hello from the SDK");
    let output = message.system_properties.iter().find(|p| p.key == "iothub-outputname");
    assert_eq!(output.and_then(|property| property.value.as_deref()), Some("alarms"));
    assert!(module.says_json("twin").await?["desired"].is_object());
    module.says("reported").await?;
    assert_eq!(number(admin.twin(id).await?.reported.as_ref(), "answer"), Some(42.0));
    module.says("listening").await?;
    hears_a_patch(admin, module, id, 1).await?;
    let answer = admin.invoke_within(id, "blink", r#"{"n":1}"#, ANSWER_TIMEOUT).await?;
    let payload: Value = serde_json::from_str(&answer.payload)?;
    assert_eq!((answer.status, payload), (200, json!({ "echo": { "n": 1 } })));
    assert_eq!(
        module.says_json("method").await?,
        json!({ "name": "blink", "payload": { "n": 1 } })
    );
    Ok(())
}

/// Node's SDK also hands over what it has read, so a patch is not the first that is said.
async fn hears_a_patch(admin: &Admin, module: &mut Running, id: &str, round: u32) -> Result<()> {
    admin.patch_desired(id, &json!({ "round": round })).await?;
    while module.says_json("desired").await?["round"] != round {}
    Ok(())
}

/// A module on an SDK, with a key.
async fn start(nodes: &Nodes, script: &str, websocket: bool, id: &str) -> Result<Running> {
    let admin = nodes.admin(0)?;
    let (device, module) = id.split_once('/').context("device and module")?;
    admin.create_device(device).await?;
    let key = admin.create_module(id).await?;
    let address = if websocket { nodes.https(0) } else { nodes.mqtts(0) };
    let given = json!({
        "ca": nodes.ca(),
        "port": address.port(),
        "websocket": websocket,
        "connectionString":
            format!("HostName={HOST};DeviceId={device};ModuleId={module};SharedAccessKey={key}"),
    });
    let is_for_node = Path::new(script).extension().is_some_and(|extension| extension == "js");
    let mut command = if is_for_node { programs::node(script) } else { programs::python(script) };
    Running::start(command.arg(given.to_string()))
}

async fn over_both_transports(script: &str) -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    for (id, websocket) in [("over-mqtt/ai", false), ("over-websocket/ai", true)] {
        let mut module = start(&nodes, script, websocket, id).await?;
        does_its_job(&admin, &mut module, id).await.with_context(|| id.to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_module_on_the_python_sdk_does_its_job_over_mqtt_and_websocket() -> Result<()> {
    over_both_transports("module_sdk.py").await
}

#[tokio::test]
async fn a_module_on_the_node_sdk_does_its_job_over_mqtt_and_websocket() -> Result<()> {
    over_both_transports("module_sdk.js").await
}

#[tokio::test]
async fn a_module_on_the_python_sdk_reconnects_and_subscribes_nothing_again() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let mut module = start(&nodes, "module_sdk.py", false, "pump/ai").await?;
    module.says("listening").await?;
    nodes.kill(0)?;
    module.says("disconnected").await?;
    nodes.restart(0)?;
    nodes.until_ready().await;
    module.says("connected").await?;
    let admin = nodes.admin(0)?;
    hears_a_patch(&admin, &mut module, "pump/ai", 2).await?;
    let call = async || admin.invoke_within("pump/ai", "blink", "1", ANSWER_TIMEOUT).await;
    assert_eq!(until_ok("the module to be called", call).await.status, 200);
    Ok(())
}
