//! Clients that nobody here wrote: mosquitto's, gRPC with nothing but reflection. Azure's device SDKs are in `sdks`.

use anyhow::{Context, Result};
use drover_proto::admin::CommandState;
use drover_tests::clients::{HOST, Login};
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
