//! Records of the log and the disk: core values to bytes and back.

use bytes::Bytes;
use drover_core::meta::MetaEntry;

pub fn meta_entry_to_bytes(entry: &MetaEntry) -> Bytes {
    let _ = entry;
    todo!()
}
