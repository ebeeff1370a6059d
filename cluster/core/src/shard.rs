//! Apply: how one change turns a shard's records into new ones, an outcome and effects.
//!
//! The shell loads what [`needs`] names, calls [`apply_device`] or [`apply_stream`], and writes what was touched and the
//! applied index in one batch. Whatever the input, apply answers; only a broken invariant of our own state panics,
//! because a stopped replica can be repaired and one that has drifted cannot.

use std::collections::BTreeMap;

use crate::change::{DeviceChange, Effect, Message, Outcome, StreamChange};
use crate::device::Device;
use crate::ids::{DeviceId, LogTime, Offset};
use crate::twin::Twin;

/// The records of one device.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Records {
    pub device: Option<Device>,
    /// Loaded only for changes that need it.
    pub twin: Option<Twin>,
}

/// The small state that each change of a shard may move: where the stream begins and ends, who has read how far.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stream {
    /// The first offset that retention has left.
    pub first: Offset,
    /// The offset of the next message.
    pub next: Offset,
    /// Bytes of the messages between the two.
    pub bytes: u64,
    pub cursors: BTreeMap<String, Offset>,
    /// The time of the newest entry. An entry with an earlier stamp is taken to have this one (I-40).
    pub at: LogTime,
    pub device_count: u64,
    pub disabled_count: u64,
}

/// What the change did, for the shell to carry out.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    pub outcome: Outcome,
    pub effects: Vec<Effect>,
    /// Whether the device record (twin record) differs from what was given: write it, or remove it if it is `None`.
    pub device_touched: bool,
    pub twin_touched: bool,
    /// What to append to the stream, from the offset on that `Stream::next` had before the call.
    pub appended: Vec<Message>,
    /// Everything before this is to be removed from the stream and from the history.
    pub retain_from: Option<Offset>,
}

/// Whether a change reads or writes the twin. The device record is needed by all.
pub fn needs_twin(change: &DeviceChange) -> bool {
    let _ = change;
    todo!()
}

/// Applies one change of one device.
pub fn apply_device(
    records: &mut Records,
    stream: &mut Stream,
    device: &DeviceId,
    change: &DeviceChange,
    at: LogTime,
) -> Applied {
    let _ = (records, stream, device, change, at);
    todo!()
}

/// Applies one change of the stream.
pub fn apply_stream(stream: &mut Stream, change: &StreamChange) -> Applied {
    let _ = (stream, change);
    todo!()
}
