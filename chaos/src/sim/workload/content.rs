//! What the clients of a run write, and how they read it and the errors that they get.

use std::ops::ControlFlow;

use bytes::Bytes;
use drover_cluster::Error;
use drover_cluster::core::change::{Message, Refusal};
use drover_cluster::core::document::{Object, Value};
use drover_cluster::core::ids::DeviceId;
use drover_cluster::core::twin::{self, Twin};
use drover_cluster::wire::message::Content;

use crate::promises::twin_section::{SLOTS, SectionState};

pub(super) fn states(twin: &Twin) -> (SectionState, SectionState) {
    let state = |section: &twin::Section, etag| {
        let number = |key: &str| match section.properties.get(key) {
            Some(Value::Integer(number)) => *number as u64,
            Some(_) | None => 0,
        };
        let mut state = SectionState {
            version: section.version.get(),
            etag,
            last: number("last"),
            slots: [0; SLOTS as usize],
        };
        for (place, slot) in state.slots.iter_mut().enumerate() {
            *slot = number(&format!("s{place}"));
        }
        state
    };
    (state(&twin.desired, twin.etag.get()), state(&twin.reported, 0))
}

/// The patch of a numbered write.
pub(super) fn patch(value: u64) -> Object {
    let number = Value::Integer(value as i64);
    let slot = format!("s{}", SectionState::slot(value));
    Object::from([("last".to_owned(), number.clone()), (slot, number)])
}

/// A message that says where it comes from.
pub(super) fn message(device: &DeviceId, epoch: u64, position: u32, sequence: u64) -> Message {
    text(format!("{device} {epoch} {position} {sequence}"))
}

/// A message that says this, as an edge encodes it.
pub(super) fn text(text: String) -> Message {
    Content { body: Bytes::from(text), ..Content::default() }.encode()
}

pub(super) fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Timeout | Error::LeaderLost { .. })
}

pub(super) fn is_fenced(error: &Error) -> bool {
    matches!(error, Error::Refused(Refusal::StaleSession { .. }))
}

/// Whether a connection goes on after a refusal.
pub(super) fn next_after(error: &Error) -> ControlFlow<()> {
    if error.is_retryable() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
