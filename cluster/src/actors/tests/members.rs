//! Nodes that come and go while a device publishes: nothing that was acknowledged is lost, whatever moves.

use drover_core::ids::{GroupId, ReplicaId};
use drover_core::membership::{Joining, MembershipRefusal};

use super::*;
use crate::actors::mover::led;

/// Starts a node that knows nobody yet, and lets it join by a token.
async fn join(nodes: &mut Vec<Node>, number: u32) -> NodeId {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let peer_address = listener.local_addr().expect("bound").to_string();
    let host = &nodes[0].cluster;
    let (token, digest) = (format!("token-{number}"), Bytes::from_static(b"digest"));
    let expires = host.now().plus_ms(60_000);
    host.add_join_token(token.clone(), digest, expires).await.expect("there is room");
    let member = Member { peer_address, admin_address: String::new(), zone: String::new() };
    let key_digest = Bytes::from(token.clone());
    let supports = drover_core::level::supported();
    let joining = Joining { token, number: Some(number), key_digest, member, supports };
    let node = host.join(joining).await.expect("the token is fresh");
    let behaviour = Behaviour { sync_us_max: 500, failing_syncs_per_mille: 0 };
    let disk = SimulatedDisk::new(node.to_u64(), behaviour);
    let mut config = Config::new(node);
    config.seed = Some(node.to_u64());
    nodes.push(run(config, disk, Gate::new(listener), BTreeMap::new()).await);
    node
}

/// How many replicas a node has, and how many shards it leads, as the placement and the groups' leaders have it.
async fn share(cluster: &Cluster, node: NodeId) -> (usize, usize) {
    let Ok(status) = cluster.status().await else { return (0, 0) };
    let placed = status.meta.placement.values().filter(|placed| placed.contains(&node)).count();
    let led = status.shards.iter().filter(|s| s.shard.is_some() && s.leader == Some(node)).count();
    (placed, led)
}

fn is_at_rest(cluster: &Cluster) -> bool {
    cluster.meta().is_some_and(|meta| meta.membership.moves.is_empty())
}

/// Like a device, whose connection may fail while leaders change.
pub(super) async fn connect(cluster: &Cluster, device: &DeviceId) -> Option<(Session, Deliveries)> {
    let identity = cluster.credentials(device).await.ok()??;
    let proven = ProvenDevice { device: device.clone(), credentials: identity.etag };
    let (deliveries, queue) = mpsc::channel(DELIVERIES_MAX);
    let request = OpenSession { proven, clean_session: false, deliveries };
    Some((cluster.open_session(request).await.ok()?, queue))
}

/// Devices that publish until they are told to stop, and the messages that were acknowledged.
pub(super) struct Publishing {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<BTreeMap<ShardId, Vec<(Offset, String)>>>,
}

impl Publishing {
    pub(super) async fn start(cluster: &Cluster) -> Self {
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let devices: Vec<DeviceId> = (0..8).map(|number| id(&format!("pump-{number}"))).collect();
        for device in &devices {
            create(cluster, device).await;
        }
        let cluster = cluster.clone();
        let task = tokio::spawn(async move {
            let mut acknowledged: BTreeMap<ShardId, Vec<(Offset, String)>> = BTreeMap::new();
            let mut sessions = BTreeMap::new();
            for number in 0.. {
                let device = &devices[number % devices.len()];
                let text = format!("{device} {number}");
                match sessions.get(device) {
                    None => sessions.extend(connect(&cluster, device).await.map(|s| (device, s))),
                    Some((session, _)) => match session.append(vec![message(&text)]).await {
                        Ok(offset) => {
                            let shard = shard(&cluster, device);
                            acknowledged.entry(shard).or_default().push((offset, text));
                        }
                        // Unknown: it may be stored or not.
                        Err(_) => drop(sessions.remove(device)),
                    },
                }
                if *stopped.borrow_and_update() {
                    break;
                }
            }
            acknowledged
        });
        Self { stop, task }
    }

    /// Every acknowledged message is at its offset, at every node.
    pub(super) async fn check(self, nodes: &[Node]) {
        self.stop.send_replace(true);
        let acknowledged = self.task.await.expect("publishing does not panic");
        assert!(
            acknowledged.values().map(Vec::len).sum::<usize>() > 50,
            "too few to mean anything"
        );
        for (shard, messages) in acknowledged {
            for node in nodes {
                for (offset, text) in &messages {
                    let found = read_one(node, shard, *offset).await;
                    assert_eq!(found, Some(message(text)), "shard {shard}, offset {offset}");
                }
            }
        }
    }
}

/// The message at an offset. A node that cannot say is asked again, because leaders may be moving still.
async fn read_one(node: &Node, shard: ShardId, offset: Offset) -> Option<Message> {
    let limits = ReadLimits { messages_max: 1, bytes_max: 1 << 20, wait_ms: 0 };
    let mut page = None;
    until("the shard serves", async || {
        page = node.cluster.read_stream(shard, offset, limits).await.ok();
        page.is_some()
    })
    .await;
    page?.messages.into_iter().next().map(|stored| stored.message)
}

#[tokio::test]
async fn what_was_begun_and_is_led_by_another_node_becomes_a_cluster_all_the_same() {
    let (nodes, members) = start_apart(gates(3).await, |_| {}).await;
    let (first, second) = (&nodes[0].cluster, NodeId::new(2, 0));
    // As far as a node comes that is killed before it has proposed anything.
    first.shared.groups.form_meta(&members).await.expect("a leader");
    until("this node serves", async || led(first, GroupId::Meta).is_some()).await;
    let group = led(first, GroupId::Meta).expect("it serves");
    group.transfer_leader(second).await.expect("the other one leads");

    initialize(&nodes, members).await;
    assert!(nodes.iter().all(|node| node.cluster.meta() == first.meta()));
}

#[tokio::test]
async fn who_has_no_vote_of_the_meta_group_follows_it_from_the_beginning() {
    let nodes = start(6, |_| {}).await;
    let group = led(&nodes[0].cluster, GroupId::Meta).expect("its founder leads it");
    let replicas = group.replicas();
    assert_eq!((replicas.voters.len(), replicas.learners.len()), (5, 1));
}

#[tokio::test]
async fn a_node_that_joins_gets_its_share_while_a_device_publishes_and_a_drained_one_loses_it() {
    let soon = Duration::from_millis(500);
    let mut nodes = start(3, |config| config.limits.balance_interval = soon).await;
    let publishing = Publishing::start(&nodes[1].cluster).await;
    let fourth = join(&mut nodes, 4).await;
    // How many it leads depends on what each shard has to do.
    until("the new node has its share of replicas, and leads", async || {
        let (replicas, leaders) = share(&nodes[2].cluster, fourth).await;
        replicas == 3 && leaders > 0 && is_at_rest(&nodes[0].cluster)
    })
    .await;

    let first = NodeId::new(1, 0);
    let held = connect(&nodes[0].cluster, &id("pump-0")).await;
    assert!(held.is_some() || nodes[0].cluster.ready().is_ok(), "it takes sessions");
    nodes[3].cluster.drain(first).await.expect("three are left");
    until("the drained node has nothing", async || {
        share(&nodes[2].cluster, first).await == (0, 0) && is_at_rest(&nodes[0].cluster)
    })
    .await;
    until("its sessions are ended", async || nodes[0].cluster.shared.sessions.count() == 0).await;
    assert!(connect(&nodes[0].cluster, &id("pump-0")).await.is_none(), "it takes no new ones");
    drop(held);
    let meta = nodes[0].cluster.meta().expect("a cluster");
    let shard = ShardId::new(0, meta.shard_count).expect("the first");
    assert_eq!(meta.replica(shard, first), ReplicaId::new(first, 1), "what it had is void");

    nodes[3].cluster.undrain(first).await.expect("it is drained");
    until("it gets its share again, as other replicas", async || {
        share(&nodes[2].cluster, first).await.0 == 3 && is_at_rest(&nodes[0].cluster)
    })
    .await;
    publishing.check(&nodes).await;
}

#[tokio::test]
async fn a_dead_node_is_removed_and_what_it_held_is_restored_elsewhere() {
    let mut nodes = start(3, |_| {}).await;
    let (alive, dead) = (nodes[0].cluster.clone(), NodeId::new(3, 0));
    let refused = alive.remove(dead).await.expect_err("it is alive");
    assert_eq!(refused, Error::RefusedByMeta(MembershipRefusal::IsAlive { node: dead }.into()));
    let publishing = Publishing::start(&alive).await;
    let former = nodes.remove(2);
    former.cluster.stop(1_000).await;
    until("its death is noticed", async || {
        let status = alive.status().await;
        status.is_ok_and(|status| status.nodes.iter().any(|n| n.node == dead && !n.reachable))
    })
    .await;
    let refused = alive.remove(dead).await.expect_err("two nodes for three replicas");
    let too_few = MembershipRefusal::TooFewMembers { left: 2, replicas: 3 };
    assert_eq!(refused, Error::RefusedByMeta(too_few.into()));

    let fourth = join(&mut nodes, 4).await;
    until("the new node follows", async || {
        nodes[2].cluster.meta().is_some_and(|meta| meta.members.contains_key(&fourth))
    })
    .await;
    alive.remove(dead).await.expect("three are left, two of them with everything");
    until("everything is on the three that live, and the dead one is forgotten", async || {
        let members = alive.meta().expect("a cluster").members.clone();
        !members.contains_key(&dead) && share(&alive, fourth).await.0 == 4
    })
    .await;
    assert!(alive.meta().expect("a cluster").membership.removed.contains(&dead));
    publishing.check(&nodes).await;

    let outcast = restart(former).await;
    until("it is told when it comes back", async || outcast.cluster.shared.is_removed()).await;
    let shard = shard(&alive, &id("pump-0"));
    let limits = ReadLimits { messages_max: 1, bytes_max: 1 << 20, wait_ms: 0 };
    let read = outcast.cluster.read_stream(shard, Offset::new(0), limits).await;
    read.expect_err("what its disk has is nobody's to read any more");
}

#[tokio::test]
async fn a_removal_that_would_lose_a_quorum_is_refused_and_says_which() {
    let mut nodes = start(4, |_| {}).await;
    let alive = nodes[0].cluster.clone();
    for _ in 0..2 {
        nodes.pop().expect("four nodes").cluster.stop(1_000).await;
    }
    let dead = NodeId::new(4, 0);
    until("both deaths are noticed, and a removal is refused for its quorum", async || {
        let refused = alive.remove(dead).await.expect_err("two dead of four are too many");
        refused.to_string().contains("would lose its quorum")
    })
    .await;
}

#[tokio::test]
async fn paused_moves_wait_and_cancelled_ones_leave_everything_as_it_was() {
    let mut nodes = start(3, |_| {}).await;
    let publishing = Publishing::start(&nodes[0].cluster).await;
    nodes[0].cluster.pause_moves().await.expect("a cluster");
    let before = nodes[0].cluster.meta().expect("a cluster").placement.clone();
    let fourth = join(&mut nodes, 4).await;
    until("the new node follows", async || {
        nodes[3].cluster.meta().is_some_and(|meta| meta.members.contains_key(&fourth))
    })
    .await;
    assert_eq!(nodes[0].cluster.meta().expect("a cluster").placement, before);
    nodes[0].cluster.resume_moves().await.expect("a cluster");
    until("a move has begun", async || {
        nodes[0]
            .cluster
            .meta()
            .is_some_and(|meta| meta.membership.moves.values().any(|m| m.began.is_some()))
    })
    .await;
    nodes[0].cluster.cancel_moves().await.expect("a cluster");
    until("what had begun is taken back", async || is_at_rest(&nodes[0].cluster)).await;
    nodes[0].cluster.resume_moves().await.expect("a cluster");
    until("it goes on when it is resumed", async || {
        share(&nodes[0].cluster, fourth).await.0 == 3 && is_at_rest(&nodes[0].cluster)
    })
    .await;
    publishing.check(&nodes).await;
}

#[tokio::test]
async fn the_only_node_is_not_drained() {
    let node = single().await;
    let refused = node.cluster.drain(NodeId::new(1, 0)).await.expect_err("nobody else is there");
    let nobody = MembershipRefusal::TooFewMembers { left: 0, replicas: 3 };
    assert_eq!(refused, Error::RefusedByMeta(nobody.into()));
    assert!(node.cluster.ready().is_ok());
}

#[tokio::test]
async fn a_replica_that_failed_is_rebuilt_from_the_others_under_a_new_id() {
    let nodes = start(3, |_| {}).await;
    let cluster = &nodes[0].cluster;
    let publishing = Publishing::start(cluster).await;
    let meta = cluster.meta().expect("a cluster");
    let shard = ShardId::new(0, meta.shard_count).expect("the first");
    let group = GroupId::Shard(shard);
    let follower = |node: &&Node| {
        let group = node.cluster.shared.groups.get(group).expect("it runs everywhere");
        !group.leadership().borrow().serving
    };
    let damaged = nodes.iter().find(follower).expect("two of three follow");
    let node = damaged.cluster.shared.config.node;
    let replica = damaged.cluster.shared.groups.get(group).expect("it runs");
    replica.condemn("its data is damaged, on purpose".to_owned());
    until("it is reported", async || damaged.cluster.ready().is_err()).await;
    cluster.rebuild(node, shard).await.expect("two others have everything");
    until("it is there again, as another one", async || {
        let group = damaged.cluster.shared.groups.get(group);
        is_at_rest(cluster)
            && damaged.cluster.ready().is_ok()
            && group.is_some_and(|group| group.replica() == ReplicaId::new(node, 1))
    })
    .await;
    publishing.check(&nodes).await;
}
