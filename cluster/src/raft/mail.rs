//! What a change did to a mailbox, as it is stored: a record a command, its body apart and written once, a key by which it is
//! found by its id, and one key that says when the mailbox is due.

use drover_core::feedback::Feedback;
use drover_core::ids::{DeviceId, GroupId, Offset};
use drover_core::mailbox::{Commands, Writes};

use crate::storage::{Table, Write, keys};
use crate::wire::record;

/// Adds the writes for a mailbox whose commands are `commands` now; `None` when it is gone with its device.
pub(super) fn write(
    group: GroupId,
    device: &DeviceId,
    commands: Option<&Commands>,
    mailbox: Writes,
    writes: &mut Vec<Write>,
) {
    let Writes { touched, forgotten, added, due_before, due, .. } = mailbox;
    for (sequence, id) in forgotten {
        let keys = [
            keys::command(group, device, sequence),
            keys::command_body(group, device, sequence),
            keys::command_id(group, device, &id),
        ];
        writes.extend(keys.map(delete));
    }
    for command in touched.iter().filter_map(|sequence| commands?.get(*sequence)) {
        let sequence = command.sequence;
        writes.push(put(keys::command(group, device, sequence), record::command_to_bytes(command)));
        match &added {
            Some((added, message)) if *added == sequence => {
                let place = bytes::Bytes::copy_from_slice(&sequence.get().to_be_bytes());
                writes.push(put(keys::command_id(group, device, &command.id), place));
                writes.push(put(keys::command_body(group, device, sequence), message.0.clone()));
            }
            Some(_) | None if command.is_waiting() => {}
            Some(_) | None => writes.push(delete(keys::command_body(group, device, sequence))),
        }
    }
    if due != due_before {
        writes.extend(due_before.map(|at| delete(keys::due(group, at, device))));
        writes.extend(due.map(|at| put(keys::due(group, at, device), bytes::Bytes::new())));
    }
}

/// Adds the writes for feedback whose first record has the offset `first`.
pub(super) fn write_feedback(
    group: GroupId,
    first: Offset,
    feedback: &[Feedback],
    writes: &mut Vec<Write>,
) {
    for (feedback, place) in feedback.iter().zip(0..) {
        let key = keys::feedback(group, first.plus(place));
        writes.push(put(key, record::feedback_to_bytes(feedback)));
    }
}

pub(super) fn drop_feedback(group: GroupId, before: Offset) -> Write {
    let range = keys::feedback(group, Offset::default())..keys::feedback(group, before);
    Write::DeleteRange { table: Table::Mailbox, range }
}

fn put(key: Vec<u8>, value: bytes::Bytes) -> Write {
    Write::Put { table: Table::Mailbox, key, value }
}

fn delete(key: Vec<u8>) -> Write {
    Write::Delete { table: Table::Mailbox, key }
}
