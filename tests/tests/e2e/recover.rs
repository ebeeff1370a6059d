//! A majority is lost for good: one node goes on alone when somebody says that they know what that costs, and not before.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result};
use drover_proto::admin::{CreateJoinTokenRequest, GetStatusRequest, ShardStatus};
use drover_tests::clients::Device;
use drover_tests::nodes::{Nodes, program};
use drover_tests::{programs, until};
use tokio::process::Command;

/// At a node, by the configuration that it was started with.
async fn recover(nodes: &Nodes, index: usize, arguments: &[&str]) -> Result<Output> {
    let mut drover = Command::new(program()?);
    drover.args(["cluster", "recover", "--config"]).arg(nodes.config(index)).args(arguments);
    programs::output(&mut drover).await
}

fn said(output: &Output) -> String {
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    texts.concat()
}

async fn shards(nodes: &Nodes, index: usize) -> Result<Vec<ShardStatus>> {
    let status = nodes.admin(index)?.cluster.clone().get_status(GetStatusRequest {}).await?;
    Ok(status.into_inner().shards)
}

#[tokio::test]
async fn the_last_node_of_three_goes_on_alone_with_what_it_has_and_grows_again() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let admin = nodes.admin(2)?;
    let key = admin.create_device("logger").await?;
    admin.patch_desired("logger", &serde_json::json!({ "level": 3 })).await?;
    admin.send_command("logger", "wait").await?;
    let mut device = Device::connect(nodes.mqtt(0), "logger", &key).await?;
    for number in 0..100 {
        device.send(&format!("before {number}")).await?;
    }
    let (sent, twin) = (admin.messages_of("logger").await?, admin.twin("logger").await?);
    let caught_up = async || shards(&nodes, 2).await;
    let is_level = |seen: &Result<Vec<ShardStatus>>| {
        seen.as_ref().is_ok_and(|shards| {
            let mut replicas = shards.iter().flat_map(|shard| &shard.replicas);
            // The leader is not behind itself.
            replicas.all(|replica| replica.lag.unwrap_or(0) == 0)
        })
    };
    until("all replicas to have everything", caught_up, is_level).await?;

    let running = recover(&nodes, 2, &["--accept-loss", "any"]).await?;
    assert!(!running.status.success() && said(&running).contains("stopped"), "{}", said(&running));
    nodes.kill(2)?;
    let cluster = cluster_id(&recover(&nodes, 2, &["--json"]).await?)?;
    let early = recover(&nodes, 2, &["--accept-loss", &cluster]).await?;
    assert!(!early.status.success(), "two of three live");
    assert!(said(&early).contains("a majority: start it"), "{}", said(&early));

    for lost in [0, 1] {
        nodes.kill(lost)?;
        fs::remove_dir_all(nodes.data(lost))?;
    }
    for unsure in [&[][..], &["--accept-loss", "another-cluster"]] {
        let refused = recover(&nodes, 2, unsure).await?;
        assert!(!refused.status.success());
        let text = said(&refused);
        assert!(text.contains("nothing was changed") && text.contains(&cluster), "{text}");
        assert!(
            text.contains("LOST VOTERS") && text.contains("1 2"),
            "it says what is lost: {text}"
        );
    }
    let recovered = recover(&nodes, 2, &["--accept-loss", &cluster]).await?;
    assert!(recovered.status.success(), "{}", said(&recovered));
    let again = recover(&nodes, 2, &["--accept-loss", &cluster]).await?;
    assert!(!again.status.success(), "once is enough: {}", said(&again));

    nodes.restart(2)?;
    nodes.until_ready().await;
    let admin = nodes.admin(2)?;
    let found = admin.messages_of("logger").await?;
    assert_eq!(found, sent, "all of it, where it was");
    assert_eq!(admin.twin("logger").await?, twin);
    let mut device = Device::connect(nodes.mqtt(2), "logger", &key).await?;
    device.subscribe_commands(1).await?;
    assert_eq!(device.command().await?.text(), "wait");
    device.send("after").await?;

    for _ in 0..2 {
        let mut members = admin.members.clone();
        let made = members.create_join_token(CreateJoinTokenRequest::default()).await?;
        nodes.join(&made.into_inner().token)?;
    }
    let replicas = async || shards(&nodes, 2).await;
    let is_whole = |seen: &Result<Vec<ShardStatus>>| {
        seen.as_ref().is_ok_and(|shards| shards.iter().all(|shard| shard.replicas.len() == 3))
    };
    until("three replicas of everything", replicas, is_whole).await?;
    assert_eq!(nodes.admin(3)?.messages_of("logger").await?.len(), 101, "a new node serves");
    Ok(())
}

fn cluster_id(survey: &Output) -> Result<String> {
    let survey: serde_json::Value = serde_json::from_slice(&survey.stdout)?;
    Ok(survey["cluster"].as_str().context("the id of the cluster")?.to_owned())
}
