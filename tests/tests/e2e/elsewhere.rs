//! Clients that nobody here wrote: mosquitto's, gRPC with nothing but reflection. What all of Azure's device SDKs do is in `sdks`.

use anyhow::{Context, Result};
use drover_proto::admin::{CommandState, Property, SendCommandRequest};
use drover_tests::clients::{HOST, Login, number};
use drover_tests::nodes::Nodes;
use drover_tests::{programs, until};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// The arguments that every mosquitto client needs for TLS and a token.
fn mosquitto(program: &str, nodes: &Nodes, login: &Login<'_>) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-h", HOST, "-p", &nodes.mqtts(0).port().to_string(), "--cafile"])
        .arg(nodes.ca())
        .args(["-i", login.id, "-u", &login.user, "-P", &login.password, "-q", "1"]);
    command
}

#[tokio::test]
async fn mosquitto_pub_sends_a_reading_over_tls() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("mosquito").await?;
    let login = Login::new("mosquito", &key)?;
    let mut publish = mosquitto("mosquitto_pub", &nodes, &login);
    publish.args(["-t", "devices/mosquito/messages/events/", "-m", r#"{"temperature":21.5}"#]);
    programs::run(&mut publish).await?;
    let messages = nodes.admin(0)?.messages_of("mosquito").await?;
    let bodies: Vec<_> = messages.iter().map(|message| message.body.as_slice()).collect();
    assert_eq!(bodies, [br#"{"temperature":21.5}"#]);
    Ok(())
}

#[tokio::test]
async fn mosquitto_sub_hears_desired_patches_over_tls() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("mosquito").await?;
    let login = Login::new("mosquito", &key)?;
    let mut subscribe = mosquitto("mosquitto_sub", &nodes, &login);
    subscribe
        .args(["-v", "-t", "$iothub/twin/PATCH/properties/desired/#"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut child = subscribe.spawn().context("mosquitto_sub cannot be run")?;
    let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
    // It does not say when its subscription is granted, so the patch is repeated until it is heard.
    let mut speed = 0;
    let heard = until(
        "mosquitto_sub to hear a patch",
        async || {
            speed += 1;
            let patched = admin.patch_desired("mosquito", &json!({ "speed": speed })).await;
            patched.expect("a patch is accepted");
            let line = timeout(std::time::Duration::from_secs(1), lines.next_line()).await;
            line.ok().and_then(Result::ok).flatten()
        },
        Option::is_some,
    )
    .await
    .unwrap_or_default();
    assert!(heard.starts_with("$iothub/twin/PATCH/properties/desired/?$version="), "{heard}");
    assert!(heard.contains("\"speed\":"), "{heard}");
    Ok(())
}

#[tokio::test]
async fn mosquitto_sub_hears_a_command_that_waited_for_it() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("mosquito").await?;
    admin.send_command("mosquito", "wake-up").await?;
    let login = Login::new("mosquito", &key)?;
    let mut subscribe = mosquitto("mosquitto_sub", &nodes, &login);
    subscribe.args(["-v", "-C", "1", "-t", "devices/mosquito/messages/devicebound/#"]);
    let heard = programs::run(&mut subscribe).await?;
    assert!(heard.starts_with("devices/mosquito/messages/devicebound/%24.to="), "{heard}");
    assert!(heard.contains("&%24.mid=wake-up&iothub-ack=full wake-up"), "{heard}");
    let state = async || admin.command("mosquito", "wake-up").await.expect("it is known").state;
    let is_completed = |state: &i32| *state == CommandState::Completed as i32;
    until("its PUBACK to complete the command", state, is_completed).await;
    Ok(())
}

#[tokio::test]
async fn the_python_device_sdk_does_its_whole_job_and_reconnects_by_itself() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("python").await?;
    let connection = format!("HostName={HOST};DeviceId=python;SharedAccessKey={key}");
    let mut script = programs::python("device_sdk.py");
    script.arg(nodes.ca());
    script
        .args([&nodes.mqtts(0).port().to_string(), "mqtt", &connection])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::inherit())
        .kill_on_drop(true);
    let mut child = script.spawn().context("python cannot be run: .ci/setup test installs it")?;
    let mut said = BufReader::new(child.stdout.take().context("it is piped")?).lines();
    let mut says = async |wanted: &str| -> Result<String> {
        let listen = async {
            while let Some(line) = said.next_line().await? {
                if let Some(rest) = line.strip_prefix(wanted) {
                    return Ok(rest.trim().to_owned());
                }
            }
            anyhow::bail!("the SDK ended before it said {wanted:?}")
        };
        timeout(drover_tests::PATIENCE, listen).await.with_context(|| format!("no {wanted:?}"))?
    };

    says("telemetry acknowledged").await?;
    let message = admin.messages_of("python").await?.remove(0);
    assert_eq!(message.body, b"hello from the SDK");
    let color = message.application_properties.iter().find(|property| property.key == "color");
    assert_eq!(color.and_then(|color| color.value.as_deref()), Some("light blue"));

    assert!(says("twin").await?.contains("\"desired\""));
    says("reported").await?;
    assert_eq!(number(admin.twin("python").await?.reported.as_ref(), "answer"), Some(42.0));

    says("listening").await?;
    admin.patch_desired("python", &json!({ "round": 1 })).await?;
    assert!(says("desired").await?.contains("\"round\": 1"));

    let property = Property { key: "a/b".to_owned(), value: Some("c d".to_owned()) };
    let command = SendCommandRequest {
        device_id: "python".to_owned(),
        message_id: "c:1".to_owned(),
        body: b"open".to_vec(),
        content_type: "text/plain".to_owned(),
        application_properties: vec![property],
        ..SendCommandRequest::default()
    };
    admin.commands.clone().send_command(command).await?;
    let command: serde_json::Value = serde_json::from_str(&says("command").await?)?;
    assert_eq!((&command["body"], &command["id"]), (&json!("open"), &json!("c:1")));
    assert_eq!(command["properties"], json!({ "a/b": "c d" }));
    let is_completed = |state: &i32| *state == CommandState::Completed as i32;
    let state = async || admin.command("python", "c:1").await.expect("it is remembered").state;
    until("the SDK's PUBACK to complete it", state, is_completed).await;

    let calling = admin.invoke("python", "blink", r#"{"times":3}"#);
    let (answer, asked) = tokio::join!(calling, says("method"));
    assert_eq!(asked?, r#"{"name": "blink", "payload": {"times": 3}}"#);
    let answer = answer?;
    assert_eq!((answer.status, answer.payload.as_str()), (200, r#"{"echo": {"times": 3}}"#));

    nodes.kill(0)?;
    says("disconnected").await?;
    // Nothing is lost with the connection: neither the subscriptions nor what is sent before it is back.
    nodes.restart(0)?;
    nodes.until_ready().await;
    says("connected").await?;
    let admin = nodes.admin(0)?;
    admin.patch_desired("python", &json!({ "round": 2 })).await?;
    assert!(says("desired").await?.contains("\"round\": 2"), "without subscribing again");
    admin.send_command("python", "c:2").await?;
    assert!(says("command").await?.contains("\"c:2\""), "without subscribing again");
    assert_eq!(admin.invoke("python", "blink", "1").await?.payload, r#"{"echo": 1}"#);
    Ok(())
}

#[tokio::test]
async fn a_grpc_client_needs_nothing_but_reflection() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let token = admin.token().context("an administrator has a token")?;
    let mut script = programs::python("backend_without_stubs.py");
    script.arg(nodes.ca()).arg(format!("{HOST}:{}", nodes.grpc(0).port())).arg(token);
    let said = programs::run(&mut script).await?;
    for wanted in
        ["drover.admin.v1.Devices", "created reflected", "found reflected", "UNAUTHENTICATED"]
    {
        assert!(said.contains(wanted), "{wanted} is not in: {said}");
    }
    Ok(())
}
