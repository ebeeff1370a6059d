//! What callers get while a node is cut off without a word: connections stay, and nobody answers.

use std::time::Duration;

use drover_core::ids::{DeviceId, NodeId, Offset};
use tokio::time::Instant;

use super::{Node, create, id, led_elsewhere, message, open, shard, start, until};
use crate::actors::error::Error;
use crate::actors::router::Target;
use crate::actors::streams::ReadLimits;

/// A dead connection is noticed after five seconds, and a request may take ten. Nobody may have to wait for either.
const PATIENCE: Duration = Duration::from_secs(4);

fn node(nodes: &[Node], id: NodeId) -> &Node {
    nodes.iter().find(|node| node.cluster.shared.config.node == id).expect("one of the nodes")
}

/// The error, which must come soon.
async fn failure<T: std::fmt::Debug>(asked: impl Future<Output = Result<T, Error>>) -> Error {
    let begin = Instant::now();
    let error = asked.await.expect_err("it cannot be carried out");
    assert!(begin.elapsed() < PATIENCE, "{error} after {:?}", begin.elapsed());
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_leader_was_asked_is_unknown_as_soon_as_another_one_leads() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let (device, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    let (session, _queue) = open(home, &device).await;
    session.append(vec![message("before")]).await.expect("stored");

    node(&nodes, leader).gate.set_silent(true);
    let lost = failure(session.append(vec![message("lost")])).await;
    assert!(lost.is_unknown(), "it may have been proposed: {lost}");
    let begin = Instant::now();
    session.append(vec![message("after")]).await.expect("the new leader is asked");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    let found = home.device(&device).await.expect("a read");
    assert_eq!(found.id, device);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_a_silent_leader_was_asked_is_asked_again_at_the_new_one() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let (device, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    node(&nodes, leader).gate.set_silent(true);
    let begin = Instant::now();
    let found = home.device(&device).await.expect("a read is repeated");
    assert_eq!(found.id, device);
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_says_so_and_serves_again_when_it_is_back() {
    let nodes = start(3, |_| {}).await;
    let alone = &nodes[0];
    let own = led_here(alone).await;
    let me = alone.cluster.shared.config.node;
    let (foreign, _) = led_elsewhere(&alone.cluster, &[me]).await;
    let (session, _queue) = open(&alone.cluster, &own).await;
    let (other_session, _other_queue) = open(&alone.cluster, &foreign).await;

    alone.gate.set_silent(true);
    let (at_leader, at_follower) = tokio::join!(
        failure(session.append(vec![message("proposed")])),
        failure(other_session.append(vec![message("sent")]))
    );
    assert!(at_leader.is_unknown() && at_follower.is_unknown(), "{at_leader}, {at_follower}");
    let begin = Instant::now();
    let refused = session.append(vec![message("late")]).await;
    assert!(matches!(refused, Err(Error::NoLeader { .. })), "{refused:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(alone.cluster.ready().is_err(), "it must not be sent new clients");

    alone.gate.set_silent(false);
    until("the node serves again", async || alone.cluster.device(&foreign).await.is_ok()).await;
    until("it is ready", async || alone.cluster.ready().is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_does_not_say_that_a_stream_has_ended() {
    let nodes = start(3, |_| {}).await;
    let alone = &nodes[0];
    let own = shard(&alone.cluster, &led_here(alone).await);
    let limits = ReadLimits { messages_max: 1, bytes_max: 1_000, wait_ms: 0 };
    let read = async || alone.cluster.read_stream(own, Offset::default(), limits).await;
    assert!(read().await.expect("a leader's word").messages.is_empty());
    alone.gate.set_silent(true);
    // Within its lease it is told nothing: another one may lead by then, and have acknowledged a message.
    failure(read()).await;
}

/// A device whose shard this node leads. Leaders find their places soon after the start.
async fn led_here(node: &Node) -> DeviceId {
    let mut found = None;
    until("the node leads a shard, and another one leads one", async || {
        let leads = |here: bool| {
            (0..100).map(|number| id(&format!("valve-{number}"))).find(|device| {
                let target = node.cluster.shared.router.target(shard(&node.cluster, device));
                if here { target == Target::Here } else { matches!(target, Target::Node(_)) }
            })
        };
        found = leads(true).filter(|_| leads(false).is_some());
        found.is_some()
    })
    .await;
    let device = found.expect("it was waited for");
    create(&node.cluster, &device).await;
    device
}
