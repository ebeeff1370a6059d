//! A node may die at any time: the others serve what it held, and it comes back without help (P1, P2, P7).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use drover_proto::admin::{GetStatusRequest, NodeStatus};
use drover_tests::clients::{Device, number};
use drover_tests::nodes::Nodes;
use drover_tests::{until, until_ok};

/// More devices than shards, so that each node leads the shard of some.
const DEVICES: usize = 12;

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_each_node_in_turn() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let mut keys = BTreeMap::new();
    for number in 0..DEVICES {
        let id = format!("meter-{number}");
        let key = nodes.admin(0)?.create_device(&id).await?;
        keys.insert(id, key);
    }
    let mut acknowledged = Vec::new();
    for dead in 0..3 {
        nodes.kill(dead)?;
        let alive = (dead + 1) % 3;
        for (id, key) in &keys {
            let body = format!("{id} while node {dead} is dead");
            let address = nodes.mqtt(alive);
            until_ok("a device to send", async || {
                let mut device = Device::connect(address, id, key).await?;
                device.subscribe_twin().await?;
                anyhow::ensure!(device.report(&format!(r#"{{"round":{dead}}}"#)).await? == 204);
                device.send(&body).await
            })
            .await;
            acknowledged.push(body);
        }
        nodes.restart(dead)?;
        nodes.until_ready().await;
    }
    for index in 0..3 {
        let stored = nodes.admin(index)?.all_messages().await?;
        let bodies: Vec<_> =
            stored.iter().map(|message| String::from_utf8_lossy(&message.body)).collect();
        for body in &acknowledged {
            assert!(bodies.iter().any(|stored| stored == body), "{body:?} at node {}", index + 1);
        }
        for id in keys.keys() {
            let twin = nodes.admin(index)?.twin(id).await?;
            assert_eq!(number(twin.reported.as_ref(), "round"), Some(2.0), "{id}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_a_majority_nothing_is_acknowledged_and_it_goes_on_when_one_returns() -> Result<()>
{
    let mut nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("meter").await?;
    let mut device = Device::connect(nodes.mqtt(0), "meter", &key).await?;
    device.send("with three nodes").await?;
    nodes.kill(1)?;
    nodes.kill(2)?;
    assert!(device.send("with one node").await.is_err(), "one of three is no majority");
    nodes.restart(1)?;
    let address = nodes.mqtt(0);
    until_ok("two nodes to serve", async || {
        Device::connect(address, "meter", &key).await?.send("with two nodes").await
    })
    .await;
    // It reads all shards, and those of other devices find their leaders in their own time.
    let read = async || anyhow::Ok(nodes.admin(0)?.messages_of("meter").await?);
    let messages = until_ok("all shards to be read", read).await;
    let bodies: Vec<_> = messages.into_iter().map(|message| message.body).collect();
    assert_eq!(bodies.first().map(Vec::as_slice), Some(b"with three nodes".as_slice()));
    assert_eq!(bodies.last().map(Vec::as_slice), Some(b"with two nodes".as_slice()));
    Ok(())
}

#[tokio::test]
async fn a_node_that_gets_too_little_cpu_leads_nothing_and_nothing_is_lost() -> Result<()> {
    const STARVED: u32 = 1;
    let nodes = Nodes::start(3).await?;
    let admin = nodes.admin(1)?;
    let led = async || {
        let status = admin.cluster.clone().get_status(GetStatusRequest {}).await?.into_inner();
        let member = |node: &&NodeStatus| node.member.as_ref().map(|member| member.number);
        let node = status.nodes.iter().find(|node| member(node) == Some(STARVED));
        let node = node.context("it is a member")?;
        let leaders = status.shards.iter().map(|shard| shard.leader.context("a shard is led"));
        let leaders = leaders.collect::<Result<Vec<_>>>()?;
        anyhow::Ok((leaders.iter().filter(|leader| **leader == STARVED).count(), node.delay_ms))
    };
    let before = until_ok("all shards to be led", led).await;
    assert!(before.0 > 0 && before.1 < 40, "leaders and delay in ms: {before:?}");

    let key = admin.create_device("meter").await?;
    let starving = nodes.starve(0)?;
    let mut device = Device::connect(nodes.mqtt(1), "meter", &key).await?;
    let mut acknowledged = 0;
    until(
        "it to lead nothing, and to show why",
        async || {
            acknowledged += usize::from(device.send(&acknowledged.to_string()).await.is_ok());
            led().await
        },
        |led| matches!(led, Ok((0, delay_ms)) if *delay_ms >= 40),
    )
    .await?;
    device.send("after").await?;
    drop(starving);
    let stored = admin.messages_of("meter").await?.len();
    assert!(stored > acknowledged, "{stored} of {acknowledged} and one more");
    Ok(())
}
