//! What devices do at one node: connect, send, report, read their twins, and take over from each other.

use std::ops::ControlFlow;

use drover_cluster::Error;
use drover_cluster::actors::session::{DELIVERIES_MAX, Delivery, OpenSession, Session, Settlement};
use drover_cluster::core::access::ProvenDevice;
use drover_cluster::core::change::Refusal;
use drover_cluster::core::device::{Channel, Qos, Subscriptions};
use drover_cluster::core::ids::{DeviceId, Version};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;

use super::Workload;
use super::commands::Received;
use super::content::{is_fenced, is_unknown, message, next_after, patch};
use crate::history::commands::Opened;
use crate::promises::Violation;
use crate::promises::twin_section::{SectionOperation, WriteAnswer, WriteCondition};
use crate::sim::history::{Append, AppendEnd, Section};

/// Requests of one connection, at the most.
const REQUESTS_MAX: u32 = 25;

/// A connection as its device sees it.
pub(super) struct Connection {
    pub(super) session: Session,
    deliveries: mpsc::Receiver<Box<Delivery>>,
    /// Messages that were handed over.
    position: u32,
    /// The newest desired version that was delivered.
    delivered: u64,
    pub(super) has_ended: bool,
    pub(super) commands: Received,
}

impl Workload {
    pub(super) async fn connect_often(&self, device: &DeviceId, mut draw: StdRng) {
        while self.is_working() {
            self.pause(&mut draw, 8).await;
            if let Some(connection) = self.open(device).await {
                self.use_connection(device, connection, &mut draw).await;
            }
        }
    }

    pub(super) async fn open(&self, device: &DeviceId) -> Option<Connection> {
        let node = self.node;
        let begun = self.history.note(format_args!("{device} connects to node {node}"));
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
        history.mailboxes.of(device).connections.push(Opened { number: epoch, begun });
        drop(history);
        Some(Connection {
            session,
            deliveries,
            position: 0,
            delivered: 0,
            has_ended: false,
            commands: Received::default(),
        })
    }

    async fn use_connection(
        &self,
        device: &DeviceId,
        mut connection: Connection,
        draw: &mut StdRng,
    ) {
        let ignores_its_end = draw.random_bool(0.3);
        if draw.random_bool(0.7) {
            let wanted = Subscriptions::from([
                (Channel::DesiredPatches, Qos::AtMostOnce),
                (Channel::Commands, Qos::AtLeastOnce),
            ]);
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
            if draw.random_bool(0.7) {
                let rejects = draw.random_bool(0.1);
                let settlement = if rejects { Settlement::Reject } else { Settlement::Complete };
                if self.settle_next(device, &mut connection, settlement).await.is_break() {
                    break;
                }
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

    pub(super) fn receive(&self, device: &DeviceId, connection: &mut Connection) {
        let epoch = connection.session.epoch();
        loop {
            let Ok(delivery) = connection.deliveries.try_recv() else {
                connection.has_ended |= connection.deliveries.is_closed();
                return;
            };
            match *delivery {
                // The workload makes none.
                Delivery::Call(_) => {}
                Delivery::Command(sent) => self.receive_command(device, connection, &sent),
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
}
