//! The shell around apply: loads the records that an entry touches, calls the core, writes what it changed.
//!
//! All that openraft applies at once becomes one batch of storage: records, chunks, the stream's state and the applied
//! index are written together, so that a crash leaves all of it or nothing. Callers are answered when the batch is
//! visible. It is not fsynced, because it can be replayed from the log, which is.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use drover_core::change::{Batch, Change, DeviceChange, Effect, Outcome};
use drover_core::ids::{DeviceId, GroupId, LogTime, Offset};
use drover_core::meta::{self, Meta};
use drover_core::mutants::{Mutation, is_planted};
use drover_core::shard::{Applied, apply_device, apply_stream};
use drover_core::stream::Stream;
use futures::{Stream as AsyncStream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;

use super::Response;
use super::chunk::{self, ChunkBuilder, Origin};
use super::mail;
use super::mutant;
use super::position::Position;
use super::snapshot::{CHUNK_BYTES, Outgoing, SnapshotData};
use super::types::{LogId, Proposal, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use super::working_set::WorkingSet;
use crate::storage::{self, Error, Order, ScanLimit, Storage, Table, Write, keys, state};
use crate::wire::record;

/// Gathered writes are stored when they are so many, so that a long replay does not pile up in memory.
const WRITES_MAX: usize = 4096;

/// What a group has applied here, for those who wait for it.
#[derive(Debug, Clone)]
pub struct View {
    /// The meta state (of the meta group).
    pub meta: watch::Receiver<Option<Arc<Meta>>>,
    /// The offset of the stream's next message (of a shard).
    pub stream_end: watch::Receiver<Offset>,
}

/// A group's applied state, and how an entry changes it.
pub struct StateMachine {
    group: GroupId,
    storage: Arc<dyn Storage>,
    position: Position,
    records: WorkingSet,
    stream: Stream,
    meta: Option<Meta>,
    writes: Vec<Write>,
    answers: Vec<(ApplyResponder<TypeConfig>, Response)>,
    meta_view: watch::Sender<Option<Arc<Meta>>>,
    stream_end_view: watch::Sender<Offset>,
}

impl fmt::Debug for StateMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMachine")
            .field("group", &self.group)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl StateMachine {
    /// Finds out where the group stands.
    pub fn open(storage: Arc<dyn Storage>, group: GroupId) -> Result<(Self, View), Error> {
        let (meta_view, meta) = watch::channel(None);
        let (stream_end_view, stream_end) = watch::channel(Offset::default());
        let mut machine = Self {
            group,
            records: WorkingSet::new(Arc::clone(&storage), group),
            storage,
            position: Position::default(),
            stream: Stream::default(),
            meta: None,
            writes: Vec::new(),
            answers: Vec::new(),
            meta_view,
            stream_end_view,
        };
        machine.load()?;
        Ok((machine, View { meta, stream_end }))
    }

    /// Takes over what is stored: at the start, and after a snapshot has replaced it.
    fn load(&mut self) -> Result<(), Error> {
        self.position = Position::load(&*self.storage, self.group)?;
        self.records = WorkingSet::new(Arc::clone(&self.storage), self.group);
        match self.group {
            GroupId::Meta => self.meta = state::meta(&*self.storage)?,
            GroupId::Shard(_) => self.stream = state::stream(&*self.storage, self.group)?,
        }
        self.publish();
        Ok(())
    }

    /// Tells those who wait how far this replica has come.
    fn publish(&self) {
        let next = self.stream.next;
        self.stream_end_view.send_if_modified(|seen| std::mem::replace(seen, next) != next);
        let version = self.meta.as_ref().map(|meta| meta.version);
        self.meta_view.send_if_modified(|seen| {
            let is_newer = seen.as_ref().map(|meta| meta.version) != version;
            if is_newer {
                *seen = self.meta.clone().map(Arc::new);
            }
            is_newer
        });
    }

    fn apply_proposal(&mut self, proposal: Bytes) -> Result<Response, Error> {
        match self.group {
            GroupId::Meta => self.apply_meta(proposal),
            GroupId::Shard(_) => {
                let batch = record::batch_from_bytes(proposal);
                self.apply_batch(state::decoded("a log entry", batch)?)
            }
        }
    }

    fn apply_meta(&mut self, proposal: Bytes) -> Result<Response, Error> {
        let entry = record::meta_entry_from_bytes(proposal);
        let entry = state::decoded("a log entry", entry)?;
        let answer = meta::apply(&mut self.meta, &entry.change, entry.at);
        if let Some(meta) = &self.meta {
            let (key, value) = (keys::meta(self.group), record::meta_to_bytes(meta));
            self.writes.push(Write::Put { table: Table::Group, key, value });
        }
        Ok(Response::Meta(
            answer.map(|_| Box::new(self.meta.clone().expect("an accepted change leaves a state"))),
        ))
    }

    fn apply_batch(&mut self, batch: Batch) -> Result<Response, Error> {
        let mut at = self.stream.advance(batch.at);
        if is_planted(Mutation::LocalClock) {
            at = mutant::local_time(at);
        }
        let mut chunk = ChunkBuilder::new(self.stream.next, at);
        let mut outcomes = Vec::with_capacity(batch.changes.len());
        let mut effects = Vec::new();
        for change in batch.changes {
            let (outcome, effect) = self.apply_change(&mut chunk, change, at)?;
            outcomes.push(outcome);
            effects.extend(effect);
        }
        chunk.finish(self.group, &mut self.writes);
        Ok(Response::Shard { outcomes, effects })
    }

    fn apply_change(
        &mut self,
        chunk: &mut ChunkBuilder,
        change: Change,
        at: LogTime,
    ) -> Result<(Outcome, Vec<Effect>), Error> {
        let change = match change {
            Change::Device(id, change) => return self.apply_device(chunk, &id, &change, at),
            Change::Stream(change) => change,
        };
        let Applied { outcome, effects, retain_from, retain_feedback_from, .. } =
            apply_stream(&mut self.stream, &change);
        if let Some(before) = retain_from {
            self.drop_before(before)?;
        }
        if let Some(before) = retain_feedback_from {
            self.writes.push(mail::drop_feedback(self.group, before));
        }
        Ok((outcome, effects))
    }

    /// Applies a change of one identity, and what follows from it for others.
    fn apply_device(
        &mut self,
        chunk: &mut ChunkBuilder,
        id: &DeviceId,
        change: &DeviceChange,
        at: LogTime,
    ) -> Result<(Outcome, Vec<Effect>), Error> {
        let loaded = self.records.load(id, change, at)?;
        let feedback_from = self.stream.feedback.next;
        let origin = loaded.records.device.as_ref().map(|device| Origin::new(device, change));
        let mut applied = apply_device(&mut loaded.records, &mut self.stream, id, change, at);
        if is_planted(Mutation::HashOrder) {
            mutant::order_by_hash(&mut applied.feedback);
        }
        loaded.device_changed |= applied.device_touched;
        loaded.twin_changed |= applied.twin_touched;
        let owner = loaded.records.owner.take().filter(|_| applied.owner_touched);
        if let Some(mailbox) = applied.mailbox {
            let commands = loaded.records.commands.as_ref();
            mail::write(self.group, id, commands, mailbox, &mut self.writes);
        }
        mail::write_feedback(self.group, feedback_from, &applied.feedback, &mut self.writes);
        if let (Some(origin), false) = (origin, applied.appended.is_empty()) {
            chunk.add(id, origin, applied.appended);
        }
        if let Some(owner) = owner {
            self.records.put_owner(owner)?;
        }
        let mut effects = applied.effects;
        for (id, change) in applied.follows {
            effects.extend(self.apply_device(chunk, &id, &change, at)?.1);
        }
        Ok((applied.outcome, effects))
    }

    /// Drops whole chunks from the front of the stream, with their places in the history.
    fn drop_before(&mut self, before: Offset) -> Result<(), Error> {
        let range = keys::all(self.group).start..keys::chunk(self.group, before);
        let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        for (_, value) in self.storage.scan(Table::Stream, range, Order::Ascending, all)? {
            let value = storage::stream::decode_chunk(value)?;
            match chunk::drop_chunk(self.group, &value, before) {
                Some(writes) => self.writes.extend(writes),
                None => break,
            }
        }
        Ok(())
    }

    /// Stores what has come together, then answers those who wait for it.
    fn flush(&mut self) -> Result<(), Error> {
        let mut writes = std::mem::take(&mut self.writes);
        self.records.write(&mut writes);
        if matches!(self.group, GroupId::Shard(_)) {
            let (key, value) = (keys::stream(self.group), record::stream_to_bytes(&self.stream));
            writes.push(Write::Put { table: Table::Group, key, value });
        }
        if is_planted(Mutation::AppliedIndexOutsideBatch) {
            self.storage.write(storage::Batch { writes: std::mem::take(&mut writes) })?;
        }
        writes.push(self.position.write(self.group));
        self.storage.write(storage::Batch { writes })?;
        self.records.settle();
        self.publish();
        for (responder, response) in self.answers.drain(..) {
            responder.send(response);
        }
        Ok(())
    }

    fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.position.last,
            last_membership: self.position.membership.clone(),
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Checkpoint;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.position.last, self.position.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: AsyncStream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            if Some(entry.log_id) <= self.position.last {
                continue;
            }
            self.position.last = Some(entry.log_id);
            let response = match entry.payload {
                EntryPayload::Blank => Response::None,
                EntryPayload::Normal(Proposal(bytes)) => {
                    self.apply_proposal(bytes).map_err(io::Error::other)?
                }
                EntryPayload::Membership(membership) => {
                    self.position.membership =
                        StoredMembership::new(Some(entry.log_id), membership);
                    Response::None
                }
            };
            self.answers.extend(responder.map(|responder| (responder, response)));
            if self.writes.len() >= WRITES_MAX {
                self.flush().map_err(io::Error::other)?;
            }
        }
        self.flush().map_err(io::Error::other)
    }

    async fn get_snapshot_builder(&mut self) -> Checkpoint {
        Checkpoint { meta: self.snapshot_meta() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let incoming =
            snapshot.receive(&*self.storage, self.group).await.map_err(io::Error::other)?;
        incoming.install(self.group).map_err(io::Error::other)?;
        self.load().map_err(io::Error::other)?;
        if self.position.last != meta.last_log_id {
            let (given, found) = (meta.last_log_id, self.position.last);
            let what = format!("a snapshot of {given:?} was installed and is of {found:?}");
            return Err(io::Error::other(Error::Corrupt { what }));
        }
        Ok(())
    }

    /// A consistent view of what is applied now, read by the store while writes go on.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if self.position.last.is_none() {
            return Ok(None);
        }
        let export = self.storage.export(self.group, CHUNK_BYTES).map_err(io::Error::other)?;
        let data = SnapshotData::Outgoing(Outgoing { chunks: export.chunks });
        Ok(Some(Snapshot { meta: self.snapshot_meta(), snapshot: data }))
    }
}

/// Lets openraft purge the log. The state machine is stored all the time, so there is nothing to build: a snapshot to be
/// sent is taken when a follower needs one.
#[derive(Debug)]
pub struct Checkpoint {
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for Checkpoint {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (_, chunks) = tokio::sync::mpsc::channel(1);
        let data = SnapshotData::Outgoing(Outgoing { chunks });
        Ok(Snapshot { meta: self.meta.clone(), snapshot: data })
    }
}
