//! A majority is lost for good: one node goes on alone when somebody says that they know what that costs, and not before.

use std::collections::BTreeMap;
use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use drover_proto::admin::{CreateJoinTokenRequest, GetStatusRequest, ShardStatus};
use drover_tests::clients::Device;
use drover_tests::nodes::{Nodes, program};
use drover_tests::{programs, until};
use tokio::process::Command;

/// Of so many devices each of a few shards has one.
const DEVICES_MAX: usize = 50;

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

/// A device of each shard, with its key.
async fn device_of_each_shard(
    nodes: &Nodes,
    count: usize,
) -> Result<BTreeMap<u32, (String, String)>> {
    let admin = nodes.admin(0)?;
    let mut devices = BTreeMap::new();
    for number in 0..DEVICES_MAX {
        let id = format!("logger-{number}");
        let key = admin.create_device(&id).await?;
        Device::connect(nodes.mqtt(0), &id, &key).await?.send("before").await?;
        let sent = admin.messages_of(&id).await?.pop().context("it was acknowledged")?;
        devices.entry(sent.shard).or_insert((id, key));
        if devices.len() == count {
            break;
        }
    }
    ensure!(devices.len() == count, "only shards {:?} have a device", devices.keys());
    Ok(devices)
}

#[tokio::test]
async fn shards_that_the_last_node_has_not_begin_empty_when_that_is_accepted_and_the_others_keep_theirs()
-> Result<()> {
    const LEFT: usize = 4;
    let mut nodes = Nodes::start(5).await?;
    let all = shards(&nodes, 0).await?;
    let all: Vec<ShardStatus> = all.into_iter().filter(|shard| shard.shard.is_some()).collect();
    let devices = device_of_each_shard(&nodes, all.len()).await?;
    let is_here = |shard: &ShardStatus| {
        shard.replicas.iter().any(|replica| usize::try_from(replica.node) == Ok(LEFT + 1))
    };
    let (here, lost): (Vec<_>, Vec<_>) = all.iter().partition(|shard| is_here(shard));
    let numbers = |shards: &[&ShardStatus]| shards.iter().filter_map(|of| of.shard).collect();
    let (here, lost): (Vec<u32>, Vec<u32>) = (numbers(&here), numbers(&lost));
    assert!(!here.is_empty() && !lost.is_empty(), "of five nodes each has some shards: {all:?}");
    let has_caught_up = |seen: &Result<Vec<ShardStatus>>| {
        seen.as_ref().is_ok_and(|shards| {
            let mut replicas = shards.iter().flat_map(|shard| &shard.replicas);
            replicas.all(|replica| replica.lag.unwrap_or(0) == 0)
        })
    };
    until("all to have everything", async || shards(&nodes, 0).await, has_caught_up).await?;
    for node in 0..5 {
        nodes.kill(node)?;
    }
    for gone in 0..LEFT {
        fs::remove_dir_all(nodes.data(gone))?;
    }

    let cluster = cluster_id(&recover(&nodes, LEFT, &["--json"]).await?)?;
    let refused = recover(&nodes, LEFT, &["--accept-loss", &cluster]).await?;
    let text = said(&refused);
    assert!(!refused.status.success() && text.contains("nothing was changed: all of"), "{text}");
    assert!(text.contains("--accept-empty-shards"), "it says how to accept that: {text}");
    for shard in &lost {
        assert!(text.contains(&format!("shard {shard}")), "it names shard {shard}: {text}");
    }
    let accepted = ["--accept-loss", &cluster, "--accept-empty-shards"];
    let recovered = recover(&nodes, LEFT, &accepted).await?;
    assert!(recovered.status.success(), "{}", said(&recovered));

    nodes.restart(LEFT)?;
    nodes.until_ready().await;
    let admin = nodes.admin(LEFT)?;
    for shard in here {
        let (id, key) = &devices[&shard];
        Device::connect(nodes.mqtt(LEFT), id, key).await?.send("after").await?;
        let found = admin.messages_of(id).await?;
        let bodies: Vec<&[u8]> = found.iter().map(|message| &*message.body).collect();
        assert_eq!(
            bodies,
            [b"before" as &[u8], b"after"],
            "shard {shard} goes on with what it had"
        );
    }
    for shard in lost {
        let (id, key) = &devices[&shard];
        assert!(Device::connect(nodes.mqtt(LEFT), id, key).await.is_err(), "{id} is lost");
        let key = admin.create_device(id).await?;
        Device::connect(nodes.mqtt(LEFT), id, &key).await?.send("anew").await?;
        let found = admin.messages_of(id).await?;
        assert_eq!((found.len(), found[0].offset), (1, 0), "shard {shard} has begun empty");
    }
    Ok(())
}

fn cluster_id(survey: &Output) -> Result<String> {
    let survey: serde_json::Value = serde_json::from_slice(&survey.stdout)?;
    Ok(survey["cluster"].as_str().context("the id of the cluster")?.to_owned())
}
