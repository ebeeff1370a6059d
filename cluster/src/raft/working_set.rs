//! The device records that apply works on: loaded once, changed in memory, written together.
//!
//! Between two calls of apply a bounded cache keeps records of devices that were active lately, so that telemetry finds
//! its device's epoch without a read. The cache is dropped when a snapshot replaces what is stored.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::Arc;

use drover_core::change::DeviceChange;
use drover_core::device::Device;
use drover_core::ids::{CommandId, DeviceId, GroupId, LogTime};
use drover_core::mailbox::{Commands, Needs};
use drover_core::shard::{Records, needs_commands, needs_owner, needs_twin};

use crate::storage::{Error, Storage, Table, Write, keys, mailbox, state};
use crate::wire::record;

/// How much the cache of one group keeps, in bytes of encoded records. An active device needs about 200.
const CACHE_BYTES_MAX: usize = 512 * 1024;

const FETCHED: &str = "it was there or has just been put there";

/// About what a command without its body holds in memory.
const COMMAND_BYTES: usize = 320;

#[derive(Debug)]
pub(super) struct WorkingSet {
    storage: Arc<dyn Storage>,
    group: GroupId,
    touched: BTreeMap<DeviceId, Loaded>,
    cache: Cache,
}

/// The records of one device, as far as they were needed.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) records: Records,
    has_twin: bool,
    pub(super) device_changed: bool,
    pub(super) twin_changed: bool,
    /// Of the records as they are stored.
    bytes: usize,
}

impl WorkingSet {
    pub(super) fn new(storage: Arc<dyn Storage>, group: GroupId) -> Self {
        Self { storage, group, touched: BTreeMap::new(), cache: Cache::default() }
    }

    /// The records of a device, as far as the change needs them at this time.
    pub(super) fn load(
        &mut self,
        id: &DeviceId,
        change: &DeviceChange,
        at: LogTime,
    ) -> Result<&mut Loaded, Error> {
        let owner = if needs_owner(id, change) {
            self.loaded(&id.owner())?.records.device.clone().map(Box::new)
        } else {
            None
        };
        self.fetch(id)?;
        let loaded = self.touched.get_mut(id).expect(FETCHED);
        loaded.records.owner = owner;
        if needs_twin(change) && !loaded.has_twin {
            loaded.records.twin = state::twin(&*self.storage, self.group, id)?;
            loaded.has_twin = true;
        }
        match needs_commands(loaded.records.device.as_ref(), change, at) {
            Needs::None => {}
            Needs::One(wanted) => load_one(&*self.storage, self.group, id, loaded, wanted)?,
            Needs::All => load_all(&*self.storage, self.group, id, loaded)?,
        }
        Ok(loaded)
    }

    /// Puts back what a module's change has made of its device.
    pub(super) fn put_owner(&mut self, owner: Box<Device>) -> Result<(), Error> {
        let loaded = self.loaded(&owner.id)?;
        loaded.records.device = Some(*owner);
        loaded.device_changed = true;
        Ok(())
    }

    /// The records of a device, as far as they have been needed until now.
    fn loaded(&mut self, id: &DeviceId) -> Result<&mut Loaded, Error> {
        self.fetch(id)?;
        Ok(self.touched.get_mut(id).expect(FETCHED))
    }

    fn fetch(&mut self, id: &DeviceId) -> Result<(), Error> {
        if !self.touched.contains_key(id) {
            let loaded = match self.cache.take(id) {
                Some(loaded) => loaded,
                None => self.read_device(id)?,
            };
            self.touched.insert(id.clone(), loaded);
        }
        Ok(())
    }

    fn read_device(&self, id: &DeviceId) -> Result<Loaded, Error> {
        let device = state::device(&*self.storage, self.group, id)?;
        Ok(Loaded { records: Records { device, ..Records::default() }, ..Loaded::default() })
    }

    /// Adds the writes of all records that were changed.
    pub(super) fn write(&mut self, writes: &mut Vec<Write>) {
        for (id, loaded) in &mut self.touched {
            let key = keys::device(self.group, id);
            if mem::take(&mut loaded.device_changed) {
                let value = loaded.records.device.as_ref().map(record::device_to_bytes);
                loaded.bytes = value.as_ref().map_or(0, bytes::Bytes::len);
                writes.push(write_or_delete(Table::Device, key.clone(), value));
            }
            if mem::take(&mut loaded.twin_changed) {
                let value = loaded.records.twin.as_ref().map(record::twin_to_bytes);
                loaded.bytes += value.as_ref().map_or(0, bytes::Bytes::len);
                writes.push(write_or_delete(Table::Twin, key, value));
            }
        }
    }

    /// What was touched is stored now: remember it for a while. Commands are remembered whole or not, and for devices that
    /// are about to settle them: a mailbox that nobody empties costs no memory.
    pub(super) fn settle(&mut self) {
        for (id, mut loaded) in mem::take(&mut self.touched) {
            let Records { device, commands, .. } = &mut loaded.records;
            let is_emptied =
                device.as_ref().is_some_and(|device| device.presence.connected_since.is_some());
            commands.take_if(|commands| !is_emptied || !commands.are_all());
            self.cache.put(id, loaded);
        }
    }
}

/// Adds the command of an id, if there is one.
fn load_one(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    loaded: &mut Loaded,
    wanted: &CommandId,
) -> Result<(), Error> {
    let Records { device: record, commands, .. } = &mut loaded.records;
    let others_due = record.as_ref().and_then(|device| device.mailbox.due);
    let commands = commands.get_or_insert_with(|| Commands { others_due, ..Commands::default() });
    if !commands.are_all() && commands.find(wanted).is_none() {
        let found = mailbox::find(storage, group, device, wanted)?;
        commands.loaded.extend(found.map(|command| (command.sequence, command)));
    }
    Ok(())
}

/// Completes the commands. Those that are loaded may have been changed since they were stored.
fn load_all(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
    loaded: &mut Loaded,
) -> Result<(), Error> {
    let Records { device: record, commands, .. } = &mut loaded.records;
    if commands.as_ref().is_some_and(Commands::are_all) {
        return Ok(());
    }
    let mut all = Commands::default();
    if record.as_ref().is_some_and(|device| device.mailbox.has_commands()) {
        all = mailbox::commands(storage, group, device)?;
    }
    all.loaded.extend(commands.take().into_iter().flat_map(|commands| commands.loaded));
    *commands = Some(all);
    Ok(())
}

fn write_or_delete(table: Table, key: Vec<u8>, value: Option<bytes::Bytes>) -> Write {
    match value {
        Some(value) => Write::Put { table, key, value },
        None => Write::Delete { table, key },
    }
}

/// Records that were used lately. Two generations: when the younger one is full it becomes the older one, and what was
/// not used since then is dropped.
#[derive(Debug, Default)]
struct Cache {
    younger: HashMap<DeviceId, Loaded>,
    older: HashMap<DeviceId, Loaded>,
    younger_bytes: usize,
}

impl Cache {
    fn take(&mut self, id: &DeviceId) -> Option<Loaded> {
        if let Some(loaded) = self.younger.remove(id) {
            self.younger_bytes -= weight(id, &loaded);
            return Some(loaded);
        }
        self.older.remove(id)
    }

    fn put(&mut self, id: DeviceId, loaded: Loaded) {
        self.younger_bytes += weight(&id, &loaded);
        self.younger.insert(id, loaded);
        if self.younger_bytes > CACHE_BYTES_MAX / 2 {
            self.younger_bytes = 0;
            self.older = mem::take(&mut self.younger);
        }
    }
}

/// About what an entry holds in memory: its records, and what any entry costs.
fn weight(id: &DeviceId, loaded: &Loaded) -> usize {
    let commands = loaded.records.commands.as_ref().map_or(0, |commands| commands.loaded.len());
    loaded.bytes + commands * COMMAND_BYTES + id.as_str().len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> DeviceId {
        format!("device-{n}").parse().expect("a legal id")
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_was_used_last() {
        let mut cache = Cache::default();
        for n in 0..10_000 {
            cache.put(id(n), Loaded { bytes: 200, ..Loaded::default() });
        }
        assert!(cache.younger.len() + cache.older.len() < 3_000);
        assert!(cache.take(&id(9_999)).is_some());
        assert!(cache.take(&id(0)).is_none());
    }

    #[test]
    fn what_was_taken_is_gone_until_it_is_put_back() {
        let mut cache = Cache::default();
        cache.put(id(1), Loaded::default());
        assert!(cache.take(&id(1)).is_some());
        assert!(cache.take(&id(1)).is_none());
        assert_eq!(cache.younger_bytes, 0);
    }
}
