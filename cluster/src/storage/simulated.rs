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
use drover_core::mutants::{Mutation, is_planted};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::{
    Batch, Chunk, Error, Export, Fence, Import, OnDurable, Order, Record, ScanLimit, Storage,
    Table, Usage, Write, keys,
};

type Records = BTreeMap<(Table, Vec<u8>), Stored>;

/// A record as it lies on the disk.
#[derive(Debug, Clone)]
struct Stored {
    value: Bytes,
    /// It is not what was written any more. What is written over it is sound.
    has_rotted: bool,
}

impl Stored {
    fn rot(&mut self) {
        self.has_rotted = true;
    }
}

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
            durable_fences: BTreeMap::new(),
            noted_fences: BTreeMap::new(),
            waiting: Vec::new(),
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Begins a life of the node.
    pub fn open(&self) -> SimulatedStorage {
        let life = self.lock().life;
        SimulatedStorage { disk: self.clone(), life, sees_through_rot: false }
    }

    /// The same for whoever wants to know what was written, and not what has become of it.
    pub fn inspect(&self) -> SimulatedStorage {
        SimulatedStorage { sees_through_rot: true, ..self.open() }
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

    /// Up to `count` records of a range rot, in a row as in a block of a file, of those that are durable; `place` draws the
    /// first. From now on whoever reads one of them is told that it is corrupt. The answer is how many there were.
    pub fn rot(&self, table: Table, range: &Range<Vec<u8>>, place: usize, count: usize) -> usize {
        let mut disk = self.lock();
        let at_rest = disk.durable.range(bounds(table, range)).map(|(key, _)| key.clone());
        let at_rest: Vec<_> = at_rest.collect();
        let first = place.checked_rem(at_rest.len()).unwrap_or(0);
        // What is written and not durable yet is not on the disk.
        let in_memory: BTreeSet<_> = disk.unsynced.iter().flat_map(put).collect();
        let rotting = at_rest.iter().skip(first).take(count);
        let rotting: Vec<_> = rotting.map(|key| (key, !in_memory.contains(key))).collect();
        for (key, is_visible) in &rotting {
            disk.durable.entry((*key).clone()).and_modify(Stored::rot);
            if *is_visible {
                disk.visible.entry((*key).clone()).and_modify(Stored::rot);
            }
        }
        rotting.len()
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
        self.lock().durable.get(&(table, key.to_vec())).map(|stored| stored.value.clone())
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
                let stored = Stored { value: value.clone(), has_rotted: false };
                records.insert((*table, key.clone()), stored);
            }
            Write::Delete { table, key } => {
                records.remove(&(*table, key.clone()));
            }
            Write::DeleteRange { table, range } => remove_range(records, *table, range),
        }
    }
}

/// The records that a batch puts.
fn put(batch: &Batch) -> impl Iterator<Item = (Table, Vec<u8>)> {
    batch.writes.iter().filter_map(|write| match write {
        Write::Put { table, key, .. } => Some((*table, key.clone())),
        Write::Delete { .. } | Write::DeleteRange { .. } => None,
    })
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
    sees_through_rot: bool,
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

    fn read(&self, table: Table, stored: &Stored) -> Result<Bytes, Error> {
        if stored.has_rotted && !self.sees_through_rot {
            return Err(Error::Corrupt { what: format!("a record of table {table:?} has rotted") });
        }
        Ok(stored.value.clone())
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
        let found = disk.visible.get(&(table, key.to_vec()));
        found.map(|stored| self.read(table, stored)).transpose()
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
        for (key, stored) in found {
            if records.len() >= limit.records || bytes >= limit.bytes {
                break;
            }
            let value = match self.read(table, stored) {
                // As an iterator does whose status nobody asks for.
                Err(_) if is_planted(Mutation::IteratorStatusIgnored) => break,
                read => read?,
            };
            bytes += key.1.len() + value.len();
            records.push((Bytes::from(key.1.clone()), value));
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

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table = Table::Device;

    fn key(name: &str) -> Vec<u8> {
        [&[0, 0, 0, 1], name.as_bytes()].concat()
    }

    fn write(storage: &SimulatedStorage, name: &str, value: &'static str) {
        let write = Write::Put {
            table: TABLE,
            key: key(name),
            value: Bytes::from_static(value.as_bytes()),
        };
        storage.write(Batch { writes: vec![write] }).expect("a sound disk");
    }

    async fn synced(storage: &SimulatedStorage) {
        let (done, answered) = tokio::sync::oneshot::channel();
        storage.sync(Box::new(move |result| drop(done.send(result))));
        answered.await.expect("it is answered").expect("a sound disk");
    }

    fn scan(storage: &SimulatedStorage) -> Result<Vec<Record>, Error> {
        let limit = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        storage.scan(TABLE, key("")..key("z"), Order::Ascending, limit)
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_rotted_is_an_error_until_it_is_written_again() {
        let disk = SimulatedDisk::new(1, Behaviour { sync_us_max: 0, failing_syncs_per_mille: 0 });
        let storage = disk.open();
        for name in ["a", "b", "c", "d"] {
            write(&storage, name, "old");
        }
        synced(&storage).await;
        // The second one is not on the disk as it is visible.
        write(&storage, "b", "new");
        assert_eq!(disk.rot(TABLE, &(key("a")..key("z")), 5, 2), 2, "from the second on");
        let get = |storage: &SimulatedStorage, name| storage.get(TABLE, &key(name));
        assert_eq!(get(&storage, "b"), Ok(Some(Bytes::from_static(b"new"))));
        assert!(matches!(get(&storage, "c"), Err(Error::Corrupt { .. })));
        assert!(matches!(scan(&storage), Err(Error::Corrupt { .. })), "no scan is short");
        assert_eq!(scan(&disk.inspect()).expect("what was written").len(), 4);
        write(&storage, "c", "new");
        assert_eq!(scan(&storage).expect("all is sound").len(), 4);
        // What was written over it is gone with the power, or with luck it is not.
        disk.crash();
        let survived = get(&disk.inspect(), "c") == Ok(Some(Bytes::from_static(b"new")));
        assert_eq!(get(&disk.open(), "c").is_ok(), survived);
    }

    #[test]
    fn an_empty_range_cannot_rot() {
        let disk = SimulatedDisk::new(1, Behaviour { sync_us_max: 0, failing_syncs_per_mille: 0 });
        assert_eq!(disk.rot(TABLE, &(key("a")..key("z")), 7, 3), 0);
    }
}
