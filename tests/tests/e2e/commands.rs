//! Commands: accepted ones reach their device in order until they end, and their senders learn how they ended (P3).

use anyhow::Result;
use drover_proto::admin::send_command_request::Expiry;
use drover_proto::admin::{
    CancelCommandRequest, CommandState, PurgeCommandsRequest, SendCommandRequest,
};
use drover_tests::clients::{Admin, Device, Received};
use drover_tests::nodes::{Nodes, program};
use drover_tests::{programs, until, until_ok};
use serde_json::Value;
use tokio::process::Command;
use tonic::Code;

async fn ends_as(admin: &Admin, device: &str, id: &str, wanted: CommandState) {
    let look = async || admin.command(device, id).await.ok().map(|command| command.state());
    until("the command to end", look, |seen| *seen == Some(wanted)).await;
}

#[tokio::test]
async fn a_puback_completes_a_command_and_its_sender_is_told() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    nodes.admin(1)?.send_command("valve", "waited").await?;
    let mut device = Device::connect(nodes.mqtt(2), "valve", &key).await?;
    device.subscribe_commands(1).await?;
    let waited = device.command().await?;
    assert_eq!((waited.text().as_str(), waited.dup), ("waited", false));
    assert!(waited.bag.contains("%24.mid=waited"), "{}", waited.bag);
    device.complete(&waited).await?;
    for index in 0..3 {
        let id = format!("from-{index}");
        nodes.admin(index)?.send_command("valve", &id).await?;
        let received = device.command().await?;
        assert_eq!(received.text(), id);
        device.complete(&received).await?;
        ends_as(&nodes.admin(0)?, "valve", &id, CommandState::Completed).await;
    }
    let told = nodes.admin(0)?.feedback_of("valve").await?;
    let told: Vec<_> = told.iter().map(|f| (f.message_id.as_str(), f.state())).collect();
    let completed = |id| (id, CommandState::Completed);
    assert_eq!(told, ["waited", "from-0", "from-1", "from-2"].map(completed));
    let history = nodes.admin(0)?.command("valve", "waited").await?;
    assert_eq!((history.delivery_count, history.deliveries[0].node.as_str()), (1, "3"));
    Ok(())
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_in_order_and_marked() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    device.subscribe_commands(1).await?;
    for id in ["a", "b", "c"] {
        admin.send_command("valve", id).await?;
    }
    let mut received = Vec::new();
    for _ in 0..3 {
        received.push(device.command().await?);
    }
    device.complete(&received[1]).await?;
    ends_as(&admin, "valve", "b", CommandState::Completed).await;
    // The stored subscription is enough: the second connection does not subscribe.
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    for id in ["a", "c"] {
        let again = device.command().await?;
        assert_eq!((again.text().as_str(), again.dup), (id, true));
        device.complete(&again).await?;
        ends_as(&admin, "valve", id, CommandState::Completed).await;
    }
    Ok(())
}

#[tokio::test]
async fn at_quality_0_a_command_is_complete_when_it_is_sent() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    device.subscribe_commands(0).await?;
    admin.send_command("valve", "once").await?;
    assert_eq!(device.command().await?.packet_id, None);
    ends_as(&admin, "valve", "once", CommandState::Completed).await;
    Ok(())
}

/// Each node dies once while commands come in: the device, wherever it is, gets all that were accepted, in order, and none
/// that it was told to have completed.
#[tokio::test]
async fn accepted_commands_survive_the_death_of_each_node_in_turn() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    // From here on the subscription is stored: later connections need not, and do not, subscribe.
    Device::connect(nodes.mqtt(0), "valve", &key).await?.subscribe_commands(1).await?;
    let mut completed = Vec::new();
    for dead in 0..3 {
        let alive = (dead + 1) % 3;
        let admin = nodes.admin(alive)?;
        let before = format!("before-{dead}");
        until_ok("a command to be accepted", async || admin.send_command("valve", &before).await)
            .await;
        nodes.kill(dead)?;
        let after = format!("after-{dead}");
        until_ok("a command to be accepted", async || admin.send_command("valve", &after).await)
            .await;
        let address = nodes.mqtt(alive);
        let mut device =
            until_ok("the device to connect", || Device::connect(address, "valve", &key)).await;
        for id in [before, after] {
            let received = device.command().await?;
            assert_eq!(received.text(), id, "in order, and nothing twice");
            device.complete(&received).await?;
            ends_as(&admin, "valve", &id, CommandState::Completed).await;
            completed.push(id);
        }
        nodes.restart(dead)?;
        nodes.until_ready().await;
    }
    let told = nodes.admin(0)?.feedback_of("valve").await?;
    let told: Vec<_> = told.into_iter().map(|feedback| feedback.message_id).collect();
    assert_eq!(told, completed, "each once");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_command_is_not_delivered() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("valve").await?;
    admin.send_command("valve", "a").await?;
    assert!(admin.send_command("valve", "a").await?.repeated);
    admin.send_command("valve", "b").await?;
    let cancel = CancelCommandRequest {
        device_id: "valve".into(),
        message_id: "a".into(),
        ..CancelCommandRequest::default()
    };
    let cancelled = admin.commands.clone().cancel_command(cancel.clone()).await?.into_inner();
    assert!(!cancelled.may_have_been_delivered);
    let again = admin.commands.clone().cancel_command(cancel).await.expect_err("it has ended");
    assert_eq!(again.code(), Code::FailedPrecondition);
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    device.subscribe_commands(1).await?;
    assert_eq!(device.command().await?.text(), "b");
    let purge =
        PurgeCommandsRequest { device_id: "valve".into(), ..PurgeCommandsRequest::default() };
    let purged = admin.commands.clone().purge_commands(purge).await?.into_inner();
    assert_eq!((purged.count, purged.may_have_been_delivered), (1, 1));
    Ok(())
}

#[tokio::test]
async fn what_a_mailbox_does_not_take_is_refused_with_the_reason() -> Result<()> {
    let settings = [("commands.per_device", "2"), ("commands.time_to_live_max", "1h")];
    let nodes = Nodes::start_with(1, &settings).await?;
    let admin = nodes.admin(0)?;
    admin.create_device("valve").await?;
    let refused = async |request: SendCommandRequest, code: Code, why: &str| {
        let sent = admin.commands.clone().send_command(request).await;
        let refused = sent.expect_err("it is refused");
        assert_eq!(refused.code(), code, "{refused}");
        let reason = String::from_utf8_lossy(refused.details()).into_owned();
        assert!(reason.contains(why) || refused.message().contains(why), "{refused}");
    };
    let command = |device: &str, id: &str| SendCommandRequest {
        device_id: device.to_owned(),
        message_id: id.to_owned(),
        body: vec![b'x'],
        ..SendCommandRequest::default()
    };
    let expiring = |expiry| SendCommandRequest { expiry: Some(expiry), ..command("valve", "late") };
    let at = |seconds| Expiry::Expires(prost_types::Timestamp { seconds, nanos: 0 });
    let after = |seconds| Expiry::TimeToLive(prost_types::Duration { seconds, nanos: 0 });
    let huge = SendCommandRequest { body: vec![b'x'; 65 * 1024], ..command("valve", "huge") };
    refused(command("nobody", "a"), Code::NotFound, "DEVICE_NOT_FOUND").await;
    refused(command("valve", "a b"), Code::InvalidArgument, "message_id").await;
    refused(huge, Code::InvalidArgument, "COMMAND_TOO_LARGE").await;
    refused(expiring(at(1_700_000_000)), Code::InvalidArgument, "INVALID_EXPIRY").await;
    refused(expiring(after(0)), Code::InvalidArgument, "INVALID_EXPIRY").await;
    refused(expiring(after(-1)), Code::InvalidArgument, "time_to_live").await;
    refused(expiring(after(3_601)), Code::InvalidArgument, "INVALID_EXPIRY").await;
    admin.send_command("valve", "a").await?;
    admin.send_command("valve", "b").await?;
    refused(command("valve", "c"), Code::ResourceExhausted, "MAILBOX_FULL").await;
    assert!(admin.send_command("valve", "a").await?.repeated, "what it has it does not refuse");
    Ok(())
}

#[tokio::test]
async fn an_acknowledgement_settles_the_command_that_it_is_for_and_no_other() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    device.subscribe_commands(1).await?;
    admin.send_command("valve", "open").await?;
    let received = device.command().await?;
    let of_nothing =
        Received { packet_id: received.packet_id.map(|id| id + 1), ..received.clone() };
    device.complete(&of_nothing).await?;
    // What the hub answers after it, it has read after it.
    device.send("still here").await?;
    assert_eq!(admin.command("valve", "open").await?.state(), CommandState::Locked);
    device.complete(&received).await?;
    ends_as(&admin, "valve", "open", CommandState::Completed).await;
    Ok(())
}

#[tokio::test]
async fn the_command_line_sends_shows_and_takes_back() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    admin.create_device("valve").await?;
    let drover = async |arguments: &[&str]| {
        let mut command = Command::new(program()?);
        command.arg("commands").args(arguments).args(nodes.cli_arguments(0)?);
        programs::run(&mut command).await
    };
    drover(&["send", "valve", "{\"rate\":5}", "--message-id", "r1", "--key", "rate"]).await?;
    let sent = drover(&["send", "valve", "6", "--message-id", "r2", "--key", "rate"]).await?;
    assert!(sent.contains("replaces 1"), "{sent}");
    let listed = drover(&["list", "valve", "--bodies"]).await?;
    assert!(listed.contains("superseded") && listed.contains("queued"), "{listed}");
    drover(&["send", "valve", "x", "--message-id", "f", "--ack", "full", "--ttl", "1h"]).await?;
    let cancelled = drover(&["cancel", "valve", "f"]).await?;
    assert!(cancelled.contains("never sent"), "{cancelled}");
    assert!(drover(&["history", "valve", "f"]).await?.contains("cancelled"));
    let feedback = drover(&["feedback", "--group", "app", "--commit"]).await?;
    assert!(feedback.contains("valve f cancelled"), "{feedback}");
    assert_eq!(drover(&["feedback", "--group", "app"]).await?, "", "it was committed");
    assert!(drover(&["purge", "valve"]).await?.starts_with("1 taken back"));
    Ok(())
}

#[tokio::test]
async fn one_call_sends_to_many_devices_and_answers_for_each() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let admin = nodes.admin(0)?;
    let devices: Vec<_> = (0..40).map(|number| format!("valve-{number}")).collect();
    for device in &devices[1..] {
        admin.create_device(device).await?;
    }
    let file = nodes.folder().join("devices");
    std::fs::write(&file, devices.join("\n"))?;
    let file = file.display().to_string();
    let mut command = Command::new(program()?);
    command.args(["commands", "send-many", &file, "open", "--message-id", "m", "--json"]);
    command.args(nodes.cli_arguments(1)?);
    let output = programs::output(&mut command).await?;
    let told = String::from_utf8(output.stdout)?;
    let told: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let refused: Vec<_> = told.iter().filter(|told| told["error"].is_object()).collect();
    assert_eq!((told.len(), refused.len()), (40, 1), "each has an answer of its own");
    assert_eq!(refused[0]["deviceId"], "valve-0", "there is no such device");
    assert!(!output.status.success());
    for device in &devices[1..] {
        assert_eq!(admin.command(device, "m").await?.state(), CommandState::Queued);
    }
    Ok(())
}

#[tokio::test]
async fn one_call_to_many_devices_outlives_a_node() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let devices: Vec<_> = (0..60).map(|number| format!("valve-{number}")).collect();
    for device in &devices {
        nodes.admin(0)?.create_device(device).await?;
    }
    let file = nodes.folder().join("devices");
    std::fs::write(&file, devices.join("\n"))?;
    let file = file.display().to_string();
    let mut command = Command::new(program()?);
    command.args(["commands", "send-many", &file, "open"]).args(nodes.cli_arguments(1)?);
    nodes.kill(0)?;
    let output = programs::output(&mut command).await?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout)?.trim(), "60 queued");
    for device in &devices {
        let mailbox = async || anyhow::Ok(nodes.admin(1)?.mailbox(device).await?);
        let mailbox = until_ok(device, mailbox).await;
        assert_eq!(mailbox.len(), 1, "{device} has it once");
    }
    Ok(())
}
