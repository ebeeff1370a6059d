//! Modules through the layers: registered with their device, and gone with it on every replica.

use drover_core::ids::GroupId;

use super::*;
use crate::storage::state;

fn modules_of(device: &DeviceId) -> [DeviceId; 2] {
    ["ai", "log"].map(|name| device.module(&name.parse().expect("a legal id")))
}

#[tokio::test]
async fn a_device_takes_its_modules_with_it_on_every_replica() {
    let nodes = start(3, |_| {}).await;
    let cluster = &nodes[0].cluster;
    let device = id("pump-7");
    create(cluster, &device).await;
    let modules = modules_of(&device);
    for module in &modules {
        create(cluster, module).await;
    }
    let (session, mut queue) = open(&nodes[1].cluster, &modules[0]).await;
    session.append(vec![message("of a module")]).await.expect("appended");
    let listed = nodes[2].cluster.modules(&device).await.expect("the device is there");
    assert_eq!(listed.into_iter().map(|module| module.id).collect::<Vec<_>>(), modules);

    cluster.delete_device(&device, Condition::Any).await.expect("deleted");
    assert_eq!(next(&mut queue).await, Some(Delivery::End(EndReason::Revoked)));
    let refused = session.append(vec![message("late")]).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::ModuleNotFound { .. }))), "{refused:?}");
    let group = GroupId::Shard(shard(cluster, &device));
    let is_left = |node: &Node| {
        let store = &*node.cluster.shared.storage;
        let devices = state::device(store, group, &device).expect("it can be read");
        let modules = state::modules(store, group, &device).expect("they can be read");
        let twins = modules_of(&device).map(|module| state::twin(store, group, &module));
        let twins = twins.into_iter().any(|twin| twin.expect("it can be read").is_some());
        devices.is_some() || !modules.is_empty() || twins
    };
    until("nothing is left anywhere", async || !nodes.iter().any(is_left)).await;
}

#[tokio::test]
async fn the_list_of_modules_is_kept_in_the_record_of_the_device() {
    let Node { cluster, .. } = single().await;
    let device = id("pump-7");
    let modules = modules_of(&device);
    let refused = cluster.modules(&device).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::DeviceNotFound { .. }))), "{refused:?}");
    create(&cluster, &device).await;
    for module in &modules {
        create(&cluster, module).await;
    }
    cluster.delete_device(&modules[0], Condition::Any).await.expect("deleted");
    let group = GroupId::Shard(shard(&cluster, &device));
    let stored = state::device(&*cluster.shared.storage, group, &device);
    let stored = stored.expect("it can be read").expect("it is there");
    assert_eq!(stored.modules.iter().map(|m| device.module(m)).collect::<Vec<_>>(), modules[1..]);
    let page = cluster.devices(None, 10).await.expect("a page");
    assert_eq!(page.devices.len(), 1, "modules are no devices");
}
