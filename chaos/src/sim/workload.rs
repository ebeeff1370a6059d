//! What clients do at one node: connections of every device, and back ends.
//!
//! Every node opens connections of every device, so they take over from each other all the time. Some connections go on
//! after they were told that they had been replaced, as a node that is cut off would: what they send must have no effect.
//! At the end of a run each node writes to every device and reads everything.

use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use drover_cluster::actors::cluster::{ReadLimits, TwinChange};
use drover_cluster::actors::session::{DELIVERIES_MAX, Delivery, OpenSession, Session};
use drover_cluster::core::access::ProvenDevice;
use drover_cluster::core::change::{Condition, Message, Refusal, TwinUpdate};
use drover_cluster::core::device::{Channel, Qos, Subscriptions};
use drover_cluster::core::document::{Object, Value};
use drover_cluster::core::ids::{DeviceId, Etag, Offset, ShardCount, ShardId, Version};
use drover_cluster::core::twin::Twin;
use drover_cluster::{Cluster, Error};
use futures::future::join_all;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::history::{Append, AppendEnd, History, Phase, Section};
use super::plan::{Plan, stream};
use crate::promises::Violation;
use crate::promises::twin_section::{
    SLOTS, SectionOperation, SectionState, WriteAnswer, WriteCondition,
};

const BACK_ENDS: u64 = 2;
/// Requests of one connection, at the most.
const REQUESTS_MAX: u32 = 25;
const POLL: Duration = Duration::from_millis(20);

/// The clients of one node, in one of its lives.
pub(super) struct Workload {
    pub(super) node: u32,
    pub(super) cluster: Cluster,
    pub(super) plan: Rc<Plan>,
    pub(super) devices: Rc<Vec<DeviceId>>,
    pub(super) history: History,
}

/// A connection as its device sees it.
struct Connection {
    session: Session,
    deliveries: mpsc::Receiver<Box<Delivery>>,
    /// Messages that were handed over.
    position: u32,
    /// The newest desired version that was delivered.
    delivered: u64,
    has_ended: bool,
}

impl Workload {
    pub(super) async fn run(self, life: u64) {
        let draw = |client: u64| {
            let number = (u64::from(self.node) << 48) | (life << 16) | client;
            stream(self.plan.seed, "client", number)
        };
        let devices = (0..).zip(self.devices.iter());
        let connections = devices.map(|(client, device)| self.connect_often(device, draw(client)));
        let back_ends = (0..BACK_ENDS).map(|client| self.serve_often(draw(1000 + client)));
        futures::future::join(join_all(connections), join_all(back_ends)).await;
        while self.history.phase() < Phase::Final {
            sleep(POLL).await;
        }
        self.finish().await;
    }

    fn is_working(&self) -> bool {
        self.history.phase() == Phase::Load
    }

    async fn pause(&self, draw: &mut StdRng, times: u64) {
        let pause_ms = draw.random_range(0..=self.plan.pause_ms_max * times);
        sleep(Duration::from_millis(pause_ms)).await;
    }

    // ------------------------------------------------------------ devices

    async fn connect_often(&self, device: &DeviceId, mut draw: StdRng) {
        while self.is_working() {
            self.pause(&mut draw, 8).await;
            if let Some(connection) = self.open(device).await {
                self.use_connection(device, connection, &mut draw).await;
            }
        }
    }

    async fn open(&self, device: &DeviceId) -> Option<Connection> {
        let node = self.node;
        self.history.note(format_args!("{device} connects to node {node}"));
        let (queue, deliveries) = mpsc::channel(DELIVERIES_MAX);
        let opened = async {
            let Some(identity) = self.cluster.credentials(device).await? else { return Ok(None) };
            let proven = ProvenDevice { device: device.clone(), credentials: identity.etag };
            let request = OpenSession { proven, clean_session: false, deliveries: queue };
            self.cluster.open_session(request).await.map(Some)
        };
        let session = match opened.await {
            Ok(session) => session?,
            Err(error) => {
                self.history.note(format_args!("{device} is not connected: {error}"));
                return None;
            }
        };
        let epoch = session.epoch().get();
        let mut history = self.history.lock();
        let at = history.note(format_args!("{device} is connected to node {node} as {epoch}"));
        history.opened(device.as_str(), epoch, at);
        drop(history);
        Some(Connection { session, deliveries, position: 0, delivered: 0, has_ended: false })
    }

    async fn use_connection(
        &self,
        device: &DeviceId,
        mut connection: Connection,
        draw: &mut StdRng,
    ) {
        let ignores_its_end = draw.random_bool(0.3);
        if draw.random_bool(0.7) {
            let wanted = Subscriptions::from([(Channel::DesiredPatches, Qos::AtMostOnce)]);
            if connection.session.subscribe(wanted).await.is_err() {
                return;
            }
        }
        for _ in 0..draw.random_range(1..=REQUESTS_MAX) {
            self.pause(draw, 1).await;
            self.receive(device, &mut connection);
            if !self.is_working() || (connection.has_ended && !ignores_its_end) {
                break;
            }
            let next = match draw.random_range(0..10) {
                0..6 => self.append(device, &mut connection, draw.random_range(1..=3)).await,
                6..8 => self.report(device, &connection, draw).await,
                _ => self.read_own_twin(device, &connection).await,
            };
            if next.is_break() {
                break;
            }
        }
        if draw.random_bool(0.5) {
            drop(connection.session.close(None).await);
        }
    }

    fn receive(&self, device: &DeviceId, connection: &mut Connection) {
        let epoch = connection.session.epoch();
        loop {
            let Ok(delivery) = connection.deliveries.try_recv() else {
                connection.has_ended |= connection.deliveries.is_closed();
                return;
            };
            match *delivery {
                // The workload sends none.
                Delivery::Command(_) | Delivery::Call(_) => {}
                Delivery::End(reason) => {
                    self.history.note(format_args!("{device} as {epoch} is ended: {reason:?}"));
                    connection.has_ended = true;
                }
                Delivery::Desired { version, .. } => {
                    let version = version.get();
                    self.history.note(format_args!("{device} as {epoch} gets desired {version}"));
                    {
                        let counts = &mut self.history.lock().counts;
                        counts.operations.desired_delivered += 1;
                        counts.checks.deliveries += u64::from(connection.delivered > 0);
                    }
                    if version <= connection.delivered {
                        let seen = format!("version {version} after {}", connection.delivered);
                        let subject = format!("{device} as {epoch}");
                        self.history.violate(Violation::new("I-14 rising", subject, seen));
                    }
                    connection.delivered = version;
                }
            }
        }
    }

    async fn append(
        &self,
        device: &DeviceId,
        connection: &mut Connection,
        count: u32,
    ) -> ControlFlow<()> {
        let epoch = connection.session.epoch().get();
        let positions = connection.position..connection.position + count;
        connection.position += count;
        let (begun, first_sequence) = {
            let mut history = self.history.lock();
            let first_sequence = history.take_sequences(device.as_str(), count);
            let at = history
                .note(format_args!("{device} as {epoch} sends {count} from {first_sequence}"));
            let append = Append {
                device: device.to_string(),
                epoch,
                positions: positions.clone(),
                first_sequence,
                begun: at,
                end: AppendEnd::Unknown,
            };
            (history.begin_append(append), first_sequence)
        };
        let messages = (first_sequence..)
            .zip(positions)
            .map(|(sequence, position)| message(device, epoch, position, sequence));
        let answer = connection.session.append(messages.collect()).await;
        let mut history = self.history.lock();
        let at =
            history.note(format_args!("{device} as {epoch} sent {first_sequence}: {answer:?}"));
        let (end, next) = match &answer {
            Ok(offset) => {
                (AppendEnd::Stored { offset: offset.get(), at }, ControlFlow::Continue(()))
            }
            Err(error) if is_unknown(error) => (AppendEnd::Unknown, ControlFlow::Break(())),
            Err(error) => {
                history.counts.operations.fenced += u64::from(is_fenced(error));
                (AppendEnd::Refused, next_after(error))
            }
        };
        history.end_append(begun, end);
        next
    }

    async fn report(
        &self,
        device: &DeviceId,
        connection: &Connection,
        draw: &mut StdRng,
    ) -> ControlFlow<()> {
        let epoch = connection.session.epoch().get();
        let value = self.history.lock().next_number(device.as_str(), Section::Reported);
        let expected = if draw.random_bool(0.2) { Some(Version::new(value)) } else { None };
        let condition =
            expected.map_or(WriteCondition::None, |version| WriteCondition::Version(version.get()));
        let write = |answer| SectionOperation::Write { value, condition, answer };
        let (begun, begun_at) = {
            let mut history = self.history.lock();
            let at =
                history.note(format_args!("{device} as {epoch} reports {value} {condition:?}"));
            let unknown = write(WriteAnswer::Unknown);
            (history.begin_twin(device.as_str(), Section::Reported, unknown, at), at)
        };
        let answer = connection.session.patch_reported(expected, patch(value)).await;
        let mut history = self.history.lock();
        let at = history.note(format_args!("{device} as {epoch} reported {value}: {answer:?}"));
        let is_replaced = history.is_replaced(device.as_str(), epoch, begun_at);
        history.counts.checks.fences += u64::from(is_replaced);
        let (end, next) = match answer {
            Ok(version) => {
                history.counts.operations.reported_acknowledged += 1;
                if is_replaced {
                    let seen = format!("version {version} is from a connection replaced before");
                    let subject = format!("{device} as {epoch}");
                    history.violations.push(Violation::new("I-22 fenced", subject, seen));
                }
                let answer = WriteAnswer::Accepted { version: version.get() };
                (Some((write(answer), at)), ControlFlow::Continue(()))
            }
            Err(Error::Refused(Refusal::VersionMismatch { current })) => {
                let answer = WriteAnswer::Mismatch { current: current.get() };
                (Some((write(answer), at)), ControlFlow::Continue(()))
            }
            Err(error) if is_unknown(&error) => {
                history.counts.operations.unknown += 1;
                return ControlFlow::Break(());
            }
            Err(error) => {
                history.counts.operations.fenced += u64::from(is_fenced(&error));
                (None, next_after(&error))
            }
        };
        history.end_twin(begun, end);
        next
    }

    async fn read_own_twin(&self, device: &DeviceId, connection: &Connection) -> ControlFlow<()> {
        let begun = self.history.note(format_args!("{device} reads its twin"));
        match connection.session.twin().await {
            Ok(twin) => {
                self.has_read(device, &twin, begun);
                ControlFlow::Continue(())
            }
            Err(_) => ControlFlow::Break(()),
        }
    }

    // ------------------------------------------------------------ back ends

    async fn serve_often(&self, mut draw: StdRng) {
        let mut known = None;
        while self.is_working() {
            self.pause(&mut draw, 1).await;
            let device = &self.devices[draw.random_range(0..self.devices.len())];
            match draw.random_range(0..10) {
                0..4 => self.desire(device, known.as_ref(), &mut draw).await,
                4..8 => known = self.read_twin(device).await,
                _ => self.read_stream(&mut draw).await,
            }
        }
    }

    /// `known` is a device and its twin as it was read some time ago, which conditions name.
    async fn desire(&self, device: &DeviceId, known: Option<&(DeviceId, Twin)>, draw: &mut StdRng) {
        let (device, condition) = match known {
            Some((device, twin)) if draw.random_bool(0.5) => {
                let version = WriteCondition::Version(twin.desired.version.get());
                let etag = WriteCondition::Etag(twin.etag.get());
                (device, if draw.random_bool(0.5) { version } else { etag })
            }
            Some(_) | None => (device, WriteCondition::None),
        };
        self.write_desired(device, condition).await;
    }

    async fn write_desired(&self, device: &DeviceId, condition: WriteCondition) -> bool {
        let value = self.history.lock().next_number(device.as_str(), Section::Desired);
        let write = |answer| SectionOperation::Write { value, condition, answer };
        let begun = {
            let mut history = self.history.lock();
            let at = history.note(format_args!("{device}: desire {value} {condition:?}"));
            let unknown = write(WriteAnswer::Unknown);
            history.begin_twin(device.as_str(), Section::Desired, unknown, at)
        };
        let change = TwinChange {
            if_match: match condition {
                WriteCondition::Etag(etag) => Condition::Match(Etag::new(etag)),
                WriteCondition::None | WriteCondition::Version(_) => Condition::Any,
            },
            expected_desired: match condition {
                WriteCondition::Version(version) => Some(Version::new(version)),
                WriteCondition::None | WriteCondition::Etag(_) => None,
            },
            mode: TwinUpdate::Merge,
            tags: None,
            desired: Some(patch(value)),
        };
        let answer = self.cluster.update_twin(device, change).await;
        let mut history = self.history.lock();
        let answer = match answer {
            Ok(twin) => Ok(WriteAnswer::Accepted { version: twin.desired.version.get() }),
            Err(Error::Refused(Refusal::VersionMismatch { current })) => {
                Ok(WriteAnswer::Mismatch { current: current.get() })
            }
            Err(Error::Refused(Refusal::EtagMismatch { current })) => {
                Ok(WriteAnswer::Mismatch { current: current.get() })
            }
            Err(error) => Err(error),
        };
        let at = history.note(format_args!("{device}: desired {value}: {answer:?}"));
        match answer {
            Ok(answer) => {
                let is_accepted = matches!(answer, WriteAnswer::Accepted { .. });
                history.counts.operations.desired_acknowledged += u64::from(is_accepted);
                history.end_twin(begun, Some((write(answer), at)));
                is_accepted
            }
            Err(error) if is_unknown(&error) => {
                history.counts.operations.unknown += 1;
                false
            }
            Err(_) => {
                history.end_twin(begun, None);
                false
            }
        }
    }

    async fn read_twin(&self, device: &DeviceId) -> Option<(DeviceId, Twin)> {
        let begun = self.history.note(format_args!("{device}: read at node {}", self.node));
        match self.cluster.twin(device).await {
            Ok(twin) => {
                self.has_read(device, &twin, begun);
                Some((device.clone(), twin))
            }
            Err(error) => {
                self.history.note(format_args!("{device}: not read: {error}"));
                None
            }
        }
    }

    fn has_read(&self, device: &DeviceId, twin: &Twin, begun: u64) {
        let (desired, reported) = states(twin);
        let mut history = self.history.lock();
        let at = history.note(format_args!(
            "{device}: read desired {}, reported {}",
            desired.version, reported.version
        ));
        history.counts.operations.twins_read += 1;
        for (section, state) in [(Section::Desired, desired), (Section::Reported, reported)] {
            let read = SectionOperation::Read(state);
            let operation = history.begin_twin(device.as_str(), section, read.clone(), begun);
            history.end_twin(operation, Some((read, at)));
        }
    }

    async fn read_stream(&self, draw: &mut StdRng) {
        let shards = ShardCount::new(self.plan.shards).expect("a plan has a few shards");
        let number = draw.random_range(0..self.plan.shards);
        let shard = ShardId::new(number, shards).expect("below the count");
        let Ok(state) = self.cluster.stream_state(shard).await else { return };
        let from = Offset::new(draw.random_range(0..=state.next.get()));
        let limits = ReadLimits { messages_max: 50, bytes_max: 100_000, wait_ms: 0 };
        let Ok(page) = self.cluster.read_stream(shard, from, limits).await else { return };
        let mut history = self.history.lock();
        history.note(format_args!("shard {number}: read {} from {from}", page.messages.len()));
        history.counts.operations.pages_read += 1;
        let reader = format!("a client of node {}", self.node);
        for stored in &page.messages {
            let hash = super::observe::message_hash(stored);
            history.read_offset(number, stored.offset.get(), hash, &reader);
        }
    }

    // ------------------------------------------------------------ the end

    /// Writes to every device until it is accepted, and reads it. That it ends is checked from outside.
    async fn finish(&self) {
        for device in self.devices.iter() {
            while !self.write_desired(device, WriteCondition::None).await {
                sleep(POLL).await;
            }
            while self.read_twin(device).await.is_none() {
                sleep(POLL).await;
            }
        }
        self.history.note(format_args!("node {} has finished", self.node));
        self.history.lock().finished.insert(self.node, true);
    }
}

/// Notes what a new device begins with.
pub(super) async fn note_initial(cluster: &Cluster, device: &DeviceId, history: &History) {
    loop {
        if let Ok(twin) = cluster.twin(device).await {
            let (desired, reported) = states(&twin);
            let mut history = history.lock();
            history.initial.insert((device.to_string(), Section::Desired), desired);
            history.initial.insert((device.to_string(), Section::Reported), reported);
            return;
        }
        sleep(POLL).await;
    }
}

fn states(twin: &Twin) -> (SectionState, SectionState) {
    let state = |section: &drover_cluster::core::twin::Section, etag| {
        let number = |key: &str| match section.properties.get(key) {
            Some(Value::Integer(number)) => *number as u64,
            Some(_) | None => 0,
        };
        let mut state = SectionState {
            version: section.version.get(),
            etag,
            last: number("last"),
            slots: [0; SLOTS as usize],
        };
        for (place, slot) in state.slots.iter_mut().enumerate() {
            *slot = number(&format!("s{place}"));
        }
        state
    };
    (state(&twin.desired, twin.etag.get()), state(&twin.reported, 0))
}

/// The patch of a numbered write.
fn patch(value: u64) -> Object {
    let number = Value::Integer(value as i64);
    let slot = format!("s{}", SectionState::slot(value));
    Object::from([("last".to_owned(), number.clone()), (slot, number)])
}

/// A message that says where it comes from.
fn message(device: &DeviceId, epoch: u64, position: u32, sequence: u64) -> Message {
    Message(Bytes::from(format!("{device} {epoch} {position} {sequence}")))
}

fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Timeout | Error::LeaderLost { .. })
}

fn is_fenced(error: &Error) -> bool {
    matches!(error, Error::Refused(Refusal::StaleSession { .. }))
}

/// Whether a connection goes on after a refusal.
fn next_after(error: &Error) -> ControlFlow<()> {
    if error.is_retryable() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
