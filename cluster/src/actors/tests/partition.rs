//! What callers get while a node is cut off without a word: connections stay, and nobody answers.

use std::time::Duration;

use drover_core::ids::{DeviceId, GroupId, NodeId, Offset};
use tokio::time::Instant;

use super::{
    Node, PAGE, create, id, led_elsewhere, message, open, shard, start, start_in_memory,
    start_in_memory_with, until,
};
use crate::actors::error::Error;
use crate::actors::router::Target;
use crate::actors::streams::ReadLimits;

/// A dead connection is noticed after five seconds, and a request may take ten. Nobody may have to wait for either.
const PATIENCE: Duration = Duration::from_secs(4);

/// Two leases, and the looks that find out.
const SILENCE_MAX: Duration = Duration::from_millis(1_800);
/// Until there is another leader: a lease, a time-out, and a second round.
const ELECTION_MAX: Duration = Duration::from_secs(3);

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

/// A device whose shard has no replica at this node, and who leads that.
async fn held_elsewhere(node: &Node) -> (DeviceId, NodeId) {
    let cluster = &node.cluster;
    let is_here = |device: &DeviceId| {
        cluster.shared.groups.get(GroupId::Shard(shard(cluster, device))).is_some()
    };
    let device = (0..100).map(|number| id(&format!("gauge-{number}")));
    let device = device.into_iter().find(|device| !is_here(device));
    let device = device.expect("of five nodes, three have a shard");
    create(cluster, &device).await;
    let status = cluster.status().await.expect("a status");
    let shard = Some(shard(cluster, &device));
    let led = status.shards.iter().find(|led| led.shard == shard).and_then(|led| led.leader);
    (device, led.expect("it has just written"))
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_replica_gives_up_a_leader_that_says_nothing_and_finds_the_next_one() {
    let nodes = start_in_memory(5).await;
    let home = &nodes[0];
    let (device, leader) = held_elsewhere(home).await;
    let (session, _queue) = open(&home.cluster, &device).await;
    session.append(vec![message("before")]).await.expect("stored");

    node(&nodes, leader).gate.set_silent(true);
    let begin = Instant::now();
    let lost = session.append(vec![message("lost")]).await.expect_err("nobody has answered");
    assert!(lost.is_unknown(), "it may have been proposed: {lost}");
    assert!(begin.elapsed() < SILENCE_MAX, "{:?}", begin.elapsed());
    session.append(vec![message("after")]).await.expect("the new leader is asked");
    assert!(begin.elapsed() < SILENCE_MAX + ELECTION_MAX, "{:?}", begin.elapsed());
    let page = home.cluster.read_stream(shard(&home.cluster, &device), Offset::default(), PAGE);
    let bodies = page.await.expect("a page").messages.into_iter().map(|stored| stored.message);
    let bodies: Vec<_> = bodies.collect();
    let after = bodies.iter().filter(|body| **body == message("after")).count();
    assert_eq!((bodies.first(), after), (Some(&message("before")), 1));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_have_nothing_to_ask_each_other_do_not_take_each_other_for_silent() {
    // What they tell each other of themselves comes too seldom then to be a sign of life.
    let nodes = start_in_memory_with(5, |config| config.limits.gone_after = SILENCE_MAX * 50).await;
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.cluster.shared.config.node).collect();
    let quiet = SILENCE_MAX * 5;
    let begin = Instant::now();
    while begin.elapsed() < quiet {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for node in &nodes {
            let groups = &node.cluster.shared.groups;
            let silent: Vec<_> = ids.iter().filter(|id| groups.is_silent(**id)).collect();
            let me = node.cluster.shared.config.node;
            assert!(silent.is_empty(), "{me} hears nothing of {silent:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_gives_up_a_silent_leader_even_while_nobody_succeeds_it() {
    let nodes = start_in_memory(3).await;
    let alone = &nodes[0];
    let (device, _) = led_elsewhere(&alone.cluster, &[alone.cluster.shared.config.node]).await;
    let (session, _queue) = open(&alone.cluster, &device).await;
    session.append(vec![message("before")]).await.expect("stored");
    nodes[1..].iter().for_each(|node| node.gate.set_silent(true));
    let begin = Instant::now();
    let lost = session.append(vec![message("lost")]).await.expect_err("nobody has answered");
    assert!(lost.is_unknown() && begin.elapsed() < SILENCE_MAX, "{lost}: {:?}", begin.elapsed());
    let refused = session.append(vec![message("refused")]).await.expect_err("nobody can be asked");
    assert!(matches!(refused, Error::NoLeader { .. }), "{refused}");
    assert!(begin.elapsed() < SILENCE_MAX, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_serves_as_soon_as_a_majority_is_back_though_the_leader_that_it_knew_is_not() {
    let nodes = start_in_memory(3).await;
    let home = &nodes[0];
    let me = home.cluster.shared.config.node;
    let (device, leader) = led_elsewhere(&home.cluster, &[me]).await;
    for node in &nodes {
        node.gate.set_silent(true);
    }
    until("the node is cut off", async || home.cluster.device(&device).await.is_err()).await;
    for node in nodes.iter().filter(|node| node.cluster.shared.config.node != leader) {
        node.gate.set_silent(false);
    }
    let answered = |of: &Node| {
        let others = nodes.iter().map(|node| node.cluster.shared.config.node);
        let groups = &of.cluster.shared.groups;
        others.filter(|node| *node != leader).all(|node| !groups.is_silent(node))
    };
    until("the two hear each other", async || answered(home)).await;
    let begin = Instant::now();
    let found = home.cluster.device(&device).await.expect("the next leader is waited for");
    assert_eq!(found.id, device);
    assert!(begin.elapsed() < ELECTION_MAX, "{:?}", begin.elapsed());
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
