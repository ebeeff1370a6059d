//! Who is shown as connected when nodes die, are cut off, are started anew, or lead for the first time.

use drover_core::change::{DeviceChange, Event};
use drover_core::ids::SessionEpoch;

use super::super::neighbours::Present;
use super::*;
use crate::raft::Leadership;

async fn is_connected(cluster: &Cluster, device: &DeviceId) -> bool {
    let record = cluster.device(device).await;
    record.is_ok_and(|device| device.presence.connected_since.is_some())
}

async fn until_ended(cluster: &Cluster, device: &DeviceId) {
    until("the connection has ended", async || !is_connected(cluster, device).await).await;
}

/// Makes a connection in the record of a new device that the node does not hold, as if its end had been lost.
async fn unheld(cluster: &Cluster, device: &DeviceId) {
    create(cluster, device).await;
    let credentials = cluster.device(device).await.expect("a device").etag;
    let node = Some(cluster.shared.config.node);
    let unheld = DeviceChange::Connect { credentials, clean_session: false, node };
    cluster.change_device(device, unheld).await.expect("connected by nobody");
}

/// The id of another device of the same shard.
fn beside(cluster: &Cluster, device: &DeviceId) -> DeviceId {
    let is_beside = |other: &DeviceId| shard(cluster, other) == shard(cluster, device);
    let other = (0..1000).map(|number| id(&format!("beside-{number}"))).find(is_beside);
    other.expect("some device has the same shard")
}

/// The node of a connection dies: its end is committed and told after `gone_after`, and other connections go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connections_of_a_dead_node_end_and_the_others_stay() {
    let nodes = start(3, |config| config.limits.gone_after = Duration::from_secs(2)).await;
    let [home, other] = [&nodes[0].cluster, &nodes[1].cluster];
    let mut events = other.live_events();
    let (lost, kept) = (id("pump-1"), id("pump-2"));
    create(other, &lost).await;
    create(other, &kept).await;
    let (session, _queue) = open(home, &lost).await;
    let (_kept_session, _kept_queue) = open(other, &kept).await;
    // Nobody is to close the session in order: the node dies with it.
    home.stop(5_000).await;
    until_ended(other, &lost).await;
    assert!(is_connected(other, &kept).await);
    until("its end is told", async || {
        let told = timeout(Duration::from_millis(100), events.recv()).await;
        matches!(told, Ok(Some(Live::Event(Event::Disconnected { device, .. }))) if device == lost)
    })
    .await;
    drop(session);
}

/// A leader that knows nothing ends what nobody holds, and nothing else.
#[tokio::test]
async fn a_connection_that_no_node_holds_is_ended_by_a_new_leader() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    unheld(&cluster, &device).await;
    let kept = beside(&cluster, &device);
    create(&cluster, &kept).await;
    let (session, _queue) = open(&cluster, &kept).await;
    let replica = cluster.shared.router.replica(shard(&cluster, &device)).expect("a replica");
    let leads = *replica.leadership.borrow();
    let deposed = Leadership { serving: false, ..leads };
    for leadership in [deposed, leads] {
        replica.actor.send_message(ShardMsg::Leadership(leadership)).expect("a running shard");
    }
    until_ended(&cluster, &device).await;
    session.append(vec![message("a")]).await.expect("the other connection goes on");
    assert!(is_connected(&cluster, &kept).await);
}

/// As above with a real change of leader, whose new one is another node than that of the connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_connection_stays_when_its_leader_is_lost() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let (kept, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    let (session, mut queue) = open(home, &kept).await;
    let decoy = beside(home, &kept);
    unheld(home, &decoy).await;
    let led = nodes.iter().find(|node| node.cluster.shared.config.node == leader);
    led.expect("the leader").cluster.stop(5_000).await;
    until_ended(home, &decoy).await;
    until("the record can be read", async || is_connected(home, &kept).await).await;
    session.append(vec![message("a")]).await.expect("it goes on");
    assert!(queue.try_recv().is_err(), "nobody has ended it");
}

/// Nobody leads anew and nobody dies: the node says that it does not hold what the leader takes to be its.
#[tokio::test]
async fn a_connection_that_its_node_has_lost_ends_at_the_next_announcement() {
    let often = |config: &mut Config| config.limits.announce_interval = Duration::from_millis(200);
    let Node { cluster, .. } = single_with(often).await;
    let device = id("pump-7");
    unheld(&cluster, &device).await;
    let kept = beside(&cluster, &device);
    create(&cluster, &kept).await;
    let (session, _queue) = open(&cluster, &kept).await;
    until_ended(&cluster, &device).await;
    session.append(vec![message("a")]).await.expect("the other connection goes on");
}

/// The announcements of every minute do not come into this.
#[tokio::test]
async fn a_close_that_was_refused_is_made_up_for_at_once() {
    let Node { cluster, .. } = single_with(|config| config.limits.node_requests_max = 4).await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let (session, _queue) = open(&cluster, &device).await;
    let full: Vec<_> = std::iter::from_fn(|| cluster.shared.gauge.enter(0)).collect();
    let refused = session.close(None).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    drop(full);
    until_ended(&cluster, &device).await;
}

/// What a node that is silent holds ends, but not what the device has opened elsewhere since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_nodes_connections_touches_no_newer_one() {
    let nodes = start(3, |_| {}).await;
    let [home, other] = [&nodes[0].cluster, &nodes[1].cluster];
    let (device, lost) = (id("pump-7"), id("pump-8"));
    create(home, &device).await;
    create(home, &lost).await;
    let (_old, _old_queue) = open(home, &device).await;
    let (_lost, _lost_queue) = open(home, &lost).await;
    let (new, _queue) = open(other, &device).await;
    for node in &nodes {
        let present = [2, 3].map(|number| NodeId::new(number, 0)).into();
        let moment = node.cluster.shared.moments.next();
        let present = Arc::new(Present { nodes: present, moment });
        for replica in node.cluster.shared.router.replicas().values() {
            let message = ShardMsg::NodesPresent(Arc::clone(&present));
            replica.actor.send_message(message).expect("a running shard");
        }
    }
    until_ended(other, &lost).await;
    new.append(vec![message("live")]).await.expect("it is the live one");
    assert!(is_connected(other, &device).await);
}

/// A node that is cut off for longer than `gone_after` and comes back ends the connections that have been ended meanwhile,
/// and holds new ones as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_learns_which_of_its_connections_have_ended() {
    let nodes = start(3, |config| config.limits.gone_after = Duration::from_secs(1)).await;
    let [home, other] = [&nodes[0].cluster, &nodes[1].cluster];
    let (device, kept) = (id("pump-7"), id("pump-8"));
    create(home, &device).await;
    create(home, &kept).await;
    let (_session, mut queue) = open(home, &device).await;
    let (kept_session, mut kept_queue) = open(other, &kept).await;
    nodes[0].gate.set_closed(true);
    until_ended(other, &device).await;
    nodes[0].gate.set_closed(false);
    assert!(matches!(next(&mut queue).await, Some(Delivery::End(_))));
    let (again, mut again_queue) = open(home, &device).await;
    assert_eq!(again.epoch(), SessionEpoch::new(2));
    // By the time that the leaders have taken its word again, they would have ended it.
    until("the node is heard by all", async || {
        let asked = |node: &Node| home.shared.neighbours.asked(node.cluster.shared.config.node);
        nodes[1..].iter().all(|node| {
            asked(node) == node.cluster.shared.neighbours.wanted(home.shared.config.node)
        })
    })
    .await;
    again.append(vec![message("a")]).await.expect("it is live");
    kept_session.append(vec![message("b")]).await.expect("it was live all the time");
    assert!(is_connected(home, &device).await && is_connected(home, &kept).await);
    assert!(again_queue.try_recv().is_err() && kept_queue.try_recv().is_err());
}

/// The process of a node dies and is back before anybody misses it: it holds nothing of its former life.
#[tokio::test]
async fn what_a_node_held_before_it_was_started_anew_has_ended() {
    let former = single().await;
    let device = id("pump-7");
    create(&former.cluster, &device).await;
    let (_session, _queue) = open(&former.cluster, &device).await;
    let Node { cluster, .. } = restart(former).await;
    until("the new life serves", async || cluster.ready().is_ok()).await;
    let other = beside(&cluster, &device);
    create(&cluster, &other).await;
    let (new, _new_queue) = open(&cluster, &other).await;
    until_ended(&cluster, &device).await;
    new.append(vec![message("a")]).await.expect("the connections of this life go on");
}

/// It is read from what is committed: also a new leader knows it, and telemetry writes nothing for it.
#[tokio::test]
async fn the_last_activity_of_a_device_is_when_it_sent_something() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    create(&cluster, &device).await;
    let active = async || cluster.device(&device).await.expect("a device").presence.active;
    assert_eq!(active().await, None);
    let (session, _queue) = open(&cluster, &device).await;
    let connected = active().await.expect("it has connected");
    until("time has passed", async || cluster.shared.config.clock.now() > connected).await;
    let offset = session.append(vec![message("a")]).await.expect("stored");
    let page = cluster.read_stream(shard(&cluster, &device), offset, PAGE).await.expect("a page");
    assert!(page.messages[0].at > connected);
    assert_eq!(active().await, Some(page.messages[0].at));
    let listed = cluster.devices(None, 10).await.expect("a list").devices;
    assert_eq!(listed[0].presence.active, Some(page.messages[0].at));
    let reported = active().await;
    until("time has passed", async || Some(cluster.shared.config.clock.now()) > reported).await;
    session.patch_reported(None, object("speed", 1)).await.expect("reported");
    assert!(active().await > reported);
    session.close(None).await.expect("closed");
    assert!(active().await > reported, "what it did is not forgotten when it goes");
}
