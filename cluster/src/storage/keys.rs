//! The key layout of a group's applied records. It is on disk: a change of it is a new format.
//!
//! | table | key after the group's number | value |
//! |---|---|---|
//! | `Group` | `0x00` | `record.v1.Applied` |
//! | `Group` | `0x01` | `record.v1.Stream` (shards) |
//! | `Group` | `0x02` | `record.v1.Meta` (the meta group) |
//! | `Device` | device id; `0x7f`, key of a module | `record.v1.Device` |
//! | `Twin` | as in `Device` | `record.v1.Twin` |
//! | `Stream` | first offset of the chunk | `record.v1.Chunk` |
//! | `History` | device id, `0x00`, time, first offset of the run | `record.v1.HistoryRun` |
//! | `Mailbox` | `0x00`, time, device id | empty: the mailbox is due then |
//! | `Mailbox` | `0x01`, offset | `record.v1.Feedback` |
//! | `Mailbox` | `0x02`, device id, `0x00`, `0x00`, sequence | `record.v1.Command` |
//! | `Mailbox` | `0x02`, device id, `0x00`, `0x01`, sequence | `record.v1.Message`: the body of a command that waits |
//! | `Mailbox` | `0x02`, device id, `0x00`, `0x02`, command id | its sequence |
//!
//! Numbers are big-endian, so that keys sort as the numbers do. No device id contains a zero byte, so the keys of a
//! device never mix with those of one whose id begins with its own. Where only "device id" is said, a module has its own
//! key in that place: device id, `/`, module id. In `Device` and `Twin` all modules stand after all devices, so that
//! reading devices never meets a module: no id begins with `0x7f`.

use std::ops::Range;

use drover_core::ids::{CommandId, CommandSequence, DeviceId, GroupId, LogTime, Offset};

/// Where every key of a group begins.
pub fn prefix(group: GroupId) -> [u8; 4] {
    group.number().to_be_bytes()
}

/// All keys of a group in any table.
pub fn all(group: GroupId) -> Range<Vec<u8>> {
    let end = group.number() + 1;
    prefix(group).to_vec()..end.to_be_bytes().to_vec()
}

pub fn applied(group: GroupId) -> Vec<u8> {
    with(group, &[&[0]])
}

pub fn stream(group: GroupId) -> Vec<u8> {
    with(group, &[&[1]])
}

pub fn meta(group: GroupId) -> Vec<u8> {
    with(group, &[&[2]])
}

/// Before the keys of modules in `Table::Device` and in `Table::Twin`: greater than any character of an id.
const MODULES: u8 = 0x7f;

/// In `Table::Device` and in `Table::Twin`.
pub fn device(group: GroupId, device: &DeviceId) -> Vec<u8> {
    let key = device.as_str().as_bytes();
    if device.is_module() { with(group, &[&[MODULES], key]) } else { with(group, &[key]) }
}

/// The keys of all modules of a device.
pub fn modules(group: GroupId, device: &DeviceId) -> Range<Vec<u8>> {
    let id = device.as_str().as_bytes();
    // The character after the slash that stands between the two ids.
    with(group, &[&[MODULES], id, b"/"])..with(group, &[&[MODULES], id, b"0"])
}

/// The keys of all devices whose ids sort after `after`.
pub fn devices_after(group: GroupId, after: Option<&DeviceId>) -> Range<Vec<u8>> {
    identities_after(group, after).start..with(group, &[&[MODULES]])
}

/// The keys of all devices, and then of all modules, that come after `after`.
pub fn identities_after(group: GroupId, after: Option<&DeviceId>) -> Range<Vec<u8>> {
    let Some(after) = after else { return all(group) };
    let mut start = device(group, after);
    start.push(0);
    start..all(group).end
}

pub fn chunk(group: GroupId, first: Offset) -> Vec<u8> {
    with(group, &[&first.get().to_be_bytes()])
}

/// The first offset of a chunk, from its key.
pub fn chunk_first(key: &[u8]) -> Option<Offset> {
    let bytes: [u8; 8] = key.get(4..)?.try_into().ok()?;
    Some(Offset::new(u64::from_be_bytes(bytes)))
}

pub fn history(group: GroupId, device: &str, at: LogTime, first: Offset) -> Vec<u8> {
    let [at, first] = [at.get(), first.get()].map(u64::to_be_bytes);
    with(group, &[device.as_bytes(), &[0], &at, &first])
}

/// The keys of a device's runs from one time to before another.
pub fn history_between(
    group: GroupId,
    device: &DeviceId,
    from: LogTime,
    until: LogTime,
) -> Range<Vec<u8>> {
    let zero = Offset::default();
    history(group, device.as_str(), from, zero)..history(group, device.as_str(), until, zero)
}

/// Time and first offset of a run, from its key.
pub fn history_place(key: &[u8]) -> Option<(LogTime, Offset)> {
    let (rest, offset) = key.split_last_chunk::<8>()?;
    let (_, at) = rest.split_last_chunk::<8>()?;
    Some((LogTime::new(u64::from_be_bytes(*at)), Offset::new(u64::from_be_bytes(*offset))))
}

/// That the mailbox of a device is due.
pub fn due(group: GroupId, at: LogTime, device: &DeviceId) -> Vec<u8> {
    with(group, &[&[0], &at.get().to_be_bytes(), device.as_str().as_bytes()])
}

/// All that are due, at whatever time.
pub fn all_due(group: GroupId) -> Range<Vec<u8>> {
    with(group, &[&[0]])..with(group, &[&[1]])
}

/// When which mailbox is due, from the key.
pub fn due_place(key: &[u8]) -> Option<(LogTime, DeviceId)> {
    let (at, device) = key.get(5..)?.split_first_chunk::<8>()?;
    let device = DeviceId::from_key(std::str::from_utf8(device).ok()?).ok()?;
    Some((LogTime::new(u64::from_be_bytes(*at)), device))
}

pub fn feedback(group: GroupId, offset: Offset) -> Vec<u8> {
    with(group, &[&[1], &offset.get().to_be_bytes()])
}

/// The keys of all feedback from an offset on.
pub fn feedback_from(group: GroupId, offset: Offset) -> Range<Vec<u8>> {
    feedback(group, offset)..with(group, &[&[2]])
}

/// The offset of a feedback record, from its key.
pub fn feedback_offset(key: &[u8]) -> Option<Offset> {
    let bytes: [u8; 8] = key.get(5..)?.try_into().ok()?;
    Some(Offset::new(u64::from_be_bytes(bytes)))
}

pub fn command(group: GroupId, device: &DeviceId, sequence: CommandSequence) -> Vec<u8> {
    of_mailbox(group, device, 0, sequence)
}

pub fn command_body(group: GroupId, device: &DeviceId, sequence: CommandSequence) -> Vec<u8> {
    of_mailbox(group, device, 1, sequence)
}

/// Where the sequence of a command stands, for those who know its id.
pub fn command_id(group: GroupId, device: &DeviceId, id: &CommandId) -> Vec<u8> {
    with(group, &[&[2], device.as_str().as_bytes(), &[0, 2], id.as_str().as_bytes()])
}

/// The keys of a device's commands after one of them, without their bodies.
pub fn commands_after(group: GroupId, device: &DeviceId, after: CommandSequence) -> Range<Vec<u8>> {
    let bodies = with(group, &[&[2], device.as_str().as_bytes(), &[0, 1]]);
    command(group, device, after.next())..bodies
}

fn of_mailbox(group: GroupId, device: &DeviceId, kind: u8, sequence: CommandSequence) -> Vec<u8> {
    let sequence = sequence.get().to_be_bytes();
    with(group, &[&[2], device.as_str().as_bytes(), &[0, kind], &sequence])
}

fn with(group: GroupId, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut key = Vec::with_capacity(4 + length);
    key.extend_from_slice(&prefix(group));
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        text.parse().expect("a legal id")
    }

    fn shard(number: u32) -> GroupId {
        GroupId::from_number(number + 1).expect("a legal shard")
    }

    #[test]
    fn a_groups_keys_lie_within_its_range_and_outside_of_every_other() {
        let key = device(shard(255), &id("~z".replace('~', "z").as_str()));
        assert!(all(shard(255)).contains(&key));
        assert!(!all(shard(254)).contains(&key));
        assert!(!all(shard(256)).contains(&key));
    }

    #[test]
    fn the_history_of_a_device_never_mixes_with_that_of_a_longer_id() {
        let group = shard(0);
        let ever = LogTime::new(u64::MAX);
        let range = history_between(group, &id("pump"), LogTime::default(), ever);
        let time = LogTime::new(7);
        assert!(range.contains(&history(group, "pump", time, Offset::new(3))));
        assert!(!range.contains(&history(group, "pump-2", time, Offset::new(3))));
        assert!(!range.contains(&history(group, "pum", time, Offset::new(3))));
    }

    #[test]
    fn a_page_begins_after_the_last_device_of_the_one_before() {
        let group = shard(3);
        let range = devices_after(group, Some(&id("b")));
        assert!(!range.contains(&device(group, &id("b"))));
        assert!(range.contains(&device(group, &id("b!"))));
        assert!(range.contains(&device(group, &id("c"))));
        assert!(!range.contains(&device(shard(4), &id("a"))));
    }

    #[test]
    fn modules_stand_together_and_after_all_devices() {
        let group = shard(3);
        let module = |text: &str| device(group, &DeviceId::from_key(text).expect("a legal key"));
        let range = modules(group, &id("pump"));
        for own in ["pump/!", "pump/a", "pump/zz"] {
            assert!(range.contains(&module(own)), "{own}");
        }
        for other in ["pump-1/a", "pum/a", "pump0/a", "pump.1/a"] {
            assert!(!range.contains(&module(other)), "{other}");
        }
        assert!(!devices_after(group, None).contains(&module("a/a")));
        assert!(devices_after(group, None).contains(&device(group, &id("zzz"))));
        assert!(all(group).contains(&module("zzz/zzz")));
    }

    #[test]
    fn places_are_read_back_from_keys() {
        let group = shard(1);
        let (at, first) = (LogTime::new(5), Offset::new(9));
        assert_eq!(history_place(&history(group, "d", at, first)), Some((at, first)));
        assert_eq!(chunk_first(&chunk(group, first)), Some(first));
        assert_eq!(chunk_first(b"short"), None);
    }

    #[test]
    fn the_commands_of_a_device_stand_together_in_order_and_apart_from_their_bodies() {
        let group = shard(1);
        let [first, second] = [1, 2].map(CommandSequence::new);
        let range = commands_after(group, &id("pump"), first);
        assert!(range.contains(&command(group, &id("pump"), second)));
        assert!(!range.contains(&command(group, &id("pump"), first)));
        assert!(!range.contains(&command_body(group, &id("pump"), second)));
        let named = "c".parse().expect("a legal id");
        assert!(!range.contains(&command_id(group, &id("pump"), &named)));
        assert!(!range.contains(&command(group, &id("pump-2"), second)));
    }

    #[test]
    fn what_is_due_first_stands_first() {
        let module = id("d").module(&"m".parse().expect("a legal id"));
        let group = shard(1);
        let [early, late] = [255, 256].map(LogTime::new);
        assert!(due(group, early, &id("z")) < due(group, late, &id("a")));
        assert_eq!(due_place(&due(group, late, &id("a"))), Some((late, id("a"))));
        assert_eq!(due_place(&due(group, late, &module)), Some((late, module)));
        assert!(all_due(group).contains(&due(group, LogTime::new(u64::MAX), &id("zz"))));
        assert!(!all_due(group).contains(&feedback(group, Offset::new(0))));
        assert_eq!(feedback_offset(&feedback(group, Offset::new(7))), Some(Offset::new(7)));
    }
}
