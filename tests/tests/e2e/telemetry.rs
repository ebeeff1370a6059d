//! Telemetry that was acknowledged is read back where its offset says (P1).

use anyhow::Result;
use drover_tests::clients::Device;
use drover_tests::nodes::Nodes;
use drover_tests::until_ok;

const MESSAGES: usize = 20;

#[tokio::test]
async fn acknowledged_telemetry_is_read_back_at_its_offset_from_every_node() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("pump").await?;
    let mut device = Device::connect(nodes.mqtt(0), "pump", &key).await?;
    for number in 0..MESSAGES {
        device.send(&number.to_string()).await?;
    }
    let stored = nodes.admin(0)?.messages_of("pump").await?;
    let bodies: Vec<_> = stored.iter().map(|message| message.body.clone()).collect();
    let sent: Vec<_> = (0..MESSAGES).map(|number| number.to_string().into_bytes()).collect();
    assert_eq!(bodies, sent, "each once, in the order in which they were sent");
    for index in 0..3 {
        let admin = nodes.admin(index)?;
        for message in &stored {
            let again = admin.read(message.shard, message.offset, 1).await?;
            assert_eq!(again.first(), Some(message), "asked at node {}", index + 1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn properties_of_a_message_are_kept() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("pump").await?;
    let mut device = Device::connect(nodes.mqtt(0), "pump", &key).await?;
    let topic =
        format!("{}$.ct=application%2Fjson&$.mid=m-1&floor=2%20east&empty=&null", device.events());
    device.publish(&topic, b"{}").await?;
    let message = nodes.admin(0)?.messages_of("pump").await?.remove(0);
    let of = |properties: &[drover_proto::admin::Property]| {
        let mut pairs: Vec<_> = properties
            .iter()
            .map(|property| (property.key.clone(), property.value.clone()))
            .collect();
        pairs.sort();
        pairs
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        of(&message.application_properties),
        [("empty".into(), text("")), ("floor".into(), text("2 east")), ("null".into(), None)]
    );
    let system = of(&message.system_properties);
    assert!(system.contains(&("content-type".into(), text("application/json"))), "{system:?}");
    assert!(system.contains(&("message-id".into(), text("m-1"))), "{system:?}");
    Ok(())
}

#[tokio::test]
async fn a_restart_keeps_devices_twins_and_telemetry() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("pump").await?;
    let mut device = Device::connect(nodes.mqtt(0), "pump", &key).await?;
    device.send("before").await?;
    device.subscribe_twin().await?;
    assert_eq!(device.report(r#"{"pressure":3}"#).await?, 204);
    let twin = nodes.admin(0)?.twin("pump").await?;

    assert_eq!(nodes.stop(0)?, Some(0), "an orderly stop");
    nodes.restart(0)?;
    nodes.until_ready().await;

    let admin = nodes.admin(0)?;
    assert_eq!(until_ok("the twin", async || admin.twin("pump").await).await, twin);
    let mut device = Device::connect(nodes.mqtt(0), "pump", &key).await?;
    device.send("after").await?;
    let bodies: Vec<_> =
        admin.messages_of("pump").await?.into_iter().map(|message| message.body).collect();
    assert_eq!(bodies, [b"before".to_vec(), b"after".to_vec()]);
    Ok(())
}
