//! Leaders go where there is least to do, and away from slow disks.

use std::sync::atomic::{AtomicBool, Ordering};

use super::members::{Publishing, connect};
use super::*;

fn quick(config: &mut Config) {
    config.limits.balance_interval = Duration::from_millis(500);
}

/// Who leads each shard.
async fn leaders(cluster: &Cluster) -> BTreeMap<ShardId, NodeId> {
    let Ok(status) = cluster.status().await else { return BTreeMap::new() };
    status.shards.iter().filter_map(|shard| Some((shard.shard?, shard.leader?))).collect()
}

/// Sends large messages as one device until it is told to stop.
async fn flood(cluster: Cluster, device: DeviceId, stop: Arc<AtomicBool>) {
    let text = "x".repeat(16 * 1024);
    let mut session = None;
    while !stop.load(Ordering::Relaxed) {
        session = match session {
            None => connect(&cluster, &device).await,
            Some((open, queue)) => {
                let open: Session = open;
                open.append(vec![message(&text)]).await.is_ok().then_some((open, queue))
            }
        };
    }
}

#[tokio::test]
async fn two_busy_shards_of_one_leader_part() {
    let nodes = start(3, quick).await;
    let cluster = &nodes[0].cluster;
    let placement = cluster.meta().expect("a cluster").placement.clone();
    let of = |leader: NodeId| -> Vec<ShardId> {
        let led = placement.iter().filter(|(_, placed)| placed[0] == leader);
        led.map(|(shard, _)| *shard).collect()
    };
    let busy = nodes.iter().map(|node| of(node.cluster.shared.config.node));
    let busy = busy.max_by_key(Vec::len).expect("three nodes");
    assert_eq!(busy.len(), 2, "four shards over three nodes");
    let stop = Arc::new(AtomicBool::new(false));
    let mut floods = Vec::new();
    for of in &busy {
        let mut devices = (0..).map(|number| id(&format!("pump-{number}")));
        let device = devices.find(|device| shard(cluster, device) == *of).expect("there is one");
        create(cluster, &device).await;
        floods.push(tokio::spawn(flood(cluster.clone(), device, Arc::clone(&stop))));
    }
    until("each is led by another node", async || {
        let leaders = leaders(cluster).await;
        let [one, other] = [busy[0], busy[1]].map(|shard| leaders.get(&shard));
        one.is_some() && other.is_some() && one != other
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.await.expect("it does not panic");
    }
}

#[tokio::test]
async fn a_node_whose_disk_stalls_leads_nothing_and_nothing_is_lost() {
    let nodes = start(3, quick).await;
    let publishing = Publishing::start(&nodes[1].cluster).await;
    let slow = NodeId::new(1, 0);
    assert!(leaders(&nodes[1].cluster).await.values().any(|leader| *leader == slow));
    nodes[0].disk.set_behaviour(Behaviour { sync_us_max: 600_000, failing_syncs_per_mille: 0 });
    until("it leads nothing, not even the meta group", async || {
        let Ok(status) = nodes[1].cluster.status().await else { return false };
        status.shards.iter().all(|shard| shard.leader.is_some_and(|leader| leader != slow))
    })
    .await;
    publishing.check(&nodes).await;
}

/// Appends one message after the other until it is told to stop; answers how many, and the errors.
async fn publish(cluster: Cluster, device: DeviceId, stop: Arc<AtomicBool>) -> (usize, Vec<Error>) {
    let (session, _queue) = connect(&cluster, &device).await.expect("all shards are led");
    let (mut appended, mut errors) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        match session.append(vec![message("a reading")]).await {
            Ok(_) => appended += 1,
            Err(error) => errors.push(error),
        }
    }
    (appended, errors)
}

#[tokio::test]
async fn no_message_is_left_unanswered_by_a_planned_move_of_its_leader() {
    const DEVICES: usize = 24;
    const MOVES: usize = 20;
    let nodes = start(3, |_| {}).await;
    // So slow that there is nearly always something under way.
    let slow = Behaviour { sync_us_max: 20_000, failing_syncs_per_mille: 0 };
    for node in &nodes {
        node.disk.set_behaviour(slow);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut devices = Vec::new();
    for number in 0..DEVICES {
        let (cluster, device) = (nodes[number % 3].cluster.clone(), id(&format!("pump-{number}")));
        create(&cluster, &device).await;
        devices.push(tokio::spawn(publish(cluster, device, Arc::clone(&stop))));
    }
    let mut moves = 0;
    until("leaders have moved often enough, while devices publish", async || {
        for node in &nodes {
            let led = node.cluster.shared.groups.watch().borrow().clone();
            let led = led.values().find(|group| group.leadership().borrow().serving);
            let Some(group) = led.cloned() else { continue };
            let heirs = group.replicas().voters;
            let heir = heirs.iter().find(|replica| replica.node() != group.replica().node());
            let heir = heir.expect("three replicas").node();
            moves += usize::from(group.transfer_leader(heir).await.is_ok());
        }
        moves >= MOVES
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for device in devices {
        let (appended, errors) = device.await.expect("it does not panic");
        assert!(appended > 0 && errors.is_empty(), "{appended} appended, and {errors:?}");
    }
}
