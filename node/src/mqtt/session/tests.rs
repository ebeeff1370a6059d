//! What one connection does, input by input. No socket, no cluster, no clock.

use std::time::Duration;

use drover_cluster::actors::session::{DELIVERIES_MAX, EndReason, SentCommand};
use drover_cluster::wire::message::Content;
use drover_core::change::Refusal;
use drover_core::device::Qos;
use drover_core::document::Value;
use drover_core::ids::{DeliveryNumber, Etag, GroupId, LogTime};
use drover_core::mailbox::{Ack, Command, Ending, State};
use drover_core::method::{Call, MethodResponse};
use drover_core::twin::{Metadata, Section};
use mqtt_protocol_core::mqtt::packet::Qos as PacketQos;
use mqtt_protocol_core::mqtt::packet::v3_1_1::Publish;

use super::*;

const TELEMETRY: &str = "devices/d/messages/events/";
/// The token of these tests ends ten minutes after they begin.
const EXPIRES_S: u64 = 1_700_000_600;

/// A session with a clock that the test moves.
struct Device {
    session: Session,
    now: Now,
}

impl Device {
    fn with(config: Config) -> Self {
        let now = Now { instant: Instant::now(), unix_ms: 1_700_000_000_000 };
        let config = Config { host_names: vec!["hub".into()], ..config };
        Self { session: Session::new(Arc::new(config), now), now }
    }

    /// A device that has its CONNACK.
    fn connected(config: Config) -> Self {
        let mut device = Self::with(config);
        device.send(connect("hub/d", None));
        device.open();
        assert_eq!(device.replies(), [connack(false, ConnectReturnCode::Accepted)]);
        device
    }

    fn listening(channels: &[(Channel, Qos)]) -> Self {
        let mut device = Self::with(Config::default());
        device.send(connect("hub/d", None));
        device.session.poll_request(device.now).expect("the claim");
        let subscriptions = channels.iter().copied().collect();
        device.answer(Outcome::Opened(Ok(Opened { subscriptions, ..opened() })));
        device.replies();
        device
    }

    fn open(&mut self) {
        assert!(matches!(self.request(), Some(Request::Open(_))));
        self.answer(Outcome::Opened(Ok(opened())));
    }

    fn send(&mut self, packet: Packet) {
        assert!(self.session.wants_packets(), "the session does not want {packet:?}");
        self.session.handle_packet(packet, self.now);
    }

    fn publish(&mut self, topic: &str, packet_id: u16, payload: &[u8]) {
        self.send(publish(topic, Some(packet_id), payload));
    }

    fn request(&mut self) -> Option<Request> {
        self.session.poll_request(self.now)
    }

    /// The bodies of the batch that is sent to the cluster now.
    fn appended(&mut self) -> Vec<Vec<u8>> {
        let Some(Request::Append(messages)) = self.request() else { return Vec::new() };
        messages.into_iter().map(|message| body(&message)).collect()
    }

    fn answer(&mut self, outcome: Outcome) {
        self.session.handle_outcome(outcome, self.now);
    }

    fn stored(&mut self) {
        self.answer(Outcome::Appended(Ok(0)));
    }

    fn replies(&mut self) -> Vec<Reply> {
        std::iter::from_fn(|| self.session.poll_reply(self.now))
            .map(|outgoing| outgoing.reply)
            .collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix_ms += time.as_millis() as u64;
        self.session.handle_time(self.now);
    }

    fn closed(&self) -> Option<CloseReason> {
        self.session.closed()
    }
}

fn connect(user_name: &str, will: Option<&[u8]>) -> Packet {
    let builder = Connect::builder().client_id("d").expect("a string").keep_alive(60);
    let builder = builder.user_name(user_name).expect("a string");
    let builder = builder.password(b"token".to_vec()).expect("bytes");
    let builder = match will {
        Some(will) => builder
            .will_message(TELEMETRY, will.to_vec(), PacketQos::AtLeastOnce, false)
            .expect("a will"),
        None => builder,
    };
    Packet::Connect(Box::new(builder.build().expect("complete")))
}

fn publish(topic: &str, packet_id: Option<u16>, payload: &[u8]) -> Packet {
    let builder = Publish::builder().topic_name(topic).expect("a topic").payload(payload.to_vec());
    let builder = match packet_id {
        Some(id) => builder.qos(PacketQos::AtLeastOnce).packet_id(id),
        None => builder.qos(PacketQos::AtMostOnce),
    };
    Packet::Publish(builder.build().expect("complete"))
}

fn subscribe(packet_id: u16, filters: &[(&str, Qos)]) -> Packet {
    let filters = filters.iter().map(|(filter, qos)| ((*filter).to_owned(), *qos)).collect();
    Packet::Subscribe { packet_id, filters }
}

fn opened() -> Opened {
    Opened {
        epoch: SessionEpoch::new(3),
        session_present: false,
        subscriptions: Subscriptions::new(),
        expires_s: EXPIRES_S,
    }
}

fn connack(session_present: bool, code: ConnectReturnCode) -> Reply {
    Reply::Connack { session_present, code }
}

fn decoded(message: &Message) -> drover_proto::record::Message {
    prost::Message::decode(message.0.clone()).expect("encoded by the session")
}

fn body(message: &Message) -> Vec<u8> {
    decoded(message).body.to_vec()
}

fn version(number: u64) -> Version {
    Version::new(number)
}

fn patch(number: i64) -> Object {
    Object::from([("a".to_owned(), Value::Integer(number))])
}

fn desired(number: u64) -> Delivery {
    Delivery::Desired { version: version(number), patch: patch(1) }
}

fn stale() -> Error {
    let (given, current) = (SessionEpoch::new(3), SessionEpoch::new(4));
    Error::Refused(Refusal::StaleSession { given, current })
}

fn published(replies: &[Reply]) -> Vec<(String, Option<u16>, serde_json::Value)> {
    let published = replies.iter().filter_map(|reply| match reply {
        Reply::Publish { topic, packet_id, payload, .. } => {
            let payload = serde_json::from_slice(payload).unwrap_or_default();
            Some((topic.clone(), *packet_id, payload))
        }
        Reply::Connack { .. }
        | Reply::ConnackVersion5
        | Reply::Puback(_)
        | Reply::Suback { .. }
        | Reply::Unsuback(_)
        | Reply::Pingresp => None,
    });
    published.collect()
}

// ---------------------------------------------------------------- CONNECT

#[test]
fn nothing_is_taken_between_connect_and_connack() {
    let mut device = Device::with(Config::default());
    device.send(connect("hub/d", None));
    assert!(!device.session.wants_packets());
    assert!(matches!(device.request(), Some(Request::Open(login)) if login.device.as_str() == "d"));
    assert!(!device.session.wants_packets());
    assert_eq!(device.replies(), []);
    device.answer(Outcome::Opened(Ok(Opened { session_present: true, ..opened() })));
    assert_eq!(device.replies(), [connack(true, ConnectReturnCode::Accepted)]);
    assert!(device.session.wants_packets());
}

#[test]
fn a_claim_that_is_not_proved_gets_a_code_and_the_end() {
    for (error, code) in [
        (OpenError::Denied, ConnectReturnCode::NotAuthorized),
        (OpenError::Unavailable, ConnectReturnCode::ServerUnavailable),
    ] {
        let mut device = Device::with(Config::default());
        device.send(connect("hub/d", Some(b"gone")));
        device.request();
        device.answer(Outcome::Opened(Err(error)));
        assert_eq!(device.replies(), [connack(false, code)]);
        assert_eq!(device.closed(), Some(CloseReason::ConnectRefused));
        assert_eq!(device.session.take_will(), None, "nobody was connected");
    }
}

#[test]
fn a_claim_that_makes_no_sense_is_refused_without_asking() {
    let mut device = Device::with(Config::default());
    device.send(connect("elsewhere/d", None));
    assert_eq!(device.request(), None);
    assert_eq!(device.replies(), [connack(false, ConnectReturnCode::BadUserNameOrPassword)]);
    assert_eq!(device.closed(), Some(CloseReason::ConnectRefused));
}

#[test]
fn a_second_connect_is_the_end() {
    let mut device = Device::connected(Config::default());
    device.send(connect("hub/d", None));
    assert_eq!(device.closed(), Some(CloseReason::Protocol));
}

#[test]
fn other_versions_of_mqtt_are_told_so() {
    for (level, reply) in [
        (5, Reply::ConnackVersion5),
        (3, connack(false, ConnectReturnCode::UnacceptableProtocolVersion)),
    ] {
        let mut device = Device::with(Config::default());
        device.session.handle_malformed(codec::Error::UnsupportedLevel { level });
        assert_eq!(device.replies(), [reply]);
        assert_eq!(device.closed(), Some(CloseReason::Protocol));
    }
    let mut device = Device::connected(Config::default());
    device.session.handle_malformed(codec::Error::UnsupportedLevel { level: 5 });
    assert_eq!(device.replies(), [], "a second CONNECT of any version has no answer");
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let mut device = Device::with(Config::default());
    device.pass(Duration::from_secs(29));
    assert_eq!(device.closed(), None);
    device.pass(Duration::from_secs(1));
    assert_eq!(device.closed(), Some(CloseReason::ConnectTimeout));
}

// ---------------------------------------------------------------- telemetry

#[test]
fn a_puback_comes_after_the_clusters_answer() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 7, b"1");
    assert_eq!(device.appended(), [b"1"]);
    assert_eq!(device.replies(), []);
    device.stored();
    assert_eq!(device.replies(), [Reply::Puback(7)]);
}

#[test]
fn telemetry_that_waits_together_is_one_request_and_pubacks_keep_its_order() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 9, b"1");
    assert_eq!(device.appended(), [b"1"]);
    device.publish(TELEMETRY, 3, b"2");
    device.send(publish(TELEMETRY, None, b"3"));
    device.publish(TELEMETRY, 5, b"4");
    assert_eq!(device.request(), None, "one request at a time");
    device.stored();
    assert_eq!(device.appended(), [b"2", b"3", b"4"]);
    device.stored();
    assert_eq!(device.replies(), [Reply::Puback(9), Reply::Puback(3), Reply::Puback(5)]);
}

#[test]
fn what_is_between_telemetry_keeps_its_place() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 1, b"1");
    device.publish("$iothub/methods/res/200/?$rid=not-ours", 2, b"");
    device.publish(TELEMETRY, 3, b"3");
    assert_eq!(device.appended(), [b"1"]);
    device.stored();
    assert_eq!(device.appended(), [b"3"]);
    assert_eq!(device.replies(), [Reply::Puback(1), Reply::Puback(2)]);
    device.stored();
    assert_eq!(device.replies(), [Reply::Puback(3)]);
}

#[test]
fn a_batch_is_bounded_in_messages_and_bytes() {
    let mut device = Device::connected(Config { batch_messages: 2, ..Config::default() });
    (1..=3).for_each(|id| device.publish(TELEMETRY, id, b"x"));
    assert_eq!(device.appended().len(), 2);
    let mut device = Device::connected(Config { batch_bytes: 250, ..Config::default() });
    (1..=3).for_each(|id| device.publish(TELEMETRY, id, &[0; 100]));
    assert_eq!(device.appended().len(), 2);
    let mut device = Device::connected(Config { batch_bytes: 1, ..Config::default() });
    device.publish(TELEMETRY, 1, &[0; 100]);
    assert_eq!(device.appended().len(), 1, "one goes in any case");
}

#[test]
fn a_full_window_stops_reading_and_an_answer_opens_it() {
    let mut device = Device::connected(Config { window_messages: 2, ..Config::default() });
    (1..=2).for_each(|id| device.publish(TELEMETRY, id, b"x"));
    assert!(!device.session.wants_packets());
    assert_eq!(device.appended().len(), 2);
    assert!(!device.session.wants_packets(), "in flight counts");
    device.stored();
    assert!(device.session.wants_packets());

    let mut device = Device::connected(Config { window_bytes: 100, ..Config::default() });
    device.publish(TELEMETRY, 1, &[0; 100]);
    assert!(!device.session.wants_packets());
}

#[test]
fn the_same_packet_id_again_and_again_is_bounded_like_any_other() {
    let mut device = Device::connected(Config::default());
    for _ in 0..Config::default().window_messages {
        device.publish(TELEMETRY, 1, b"x");
    }
    assert!(!device.session.wants_packets());
}

#[test]
fn properties_and_retain_are_stored_with_the_message() {
    let mut device = Device::with(Config::default());
    device.send(connect("hub/d/?model-id=dtmi%3Ax%3B1", None));
    device.open();
    let topic = format!("{TELEMETRY}%24.ct=application%2Fjson&k=v");
    let retained = Publish::builder().topic_name(topic).expect("a topic").retain(true);
    device.send(Packet::Publish(retained.payload(b"{}".to_vec()).build().expect("complete")));
    let Some(Request::Append(messages)) = device.request() else { panic!("no append") };
    let message = decoded(&messages[0]);
    let pairs = |properties: Vec<drover_proto::record::Property>| -> Vec<_> {
        properties.into_iter().map(|p| (p.key, p.value.unwrap_or_default())).collect()
    };
    let expected = [("content-type", "application/json"), ("dt-dataschema", "dtmi:x;1")];
    assert_eq!(pairs(message.system), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let expected = [("k", "v"), ("mqtt-retain", "true")];
    assert_eq!(pairs(message.application), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

#[test]
fn a_topic_of_another_device_is_the_end() {
    for topic in ["devices/e/messages/events/", "é", "$iothub/twin/GET/", "$SYS/x"] {
        let mut device = Device::connected(Config::default());
        device.publish(topic, 1, b"x");
        assert_eq!(device.closed(), Some(CloseReason::IllegalPublish), "{topic}");
        assert_eq!(device.request(), None);
        assert_eq!(device.replies(), []);
    }
}

#[test]
fn an_unknown_outcome_is_the_end_without_a_puback() {
    for error in [Error::Timeout, Error::LeaderLost { group: GroupId::Meta }] {
        let mut device = Device::connected(Config::default());
        device.publish(TELEMETRY, 1, b"x");
        device.request();
        device.answer(Outcome::Appended(Err(error)));
        assert_eq!(device.closed(), Some(CloseReason::UnknownOutcome));
        assert_eq!(device.replies(), []);
    }
}

#[test]
fn a_throttled_message_is_tried_again_and_nothing_is_read_meanwhile() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 1, b"x");
    device.request();
    device.answer(Outcome::Appended(Err(Error::RateLimited)));
    assert!(!device.session.wants_packets());
    assert_eq!(device.request(), None, "not yet");
    device.pass(Duration::from_millis(50));
    assert_eq!(device.appended(), [b"x"]);
    assert_eq!(device.request(), None, "one request at a time");
    device.stored();
    assert_eq!(device.replies(), [Reply::Puback(1)]);
    assert!(device.session.wants_packets());
}

#[test]
fn a_lasting_throttle_is_the_end() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 1, b"x");
    let mut attempts = 0;
    while device.closed().is_none() {
        if device.request().is_some() {
            attempts += 1;
            device.answer(Outcome::Appended(Err(Error::Busy { what: "shard 1".into() })));
        }
        device.pass(Duration::from_millis(50));
        assert!(attempts < 100, "the waits do not grow");
    }
    assert_eq!(device.closed(), Some(CloseReason::Throttled));
    assert_eq!(device.replies(), []);
}

// ---------------------------------------------------------------- subscriptions

#[test]
fn a_suback_has_a_code_for_each_filter_in_order_after_it_is_durable() {
    let mut device = Device::connected(Config::default());
    let filters = [
        ("devices/d/messages/devicebound/#", Qos::AtLeastOnce),
        ("devices/e/messages/devicebound/#", Qos::AtLeastOnce),
        ("$iothub/methods/POST/#", Qos::AtMostOnce),
    ];
    device.send(subscribe(4, &filters));
    let wanted = Subscriptions::from([
        (Channel::Commands, Qos::AtLeastOnce),
        (Channel::Methods, Qos::AtMostOnce),
    ]);
    assert_eq!(device.request(), Some(Request::Subscribe(wanted.clone())));
    assert_eq!(device.replies(), []);
    device.answer(Outcome::Subscribed(Ok(wanted)));
    let granted = vec![Some(Qos::AtLeastOnce), None, Some(Qos::AtMostOnce)];
    assert_eq!(device.replies(), [Reply::Suback { packet_id: 4, granted }]);
}

#[test]
fn filters_that_are_refused_or_held_already_need_no_cluster() {
    let mut device = Device::listening(&[(Channel::Methods, Qos::AtMostOnce)]);
    device.send(subscribe(1, &[("#", Qos::AtMostOnce)]));
    device.send(subscribe(2, &[("$iothub/methods/POST/#", Qos::AtMostOnce)]));
    device.send(Packet::Unsubscribe { packet_id: 3, filters: vec!["$iothub/twin/res/#".into()] });
    assert_eq!(device.request(), None);
    let suback = |packet_id, granted| Reply::Suback { packet_id, granted: vec![granted] };
    let expected = [suback(1, None), suback(2, Some(Qos::AtMostOnce)), Reply::Unsuback(3)];
    assert_eq!(device.replies(), expected);
}

#[test]
fn a_changed_quality_is_a_change() {
    let mut device = Device::listening(&[(Channel::Methods, Qos::AtMostOnce)]);
    device.send(subscribe(1, &[("$iothub/methods/POST/#", Qos::AtLeastOnce)]));
    assert!(matches!(device.request(), Some(Request::Subscribe(_))));
}

#[test]
fn unsubscribing_ends_what_is_sent() {
    let mut device = Device::listening(&[(Channel::DesiredPatches, Qos::AtMostOnce)]);
    let filters = vec!["$iothub/twin/PATCH/properties/desired/#".to_owned(), "#".to_owned()];
    device.send(Packet::Unsubscribe { packet_id: 3, filters });
    assert_eq!(device.request(), Some(Request::Unsubscribe(vec![Channel::DesiredPatches])));
    device.answer(Outcome::Subscribed(Ok(Subscriptions::new())));
    assert_eq!(device.replies(), [Reply::Unsuback(3)]);
    device.session.handle_delivery(Some(desired(1)));
    assert_eq!(device.replies(), []);
}

// ---------------------------------------------------------------- twins

fn twin() -> Twin {
    let section = |number, version| Section {
        properties: patch(number),
        version: Version::new(version),
        metadata: Metadata {
            updated: LogTime::new(0),
            updated_version: Version::new(1),
            members: std::collections::BTreeMap::new(),
        },
    };
    Twin {
        etag: Etag::new(1),
        version: version(1),
        tags: patch(9),
        desired: section(1, 5),
        reported: section(2, 6),
    }
}

#[test]
fn a_twin_is_answered_under_the_request_id_without_tags() {
    let mut device = Device::listening(&[(Channel::TwinResponses, Qos::AtLeastOnce)]);
    device.publish("$iothub/twin/GET/?$rid=a%20b", 8, b" ");
    assert_eq!(device.request(), Some(Request::ReadTwin));
    device.answer(Outcome::Twin(Ok(Box::new(twin()))));
    let replies = device.replies();
    assert_eq!(replies[0], Reply::Puback(8));
    let expected = serde_json::json!({
        "desired": { "a": 1, "$version": 5 },
        "reported": { "a": 2, "$version": 6 },
    });
    let topic = "$iothub/twin/res/200/?$rid=a%20b".to_owned();
    assert_eq!(published(&replies), [(topic, Some(1), expected)]);
}

#[test]
fn a_reported_patch_is_answered_with_its_version() {
    let mut device = Device::listening(&[(Channel::TwinResponses, Qos::AtMostOnce)]);
    let topic = "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=4";
    device.send(publish(topic, None, b"{\"a\":7}"));
    let expected = Request::PatchReported { expected: Some(version(4)), patch: patch(7) };
    assert_eq!(device.request(), Some(expected));
    device.answer(Outcome::Reported(Ok(version(5))));
    let topic = "$iothub/twin/res/204/?$rid=1&$version=5".to_owned();
    assert_eq!(
        device.replies(),
        [Reply::Publish { topic, packet_id: None, dup: false, payload: vec![] }]
    );
}

#[test]
fn a_failed_twin_request_has_a_status_and_a_body() {
    let invalid = Refusal::InvalidTwin { path: "a.b".into(), problem: "too deep".into() };
    let group = GroupId::Meta;
    let cases = [
        (Error::Refused(invalid), 400, 400_004),
        (Error::Refused(Refusal::VersionMismatch { current: version(2) }), 412, 412_001),
        (Error::RateLimited, 429, 429_001),
        (Error::Busy { what: "shard 1".into() }, 429, 429_001),
        (Error::Timeout, 503, 503_001),
        (Error::LeaderLost { group }, 503, 503_001),
        (Error::NoLeader { group }, 503, 503_001),
    ];
    for (error, status, code) in cases {
        let mut device = Device::listening(&[(Channel::TwinResponses, Qos::AtMostOnce)]);
        device.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 2, b"{}");
        device.request();
        device.answer(Outcome::Reported(Err(error.clone())));
        assert_eq!(device.closed(), None, "{error}");
        let replies = device.replies();
        assert_eq!(replies[0], Reply::Puback(2));
        let (topic, _, body) = published(&replies).remove(0);
        assert_eq!(topic, format!("$iothub/twin/res/{status}/?$rid=1"));
        assert_eq!(body["errorCode"], code);
        assert_eq!(body["message"], error.to_string());
    }
}

#[test]
fn a_patch_that_is_no_json_object_is_refused_without_asking() {
    let deep = "[".repeat(10_000);
    for payload in ["", "7", "[1]", "{\"a\":", deep.as_str()] {
        let mut device = Device::listening(&[(Channel::TwinResponses, Qos::AtMostOnce)]);
        let topic = "$iothub/twin/PATCH/properties/reported/?$rid=1";
        device.send(publish(topic, None, payload.as_bytes()));
        assert_eq!(device.request(), None);
        let (topic, _, body) = published(&device.replies()).remove(0);
        assert_eq!(topic, "$iothub/twin/res/400/?$rid=1");
        assert_eq!(body["errorCode"], 400_004);
    }
}

#[test]
fn an_answer_that_nobody_listens_to_is_dropped_and_the_update_happens() {
    let mut device = Device::connected(Config::default());
    device.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", 2, b"{}");
    assert!(matches!(device.request(), Some(Request::PatchReported { .. })));
    device.answer(Outcome::Reported(Ok(version(2))));
    assert_eq!(device.replies(), [Reply::Puback(2)]);
}

#[test]
fn a_replaced_connection_gets_no_answers() {
    for topic in ["$iothub/twin/GET/?$rid=1", TELEMETRY] {
        let mut device = Device::listening(&[(Channel::TwinResponses, Qos::AtMostOnce)]);
        device.publish(topic, 1, b"");
        match device.request() {
            Some(Request::ReadTwin) => device.answer(Outcome::Twin(Err(stale()))),
            _ => device.answer(Outcome::Appended(Err(stale()))),
        }
        assert_eq!(device.closed(), Some(CloseReason::Replaced));
        assert_eq!(device.replies(), []);
    }
}

#[test]
fn desired_patches_carry_their_version_and_never_go_back() {
    let mut device = Device::listening(&[(Channel::DesiredPatches, Qos::AtLeastOnce)]);
    for number in [4, 5, 5, 4] {
        device.session.handle_delivery(Some(desired(number)));
    }
    let sent = published(&device.replies());
    let expected = |number: u64, packet_id| {
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={number}");
        (topic, Some(packet_id), serde_json::json!({ "a": 1, "$version": number }))
    };
    assert_eq!(sent, [expected(4, 1), expected(5, 2)]);
}

#[test]
fn a_patch_that_overtakes_the_answer_to_subscribe_is_sent_after_suback() {
    let mut device = Device::connected(Config::default());
    device.send(subscribe(1, &[("$iothub/twin/PATCH/properties/desired/#", Qos::AtMostOnce)]));
    device.request();
    device.session.handle_delivery(Some(desired(2)));
    assert_eq!(device.replies(), []);
    let granted = Subscriptions::from([(Channel::DesiredPatches, Qos::AtMostOnce)]);
    device.answer(Outcome::Subscribed(Ok(granted)));
    let replies = device.replies();
    assert!(matches!(replies[0], Reply::Suback { .. }));
    assert_eq!(published(&replies).len(), 1);
}

#[test]
fn a_device_that_acknowledges_nothing_gets_quality_0_and_a_device_that_reads_nothing_the_end() {
    let mut device = Device::listening(&[(Channel::DesiredPatches, Qos::AtLeastOnce)]);
    (1..=65).for_each(|number| device.session.handle_delivery(Some(desired(number))));
    let sent = published(&device.replies());
    assert_eq!(sent.iter().filter(|(_, packet_id, _)| packet_id.is_some()).count(), 64);
    device.send(Packet::Puback(1));
    (66..2000).for_each(|number| device.session.handle_delivery(Some(desired(number))));
    assert_eq!(device.closed(), Some(CloseReason::Unread));
    assert!(device.replies().len() <= 256 + DELIVERIES_MAX);
}

// ---------------------------------------------------------------- time and the end

#[test]
fn silence_of_one_and_a_half_keep_alives_is_the_end() {
    let mut device = Device::connected(Config::default());
    device.pass(Duration::from_secs(89));
    device.send(Packet::Pingreq);
    assert_eq!(device.replies(), [Reply::Pingresp]);
    device.pass(Duration::from_secs(89));
    assert_eq!(device.closed(), None);
    device.pass(Duration::from_secs(1));
    assert_eq!(device.closed(), Some(CloseReason::KeepAlive));
}

#[test]
fn a_device_that_is_not_read_is_not_silent() {
    let mut device = Device::connected(Config { window_messages: 1, ..Config::default() });
    device.publish(TELEMETRY, 1, b"x");
    device.request();
    device.pass(Duration::from_secs(100));
    assert_eq!(device.closed(), None);
    device.stored();
    device.pass(Duration::from_secs(89));
    assert_eq!(device.closed(), None);
}

#[test]
fn an_expired_token_is_the_end_at_its_deadline() {
    let mut device = Device::connected(Config::default());
    let mut looks = 0;
    while device.closed().is_none() {
        let wait = device.session.deadline().expect("alive") - device.now.instant;
        device.pass(wait.min(Duration::from_mins(1)));
        if device.session.wants_packets() {
            device.send(Packet::Pingreq);
        }
        looks += 1;
        assert!(looks < 50, "it spins");
    }
    assert_eq!(device.closed(), Some(CloseReason::TokenExpired));
    assert_eq!(device.now.unix_ms, EXPIRES_S * 1000);
}

#[test]
fn a_goodbye_waits_for_what_was_said_before_and_sends_no_will() {
    let mut device = Device::with(Config::default());
    device.send(connect("hub/d", Some(b"gone")));
    device.open();
    device.send(publish(TELEMETRY, None, b"last"));
    device.send(Packet::Disconnect);
    assert!(!device.session.wants_packets(), "nothing follows a DISCONNECT");
    assert_eq!(device.appended(), [b"last"]);
    assert_eq!(device.closed(), None);
    device.stored();
    assert_eq!(device.request(), None);
    assert_eq!(device.closed(), Some(CloseReason::Disconnected));
    assert_eq!(device.session.take_will(), None);
}

#[test]
fn every_other_end_sends_the_will_once() {
    type End = fn(&mut Device);
    let ends: [(End, CloseReason); 6] = [
        (
            |device| {
                device.session.handle_hang_up(device.now);
                device.request();
            },
            CloseReason::Lost,
        ),
        (|device| device.pass(Duration::from_secs(90)), CloseReason::KeepAlive),
        (
            |device| device.session.handle_delivery(Some(Delivery::End(EndReason::Replaced))),
            CloseReason::Replaced,
        ),
        (|device| device.session.handle_delivery(None), CloseReason::Gap),
        (|device| device.session.handle_malformed(codec::Error::QosTwo), CloseReason::Protocol),
        (
            |device| {
                device.session.handle_stop(device.now);
                device.request();
            },
            CloseReason::Stopping,
        ),
    ];
    for (end, reason) in ends {
        let mut device = Device::with(Config::default());
        device.send(connect("hub/d", Some(b"gone")));
        device.open();
        end(&mut device);
        assert_eq!(device.closed(), Some(reason));
        let will = device.session.take_will().expect("a will");
        assert_eq!(body(&will), b"gone");
        let mark = &decoded(&will).application[0];
        assert_eq!(
            (mark.key.as_str(), mark.value.as_deref()),
            ("iothub-MessageType", Some("Will"))
        );
        assert_eq!(device.session.take_will(), None);
    }
}

#[test]
fn a_stopping_node_answers_what_it_has_taken() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 1, b"x");
    device.session.handle_stop(device.now);
    assert!(!device.session.wants_packets());
    assert_eq!(device.appended(), [b"x"]);
    device.stored();
    assert_eq!(device.request(), None);
    assert_eq!(device.closed(), Some(CloseReason::Stopping));
    assert_eq!(device.replies(), [Reply::Puback(1)]);
}

#[test]
fn a_lost_connection_is_given_up_when_the_cluster_does_not_answer() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 1, b"x");
    device.request();
    device.session.handle_hang_up(device.now);
    device.pass(Duration::from_secs(9));
    assert_eq!(device.closed(), None);
    device.pass(Duration::from_secs(1));
    assert_eq!(device.closed(), Some(CloseReason::Lost));
}

#[test]
fn the_first_reason_to_end_counts_and_nothing_follows_it() {
    let mut device = Device::connected(Config::default());
    device.publish(TELEMETRY, 1, b"x");
    device.session.handle_delivery(Some(Delivery::End(EndReason::Revoked)));
    device.session.handle_stop(device.now);
    device.session.handle_packet(Packet::Pingreq, device.now);
    device.stored();
    assert_eq!(device.closed(), Some(CloseReason::Revoked));
    assert_eq!(device.request(), None);
    assert_eq!(device.replies(), []);
    assert_eq!(device.session.deadline(), None);
}

#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<Session>() <= 64, "{}", size_of::<Session>());
    assert!(size_of::<Live>() <= 512, "{}", size_of::<Live>());
}

const DEVICEBOUND: &str = "devices/d/messages/devicebound/#";

fn sent(sequence: u64, deliveries: u32, expires_ms: u64) -> Delivery {
    let command = Command {
        sequence: CommandSequence::new(sequence),
        id: format!("c{sequence}").parse().expect("a legal id"),
        key: None,
        ack: Ack::None,
        bytes: 4,
        queued: LogTime::new(0),
        not_before: None,
        expires: LogTime::new(expires_ms),
        lock_ms: 60_000,
        deliveries_max: 10,
        keep_ms: 0,
        state: State::Locked { until: LogTime::new(expires_ms) },
        deliveries,
        attempts: Vec::new(),
    };
    let content = Content { body: format!("b{sequence}").into(), ..Content::default() };
    Delivery::Command(Box::new(SentCommand {
        number: DeliveryNumber::new(sequence),
        follows: DeliveryNumber::new(sequence - 1),
        command,
        message: content.encode(),
    }))
}

/// The commands among the replies: body, packet id and DUP.
fn commands(replies: Vec<Reply>) -> Vec<(String, Option<u16>, bool)> {
    let command = |reply| {
        let Reply::Publish { topic, packet_id, dup, payload } = reply else {
            panic!("no command but {reply:?}")
        };
        assert!(topic.starts_with("devices/d/messages/devicebound/%24.to="), "{topic}");
        (String::from_utf8(payload).expect("text"), packet_id, dup)
    };
    replies.into_iter().map(command).collect()
}

fn command(body: &str, packet_id: Option<u16>, dup: bool) -> (String, Option<u16>, bool) {
    (body.to_owned(), packet_id, dup)
}

const LATER_MS: u64 = 1_700_000_300_000;

fn completes(sequence: u64) -> Request {
    let sequence = CommandSequence::new(sequence);
    Request::Settle { sequence, settlement: Settlement::Complete }
}

#[test]
fn a_puback_completes_a_command_and_an_unknown_one_means_nothing() {
    let mut device = Device::listening(&[(Channel::Commands, Qos::AtLeastOnce)]);
    device.session.handle_delivery(Some(sent(1, 1, LATER_MS)));
    device.session.handle_delivery(Some(sent(2, 3, LATER_MS)));
    assert_eq!(
        commands(device.replies()),
        [command("b1", Some(1), false), command("b2", Some(2), true)]
    );
    device.send(Packet::Puback(9));
    assert_eq!(device.request(), None);
    device.send(Packet::Puback(2));
    device.send(Packet::Puback(2));
    assert_eq!(device.request(), Some(completes(2)));
    device.send(Packet::Puback(1));
    assert_eq!(device.request(), None, "one request at a time");
    let ended = Refusal::CommandEnded { ending: Ending::Expired };
    device.answer(Outcome::Settled(Err(Error::Refused(ended))));
    assert_eq!(device.request(), Some(completes(1)));
    device.answer(Outcome::Settled(Ok(())));
    assert_eq!((device.request(), device.closed()), (None, None));
}

#[test]
fn at_quality_0_a_command_is_completed_when_it_is_sent() {
    let mut device = Device::listening(&[(Channel::Commands, Qos::AtMostOnce)]);
    device.session.handle_delivery(Some(sent(1, 1, LATER_MS)));
    assert_eq!(device.request(), None);
    assert_eq!(commands(device.replies()), [command("b1", None, false)]);
    assert_eq!(device.request(), Some(completes(1)));
}

#[test]
fn a_command_is_published_once_over_a_connection() {
    let mut device = Device::listening(&[(Channel::Commands, Qos::AtLeastOnce)]);
    device.session.handle_delivery(Some(sent(1, 1, LATER_MS)));
    assert_eq!(device.replies().len(), 1);
    device.session.handle_delivery(Some(sent(1, 2, LATER_MS)));
    assert!(device.replies().is_empty(), "its lock ran out, and the device has it");
    device.send(Packet::Puback(1));
    assert_eq!(device.request(), Some(completes(1)));
    device.session.handle_delivery(Some(sent(1, 3, LATER_MS)));
    assert!(device.replies().is_empty(), "it ran out once more before the completion was told");
    device.answer(Outcome::Settled(Ok(())));
    device.session.handle_delivery(Some(sent(1, 4, LATER_MS)));
    assert!(device.replies().is_empty(), "this was on its way when the completion was told");
}

#[test]
fn what_has_expired_or_nobody_listens_to_is_not_sent() {
    let mut device = Device::listening(&[(Channel::Commands, Qos::AtLeastOnce)]);
    device.session.handle_delivery(Some(sent(1, 1, 1_700_000_000_000)));
    device.session.handle_delivery(Some(sent(2, 1, LATER_MS)));
    assert_eq!(commands(device.replies()), [command("b2", Some(1), false)]);

    let mut device = Device::connected(Config::default());
    device.session.handle_delivery(Some(sent(1, 1, LATER_MS)));
    assert!(device.replies().is_empty());
}

#[test]
fn a_command_that_overtakes_the_suback_waits_for_it() {
    let mut device = Device::connected(Config::default());
    device.send(subscribe(5, &[(DEVICEBOUND, Qos::AtLeastOnce)]));
    assert!(matches!(device.request(), Some(Request::Subscribe(_))));
    device.session.handle_delivery(Some(sent(1, 1, LATER_MS)));
    assert!(device.replies().is_empty());
    let subscriptions = Subscriptions::from([(Channel::Commands, Qos::AtLeastOnce)]);
    device.answer(Outcome::Subscribed(Ok(subscriptions)));
    let replies = device.replies();
    let granted = vec![Some(Qos::AtLeastOnce)];
    assert_eq!(replies[0], Reply::Suback { packet_id: 5, granted });
    assert!(matches!(replies[1], Reply::Publish { .. }));
}

#[test]
fn a_command_that_no_packet_can_carry_is_rejected() {
    let mut device = Device::listening(&[(Channel::Commands, Qos::AtLeastOnce)]);
    let Delivery::Command(mut broken) = sent(1, 1, LATER_MS) else { panic!("it is one") };
    let application = vec![("k".to_owned(), Some("/".repeat(30_000)))];
    broken.message = Content { application, ..Content::default() }.encode();
    device.session.handle_delivery(Some(Delivery::Command(broken)));
    assert!(device.replies().is_empty());
    let (sequence, settlement) = (CommandSequence::new(1), Settlement::Reject);
    assert_eq!(device.request(), Some(Request::Settle { sequence, settlement }));
}

// ---------------------------------------------------------------- methods

fn call(number: u64) -> Delivery {
    Delivery::Call(Call {
        id: CallId::new(number),
        name: "reboot".parse().expect("a legal name"),
        payload: bytes::Bytes::from_static(br#"{"in":5}"#),
    })
}

fn answered(status: i32, payload: &'static [u8]) -> CallReport {
    CallReport::Answered(MethodResponse { status, payload: bytes::Bytes::from_static(payload) })
}

#[test]
fn a_call_goes_to_the_device_and_its_answer_to_the_cluster_before_its_puback() {
    let mut device = Device::listening(&[(Channel::Methods, Qos::AtLeastOnce)]);
    device.session.handle_delivery(Some(call(26)));
    let topic = "$iothub/methods/POST/reboot/?$rid=1a".to_owned();
    assert_eq!(published(&device.replies()), [(topic, Some(1), serde_json::json!({ "in": 5 }))]);
    device.publish("$iothub/methods/res/-3/?$rid=1a", 9, b"[1]");
    let request = device.request();
    let report = answered(-3, b"[1]");
    assert_eq!(request, Some(Request::ReportCall { call: CallId::new(26), report }));
    assert_eq!(device.replies(), []);
    device.answer(Outcome::CallReported(Ok(())));
    assert_eq!(device.replies(), [Reply::Puback(9)]);
}

#[test]
fn an_empty_answer_is_null_and_one_that_is_no_json_is_reported_as_bad() {
    let mut device = Device::listening(&[(Channel::Methods, Qos::AtMostOnce)]);
    let long = vec![b'1'; 128 * 1024 + 1];
    let bad = CallReport::BadResponse;
    let cases: [(&[u8], CallReport); 5] = [
        (b"", answered(200, b"null")),
        (b"{\"a\":", bad.clone()),
        (b"\"\xff\"", bad.clone()),
        (b"1 2", bad.clone()),
        (&long, bad),
    ];
    for (payload, report) in cases {
        device.publish("$iothub/methods/res/200/?$rid=1", 9, payload);
        let call = CallId::new(1);
        assert_eq!(device.request(), Some(Request::ReportCall { call, report }));
        // Whether the leader could be told or not: MQTT has no other answer.
        device.answer(Outcome::CallReported(Err(Error::Timeout)));
        assert_eq!(device.replies(), [Reply::Puback(9)]);
        assert_eq!(device.closed(), None);
    }
    device.publish("$iothub/methods/res/200/?$rid=not-ours", 10, b"1");
    assert_eq!((device.request(), device.replies()), (None, vec![Reply::Puback(10)]));
}

#[test]
fn a_call_that_cannot_be_sent_is_given_back() {
    let mut deaf = Device::listening(&[(Channel::DesiredPatches, Qos::AtMostOnce)]);
    let mut leaving = Device::listening(&[(Channel::Methods, Qos::AtMostOnce)]);
    leaving.session.handle_hang_up(leaving.now);
    for device in [&mut deaf, &mut leaving] {
        device.session.handle_delivery(Some(call(7)));
        let report = CallReport::NotSent;
        assert_eq!(device.request(), Some(Request::ReportCall { call: CallId::new(7), report }));
        assert_eq!(device.replies(), []);
    }
}
