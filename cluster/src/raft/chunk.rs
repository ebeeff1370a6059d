//! One log entry's telemetry as it is stored: a chunk of the stream, and where each device's messages in it are.

use bytes::Bytes;
use drover_core::change::{DeviceChange, Message, Sender};
use drover_core::device::Device;
use drover_core::ids::{DeviceId, GroupId, LogTime, Offset, SessionEpoch};
use drover_proto::record;

use crate::storage::{Table, Write, keys};
use crate::wire::record::authentication_kind;

/// Collects an entry's messages, in offset order.
#[derive(Debug)]
pub(super) struct ChunkBuilder {
    chunk: record::Chunk,
    next: Offset,
    history: Vec<Place>,
}

/// A run of messages: whose they are and which offset the first of them has.
#[derive(Debug)]
struct Place {
    device: DeviceId,
    first: Offset,
    count: u64,
}

/// What is stored beside messages about where they came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    generation: u64,
    epoch: SessionEpoch,
    authentication: record::AuthenticationKind,
}

impl Origin {
    pub(super) fn new(device: &Device, change: &DeviceChange) -> Self {
        Self {
            generation: device.generation.get(),
            epoch: epoch_of(change).unwrap_or_default(),
            authentication: authentication_kind(&device.authentication),
        }
    }
}

/// The connection that a change came over, if it came over one.
fn epoch_of(change: &DeviceChange) -> Option<SessionEpoch> {
    match change {
        DeviceChange::Telemetry { sender: Sender::Session(epoch), .. }
        | DeviceChange::PatchReported { sender: Sender::Session(epoch), .. }
        | DeviceChange::Subscribe { epoch, .. }
        | DeviceChange::Unsubscribe { epoch, .. }
        | DeviceChange::Disconnect { epoch, .. }
        | DeviceChange::SettleCommand { epoch, .. } => Some(*epoch),
        DeviceChange::Telemetry { sender: Sender::Request(_), .. }
        | DeviceChange::PatchReported { sender: Sender::Request(_), .. }
        | DeviceChange::Create { .. }
        | DeviceChange::Update { .. }
        | DeviceChange::Delete { .. }
        | DeviceChange::Connect { .. }
        | DeviceChange::UpdateTwin { .. }
        | DeviceChange::SendCommand(_)
        | DeviceChange::CancelCommand { .. }
        | DeviceChange::PurgeCommands
        | DeviceChange::RunCommandTimers => None,
    }
}

impl ChunkBuilder {
    pub(super) fn new(first: Offset, at: LogTime) -> Self {
        let chunk = record::Chunk { first_offset: first.get(), at_ms: at.get(), runs: Vec::new() };
        Self { chunk, next: first, history: Vec::new() }
    }

    pub(super) fn add(&mut self, device: &DeviceId, origin: Origin, messages: Vec<Message>) {
        let count = messages.len() as u64;
        self.history.push(Place { device: device.clone(), first: self.next, count });
        self.next = self.next.plus(count);
        self.chunk.runs.push(record::Run {
            device: device.as_str().to_owned(),
            generation: origin.generation,
            epoch: origin.epoch.get(),
            authentication: origin.authentication.into(),
            messages: messages.into_iter().map(|message| message.0).collect(),
        });
    }

    /// The writes that store the chunk, if there was any message.
    pub(super) fn finish(self, group: GroupId, writes: &mut Vec<Write>) {
        if self.chunk.runs.is_empty() {
            return;
        }
        let at = LogTime::new(self.chunk.at_ms);
        for Place { device, first, count } in self.history {
            let run = record::HistoryRun { chunk: self.chunk.first_offset, count };
            let key = keys::history(group, device.as_str(), at, first);
            writes.push(Write::Put { table: Table::History, key, value: encoded(&run) });
        }
        let key = keys::chunk(group, Offset::new(self.chunk.first_offset));
        writes.push(Write::Put { table: Table::Stream, key, value: encoded(&self.chunk) });
    }
}

fn encoded(record: &impl prost::Message) -> Bytes {
    record.encode_to_vec().into()
}

/// The writes that drop a chunk if all its messages come before `before`; `None` if some are to stay.
pub(super) fn drop_chunk(
    group: GroupId,
    chunk: &record::Chunk,
    before: Offset,
) -> Option<Vec<Write>> {
    let at = LogTime::new(chunk.at_ms);
    let mut next = Offset::new(chunk.first_offset);
    let mut writes = vec![Write::Delete { table: Table::Stream, key: keys::chunk(group, next) }];
    for run in &chunk.runs {
        let key = keys::history(group, &run.device, at, next);
        writes.push(Write::Delete { table: Table::History, key });
        next = next.plus(run.messages.len() as u64);
    }
    (next <= before).then_some(writes)
}
