//! Nodes that come and go while devices publish: real processes, certificates signed by the cluster, empty folders.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use drover_core::level;
use drover_proto::admin::{
    ClusterStatus, CreateJoinTokenRequest, DrainNodeRequest, GetStatusRequest, JoinRequest,
    NodeStatus, RemoveNodeRequest,
};
use drover_tests::clients::{Admin, Device};
use drover_tests::nodes::{Nodes, join_credential, program};
use drover_tests::{programs, until, until_ok};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Devices that publish through whichever node takes them, until they are told to stop.
struct Publishing {
    stop: Arc<AtomicBool>,
    acknowledged: JoinHandle<Vec<String>>,
}

impl Publishing {
    async fn start(nodes: &Nodes, through: Vec<SocketAddr>) -> Result<Self> {
        let mut keys = Vec::new();
        for number in 0..8 {
            let id = format!("meter-{number}");
            let key = nodes.admin(0)?.create_device(&id).await?;
            keys.push((id, key));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let acknowledged = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut devices: Vec<Option<Device>> = keys.iter().map(|_| None).collect();
            let mut attempts = through.iter().cycle();
            while !stopped.load(Ordering::Relaxed) {
                for ((id, key), device) in keys.iter().zip(&mut devices) {
                    let body = format!("{id} {}", acknowledged.len());
                    let Some(connected) = device else {
                        let address = *attempts.next().expect("there is one at least");
                        *device = Device::connect(address, id, key).await.ok();
                        continue;
                    };
                    match connected.send(&body).await {
                        Ok(()) => acknowledged.push(body),
                        // Unknown: it may be stored or not.
                        Err(_) => *device = None,
                    }
                }
            }
            acknowledged
        });
        Ok(Self { stop, acknowledged })
    }

    /// Everything that was acknowledged is there, whichever of these nodes is asked.
    async fn check(self, nodes: &Nodes, at: &[usize]) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.acknowledged.await?;
        ensure!(acknowledged.len() > 100, "{} messages mean nothing", acknowledged.len());
        for index in at {
            let stored = nodes.admin(*index)?.all_messages().await?;
            let bodies: BTreeSet<_> =
                stored.iter().map(|message| String::from_utf8_lossy(&message.body)).collect();
            for body in &acknowledged {
                assert!(bodies.contains(body.as_str()), "{body:?} at node {}", index + 1);
            }
        }
        Ok(())
    }
}

async fn status(nodes: &Nodes, asked: usize) -> Result<ClusterStatus> {
    let cluster = nodes.admin(asked)?.cluster;
    Ok(cluster.clone().get_status(GetStatusRequest {}).await?.into_inner())
}

fn node(status: &ClusterStatus, number: u32) -> Option<&NodeStatus> {
    status.nodes.iter().find(|node| node.member.as_ref().is_some_and(|m| m.number == number))
}

/// Replicas and led groups of a node, once nothing moves.
async fn share(nodes: &Nodes, asked: usize, number: u32) -> Result<(u32, u32)> {
    let status = status(nodes, asked).await?;
    ensure!(status.moves.is_empty(), "{:?}", status.moves);
    let node = node(&status, number).context("it is no member")?;
    ensure!(node.reachable, "it is not reachable");
    Ok((node.replicas, node.leaders))
}

async fn until_it_has_its_share(nodes: &Nodes, number: u32) {
    until_ok("the new node to have its share", async || {
        let (replicas, leaders) = share(nodes, 2, number).await?;
        // Of twelve replicas and four leaders over four nodes, or five, one of which leads nothing then.
        let leaders_min = u32::from(number == 4);
        ensure!(replicas >= 2 && leaders >= leaders_min, "{replicas} replicas, {leaders} leaders");
        anyhow::Ok(())
    })
    .await;
}

async fn token(nodes: &Nodes, ttl_seconds: u32) -> Result<String> {
    let request = CreateJoinTokenRequest { ttl_seconds };
    let made = nodes.admin(0)?.members.clone().create_join_token(request).await?;
    Ok(made.into_inner().token)
}

/// As an operator does it.
async fn cluster_command(nodes: &Nodes, asked: usize, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command.arg("cluster").args(arguments).args(nodes.cli_arguments(asked)?);
    programs::run(&mut command).await
}

#[tokio::test]
async fn a_move_shows_how_much_of_a_snapshot_is_copied() -> Result<()> {
    let settings = [("raft.log_entries_kept", "10"), ("raft.snapshot_rate", "128KiB")];
    let mut nodes = Nodes::start_with(3, &settings).await?;
    let admin = nodes.admin(0)?;
    // More devices than shards, so that whichever moves has something to copy.
    for number in 0..12 {
        let id = format!("meter-{number}");
        let key = admin.create_device(&id).await?;
        let mut device = Device::connect(nodes.mqtt(0), &id, &key).await?;
        let topic = device.events();
        for _ in 0..20 {
            // Nothing shortens it.
            let body: Vec<u8> = (0..8_192).map(|_| rand::random()).collect();
            device.publish(&topic, &body).await?;
        }
    }
    let token = token(&nodes, 300).await?;
    nodes.join(&token)?;
    let received = until(
        "a part of a snapshot to be there",
        async || {
            let status = status(&nodes, 0).await.ok()?;
            status.moves.iter().find_map(|m| m.received_bytes.filter(|bytes| *bytes > 0))
        },
        Option::is_some,
    )
    .await;
    assert!(received.is_some_and(|bytes| bytes < 12 * 20 * 10_000), "{received:?}");
    Ok(())
}

#[tokio::test]
async fn a_cluster_grows_loses_nodes_and_keeps_everything_that_was_acknowledged() -> Result<()> {
    // So short a log that what a new replica lacks has to come as a snapshot.
    let mut nodes = Nodes::start_with(3, &[("raft.log_entries_kept", "50")]).await?;
    let publishing =
        Publishing::start(&nodes, (0..3).map(|index| nodes.mqtt(index)).collect()).await?;
    for number in [4, 5] {
        let token = cluster_command(&nodes, 1, &["join-token"]).await?;
        let joined = nodes.join(token.trim())?;
        until_it_has_its_share(&nodes, number).await;
        // It is a member like any other now: it needs no token to come back.
        nodes.kill(joined)?;
        nodes.restart(joined)?;
        nodes.until_ready().await;
    }

    cluster_command(&nodes, 1, &["drain", "1"]).await?;
    until(
        "the drained node to hold nothing",
        async || {
            let status = status(&nodes, 2).await.ok()?;
            let node = node(&status, 1)?;
            Some((node.replicas, node.leaders, node.sessions, status.moves.len()))
        },
        |seen| *seen == Some((0, 0, 0, 0)),
    )
    .await;
    let ready = nodes.get(0, "/readyz").await.expect_err("it takes no devices");
    assert!(ready.to_string().contains("drained"), "{ready}");
    cluster_command(&nodes, 1, &["remove", "1"]).await?;

    nodes.kill(1)?;
    until_ok("the death of node 2 to be noticed, and its removal", async || {
        cluster_command(&nodes, 2, &["remove", "2"]).await
    })
    .await;
    until_ok("what node 2 held to be elsewhere", async || {
        let status = status(&nodes, 2).await?;
        ensure!(status.nodes.len() == 3 && status.moves.is_empty(), "{:?}", status.moves);
        let is_whole = |shard: &drover_proto::admin::ShardStatus| {
            shard.replicas.len() == 3 && shard.replicas.iter().all(|r| r.problem.is_empty())
        };
        ensure!(status.shards.iter().all(is_whole), "{:?}", status.shards);
        anyhow::Ok(())
    })
    .await;
    until(
        "the removed node to say so",
        async || nodes.get(0, "/readyz").await,
        |ready| ready.as_ref().is_err_and(|error| error.to_string().contains("removed")),
    )
    .await
    .expect_err("it waited for an error");
    publishing.check(&nodes, &[2, 3, 4]).await
}

/// What a node asks for that joins. Where nothing is signed its key does not matter.
fn request(number: u32) -> JoinRequest {
    use rcgen::PublicKeyData as _;
    let key = rcgen::KeyPair::generate().expect("ring makes keys");
    JoinRequest {
        number: Some(number),
        peer_address: format!("127.0.0.1:{}", 1_000 + number),
        admin_address: "localhost:1".to_owned(),
        public_key: key.subject_public_key_info(),
        format: 1,
        unix_ms: UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64,
        feature_level: level::supported().get().into(),
        ..JoinRequest::default()
    }
}

/// Asks a cluster of one node as somebody who has this token.
async fn join(nodes: &Nodes, token: &str, asked: JoinRequest) -> Result<Result<u32, Status>> {
    let credential = join_credential(token)?;
    let admin = Admin::with_credential(&nodes.ca(), nodes.grpc(0), Some(&credential))?;
    let answer = admin.members.clone().join(asked).await;
    Ok(answer.map(|joined| joined.into_inner().number))
}

async fn refused(nodes: &Nodes, token: &str, asked: JoinRequest) -> Result<(Code, String)> {
    let status = join(nodes, token, asked).await?.err().context("it was let in")?;
    Ok((status.code(), status.message().to_owned()))
}

#[tokio::test]
async fn a_token_that_is_used_expired_or_foreign_is_refused_and_so_is_a_node_that_does_not_fit()
-> Result<()> {
    let nodes = Nodes::start(1).await?;
    let fresh = token(&nodes, 60).await?;
    let mut late = request(7);
    late.unix_ms -= 300_000;
    let (code, text) = refused(&nodes, &fresh, late).await?;
    assert!(code == Code::FailedPrecondition && text.contains("300 s behind"), "{text}");
    let newer = JoinRequest { format: 99, ..request(7) };
    let (code, text) = refused(&nodes, &fresh, newer).await?;
    assert!(code == Code::FailedPrecondition && text.contains("format 99"), "{text}");
    let (code, text) = refused(&nodes, &fresh, request(1)).await?;
    assert!(code == Code::AlreadyExists && text.contains("a node 1 already"), "{text}");

    let seventh = request(7);
    assert_eq!(join(&nodes, &fresh, seventh.clone()).await?.ok(), Some(7));
    assert_eq!(join(&nodes, &fresh, seventh).await?.ok(), Some(7), "its answer may have been lost");
    let (code, text) = refused(&nodes, &fresh, request(8)).await?;
    assert!(code == Code::Unauthenticated && text.contains("used by node 7"), "{text}");

    let other = Nodes::start(1).await?;
    let (code, text) = refused(&nodes, &token(&other, 60).await?, request(8)).await?;
    assert!(code == Code::Unauthenticated && text.contains("another cluster's"), "{text}");

    let brief = token(&nodes, 1).await?;
    // A number that is taken: until the token expires it is refused for that, and stays unused.
    until(
        "the token to expire",
        async || refused(&nodes, &brief, request(1)).await,
        |seen| seen.as_ref().is_ok_and(|(_, text)| text.contains("has expired")),
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_cannot_join_ends_and_says_what_to_do() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let used = token(&nodes, 60).await?;
    join(&nodes, &used, request(7)).await??;
    let fresh = token(&nodes, 60).await?;
    let empty = nodes.folder().join("empty");
    let occupied = nodes.data(0);
    let attempt = async |token: &str, data: &Path, more: &[&str]| -> Result<String> {
        let mut command = Command::new(program()?);
        command.args(["node", "--join", token, "--peer-address", "127.0.0.1:9", "--data"]);
        let ended = programs::output(command.arg(data).args(more)).await?;
        ensure!(!ended.status.success(), "it has joined");
        Ok(String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    let cases = [
        (attempt("drover-join-1.AAAA", &empty, &[]).await?, "copy all of what"),
        (attempt(&used, &empty, &[]).await?, "make a new one for each node"),
        (attempt(&fresh, &empty, &["--number", "7"]).await?, "choose another number"),
        (attempt(&fresh, &occupied, &[]).await?, "join with an empty folder"),
    ];
    for (said, expected) in cases {
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_removal_that_would_lose_a_quorum_is_refused_with_the_reason() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let members = nodes.admin(0)?.members;
    let remove = async |number| {
        let removed = members.clone().remove_node(RemoveNodeRequest { number }).await;
        removed.err().map(|status| (status.code(), status.message().to_owned()))
    };
    let (code, text) = remove(3).await.context("it is alive")?;
    assert!(code == Code::FailedPrecondition && text.contains("drain it first"), "{text}");
    members.clone().drain_node(DrainNodeRequest { number: 3, keep_replicas: false }).await?;
    let (code, text) = remove(3).await.context("nobody else can take what it has")?;
    assert!(code == Code::FailedPrecondition && text.contains("drain it first"), "{text}");

    nodes.kill(2)?;
    until(
        "the death of one of three to be noticed",
        async || remove(3).await,
        |refused| {
            refused.as_ref().is_some_and(|(_, text)| text.contains("join another node first"))
        },
    )
    .await;
    nodes.kill(1)?;
    until(
        "the death of two of three to be noticed",
        async || remove(3).await,
        |refused| {
            refused.as_ref().is_some_and(|(code, text)| {
                *code == Code::FailedPrecondition && text.contains("would lose its quorum")
            })
        },
    )
    .await;
    Ok(())
}
