//! A leader that cannot read what it keeps stops its replica, whoever wanted to have it read (I-34): another one may have it.

use drover_core::ids::{CommandSequence, GroupId};
use drover_core::mailbox::Ack;

use super::super::commands::SendCommand;
use super::super::methods::MethodCall;
use super::*;
use crate::storage::{Table, keys};

async fn until_stopped(node: &Node, group: GroupId) {
    until("the replica is stopped and reported", async || {
        node.cluster.shared.groups.problems().contains_key(&group) && node.cluster.ready().is_err()
    })
    .await;
}

/// Lets a record rot as soon as it lies on the disk as it is now.
async fn rot(node: &Node, table: Table, key: Vec<u8>) {
    let range = key.clone()..[&*key, &[0]].concat();
    let mut neighbours = 0;
    until("a record that was written is durable, and rots", async || {
        // Whatever becomes durable takes along what was written before it.
        create(&node.cluster, &id(&format!("neighbour-{neighbours}"))).await;
        neighbours += 1;
        node.disk.rot(table, &range, 0, 1);
        node.cluster.shared.storage.get(table, &key).is_err()
    })
    .await;
}

/// A node with a device, and the group of that.
async fn with_a_device() -> (Node, DeviceId, GroupId) {
    let node = single().await;
    let device = id("pump-7");
    create(&node.cluster, &device).await;
    let group = GroupId::Shard(shard(&node.cluster, &device));
    (node, device, group)
}

#[tokio::test]
async fn a_command_that_cannot_be_read_stops_the_replica() {
    let (node, device, group) = with_a_device().await;
    let command = SendCommand {
        id: None,
        key: None,
        ack: Ack::None,
        expiry: None,
        not_before: None,
        message: message("lost"),
    };
    node.cluster.send_command(&device, command).await.expect("accepted");
    let body = keys::command_body(group, &device, CommandSequence::new(1));
    rot(&node, Table::Mailbox, body).await;
    let (session, _queue) = open(&node.cluster, &device).await;
    let subscriptions = Subscriptions::from([(Channel::Commands, Qos::AtLeastOnce)]);
    session.subscribe(subscriptions).await.expect("subscribed");
    until_stopped(&node, group).await;
}

#[tokio::test]
async fn a_call_that_meets_a_record_that_cannot_be_read_stops_the_replica() {
    let (node, device, group) = with_a_device().await;
    rot(&node, Table::Device, keys::device(group, &device)).await;
    let call = MethodCall {
        name: "reboot".parse().expect("a legal name"),
        payload: Bytes::from_static(b"{}"),
        connect_timeout: Duration::ZERO,
        response_timeout: Duration::from_millis(1),
    };
    let called = node.cluster.invoke_method(&device, call).await;
    assert!(matches!(called, Err(Error::GroupStopped { .. })), "{called:?}");
    until_stopped(&node, group).await;
}

#[tokio::test]
async fn a_state_that_cannot_be_read_for_the_status_stops_the_replica() {
    let (node, _, group) = with_a_device().await;
    rot(&node, Table::Group, keys::stream(group)).await;
    node.cluster.status().await.expect("the others are told");
    until_stopped(&node, group).await;
}
