//! What a command costs a replica's store, however deep the mailbox is that it comes to.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use drover_core::change::{Batch as Entries, Change, DeviceChange, DeviceSpec, Message};
use drover_core::device::{Authentication, Status};
use drover_core::document::Object;
use drover_core::ids::{DeviceId, GenerationId, GroupId, LogTime};
use drover_core::mailbox::{Ack, Expiry, Limits, NewCommand};
use openraft::storage::RaftStateMachine;

use super::state_machine::StateMachine;
use super::types::{Entry, EntryPayload, Proposal, log_id};

use crate::storage::simulated::{Behaviour, SimulatedDisk};
use crate::storage::{
    Batch, Error, Export, Fence, Import, OnDurable, Order, Record, ScanLimit, Storage, Table, Usage,
};
use crate::wire::record;

const DISK: Behaviour = Behaviour { sync_us_max: 0, failing_syncs_per_mille: 0 };
const DEEP: u64 = 1_000;

/// What was asked of a store.
#[derive(Debug, Default)]
struct Counts {
    gets: AtomicUsize,
    scanned: AtomicUsize,
    writes: AtomicUsize,
}

impl Counts {
    fn take(&self) -> [usize; 3] {
        [&self.gets, &self.scanned, &self.writes].map(|count| count.swap(0, Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Counting {
    storage: Arc<dyn Storage>,
    counts: Arc<Counts>,
}

impl Storage for Counting {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.counts.gets.fetch_add(1, Ordering::Relaxed);
        self.storage.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        range: Range<Vec<u8>>,
        order: Order,
        limit: ScanLimit,
    ) -> Result<Vec<Record>, Error> {
        let found = self.storage.scan(table, range, order, limit)?;
        self.counts.scanned.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }

    fn write(&self, batch: Batch) -> Result<(), Error> {
        self.counts.writes.fetch_add(batch.writes.len(), Ordering::Relaxed);
        self.storage.write(batch)
    }

    fn sync(&self, done: OnDurable) {
        self.storage.sync(done);
    }

    fn fences(&self) -> Result<Vec<(GroupId, Fence)>, Error> {
        self.storage.fences()
    }

    fn write_fence(&self, group: GroupId, fence: Fence) {
        self.storage.write_fence(group, fence);
    }

    fn write_fence_now(&self, group: GroupId, fence: Fence) -> Result<(), Error> {
        self.storage.write_fence_now(group, fence)
    }

    fn export(&self, group: GroupId, chunk_bytes: usize) -> Result<Export, Error> {
        self.storage.export(group, chunk_bytes)
    }

    fn import(&self, group: GroupId) -> Result<Box<dyn Import>, Error> {
        self.storage.import(group)
    }

    fn usage(&self) -> Result<Usage, Error> {
        self.storage.usage()
    }
}

/// A replica that applies an entry a change.
struct Replica {
    machine: StateMachine,
    counts: Arc<Counts>,
    index: u64,
}

impl Replica {
    fn new() -> Self {
        let counts = Arc::new(Counts::default());
        let storage = Arc::new(SimulatedDisk::new(1, DISK).open());
        let storage = Counting { storage, counts: Arc::clone(&counts) };
        let group = GroupId::from_number(1).expect("a legal group");
        let (machine, _) = StateMachine::open(Arc::new(storage), group).expect("an empty group");
        Self { machine, counts, index: 0 }
    }

    async fn apply(&mut self, change: DeviceChange) {
        self.index += 1;
        let device: DeviceId = "pump".parse().expect("a legal id");
        let changes = vec![Change::Device(device, change)];
        let entries = Entries { at: LogTime::new(self.index), changes };
        let payload = EntryPayload::Normal(Proposal(record::batch_to_bytes(&entries)));
        let entry = Entry { log_id: log_id(1, self.index), payload };
        let entries = futures::stream::iter([Ok((entry, None))]);
        self.machine.apply(entries).await.expect("the store works");
    }

    /// What the command cost: reads of a key, records of scans, writes.
    async fn send(&mut self) -> [usize; 3] {
        self.counts.take();
        let id = format!("command-{}", self.index).parse().expect("a legal id");
        self.apply(DeviceChange::SendCommand(Box::new(command(id)))).await;
        self.counts.take()
    }
}

fn command(id: drover_core::ids::CommandId) -> NewCommand {
    NewCommand {
        id,
        key: None,
        ack: Ack::None,
        expiry: Expiry::After { ms: 1_000_000 },
        not_before: None,
        message: Message(Bytes::from_static(b"open")),
        limits: Limits {
            depth_max: 2 * DEEP as u32,
            mailbox_bytes_max: u64::MAX,
            command_bytes_max: 100,
            ttl_ms_max: 1_000_000,
            lock_ms: 1_000,
            deliveries_max: 10,
            ended_max: 10,
            ended_ms: 1_000,
        },
    }
}

fn create() -> DeviceChange {
    let spec = DeviceSpec {
        status: Status::Enabled,
        status_reason: None,
        authentication: Authentication::CertificateAuthority,
        tags: Object::new(),
        desired: Object::new(),
    };
    DeviceChange::Create { generation: GenerationId::new(1), spec }
}

#[tokio::test]
async fn a_command_costs_as_much_in_a_deep_mailbox_as_in_a_shallow_one() {
    let mut replica = Replica::new();
    replica.apply(create()).await;
    replica.send().await;
    let shallow = replica.send().await;
    for _ in 2..DEEP {
        replica.send().await;
    }
    let deep = replica.send().await;
    assert_eq!(deep, shallow, "reads, records scanned, writes");
    assert_eq!(deep[1], 0, "nothing is scanned");
}
