//! What `/metrics` says while the hub works: every figure that the operators' page promises, with a value that fits.

use anyhow::Result;
use drover_chaos::http::metric;
use drover_tests::clients::Device;
use drover_tests::nodes::Nodes;
use drover_tests::{until, until_ok};

const MESSAGES: u32 = 20;

async fn sum(nodes: &Nodes, running: &[usize], name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for index in running {
        // A node shows what it has counted at least once.
        sum += metric(&nodes.get(*index, "/metrics").await?, name).unwrap_or_default();
    }
    Ok(sum)
}

async fn commands_are_counted_where_they_are_led(nodes: &Nodes, device: &mut Device) -> Result<()> {
    device.subscribe_commands(1).await?;
    nodes.admin(1)?.send_command("gauge-1", "open").await?;
    let received = device.command().await?;
    device.complete(&received).await?;
    for name in [
        "drover_actors_commands_queued_total",
        "drover_actors_commands_delivered_total",
        "drover_actors_commands_ended_total{ending=\"completed\"}",
        "drover_actors_mailbox_depth_count",
    ] {
        let counted = async || sum(nodes, &[0, 1, 2], name).await.unwrap_or_default();
        until(name, counted, |count| (*count - 1.0).abs() < f64::EPSILON).await;
    }
    Ok(())
}

#[tokio::test]
async fn each_promised_figure_is_there_and_true() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("gauge-1").await?;
    let mut device = Device::connect(nodes.mqtt(0), "gauge-1", &key).await?;
    for number in 0..MESSAGES {
        device.send(&number.to_string()).await?;
    }
    let page = nodes.get(0, "/metrics").await?;
    for (what, name, expected) in [
        ("throughput", "drover_mqtt_messages_total", f64::from(MESSAGES)),
        ("acknowledgement latency", "drover_mqtt_ack_seconds_count", f64::from(MESSAGES)),
        ("sessions", "drover_actors_sessions", 1.0),
        ("connections", "drover_mqtt_connections", 1.0),
    ] {
        assert_eq!(metric(&page, name), Some(expected), "{what}");
    }
    for (what, name) in [
        ("fsync time", "drover_storage_fsync_seconds_sum"),
        ("fsync batch size", "drover_storage_sync_batch_size_count"),
        ("memory", "drover_process_resident_bytes"),
    ] {
        assert!(metric(&page, name).is_some_and(|value| value > 0.0), "{what}: {page}");
    }
    // Whichever node leads the shard of the device.
    let all = [0, 1, 2];
    for (what, name, at_least) in [
        ("actors", "drover_actors_active_devices", 1.0),
        ("entry size", "drover_actors_entry_changes_count", 1.0),
        ("leaders", "drover_raft_led_groups", 1.0),
    ] {
        let seen = until_ok(what, async || {
            let sum = sum(&nodes, &all, name).await?;
            anyhow::ensure!(sum >= at_least, "{name} is {sum}");
            Ok(sum)
        });
        seen.await;
    }
    assert!(!page.contains("gauge-1"), "no device is named");
    commands_are_counted_where_they_are_led(&nodes, &mut device).await?;

    nodes.kill(2)?;
    let address = nodes.mqtt(0);
    until_ok("the others to go on", async || {
        Device::connect(address, "gauge-1", &key).await?.send("one is away").await
    })
    .await;
    let behind = |name| sum(&nodes, &[0, 1], name);
    until(
        "a replica that is away to be seen as behind",
        async || {
            let lag = behind("drover_raft_replica_lag_entries").await.unwrap_or_default();
            lag + behind("drover_raft_silent_replicas").await.unwrap_or_default()
        },
        |behind| *behind > 0.0,
    )
    .await;
    Ok(())
}
