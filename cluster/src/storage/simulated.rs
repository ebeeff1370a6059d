//! A disk that loses what was not synced: the storage of simulated nodes.
//!
//! [`SimulatedDisk`] is the hardware: it outlives the node that uses it. [`SimulatedStorage`] is one life of a node on
//! it; [`SimulatedDisk::crash`] ends that life and keeps what was synced and, by the draw of a seed, some prefix of what
//! was not. A write is atomic, as a write-ahead log with checksums makes it: a torn one is as good as never written.
//! Time is tokio's and chance is seeded, so that a simulation replays exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::GroupId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::{
    Batch, Chunk, Error, Export, Fence, Import, OnDurable, Order, Record, ScanLimit, Storage,
    Table, Usage, Write, keys,
};

type Records = BTreeMap<(Table, Vec<u8>), Bytes>;

/// How the disk behaves.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// A sync takes up to so many microseconds.
    pub sync_us_max: u64,
    /// Of a thousand syncs so many fail, after which the node must stop.
    pub failing_syncs_per_mille: u32,
}

impl Behaviour {
    /// The same without failures.
    pub fn sound(self) -> Self {
        Self { failing_syncs_per_mille: 0, ..self }
    }
}

/// What a node's disk holds. Cheap to clone; all clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    disk: Arc<Mutex<Disk>>,
}

struct Disk {
    behaviour: Behaviour,
    chance: StdRng,
    /// Which life of the node may use the disk. Handles of earlier ones are refused.
    life: u64,
    is_broken: bool,
    free_bytes: u64,
    durable: Records,
    visible: Records,
    /// What is visible and not durable, oldest first.
    unsynced: Vec<Batch>,
    /// How many batches were made durable in all, so that a sync knows what is left to do.
    synced: u64,
    /// How many snapshots were taken in.
    imported: u64,
    rotten: BTreeSet<(Table, Vec<u8>)>,
    durable_fences: BTreeMap<GroupId, Fence>,
    noted_fences: BTreeMap<GroupId, Fence>,
    /// Syncs under way: the number of batches that each waits for.
    waiting: Vec<(u64, OnDurable)>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("life", &self.life)
            .field("records", &self.visible.len())
            .field("unsynced", &self.unsynced.len())
            .finish_non_exhaustive()
    }
}

impl SimulatedDisk {
    pub fn new(seed: u64, behaviour: Behaviour) -> Self {
        let disk = Disk {
            behaviour,
            chance: StdRng::seed_from_u64(seed),
            life: 0,
            is_broken: false,
            free_bytes: u64::MAX,
            durable: Records::new(),
            visible: Records::new(),
            unsynced: Vec::new(),
            synced: 0,
            imported: 0,
            rotten: BTreeSet::new(),
            durable_fences: BTreeMap::new(),
            noted_fences: BTreeMap::new(),
            waiting: Vec::new(),
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Begins a life of the node.
    pub fn open(&self) -> SimulatedStorage {
        let life = self.lock().life;
        SimulatedStorage { disk: self.clone(), life }
    }

    /// Power is lost. What was not synced survives up to a random point; nothing that waits for a sync is answered. The
    /// answer is how many writes are gone.
    pub fn crash(&self) -> usize {
        let mut disk = self.lock();
        let unsynced = std::mem::take(&mut disk.unsynced);
        let kept = disk.chance.random_range(0..=unsynced.len());
        for batch in &unsynced[..kept] {
            apply(&mut disk.durable, batch);
        }
        disk.synced += unsynced.len() as u64;
        disk.visible = disk.durable.clone();
        disk.noted_fences.clear();
        disk.waiting.clear();
        disk.is_broken = false;
        disk.life += 1;
        unsynced.len() - kept
    }

    /// From now on a read that meets this record reports corruption.
    pub fn rot(&self, table: Table, key: Vec<u8>) {
        self.lock().rotten.insert((table, key));
    }

    /// Changes how much room is left.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.lock().free_bytes = free_bytes;
    }

    /// Changes how the disk behaves from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.lock().behaviour = behaviour;
    }

    /// What a record would be if power were lost now and no write survived that is not synced.
    pub fn durable(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.lock().durable.get(&(table, key.to_vec())).cloned()
    }

    /// How many snapshots have replaced a group's records on this disk.
    pub fn snapshots_imported(&self) -> u64 {
        self.lock().imported
    }

    /// How many writes would be at stake in a crash now.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(records: &mut Records, batch: &Batch) {
    for write in &batch.writes {
        match write {
            Write::Put { table, key, value } => {
                records.insert((*table, key.clone()), value.clone());
            }
            Write::Delete { table, key } => {
                records.remove(&(*table, key.clone()));
            }
            Write::DeleteRange { table, range } => remove_range(records, *table, range),
        }
    }
}

fn remove_range(records: &mut Records, table: Table, range: &Range<Vec<u8>>) {
    let keys: Vec<_> = records.range(bounds(table, range)).map(|(key, _)| key.clone()).collect();
    for key in keys {
        records.remove(&key);
    }
}

type KeyBounds = (Bound<(Table, Vec<u8>)>, Bound<(Table, Vec<u8>)>);

fn bounds(table: Table, range: &Range<Vec<u8>>) -> KeyBounds {
    let start = range.start.clone();
    let end = range.end.clone().max(start.clone());
    (Bound::Included((table, start)), Bound::Excluded((table, end)))
}

/// One life of a node on a simulated disk.
#[derive(Debug, Clone)]
pub struct SimulatedStorage {
    disk: SimulatedDisk,
    life: u64,
}

impl SimulatedStorage {
    /// The disk, if this life goes on and nothing has failed.
    fn working(&self) -> Result<MutexGuard<'_, Disk>, Error> {
        let disk = self.disk.lock();
        if disk.life != self.life {
            return Err(Error::Io { what: "the node has crashed".to_owned() });
        }
        if disk.is_broken {
            return Err(Error::Io { what: "a sync has failed before".to_owned() });
        }
        Ok(disk)
    }

    /// Carries out syncs until none waits: the disk takes its time, then answers all who wait, in order.
    async fn sync_until_idle(self) {
        loop {
            let delay_us = match self.working() {
                Ok(mut disk) => {
                    let delay_us_max = disk.behaviour.sync_us_max;
                    disk.chance.random_range(0..=delay_us_max)
                }
                Err(_) => return,
            };
            tokio::time::sleep(Duration::from_micros(delay_us)).await;
            let Some((result, waiting)) = self.sync_once() else { return };
            for (_, done) in waiting {
                done(result.clone());
            }
            match self.working() {
                Ok(disk) if disk.waiting.is_empty() => return,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "a pair that is taken apart at once")]
    fn sync_once(&self) -> Option<(Result<(), Error>, Vec<(u64, OnDurable)>)> {
        let mut disk = self.working().ok()?;
        let waiting = std::mem::take(&mut disk.waiting);
        let per_mille = disk.behaviour.failing_syncs_per_mille;
        if disk.chance.random_range(0..1000) < per_mille {
            disk.is_broken = true;
            return Some((Err(Error::Io { what: "a sync failed".to_owned() }), waiting));
        }
        let until = waiting.last().map_or(disk.synced, |(until, _)| *until);
        let count = until.saturating_sub(disk.synced) as usize;
        let batches: Vec<_> = disk.unsynced.drain(..count).collect();
        for batch in &batches {
            apply(&mut disk.durable, batch);
        }
        disk.synced += count as u64;
        let noted = std::mem::take(&mut disk.noted_fences);
        disk.durable_fences.extend(noted);
        Some((Ok(()), waiting))
    }
}

impl Storage for SimulatedStorage {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let disk = self.working()?;
        let key = (table, key.to_vec());
        check(&disk, &key)?;
        Ok(disk.visible.get(&key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        range: Range<Vec<u8>>,
        order: Order,
        limit: ScanLimit,
    ) -> Result<Vec<Record>, Error> {
        let disk = self.working()?;
        let found = disk.visible.range(bounds(table, &range));
        let found: Box<dyn Iterator<Item = _>> = match order {
            Order::Ascending => Box::new(found),
            Order::Descending => Box::new(found.rev()),
        };
        let mut records = Vec::new();
        let mut bytes = 0;
        for (key, value) in found {
            if records.len() >= limit.records || bytes >= limit.bytes {
                break;
            }
            check(&disk, key)?;
            bytes += key.1.len() + value.len();
            records.push((Bytes::from(key.1.clone()), value.clone()));
        }
        Ok(records)
    }

    fn write(&self, batch: Batch) -> Result<(), Error> {
        let mut disk = self.working()?;
        apply(&mut disk.visible, &batch);
        disk.unsynced.push(batch);
        Ok(())
    }

    fn sync(&self, done: OnDurable) {
        let mut disk = match self.working() {
            Ok(disk) => disk,
            Err(error) => return done(Err(error)),
        };
        let until = disk.synced + disk.unsynced.len() as u64;
        let is_idle = disk.waiting.is_empty();
        disk.waiting.push((until, done));
        drop(disk);
        if is_idle {
            tokio::spawn(self.clone().sync_until_idle());
        }
    }

    fn fences(&self) -> Result<Vec<(GroupId, Fence)>, Error> {
        Ok(self.working()?.durable_fences.iter().map(|(group, fence)| (*group, *fence)).collect())
    }

    fn write_fence(&self, group: GroupId, fence: Fence) {
        if let Ok(mut disk) = self.working() {
            disk.noted_fences.insert(group, fence);
        }
    }

    fn write_fence_now(&self, group: GroupId, fence: Fence) -> Result<(), Error> {
        let mut disk = self.working()?;
        disk.noted_fences.remove(&group);
        disk.durable_fences.insert(group, fence);
        Ok(())
    }

    fn export(&self, group: GroupId, chunk_bytes: usize) -> Result<Export, Error> {
        let everything = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        let scan = |table| self.scan(table, keys::all(group), Order::Ascending, everything);
        let tables: Vec<_> = Table::APPLIED
            .into_iter()
            .map(|table| Ok((table, scan(table)?)))
            .collect::<Result<_, Error>>()?;
        let (sender, chunks) = mpsc::channel(4);
        let records = scan(Table::Group)?;
        tokio::spawn(async move {
            for chunk in
                tables.into_iter().flat_map(|(table, records)| cut(table, records, chunk_bytes))
            {
                if sender.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Export { group: records, chunks })
    }

    fn import(&self, group: GroupId) -> Result<Box<dyn Import>, Error> {
        Ok(Box::new(SimulatedImport { storage: self.clone(), group, records: Vec::new() }))
    }

    fn usage(&self) -> Result<Usage, Error> {
        Ok(Usage { free_bytes: self.working()?.free_bytes, reserve_bytes: 1 })
    }
}

fn check(disk: &Disk, key: &(Table, Vec<u8>)) -> Result<(), Error> {
    if disk.rotten.contains(key) {
        return Err(Error::Corrupt { what: format!("a record of table {:?} has rotted", key.0) });
    }
    Ok(())
}

/// Records in chunks of about `bytes`, at least one record in each.
fn cut(table: Table, records: Vec<Record>, bytes: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut room = 0;
    for record in records {
        let length = record.0.len() + record.1.len();
        if room < length || chunks.is_empty() {
            chunks.push(Chunk { table, records: Vec::new() });
            room = bytes.max(length);
        }
        room -= length;
        chunks.last_mut().expect("one has just been pushed").records.push(record);
    }
    chunks
}

struct SimulatedImport {
    storage: SimulatedStorage,
    group: GroupId,
    records: Vec<(Table, Record)>,
}

impl Import for SimulatedImport {
    fn add(&mut self, chunk: Chunk) -> Result<(), Error> {
        let table = chunk.table;
        let range = keys::all(self.group);
        if let Some((key, _)) = chunk.records.iter().find(|(key, _)| !range.contains(&key.to_vec()))
        {
            let what = format!("a snapshot of {} has the key {key:02x?}", self.group);
            return Err(Error::Corrupt { what });
        }
        self.records.extend(chunk.records.into_iter().map(|record| (table, record)));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        let mut disk = self.storage.working()?;
        let range = keys::all(self.group);
        let clear = |table| Write::DeleteRange { table, range: range.clone() };
        let mut writes: Vec<_> = Table::APPLIED.into_iter().map(clear).collect();
        let put =
            |(table, (key, value)): (Table, Record)| Write::Put { table, key: key.to_vec(), value };
        writes.extend(self.records.into_iter().map(put));
        let batch = Batch { writes };
        disk.imported += 1;
        apply(&mut disk.visible, &batch);
        // Durable at once, and so is all that was written before it: the log is one.
        let unsynced = std::mem::take(&mut disk.unsynced);
        disk.synced += unsynced.len() as u64;
        for batch in unsynced.iter().chain([&batch]) {
            apply(&mut disk.durable, batch);
        }
        Ok(())
    }
}
