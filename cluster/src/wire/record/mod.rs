//! Records of the log and the disk (`drover.record.v1`): core values to bytes and back.
//!
//! What is decoded was written by ourselves or by a peer that proved who it is, but disks rot: each decoder checks what
//! its type promises and says what was wrong.

mod change;
mod device;
mod levels;
mod mailbox;
mod membership;
mod meta;
mod stream;
mod twin;
mod value;

#[cfg(test)]
mod tests;

pub use change::{batch_from_bytes, batch_to_bytes, change_from_bytes, change_to_bytes};
pub use device::{authentication_kind, device_from_bytes, device_to_bytes};
pub use mailbox::{
    command_from_bytes, command_to_bytes, ending_from_number, ending_number, feedback_from_bytes,
    feedback_to_bytes,
};
pub use meta::{meta_entry_from_bytes, meta_entry_to_bytes, meta_from_bytes, meta_to_bytes};
pub use stream::{messages, stream_from_bytes, stream_to_bytes};
pub use twin::{twin_from_bytes, twin_to_bytes};
pub use value::{object_from_bytes, object_to_bytes};

use bytes::Bytes;
use prost::Message;

use super::Invalid;

fn decode<T: Message + Default>(record: &str, bytes: Bytes) -> Result<T, Invalid> {
    T::decode(bytes).map_err(|error| Invalid::new(record, error.to_string()))
}

fn encode(record: &impl Message) -> Bytes {
    record.encode_to_vec().into()
}

/// What a field must hold for the record to make sense.
fn required<T>(field: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is missing"))
}
