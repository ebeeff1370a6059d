//! Direct methods through whole nodes: each end that a call can have, and that it is carried out at most once.

use drover_core::method::{Call, CallReport, MethodFailure, MethodResponse};

use tokio::sync::oneshot;

use super::super::methods::MethodCall;
use super::*;

fn call(connect_ms: u64, response_ms: u64) -> MethodCall {
    MethodCall {
        name: "reboot".parse().expect("a legal name"),
        payload: Bytes::from_static(br#"{"in":5}"#),
        connect_timeout: Duration::from_millis(connect_ms),
        response_timeout: Duration::from_millis(response_ms),
    }
}

fn answer(status: i32) -> MethodResponse {
    MethodResponse { status, payload: Bytes::from_static(b"true") }
}

async fn listen_to_methods(session: &Session) {
    let subscriptions = Subscriptions::from([(Channel::Methods, Qos::AtMostOnce)]);
    session.subscribe(subscriptions).await.expect("subscribed");
}

async fn called(queue: &mut Deliveries) -> Call {
    match next(queue).await {
        Some(Delivery::Call(call)) => call,
        other => panic!("no call but {other:?}"),
    }
}

async fn report(session: &Session, call: &Call, report: CallReport) {
    session.report_call(call.id, report).await.expect("the leader hears it");
}

fn failed(failure: MethodFailure) -> Result<MethodResponse, Error> {
    Err(Error::Method(failure))
}

#[tokio::test]
async fn calls_at_the_same_time_each_get_their_own_answer() {
    let node = single().await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let (session, mut queue) = open(cluster, &device).await;
    listen_to_methods(&session).await;
    let one = cluster.invoke_method(&device, call(0, 30_000));
    let other = cluster.invoke_method(&device, call(0, 30_000));
    let device_side = async {
        let [first, second] = [called(&mut queue).await, called(&mut queue).await];
        assert_eq!((first.name.as_str(), &first.payload[..]), ("reboot", &br#"{"in":5}"#[..]));
        report(&session, &second, CallReport::Answered(answer(2))).await;
        report(&session, &first, CallReport::Answered(answer(1))).await;
        report(&session, &first, CallReport::Answered(answer(3))).await;
    };
    let (one, other, ()) = tokio::join!(one, other, device_side);
    assert_eq!((one, other), (Ok(answer(1)), Ok(answer(2))));
}

#[tokio::test]
async fn a_device_that_cannot_be_called_is_said_to_be_so_and_is_waited_for_if_asked() {
    let node = single().await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    let unknown = cluster.invoke_method(&device, call(0, 1)).await;
    assert!(matches!(unknown, Err(Error::Refused(Refusal::DeviceNotFound { .. }))), "{unknown:?}");
    create(cluster, &device).await;
    let absent = cluster.invoke_method(&device, call(0, 1)).await;
    assert_eq!(absent, failed(MethodFailure::NotConnected));
    let late = cluster.invoke_method(&device, call(20, 1)).await;
    assert_eq!(late, failed(MethodFailure::NotConnected));
    let (session, mut queue) = open(cluster, &device).await;
    let deaf = cluster.invoke_method(&device, call(0, 1)).await;
    assert_eq!(deaf, failed(MethodFailure::NotSubscribed));
    let waiting = cluster.invoke_method(&device, call(30_000, 30_000));
    let device_side = async {
        listen_to_methods(&session).await;
        let call = called(&mut queue).await;
        report(&session, &call, CallReport::Answered(answer(0))).await;
    };
    assert_eq!(tokio::join!(waiting, device_side).0, Ok(answer(0)));
}

#[tokio::test]
async fn silence_nonsense_and_a_lost_connection_are_told_apart() {
    let node = single().await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let (session, mut queue) = open(cluster, &device).await;
    listen_to_methods(&session).await;
    let silent = cluster.invoke_method(&device, call(0, 20)).await;
    assert_eq!(silent, failed(MethodFailure::NoResponse));
    let late = called(&mut queue).await;
    report(&session, &late, CallReport::Answered(answer(9))).await;

    let nonsense = async {
        let call = called(&mut queue).await;
        report(&session, &call, CallReport::BadResponse).await;
    };
    let heard = tokio::join!(cluster.invoke_method(&device, call(0, 30_000)), nonsense).0;
    assert_eq!(heard, failed(MethodFailure::BadResponse));

    let replaced = async {
        called(&mut queue).await;
        open(cluster, &device).await
    };
    let (heard, (_new, mut new_queue)) =
        tokio::join!(cluster.invoke_method(&device, call(0, 30_000)), replaced);
    assert_eq!(heard, failed(MethodFailure::ConnectionLost));
    assert!(new_queue.try_recv().is_err(), "a call that was sent is not sent again");
}

#[tokio::test]
async fn only_the_connection_that_was_called_can_answer() {
    let node = single().await;
    let (cluster, device, other) = (&node.cluster, id("pump-7"), id("pump-8"));
    create(cluster, &device).await;
    create(cluster, &other).await;
    let (session, mut queue) = open(cluster, &device).await;
    let (stranger, _) = open(cluster, &other).await;
    listen_to_methods(&session).await;
    let device_side = async {
        let call = called(&mut queue).await;
        report(&stranger, &call, CallReport::Answered(answer(666))).await;
        let newer = open(cluster, &device).await.0;
        report(&newer, &call, CallReport::Answered(answer(667))).await;
        report(&session, &call, CallReport::Answered(answer(668))).await;
    };
    let heard = tokio::join!(cluster.invoke_method(&device, call(0, 30_000)), device_side).0;
    assert_eq!(heard, failed(MethodFailure::ConnectionLost));
}

#[tokio::test]
async fn the_calls_of_a_device_are_bounded_and_bad_ones_do_not_reach_it() {
    let node = single_with(|config| config.limits.device_calls_max = 2).await;
    let (cluster, device) = (&node.cluster, id("pump-7"));
    create(cluster, &device).await;
    let calls = (0..4).map(|_| cluster.invoke_method(&device, call(50, 1)));
    let answers = futures::future::join_all(calls).await;
    let refused = failed(MethodFailure::TooManyCalls { limit: 2 });
    assert_eq!(answers.iter().filter(|answer| **answer == refused).count(), 2, "{answers:?}");
    let invalid = |call| async { cluster.invoke_method(&device, call).await.expect_err("invalid") };
    for (bad, field) in [
        (MethodCall { payload: Bytes::from_static(b"{"), ..call(0, 1) }, "payload"),
        (MethodCall { payload: vec![b'1'; 128 * 1024 + 1].into(), ..call(0, 1) }, "payload"),
        (call(300_001, 1), "connect_timeout"),
        (call(0, 0), "response_timeout"),
        (call(0, 300_001), "response_timeout"),
    ] {
        let error = invalid(bad).await;
        assert!(matches!(&error, Error::Invalid { field: f, .. } if f == field), "{error}");
    }
}

/// The connection has gone from its node before the call comes there: the call was not sent, so it follows the device.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_not_sent_follows_the_device_to_another_node() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let (device, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    let leader = nodes.iter().find(|node| node.cluster.shared.config.node == leader);
    let led = &leader.expect("the leader").cluster.shared.router;
    let led = led.replica(shard(home, &device)).expect("a replica");
    let (session, mut queue) = open(home, &device).await;
    listen_to_methods(&session).await;
    let moved = async {
        // The device has gone, and its next connection is on its way: the leader does not know yet.
        let shard = shard(home, &device);
        let _closed = home.shared.sessions.close(shard, &device, session.epoch());
        let calling = nodes[1].cluster.invoke_method(&device, call(0, 30_000));
        let moving = async {
            until("the leader knows that it was not sent", async || {
                let (count, waiting) = oneshot::channel();
                let message = ShardMsg::CountUnsent(device.clone(), count);
                led.actor.send_message(message).expect("a running shard");
                waiting.await == Ok(1)
            })
            .await;
            let (session, mut queue) = open(&nodes[2].cluster, &device).await;
            let call = called(&mut queue).await;
            report(&session, &call, CallReport::Answered(answer(7))).await;
            session
        };
        tokio::join!(calling, moving).0
    };
    assert_eq!(moved.await, Ok(answer(7)));
    assert!(!matches!(queue.try_recv(), Ok(delivery) if matches!(*delivery, Delivery::Call(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_goes_from_any_node_to_any_node_also_under_a_new_leader() {
    let nodes = start(3, |_| {}).await;
    let home = &nodes[0].cluster;
    let (device, leader) = led_elsewhere(home, &[home.shared.config.node]).await;
    let (session, mut queue) = open(home, &device).await;
    listen_to_methods(&session).await;
    for node in &nodes {
        let device_side = async {
            let call = called(&mut queue).await;
            report(&session, &call, CallReport::Answered(answer(1))).await;
        };
        let calling = node.cluster.invoke_method(&device, call(0, 30_000));
        assert_eq!(tokio::join!(calling, device_side).0, Ok(answer(1)));
    }
    let led = nodes.iter().find(|node| node.cluster.shared.config.node == leader);
    led.expect("the leader").cluster.stop(5_000).await;
    // A call that the dying leader had is unknown to its caller; the next ones find the new leader.
    let device_side = async {
        loop {
            let call = called(&mut queue).await;
            report(&session, &call, CallReport::Answered(answer(2))).await;
        }
    };
    let calling = until("a call to be answered under the new leader", async || {
        home.invoke_method(&device, call(0, 2_000)).await == Ok(answer(2))
    });
    tokio::select! {
        () = calling => {}
        () = device_side => {}
    }
}
