//! Who is connected, where and since when: as it is told live, and after the node of a connection was killed.

use std::time::Duration;

use anyhow::{Context, Result};
use drover_proto::admin::GetDeviceRequest;
use drover_tests::clients::{Admin, Device};
use drover_tests::nodes::{Nodes, program};
use drover_tests::until;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// Whether it is connected, and at which node.
async fn state(admin: &Admin, device: &str) -> Option<(bool, String)> {
    let request = GetDeviceRequest { id: device.to_owned() };
    let device = admin.devices.clone().get_device(request).await.ok()?.into_inner();
    Some((device.connected, device.connected_node))
}

#[tokio::test]
async fn a_killed_node_takes_its_connections_along_and_no_others() -> Result<()> {
    let mut nodes = Nodes::start_with(3, &[("presence.gone_after", "2s")]).await?;
    let admin = nodes.admin(1)?;
    let mut keys = Vec::new();
    for id in ["lost", "kept", "moved"] {
        keys.push(admin.create_device(id).await?);
    }
    let _lost = Device::connect(nodes.mqtt(0), "lost", &keys[0]).await?;
    let mut kept = Device::connect(nodes.mqtt(2), "kept", &keys[1]).await?;
    let _moved = Device::connect(nodes.mqtt(0), "moved", &keys[2]).await?;
    assert_eq!(state(&admin, "lost").await, Some((true, "1".to_owned())));
    nodes.kill(0)?;
    let killed = Instant::now();
    let address = nodes.mqtt(1);
    let mut moved = drover_tests::until_ok("the device to connect elsewhere", async || {
        Device::connect(address, "moved", &keys[2]).await
    })
    .await;
    let look = async || state(&admin, "lost").await;
    until("the connection to end", look, |seen| *seen == Some((false, String::new()))).await;
    let took = killed.elapsed();
    assert!(took >= Duration::from_secs(1), "it may have been cut off only: {took:?}");
    assert!(took < Duration::from_secs(15), "it is shown as connected for {took:?}");
    kept.send("still here").await?;
    moved.send("here now").await?;
    assert_eq!(state(&admin, "kept").await, Some((true, "3".to_owned())));
    assert_eq!(state(&admin, "moved").await, Some((true, "2".to_owned())));
    nodes.restart(0)?;
    nodes.until_ready().await;
    kept.send("and still").await?;
    assert_eq!(state(&admin, "kept").await, Some((true, "3".to_owned())));
    Ok(())
}

#[tokio::test]
async fn the_command_line_follows_a_devices_life() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let mut command = Command::new(program()?);
    command.args(["devices", "watch", "pump*"]).args(nodes.cli_arguments(0)?);
    command.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
    let admin = nodes.admin(0)?;
    // It does not say when it listens.
    let mut count = 0;
    let created = async || {
        count += 1;
        admin.create_device(&format!("pump-early-{count}")).await.expect("created");
        let line = timeout(Duration::from_millis(300), lines.next_line()).await;
        line.ok().and_then(Result::ok).flatten()
    };
    let seen = until("a device to be seen", created, Option::is_some).await;
    assert!(seen.is_some_and(|line| line.ends_with(" created")));
    let key = admin.create_device("pump").await?;
    admin.create_device("fan").await?;
    drop(Device::connect(nodes.mqtt(0), "pump", &key).await?);
    let mut next = async || -> Result<String> {
        loop {
            let line = timeout(drover_tests::PATIENCE, lines.next_line()).await??;
            let line = line.context("it ended")?;
            if !line.contains("pump-early") {
                return Ok(line);
            }
        }
    };
    assert!(next().await?.ends_with(" pump created"));
    assert!(next().await?.ends_with(" pump connected at node 1 (epoch 1)"));
    assert!(next().await?.ends_with(" pump disconnected (epoch 1)"));
    Ok(())
}
