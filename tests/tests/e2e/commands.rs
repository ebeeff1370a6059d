//! Commands: accepted ones reach their device in order until they end, and their senders learn how they ended (P3).

use anyhow::Result;
use drover_proto::admin::{
    CancelCommandRequest, CommandState, PurgeCommandsRequest, SendCommandRequest,
};
use drover_tests::clients::{Admin, Device};
use drover_tests::nodes::{Nodes, program};
use drover_tests::{programs, until, until_ok};
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
async fn a_cancelled_command_is_not_delivered_and_bad_ones_are_refused() -> Result<()> {
    let nodes = Nodes::start_with(1, &[("commands.per_device", "2")]).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("valve").await?;
    admin.send_command("valve", "a").await?;
    assert!(admin.send_command("valve", "a").await?.repeated);
    admin.send_command("valve", "b").await?;
    let code = async |request: SendCommandRequest| {
        admin.commands.clone().send_command(request).await.expect_err("it is refused").code()
    };
    let command = |device: &str, id: &str, bytes: usize| SendCommandRequest {
        device_id: device.to_owned(),
        message_id: id.to_owned(),
        body: vec![b'x'; bytes],
        ..SendCommandRequest::default()
    };
    assert_eq!(code(command("valve", "c", 1)).await, Code::ResourceExhausted);
    assert_eq!(code(command("valve", "c", 65 * 1024)).await, Code::InvalidArgument);
    assert_eq!(code(command("valve", "a b", 1)).await, Code::InvalidArgument);
    assert_eq!(code(command("nobody", "c", 1)).await, Code::NotFound);

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
