//! Reading what a group has applied: identities, twins, the meta state.
//!
//! A record that cannot be decoded is corruption, not absence. Whether the reader is the leader, and whether it has
//! caught up, is the caller's to know.

use std::ops::Range;

use bytes::Bytes;
use drover_core::device::Device;
use drover_core::ids::{DeviceId, GroupId};
use drover_core::meta::Meta;
use drover_core::module::MODULES_MAX;
use drover_core::stream::Stream;
use drover_core::twin::Twin;

use super::{Error, Order, ScanLimit, Storage, Table, keys};
use crate::wire::{self, Invalid};

/// At most so many bytes of records are read for one page.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

pub fn device(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
) -> Result<Option<Device>, Error> {
    let record = storage.get(Table::Device, &keys::device(group, device))?;
    record.map(|record| decoded("a device", wire::record::device_from_bytes(record))).transpose()
}

pub fn twin(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
) -> Result<Option<Twin>, Error> {
    let record = storage.get(Table::Twin, &keys::device(group, device))?;
    record.map(|record| decoded("a twin", wire::record::twin_from_bytes(record))).transpose()
}

/// Up to `limit` devices in the order of their ids, after `after`.
pub fn devices(
    storage: &dyn Storage,
    group: GroupId,
    after: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<Device>, Error> {
    identities(storage, keys::devices_after(group, after), limit)
}

/// Up to `limit` devices and modules after `after`: all devices first.
pub fn identities_after(
    storage: &dyn Storage,
    group: GroupId,
    after: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<Device>, Error> {
    identities(storage, keys::identities_after(group, after), limit)
}

/// The modules of a device in the order of their ids.
pub fn modules(
    storage: &dyn Storage,
    group: GroupId,
    device: &DeviceId,
) -> Result<Vec<Device>, Error> {
    identities(storage, keys::modules(group, device), MODULES_MAX)
}

fn identities(
    storage: &dyn Storage,
    range: Range<Vec<u8>>,
    limit: usize,
) -> Result<Vec<Device>, Error> {
    let limit = ScanLimit { records: limit, bytes: PAGE_BYTES_MAX };
    let records = storage.scan(Table::Device, range, Order::Ascending, limit)?;
    let device = |(_, record)| decoded("a device", wire::record::device_from_bytes(record));
    records.into_iter().map(device).collect()
}

/// The state of a shard's stream: empty before anything was applied.
pub fn stream(storage: &dyn Storage, group: GroupId) -> Result<Stream, Error> {
    match storage.get(Table::Group, &keys::stream(group))? {
        Some(record) => decoded("the stream's state", wire::record::stream_from_bytes(record)),
        None => Ok(Stream::default()),
    }
}

/// `None` until the cluster is initialized.
pub fn meta(storage: &dyn Storage) -> Result<Option<Meta>, Error> {
    let record = storage.get(Table::Group, &keys::meta(GroupId::Meta))?;
    record
        .map(|record| decoded("the meta state", wire::record::meta_from_bytes(record)))
        .transpose()
}

/// A record's value, or the corruption that it shows.
pub(crate) fn decoded<T>(what: &str, value: Result<T, Invalid>) -> Result<T, Error> {
    value.map_err(|invalid| Error::Corrupt { what: format!("{what} cannot be decoded: {invalid}") })
}

/// The raw record of how far a group has applied.
pub fn applied(storage: &dyn Storage, group: GroupId) -> Result<Option<Bytes>, Error> {
    storage.get(Table::Group, &keys::applied(group))
}
