//! Commands through whole nodes: from a back end at one to a connection at another, and back.

use drover_core::ids::{CommandSequence, LogTime};
use drover_core::mailbox::{Ack, Command, Ending, Expiry, State};

use super::super::commands::{Purged, Queued, SendCommand};
use super::super::session::{SentCommand, Settlement};
use super::*;

fn command(text: &str) -> SendCommand {
    SendCommand {
        id: Some(text.parse().expect("a legal id")),
        key: None,
        ack: Ack::Full,
        expiry: None,
        not_before: None,
        message: message(text),
    }
}

async fn send(cluster: &Cluster, device: &DeviceId, text: &str) -> Queued {
    cluster.send_command(device, command(text)).await.expect("accepted")
}

async fn listen_to_commands(session: &Session) {
    let subscriptions = Subscriptions::from([(Channel::Commands, Qos::AtLeastOnce)]);
    session.subscribe(subscriptions).await.expect("subscribed");
}

async fn received(queue: &mut Deliveries) -> SentCommand {
    match next(queue).await {
        Some(Delivery::Command(sent)) => *sent,
        other => panic!("no command but {other:?}"),
    }
}

async fn complete(session: &Session, sent: &SentCommand) {
    session.settle(sent.command.sequence, Settlement::Complete).await.expect("settled");
}

async fn state(cluster: &Cluster, device: &DeviceId, text: &str) -> State {
    cluster.command(device, &text.parse().expect("a legal id")).await.expect("it is known").state
}

fn texts(commands: &[(Command, Option<Message>)]) -> Vec<&str> {
    commands.iter().map(|(command, _)| command.id.as_str()).collect()
}

#[tokio::test]
async fn a_command_waits_for_its_device_and_its_completion_is_told() {
    let node = single().await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let queued = send(cluster, &device, "first").await;
    assert!(!queued.repeated && send(cluster, &device, "first").await.repeated);
    send(cluster, &device, "second").await;
    let (session, mut queue) = open(cluster, &device).await;
    listen_to_commands(&session).await;
    let [first, second] = [received(&mut queue).await, received(&mut queue).await];
    assert_eq!((first.command.id.as_str(), first.message.clone()), ("first", message("first")));
    assert_eq!(first.command.attempts[0].node, Some(cluster.shared.config.node));
    complete(&session, &first).await;
    session.settle(second.command.sequence, Settlement::Reject).await.expect("settled");
    let again = session.settle(first.command.sequence, Settlement::Complete).await;
    let ending = Ending::Completed;
    assert!(
        matches!(again, Err(Error::Refused(Refusal::CommandEnded { ending: e })) if e == ending)
    );

    let shard = cluster.shard_of(&device).expect("a shard");
    let page = cluster.read_feedback(shard, Offset::new(0), 10, 0).await.expect("feedback");
    let told: Vec<_> = page.records.iter().map(|record| record.feedback.ending).collect();
    assert_eq!(told, [Ending::Completed, Ending::Rejected]);
    assert_eq!(page.next, Offset::new(2));
    cluster.commit_feedback_cursor(shard, "app".into(), page.next).await.expect("committed");
    let stream = cluster.stream_state(shard).await.expect("a state");
    assert_eq!(stream.feedback_cursors, [("app".to_owned(), Offset::new(2))]);
}

#[tokio::test]
async fn what_a_lost_connection_had_comes_again_in_order() {
    let node = single().await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let (session, mut queue) = open(cluster, &device).await;
    listen_to_commands(&session).await;
    for text in ["a", "b", "c"] {
        send(cluster, &device, text).await;
        assert_eq!(received(&mut queue).await.command.deliveries, 1);
    }
    session.settle(CommandSequence::new(2), Settlement::Complete).await.expect("settled");
    drop(session);
    until("the end of the connection unlocks", async || {
        state(cluster, &device, "a").await == State::Queued
    })
    .await;
    let (_session, mut queue) = open(cluster, &device).await;
    for text in ["a", "c"] {
        let sent = received(&mut queue).await;
        assert_eq!((sent.command.id.as_str(), sent.command.deliveries), (text, 2));
    }
}

#[tokio::test]
async fn times_pass_for_devices_that_are_not_connected() {
    let node = single_with(|config| config.commands.limits.ended_max = 10).await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let brief = SendCommand { expiry: Some(Expiry::After { ms: 50 }), ..command("brief") };
    cluster.send_command(&device, brief).await.expect("accepted");
    let ended = |state| matches!(state, State::Ended { ending: Ending::Expired, .. });
    until("it expires by itself", async || ended(state(cluster, &device, "brief").await)).await;
    let shard = cluster.shard_of(&device).expect("a shard");
    let page = cluster.read_feedback(shard, Offset::new(0), 10, 5_000).await.expect("feedback");
    assert_eq!(page.records.len(), 1, "it is told once");

    let now = cluster.shared.config.clock.now();
    let later = SendCommand { not_before: Some(now.plus_ms(300)), ..command("later") };
    cluster.send_command(&device, later).await.expect("accepted");
    send(cluster, &device, "now").await;
    let (session, mut queue) = open(cluster, &device).await;
    listen_to_commands(&session).await;
    assert_eq!(received(&mut queue).await.command.id.as_str(), "now");
    let sent = received(&mut queue).await;
    assert_eq!(sent.command.id.as_str(), "later");
    assert!(sent.command.attempts[0].at >= now.plus_ms(300));
}

#[tokio::test]
async fn a_lock_that_runs_out_sends_the_command_again() {
    let node = single_with(|config| config.commands.limits.lock_ms = 50).await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let (session, mut queue) = open(cluster, &device).await;
    listen_to_commands(&session).await;
    send(cluster, &device, "a").await;
    for deliveries in 1..=3 {
        assert_eq!(received(&mut queue).await.command.deliveries, deliveries);
    }
    session.settle(CommandSequence::new(1), Settlement::Complete).await.expect("it has it");
}

#[tokio::test]
async fn a_mailbox_can_be_read_cancelled_and_purged() {
    let node = single_with(|config| config.commands.limits.depth_max = 4).await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    for text in ["a", "b", "c"] {
        send(cluster, &device, text).await;
    }
    let keyed = SendCommand { key: Some("rate".into()), ..command("rate-1") };
    cluster.send_command(&device, keyed.clone()).await.expect("accepted");
    let full = cluster.send_command(&device, command("d")).await;
    assert!(matches!(full, Err(Error::Refused(Refusal::MailboxFull { limit: 4 }))));
    let newer = SendCommand { id: Some("rate-2".parse().expect("legal")), ..keyed };
    assert_eq!(cluster.send_command(&device, newer).await.expect("accepted").superseded, 1);

    let cancelled = cluster.cancel_command(&device, "b".parse().expect("legal")).await;
    assert_eq!(cancelled.expect("it waited").deliveries, 0);
    let first = cluster.commands(&device, CommandSequence::default(), 2, true).await;
    let first = first.expect("a page");
    assert_eq!(texts(&first.commands), ["a", "b"]);
    assert_eq!(first.commands[0].1, Some(message("a")));
    assert_eq!(first.commands[1].1, None, "its body went with its end");
    let rest = cluster.commands(&device, first.next.expect("more"), 10, false).await;
    assert_eq!(texts(&rest.expect("a page").commands), ["c", "rate-1", "rate-2"]);
    let purged = cluster.purge_commands(&device).await.expect("purged");
    assert_eq!(purged, Purged { count: 3, sent: 0 });
    let unknown = cluster.commands(&id("nobody"), CommandSequence::default(), 2, true).await;
    assert!(matches!(unknown, Err(Error::Refused(Refusal::DeviceNotFound { .. }))));
    let late = SendCommand { expiry: Some(Expiry::At(LogTime::new(1))), ..command("late") };
    let late = cluster.send_command(&device, late).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::CommandExpired))));
}

/// The leader's node stops while commands come in: the connection, at another node, gets all of them, each once and in
/// order, and nothing that it completed comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_outlive_the_leader_of_their_shard() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let (device, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    let (session, mut queue) = open(home, &device).await;
    listen_to_commands(&session).await;
    send(home, &device, "before").await;
    let sent = received(&mut queue).await;
    complete(&session, &sent).await;

    let led = nodes.iter().find(|node| node.cluster.shared.config.node == leader);
    led.expect("the leader").cluster.stop(5_000).await;
    for text in ["c1", "c2", "c3"] {
        until("a leader accepts it", async || {
            home.send_command(&device, command(text)).await.is_ok()
        })
        .await;
    }
    for text in ["c1", "c2", "c3"] {
        let sent = received(&mut queue).await;
        assert_eq!(sent.command.id.as_str(), text);
        complete(&session, &sent).await;
    }
    assert!(queue.try_recv().is_err(), "nothing comes twice");
}
