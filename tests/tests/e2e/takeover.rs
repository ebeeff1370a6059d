//! A device has one live connection; a new one ends the old one, wherever that is (P4).

use anyhow::Result;
use drover_tests::clients::Device;
use drover_tests::nodes::Nodes;

#[tokio::test]
async fn a_new_connection_ends_the_old_one_on_the_same_node() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    ends_the_old_one(&nodes, 0, 0).await
}

#[tokio::test]
async fn a_new_connection_ends_the_old_one_on_another_node() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    for (old, new) in [(0, 1), (1, 2), (2, 0)] {
        ends_the_old_one(&nodes, old, new).await?;
    }
    Ok(())
}

async fn ends_the_old_one(nodes: &Nodes, old: usize, new: usize) -> Result<()> {
    let id = format!("robot-{old}-{new}");
    let key = nodes.admin(0)?.create_device(&id).await?;
    let mut first = Device::connect(nodes.mqtt(old), &id, &key).await?;
    first.send("from the first").await?;
    let mut second = Device::connect(nodes.mqtt(new), &id, &key).await?;
    first.until_closed().await?;
    second.send("from the second").await?;
    let bodies: Vec<_> =
        nodes.admin(new)?.messages_of(&id).await?.into_iter().map(|message| message.body).collect();
    assert_eq!(bodies, [b"from the first".to_vec(), b"from the second".to_vec()]);
    Ok(())
}

#[tokio::test]
async fn stored_subscriptions_hold_on_another_node_without_subscribing_again() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("robot").await?;
    let mut first = Device::connect(nodes.mqtt(0), "robot", &key).await?;
    first.subscribe_twin().await?;
    let mut second = Device::connect(nodes.mqtt(1), "robot", &key).await?;
    nodes.admin(2)?.patch_desired("robot", &serde_json::json!({ "speed": 7 })).await?;
    assert_eq!(second.desired().await?.1["speed"], 7);
    Ok(())
}
