//! Whole nodes in one process: real Raft over loopback, the simulated disk, the actors above them.

mod commands;
mod damage;
mod gate;
mod leaders;
mod members;
mod methods;
mod modules;
mod partition;
mod presence;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drover_core::access::ProvenDevice;
use drover_core::change::{Condition, DeviceSpec, Message, Refusal, TwinUpdate};
use drover_core::device::{Authentication, Channel, Key, Qos, Status, Subscriptions};
use drover_core::document::{Object, Value};
use drover_core::ids::{DeviceId, NodeId, Offset, ShardId, Version};
use drover_core::message::Live;
use drover_core::meta::Member;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::cluster::{Cluster, Initialization, ReadLimits, TwinChange};
use super::config::{Config, Rate};
use super::error::Error;
use super::router::Target;
use super::session::{DELIVERIES_MAX, Delivery, EndReason, OpenSession, Session};
use super::shard::ShardMsg;
use crate::raft::peers::{Peers, PeersConfig};
use crate::storage::simulated::{Behaviour, SimulatedDisk};
use gate::{Gate, Pipes};

const SHARDS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(30);

type Deliveries = mpsc::Receiver<Box<Delivery>>;

struct Node {
    cluster: Cluster,
    disk: SimulatedDisk,
    gate: Gate,
}

/// Waits for a condition, never for a duration.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}

async fn start(count: u32, configure: impl Fn(&mut Config)) -> Vec<Node> {
    start_behind(gates(count).await, configure).await
}

async fn gates(count: u32) -> BTreeMap<NodeId, (String, Gate)> {
    let mut gates = BTreeMap::new();
    for number in 1..=count {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        gates.insert(NodeId::new(number, 0), (address, Gate::new(listener)));
    }
    gates
}

/// The same without sockets: time may be paused.
async fn start_in_memory(count: u32) -> Vec<Node> {
    start_in_memory_with(count, |_| {}).await
}

async fn start_in_memory_with(count: u32, configure: impl Fn(&mut Config)) -> Vec<Node> {
    let pipes = Pipes::default();
    let gate = |number: u32| {
        let address = format!("node-{number}");
        let gate = Gate::before(pipes.listen(&address));
        (NodeId::new(number, 0), (address, gate))
    };
    start_behind((1..=count).map(gate).collect(), configure).await
}

async fn start_behind(
    gates: BTreeMap<NodeId, (String, Gate)>,
    configure: impl Fn(&mut Config),
) -> Vec<Node> {
    let (nodes, members) = start_apart(gates, configure).await;
    initialize(&nodes, members).await;
    nodes
}

/// Nodes that no cluster was made of yet.
async fn start_apart(
    gates: BTreeMap<NodeId, (String, Gate)>,
    configure: impl Fn(&mut Config),
) -> (Vec<Node>, BTreeMap<NodeId, Member>) {
    let members: BTreeMap<_, _> =
        gates.iter().map(|(node, (address, _))| (*node, address.clone())).collect();
    let mut nodes = Vec::new();
    for (node, (_, gate)) in gates {
        let behaviour = Behaviour { sync_us_max: 500, failing_syncs_per_mille: 0 };
        let disk = SimulatedDisk::new(node.to_u64(), behaviour);
        let mut config = Config::new(node);
        config.seed = Some(node.to_u64());
        configure(&mut config);
        nodes.push(run(config, disk, gate, members.clone()).await);
    }
    let member =
        |peer_address| Member { peer_address, admin_address: String::new(), zone: String::new() };
    (nodes, members.into_iter().map(|(node, address)| (node, member(address))).collect())
}

async fn run(
    config: Config,
    disk: SimulatedDisk,
    gate: Gate,
    members: BTreeMap<NodeId, String>,
) -> Node {
    let (node, seed, cluster_id) = (config.node, config.seed, None);
    let network = Arc::new(gate.clone());
    let snapshot_rate = None;
    let peers = PeersConfig { node, members, cluster_id, network, snapshot_rate, seed };
    let (peers, incoming) = Peers::start(peers);
    let storage = Arc::new(disk.open());
    let cluster = Cluster::start(config, storage, peers, incoming).await.expect("a node starts");
    Node { cluster, disk, gate }
}

/// The next life of a node that is alone.
async fn restart(former: Node) -> Node {
    let Node { cluster, disk, .. } = former;
    cluster.stop(5_000).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    run(cluster.shared.config.clone(), disk, Gate::new(listener), BTreeMap::new()).await
}

async fn initialize(nodes: &[Node], members: BTreeMap<NodeId, Member>) {
    let members = members.into_iter().collect();
    let initialization = Initialization { members, shard_count: SHARDS, replication_factor: 3 };
    nodes[0].cluster.initialize(initialization).await.expect("a new cluster");
    until("every node is ready", async || nodes.iter().all(|node| node.cluster.ready().is_ok()))
        .await;
}

async fn single() -> Node {
    single_with(|_| {}).await
}

async fn single_with(configure: impl Fn(&mut Config)) -> Node {
    start(1, configure).await.remove(0)
}

fn id(text: &str) -> DeviceId {
    text.parse().expect("a legal id")
}

fn message(text: &str) -> Message {
    Message(Bytes::copy_from_slice(text.as_bytes()))
}

fn object(key: &str, value: i64) -> Object {
    [(key.to_owned(), Value::Integer(value))].into()
}

async fn create(cluster: &Cluster, device: &DeviceId) {
    let key = |byte| Key::new(vec![byte; 32]).expect("a legal key");
    let spec = DeviceSpec {
        status: Status::Enabled,
        status_reason: None,
        authentication: Authentication::Sas { primary: key(1), secondary: key(2) },
        tags: Object::new(),
        desired: Object::new(),
    };
    cluster.create_device(device.clone(), spec).await.expect("a new device");
}

async fn open(cluster: &Cluster, device: &DeviceId) -> (Session, Deliveries) {
    let identity = cluster.credentials(device).await.expect("an answer").expect("a device");
    let proven = ProvenDevice { device: device.clone(), credentials: identity.etag };
    let (deliveries, queue) = mpsc::channel(DELIVERIES_MAX);
    let request = OpenSession { proven, clean_session: false, deliveries };
    (cluster.open_session(request).await.expect("a session"), queue)
}

async fn listen(session: &Session) {
    let subscriptions = Subscriptions::from([(Channel::DesiredPatches, Qos::AtMostOnce)]);
    session.subscribe(subscriptions).await.expect("subscribed");
}

async fn desire(cluster: &Cluster, device: &DeviceId, value: i64) -> Result<Version, Error> {
    let change = TwinChange {
        if_match: Condition::Any,
        expected_desired: None,
        mode: TwinUpdate::Merge,
        tags: None,
        desired: Some(object("speed", value)),
    };
    cluster.update_twin(device, change).await.map(|twin| twin.desired.version)
}

async fn next(queue: &mut Deliveries) -> Option<Delivery> {
    timeout(PATIENCE, queue.recv()).await.expect("a delivery in time").map(|delivery| *delivery)
}

fn shard(cluster: &Cluster, device: &DeviceId) -> ShardId {
    cluster.shard_of(device).expect("an initialized cluster")
}

const PAGE: ReadLimits = ReadLimits { messages_max: 100, bytes_max: 100_000, wait_ms: 0 };

#[tokio::test]
async fn a_message_is_read_back_at_the_offset_that_its_acknowledgement_named() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    let first = session.append(vec![message("a"), message("b")]).await.expect("stored");
    let second = session.append(vec![message("c")]).await.expect("stored");
    assert_eq!(second, first.plus(2));
    let shard = shard(&cluster, &device);
    let page = cluster.read_stream(shard, first.next(), PAGE).await.expect("a page");
    let bodies: Vec<_> = page.messages.iter().map(|stored| stored.message.clone()).collect();
    assert_eq!(bodies, [message("b"), message("c")]);
    assert!(page.messages.iter().all(|stored| stored.epoch == Some(session.epoch())));
}

#[tokio::test]
async fn a_reader_at_the_end_of_a_stream_is_woken_by_the_next_message() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    let shard = shard(&cluster, &device);
    let limits = ReadLimits { wait_ms: 30_000, ..PAGE };
    let waiting = cluster.read_stream(shard, Offset::new(0), limits);
    let (page, stored) = tokio::join!(waiting, session.append(vec![message("a")]));
    assert_eq!(stored, Ok(Offset::new(0)));
    assert_eq!(page.expect("a page").messages.len(), 1);
}

#[tokio::test]
async fn desired_patches_reach_the_connection_in_the_order_of_their_versions() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, mut queue) = open(&cluster, &device).await;
    listen(&session).await;
    let before = session.twin().await.expect("a twin").desired.version;
    for value in 1..=5 {
        desire(&cluster, &device, value).await.expect("changed");
    }
    let mut expected = before;
    for value in 1..=5 {
        expected = expected.next();
        let patch = object("speed", value);
        assert_eq!(next(&mut queue).await, Some(Delivery::Desired { version: expected, patch }));
    }
}

#[tokio::test]
async fn a_new_connection_ends_the_old_one_and_what_that_sends_has_no_effect() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (old, mut old_queue) = open(&cluster, &device).await;
    let (new, _new_queue) = open(&cluster, &device).await;
    assert_eq!(next(&mut old_queue).await, Some(Delivery::End(EndReason::Replaced)));
    let refused = old.append(vec![message("late")]).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::StaleSession { .. }))), "{refused:?}");
    drop(old);
    new.append(vec![message("live")]).await.expect("the drop of the old one ended nothing");
}

#[tokio::test]
async fn a_session_that_is_dropped_is_recorded_as_ended() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    drop(session);
    until("the record says disconnected", async || {
        let device = cluster.device(&device).await.expect("a device");
        device.presence.connected_since.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_device_actor_that_panics_costs_only_its_own_callers_a_retry() {
    let Node { cluster, .. } = single().await;
    let (failing, other) = (id("pump-7"), id("pump-8"));
    create(&cluster, &failing).await;
    create(&cluster, &other).await;
    let (session, _queue) = open(&cluster, &failing).await;
    let (bystander, _other_queue) = open(&cluster, &other).await;
    let replica = cluster.shared.router.replica(shard(&cluster, &failing)).expect("a replica");
    let panic = ShardMsg::PanicDevice(failing.clone());
    replica.actor.send_message(panic).expect("a running shard");
    let (lost, undisturbed) =
        tokio::join!(session.append(vec![message("a")]), bystander.append(vec![message("b")]));
    assert_eq!(lost, Err(Error::Restarted { device: failing }));
    undisturbed.expect("another device goes on");
    session.append(vec![message("a")]).await.expect("the actor was restarted");
}

#[tokio::test]
async fn a_device_that_floods_is_refused_while_its_queue_is_full() {
    let Node { cluster, .. } = single_with(|config| config.limits.device_requests_max = 2).await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    let flood = (0..8).map(|_| session.append(vec![message("a")]));
    let answers = futures::future::join_all(flood).await;
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    let busy = answers.iter().filter(|answer| matches!(answer, Err(Error::Busy { .. }))).count();
    assert_eq!((accepted, busy), (2, 6), "{answers:?}");
    session.append(vec![message("b")]).await.expect("there is room again");
}

#[tokio::test]
async fn a_device_over_its_rate_is_told_so() {
    let rate = Rate { messages_per_second: 0.001, burst: 2.0 };
    let Node { cluster, .. } = single_with(|config| config.limits.device_rate = Some(rate)).await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    session.append(vec![message("a"), message("b")]).await.expect("within the burst");
    assert_eq!(session.append(vec![message("c")]).await, Err(Error::RateLimited));
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers_when_there_is_room() {
    let Node { cluster, disk, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    disk.set_free_bytes(0);
    let refused = session.append(vec![message("a")]).await;
    assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
    disk.set_free_bytes(u64::MAX);
    session.append(vec![message("a")]).await.expect("there is room again");
}

#[tokio::test]
async fn idle_device_actors_are_stopped_and_their_sessions_stay() {
    let Node { cluster, .. } =
        single_with(|config| config.limits.idle = Duration::from_millis(40)).await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, mut queue) = open(&cluster, &device).await;
    listen(&session).await;
    let replica = cluster.shared.router.replica(shard(&cluster, &device)).expect("a replica");
    until("the device has no actor", async || replica.actor.get_children().is_empty()).await;
    desire(&cluster, &device, 1).await.expect("changed");
    assert!(matches!(next(&mut queue).await, Some(Delivery::Desired { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_serves_any_device() {
    let nodes = start(3, |_| {}).await;
    for (number, node) in nodes.iter().enumerate() {
        let device = id(&format!("pump-{number}"));
        create(&node.cluster, &device).await;
        for other in &nodes {
            let found = other.cluster.device(&device).await.expect("linearizable everywhere");
            assert_eq!(found.id, device);
        }
    }
    let status = nodes[2].cluster.status().await.expect("a status");
    assert!(status.nodes.iter().all(|node| node.reachable));
    assert!(status.shards.iter().all(|shard| shard.leader.is_some()));
    assert_eq!(status.shards.iter().map(|shard| shard.device_count).sum::<u64>(), 3);
}

/// A device whose shard is led by another node than `by`.
async fn led_elsewhere(cluster: &Cluster, by: &[NodeId]) -> (DeviceId, NodeId) {
    for number in 0..1000 {
        let device = id(&format!("pump-{number}"));
        if let Target::Node(leader) = cluster.shared.router.target(shard(cluster, &device))
            && !by.contains(&leader)
        {
            create(cluster, &device).await;
            return (device, leader);
        }
    }
    panic!("no shard is led elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_served_across_nodes_and_goes_on_without_its_leader() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let mut live = home.live();
    let (device, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    let third = nodes
        .iter()
        .map(|node| &node.cluster)
        .find(|cluster| ![home.shared.config.node, leader].contains(&cluster.shared.config.node))
        .expect("a third node");
    let (session, mut queue) = open(home, &device).await;
    listen(&session).await;
    session.twin().await.expect("a twin");
    let version = desire(third, &device, 1).await.expect("changed at the third node");
    let patch = object("speed", 1);
    assert_eq!(next(&mut queue).await, Some(Delivery::Desired { version, patch }));

    until("live messages come from the leader's node", async || {
        session.append(vec![message("live")]).await.expect("stored");
        let heard = timeout(Duration::from_millis(100), live.recv()).await;
        matches!(heard, Ok(Some(Live::Messages(_) | Live::Event(_))))
    })
    .await;

    let led = nodes.iter().find(|node| node.cluster.shared.config.node == leader);
    led.expect("the leader").cluster.stop(5_000).await;
    until("the session goes on", async || session.append(vec![message("on")]).await.is_ok()).await;
    let version = desire(third, &device, 2).await.expect("changed under the new leader");
    until("the patch, or the end of a session that may have missed it", async || {
        match next(&mut queue).await {
            Some(Delivery::Desired { version: delivered, .. }) => delivered == version,
            Some(Delivery::End(reason)) => reason == EndReason::Gap,
            Some(Delivery::Command(_) | Delivery::Call(_)) => panic!("nobody sent one"),
            None => panic!("a session ends with a reason"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_at_another_node_ends_the_old_one() {
    let nodes = start(3, |_| {}).await;
    let device = id("pump-7");
    create(&nodes[0].cluster, &device).await;
    let (old, mut queue) = open(&nodes[0].cluster, &device).await;
    let (new, _queue) = open(&nodes[1].cluster, &device).await;
    assert_eq!(next(&mut queue).await, Some(Delivery::End(EndReason::Replaced)));
    assert!(matches!(
        old.append(vec![message("late")]).await,
        Err(Error::Refused(Refusal::StaleSession { .. }))
    ));
    new.append(vec![message("live")]).await.expect("the new one is live");
}
