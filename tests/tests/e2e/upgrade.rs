//! Upgrades of a running cluster, node by node: builds of two feature levels side by side, under load.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_proto::admin::{ClusterStatus, GetStatusRequest, NodeStatus, RenameClusterRequest};
use drover_tests::clients::Device;
use drover_tests::nodes::{Build, Nodes, program};
use drover_tests::{programs, until, until_ok};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

const DEVICES: usize = 12;
/// Between two messages of a device, and two attempts to connect.
const PACE: Duration = Duration::from_millis(20);

/// What became of one device.
struct Log {
    id: String,
    acknowledged: Vec<String>,
    /// Connections that ended while it used them.
    interruptions: usize,
}

/// What devices are told while they run.
#[derive(Clone)]
struct Orders {
    nodes: Vec<SocketAddr>,
    stop: bool,
}

/// Devices that publish through whichever node takes them: each tries one after the other.
struct Fleet {
    orders: watch::Sender<Orders>,
    devices: JoinSet<Log>,
}

impl Fleet {
    async fn start(nodes: &Nodes, through: Vec<SocketAddr>) -> Result<Self> {
        let (orders, seen) = watch::channel(Orders { nodes: through, stop: false });
        let mut devices = JoinSet::new();
        for number in 0..DEVICES {
            let id = format!("meter-{number}");
            let key = nodes.admin(0)?.create_device(&id).await?;
            devices.spawn(publish(id, key, number, seen.clone()));
        }
        Ok(Self { orders, devices })
    }

    /// From now on devices know this node, too.
    fn learn(&self, node: SocketAddr) {
        self.orders.send_modify(|orders| orders.nodes.push(node));
    }

    async fn stop(self) -> Vec<Log> {
        self.orders.send_modify(|orders| orders.stop = true);
        self.devices.join_all().await
    }
}

async fn publish(id: String, key: String, first: usize, orders: watch::Receiver<Orders>) -> Log {
    let mut log = Log { id, acknowledged: Vec::new(), interruptions: 0 };
    let (mut connection, mut attempts, mut sent) = (None, first, 0);
    loop {
        let Orders { nodes, stop } = orders.borrow().clone();
        if stop {
            return log;
        }
        let Some(device) = &mut connection else {
            connection = Device::connect(nodes[attempts % nodes.len()], &log.id, &key).await.ok();
            attempts += 1;
            tokio::time::sleep(PACE).await;
            continue;
        };
        let body = format!("{} {sent}", log.id);
        sent += 1;
        if device.send(&body).await.is_ok() {
            log.acknowledged.push(body);
        } else {
            // Whether it was stored is not known.
            (connection, log.interruptions) = (None, log.interruptions + 1);
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn status(nodes: &Nodes, asked: usize) -> Result<ClusterStatus> {
    let cluster = nodes.admin(asked)?.cluster;
    Ok(cluster.clone().get_status(GetStatusRequest {}).await?.into_inner())
}

fn node(status: &ClusterStatus, index: usize) -> Option<&NodeStatus> {
    let number = index as u32 + 1;
    status.nodes.iter().find(|node| node.member.as_ref().is_some_and(|m| m.number == number))
}

fn levels(status: &ClusterStatus) -> (u32, Vec<u32>) {
    (status.active_level, status.nodes.iter().map(|node| node.feature_level).collect())
}

/// As an operator does it.
async fn cluster_command(nodes: &Nodes, asked: usize, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command.arg("cluster").args(arguments).args(nodes.cli_arguments(asked)?);
    programs::run(&mut command).await
}

/// Drains a node, stops it, and starts it with the new build, as `docs/operations.md` has it. `asked`: another one.
async fn upgrade(nodes: &mut Nodes, index: usize, asked: usize) -> Result<()> {
    let number = (index + 1).to_string();
    let replicas = node(&status(nodes, asked).await?, index).context("a member")?.replicas;
    cluster_command(nodes, asked, &["drain", &number, "--keep-replicas"]).await?;
    until(
        "the node to lead nothing and hold no session",
        async || {
            let status = status(nodes, asked).await.ok()?;
            let node = node(&status, index)?;
            Some((node.leaders, node.sessions, node.replicas, status.moves.len()))
        },
        |seen| *seen == Some((0, 0, replicas, 0)),
    )
    .await;
    ensure!(nodes.stop(index)? == Some(0), "it did not stop in order");
    nodes.set_build(index, Build::Current);
    nodes.restart(index)?;
    until(
        "the node to be back with the new build",
        async || status(nodes, asked).await.ok(),
        |seen| {
            let node = seen.as_ref().and_then(|status| node(status, index));
            node.is_some_and(|node| node.reachable && node.feature_level == 2)
        },
    )
    .await;
    cluster_command(nodes, asked, &["undrain", &number]).await?;
    nodes.until_ready().await;
    Ok(())
}

/// A fourth node with the new build comes first. So devices that lose an old node find a new one, and none is interrupted twice.
#[tokio::test]
async fn a_rolling_upgrade_loses_nothing_and_interrupts_each_device_once() -> Result<()> {
    let mut nodes = Nodes::start_older(3).await?;
    let fleet = Fleet::start(&nodes, (0..3).map(|index| nodes.mqtt(index)).collect()).await?;
    until(
        "all devices to be connected, to all nodes",
        async || status(&nodes, 0).await.map(|s| s.nodes.iter().map(|n| n.sessions).collect()),
        |seen: &Result<Vec<u32>>| {
            let is_spread = |sessions: &Vec<u32>| sessions.iter().all(|count| *count > 0);
            seen.as_ref().is_ok_and(|s| is_spread(s) && s.iter().sum::<u32>() == DEVICES as u32)
        },
    )
    .await?;

    let token = cluster_command(&nodes, 1, &["join-token"]).await?;
    let spare = nodes.join(token.trim())?;
    nodes.until_ready().await;
    until(
        "the new node to have its share",
        async || status(&nodes, spare).await.ok().map(|s| (s.moves.len(), s.nodes[spare].replicas)),
        |seen| seen.is_some_and(|(moves, replicas)| moves == 0 && replicas >= 3),
    )
    .await;
    fleet.learn(nodes.mqtt(spare));
    assert_eq!(levels(&status(&nodes, 0).await?), (1, vec![1, 1, 1, 2]));
    let members = nodes.admin(spare)?.members;
    let rename = async || {
        let request = RenameClusterRequest { name: "Plant North".to_owned() };
        members.clone().rename_cluster(request).await
    };
    let refused = rename().await.expect_err("three nodes could not read it");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("needs feature level 2"), "{refused}");

    for index in 0..3 {
        assert_eq!(status(&nodes, spare).await?.active_level, 1, "node {} is old", index + 1);
        upgrade(&mut nodes, index, spare).await?;
    }
    until(
        "the feature level to rise by itself",
        async || status(&nodes, 0).await.ok().map(|status| levels(&status)),
        |seen| *seen == Some((2, vec![2; 4])),
    )
    .await;
    until_ok("a node to have heard of it, and the cluster to be renamed", rename).await;
    let shown = cluster_command(&nodes, 2, &["status"]).await?;
    assert!(shown.contains("Plant North") && shown.contains("feature level 2"), "{shown}");

    let logs = fleet.stop().await;
    let interruptions: Vec<usize> = logs.iter().map(|log| log.interruptions).collect();
    assert_eq!(interruptions, [1; DEVICES], "each was at a node that was restarted");
    for index in 0..4 {
        let stored = nodes.admin(index)?.all_messages().await?;
        let stored: BTreeSet<_> = stored.iter().map(|m| String::from_utf8_lossy(&m.body)).collect();
        for log in &logs {
            assert!(log.acknowledged.len() > 20, "{} of {}", log.acknowledged.len(), log.id);
            let lost = log.acknowledged.iter().find(|body| !stored.contains(body.as_str()));
            assert_eq!(lost, None, "at node {}", index + 1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_build_that_is_too_old_refuses_to_start_and_says_what_to_do() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    assert_eq!(levels(&status(&nodes, 0).await?), (2, vec![2; 3]), "new clusters begin with it");
    ensure!(nodes.stop(2)? == Some(0), "it did not stop in order");
    nodes.set_build(2, Build::Older);
    nodes.restart(2)?;
    assert_eq!(nodes.wait_for_end(2)?, Some(12));
    let log = nodes.log(2);
    assert!(log.contains("supports feature level 1, and the cluster is at 2"), "{log}");
    nodes.set_build(2, Build::Current);
    nodes.restart(2)?;
    nodes.until_ready().await;

    // One that has missed the rise, or has an empty folder, hears it from the members.
    let token = cluster_command(&nodes, 0, &["join-token"]).await?;
    let outsider = nodes.join_as(token.trim(), Build::Older)?;
    assert_ne!(nodes.wait_for_end(outsider)?, Some(0));
    assert!(nodes.log(outsider).contains("the cluster is at 2"), "{}", nodes.log(outsider));
    Ok(())
}

#[tokio::test]
async fn a_level_that_is_held_lets_every_node_go_back_to_the_build_before() -> Result<()> {
    let mut nodes = Nodes::start_older(3).await?;
    cluster_command(&nodes, 0, &["upgrade", "hold"]).await?;
    for index in 0..3 {
        upgrade(&mut nodes, index, (index + 1) % 3).await?;
    }
    let shown = cluster_command(&nodes, 0, &["status"]).await?;
    assert!(shown.contains("Feature level 2 is held: drover cluster upgrade finish"), "{shown}");
    assert_eq!(levels(&status(&nodes, 1).await?), (1, vec![2; 3]));

    ensure!(nodes.stop(0)? == Some(0), "it did not stop in order");
    nodes.set_build(0, Build::Older);
    nodes.restart(0)?;
    nodes.until_ready().await;
    until(
        "the node to say that it is an older one again",
        async || status(&nodes, 1).await.ok().map(|status| levels(&status)),
        |seen| *seen == Some((1, vec![1, 2, 2])),
    )
    .await;
    let finished = cluster_command(&nodes, 1, &["upgrade", "finish"]).await?;
    assert!(finished.contains("rises when these nodes are upgraded: 1"), "{finished}");
    upgrade(&mut nodes, 0, 1).await?;
    until(
        "the feature level to rise",
        async || status(&nodes, 1).await.ok().map(|status| levels(&status)),
        |seen| *seen == Some((2, vec![2; 3])),
    )
    .await;
    Ok(())
}
