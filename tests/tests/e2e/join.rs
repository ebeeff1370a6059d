//! Nodes that join a running cluster by a token: real processes, certificates signed by the cluster, an empty folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use drover_proto::admin::{
    CreateJoinTokenRequest, GetStatusRequest, JoinRequest, RemoveNodeRequest,
};
use drover_tests::clients::{Admin, Device};
use drover_tests::nodes::{Nodes, program};
use drover_tests::{programs, until_ok};
use tokio::process::Command;
use tonic::Code;

/// What a node's certificate is asked for: the key does not matter where nothing is signed.
fn request(number: u32) -> JoinRequest {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    JoinRequest {
        number: Some(number),
        peer_address: format!("127.0.0.1:{}", 1_000 + number),
        admin_address: "localhost:1".to_owned(),
        public_key: rcgen_key(),
        format: 1,
        unix_ms: now.as_millis() as u64,
        ..JoinRequest::default()
    }
}

fn rcgen_key() -> Vec<u8> {
    use rcgen::PublicKeyData as _;
    rcgen::KeyPair::generate().expect("ring makes keys").subject_public_key_info()
}

async fn token(nodes: &Nodes, index: usize) -> Result<String> {
    let request = CreateJoinTokenRequest { ttl_seconds: 60 };
    let made = nodes.admin(index)?.members.clone().create_join_token(request).await?;
    Ok(made.into_inner().token)
}

/// A client that presents a join token.
fn joining(nodes: &Nodes, token: &str) -> Result<Admin> {
    let credential = drover_tests::nodes::join_credential(token)?;
    Admin::with_credential(&nodes.ca(), nodes.grpc(0), Some(&credential))
}

/// Replicas and led shards of a node, once nothing moves.
async fn share(nodes: &Nodes, number: u32) -> Result<(u32, u32)> {
    let status = nodes.admin(0)?.cluster.clone().get_status(GetStatusRequest {}).await?;
    let status = status.into_inner();
    ensure!(status.moves.is_empty(), "{:?}", status.moves);
    let of = |node: &&drover_proto::admin::NodeStatus| {
        node.member.as_ref().is_some_and(|member| member.number == number)
    };
    let node = status.nodes.iter().find(of).context("it is no member")?;
    ensure!(node.reachable, "it is not reachable");
    Ok((node.replicas, node.leaders))
}

#[tokio::test]
async fn a_node_with_an_empty_folder_joins_while_messages_are_acknowledged_and_nothing_is_lost()
-> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let mut keys = Vec::new();
    for number in 0..8 {
        let id = format!("meter-{number}");
        let key = nodes.admin(0)?.create_device(&id).await?;
        keys.push((id, key));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, address) = (Arc::clone(&stop), nodes.mqtt(1));
    let publishing = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        let mut devices: Vec<Option<Device>> = keys.iter().map(|_| None).collect();
        while !stopped.load(Ordering::Relaxed) {
            for ((id, key), device) in keys.iter().zip(&mut devices) {
                let body = format!("{id} {}", acknowledged.len());
                let Some(connected) = device else {
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

    let mut arguments = nodes.cli_arguments(1)?;
    arguments.extend(["cluster", "join-token"].map(str::to_owned));
    let token = programs::run(Command::new(program()?).args(arguments)).await?;
    let joined = nodes.join(token.trim())?;
    // 12 replicas and 4 leaders over four nodes; the meta group is counted as one replica more.
    until_ok("the new node to have its share", async || {
        let (replicas, leaders) = share(&nodes, 4).await?;
        ensure!(replicas >= 3 && leaders >= 1, "{replicas} replicas, {leaders} leaders");
        anyhow::Ok(())
    })
    .await;

    nodes.kill(joined)?;
    nodes.restart(joined)?;
    nodes.until_ready().await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = publishing.await?;
    ensure!(
        acknowledged.len() > 100,
        "{} messages are too few to mean anything",
        acknowledged.len()
    );
    for index in 0..4 {
        let stored = nodes.admin(index)?.all_messages().await?;
        let bodies: std::collections::BTreeSet<_> =
            stored.iter().map(|message| String::from_utf8_lossy(&message.body)).collect();
        for body in &acknowledged {
            assert!(bodies.contains(body.as_str()), "{body:?} at node {}", index + 1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_used_or_foreign_and_a_node_that_does_not_fit_are_refused() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let fresh = token(&nodes, 0).await?;
    let join = async |token: &str, asked: JoinRequest| -> Result<_> {
        let refused = joining(&nodes, token)?.members.clone().join(asked).await;
        let status = refused.err().context("it was let in")?;
        Ok((status.code(), status.message().to_owned()))
    };

    let mut late = request(7);
    late.unix_ms -= 300_000;
    let (code, text) = join(&fresh, late).await?;
    assert!(code == Code::FailedPrecondition && text.contains("300 s behind"), "{text}");
    let (code, text) = join(&fresh, JoinRequest { format: 99, ..request(7) }).await?;
    assert!(code == Code::FailedPrecondition && text.contains("format 99"), "{text}");
    let (code, text) = join(&fresh, request(1)).await?;
    assert!(code == Code::AlreadyExists && text.contains("a node 1 already"), "{text}");

    joining(&nodes, &fresh)?.members.clone().join(request(7)).await?;
    let (code, text) = join(&fresh, request(8)).await?;
    assert!(code == Code::Unauthenticated && text.contains("used by node 7"), "{text}");
    let other = Nodes::start(1).await?;
    let (code, text) = join(&token(&other, 0).await?, request(8)).await?;
    assert!(code == Code::Unauthenticated && text.contains("another cluster's"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_removal_that_would_lose_a_quorum_is_refused_with_the_reason() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let remove = RemoveNodeRequest { number: 3 };
    let refused = nodes.admin(0)?.members.clone().remove_node(remove).await;
    let status = refused.err().context("it was removed")?;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("drain it first"), "{}", status.message());
    Ok(())
}
