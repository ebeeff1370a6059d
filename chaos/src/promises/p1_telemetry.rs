//! P1: an acknowledged message is in its stream, exactly where its offset says.
//!
//! Every transmission names its connection and its place in it, so each stored copy is traced to the one PUBLISH that it
//! came from: an acknowledged transmission is there once, any other at most once (I-1, I-3), nothing else is there
//! (I-4), and offsets rise with connection and place (I-5, and I-22 across connections). Streams have no holes (I-6).

use std::collections::BTreeMap;

use serde::Serialize;

use super::Violation;
use crate::history::{DeviceHistory, GUEST, StoredCopy, Transmission};

/// The stream of each shard, as it was read: `Err` is a message that no device of the run can have written.
pub type Streams = BTreeMap<u32, Vec<Result<StoredCopy, (u64, String)>>>;

/// What the check counted and found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Telemetry {
    pub transmissions: u64,
    pub acknowledged: u64,
    /// Transmissions without an answer.
    pub unknown: u64,
    pub stored: u64,
    /// Copies beyond the first of a message: each was sent again by its device.
    pub duplicated: u64,
    pub lost: Lost,
    pub violations: Vec<Violation>,
}

/// Acknowledged and not in the stream, by where in its device's acknowledged messages: the whole beginning is what a
/// wrong truncation takes, the end is what a missing fsync takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    pub prefix: u64,
    pub middle: u64,
    pub postfix: u64,
}

impl Lost {
    pub fn total(self) -> u64 {
        self.prefix + self.middle + self.postfix
    }
}

/// A transmission of a device: connection and place.
type Place = (u32, u32);

/// Holds the histories against the streams.
pub fn check(histories: &[DeviceHistory], streams: &Streams) -> Telemetry {
    let mut found = Telemetry::default();
    let mut copies: BTreeMap<&str, Vec<(u32, &StoredCopy)>> = BTreeMap::new();
    for (shard, stream) in streams {
        check_offsets(*shard, stream, &mut found.violations);
        for copy in stream.iter().flatten() {
            copies.entry(&copy.device).or_default().push((*shard, copy));
        }
        found.stored += stream.len() as u64;
    }
    for history in histories {
        let of_device = copies.remove(history.device.as_str()).unwrap_or_default();
        check_device(history, &of_device, &mut found);
    }
    for (device, of_nobody) in copies.into_iter().filter(|(device, _)| !device.starts_with(GUEST)) {
        let seen = format!("{} messages of a device that is not in the run", of_nobody.len());
        found.violations.push(Violation::new("I-4 no phantom", device, seen));
    }
    found
}

fn check_offsets(
    shard: u32,
    stream: &[Result<StoredCopy, (u64, String)>],
    violations: &mut Vec<Violation>,
) {
    for (expected, entry) in (0..).zip(stream) {
        let offset = match entry {
            Ok(copy) => copy.offset,
            Err((offset, problem)) => {
                let subject = format!("shard {shard} offset {offset}");
                violations.push(Violation::new("I-4 no phantom", subject, problem));
                *offset
            }
        };
        if offset != expected {
            let seen = format!("offset {offset} stands where {expected} belongs");
            violations.push(Violation::new("I-6 no holes", format!("shard {shard}"), seen));
            return;
        }
    }
}

fn check_device(history: &DeviceHistory, copies: &[(u32, &StoredCopy)], found: &mut Telemetry) {
    let sent: BTreeMap<Place, u64> = history
        .transmissions
        .iter()
        .map(|sent| ((sent.connection, sent.position), sent.sequence))
        .collect();
    let mut stored: BTreeMap<Place, u64> = BTreeMap::new();
    let mut per_message: BTreeMap<u64, u64> = BTreeMap::new();
    let mut previous: Option<Place> = None;
    for (shard, copy) in copies {
        let place = (copy.connection, copy.position);
        let mut violate = |invariant, seen: String| {
            let subject = format!("{} at shard {shard} offset {}", history.device, copy.offset);
            found.violations.push(Violation::new(invariant, subject, seen));
        };
        if *shard != history.shard {
            violate("I-37 one shard a device", format!("it belongs to shard {}", history.shard));
        }
        if sent.get(&place) != Some(&copy.sequence) {
            violate(
                "I-4 no phantom",
                format!("message {} at {place:?} was never sent", copy.sequence),
            );
        }
        if previous.is_some_and(|previous| previous > place) {
            let invariant = "I-5, I-22 order";
            violate(invariant, format!("transmission {place:?} stands behind {previous:?}"));
        }
        previous = Some(place);
        *stored.entry(place).or_default() += 1;
        *per_message.entry(copy.sequence).or_default() += 1;
    }
    for (place, copies) in stored.iter().filter(|(_, copies)| **copies > 1) {
        let seen = format!("transmission {place:?} is stored {copies} times");
        found.violations.push(Violation::new("I-3 once", &history.device, seen));
    }
    found.duplicated += per_message.values().map(|copies| copies - 1).sum::<u64>();
    count_acknowledged(history, &stored, found);
}

fn count_acknowledged(
    history: &DeviceHistory,
    stored: &BTreeMap<Place, u64>,
    found: &mut Telemetry,
) {
    let (acked, open): (Vec<&Transmission>, Vec<&Transmission>) =
        history.transmissions.iter().partition(|sent| sent.acked_ms.is_some());
    found.transmissions += history.transmissions.len() as u64;
    found.acknowledged += acked.len() as u64;
    found.unknown += open.len() as u64;
    let kept: Vec<bool> =
        acked.iter().map(|sent| stored.contains_key(&(sent.connection, sent.position))).collect();
    let first_kept = kept.iter().position(|kept| *kept);
    let last_kept = kept.iter().rposition(|kept| *kept);
    for (index, sent) in acked.iter().enumerate().filter(|(index, _)| !kept[*index]) {
        match (first_kept, last_kept) {
            (Some(first), _) if index < first => found.lost.prefix += 1,
            (_, Some(last)) if index < last => found.lost.middle += 1,
            _ => found.lost.postfix += 1,
        }
        let seen = format!(
            "message {} (connection {}, place {}) was acknowledged at {} ms and is not there",
            sent.sequence,
            sent.connection,
            sent.position,
            sent.acked_ms.unwrap_or_default()
        );
        found.violations.push(Violation::new("I-1 not lost", &history.device, seen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Device `d` sent messages 0 to 3 on connection 1 and repeated 3, unanswered, on connection 2; all is well.
    fn honest() -> (DeviceHistory, Streams) {
        let sent = |sequence, connection, position, acked: bool| Transmission {
            sequence,
            connection,
            position,
            sent_ms: 0,
            acked_ms: acked.then_some(1),
        };
        let transmissions = vec![
            sent(0, 1, 0, true),
            sent(1, 1, 1, true),
            sent(2, 1, 2, true),
            sent(3, 1, 3, false),
            sent(3, 2, 0, true),
        ];
        let copies = transmissions.iter().zip(0..).map(|(sent, offset)| {
            let (sequence, connection, position) = (sent.sequence, sent.connection, sent.position);
            Ok(StoredCopy { offset, device: "d".to_owned(), sequence, connection, position })
        });
        let streams = BTreeMap::from([(0, copies.collect())]);
        let device = "d".to_owned();
        (DeviceHistory { device, transmissions, ..DeviceHistory::default() }, streams)
    }

    /// The invariants that break when `damage` is done to an honest stream, offsets counted anew.
    fn broken_by(damage: impl FnOnce(&mut Vec<StoredCopy>)) -> (Vec<&'static str>, Lost) {
        let (history, streams) = honest();
        let mut stream: Vec<StoredCopy> = streams[&0].iter().flatten().cloned().collect();
        damage(&mut stream);
        for (copy, offset) in stream.iter_mut().zip(0..) {
            copy.offset = offset;
        }
        let streams = BTreeMap::from([(0, stream.into_iter().map(Ok).collect())]);
        let found = check(&[history], &streams);
        (found.violations.iter().map(|violation| violation.invariant).collect(), found.lost)
    }

    #[test]
    fn an_honest_run_breaks_nothing_and_its_repetition_counts_as_duplicate() {
        let (history, streams) = honest();
        let found = check(&[history], &streams);
        assert_eq!(found.violations, []);
        assert_eq!((found.acknowledged, found.unknown, found.duplicated), (4, 1, 1));
        assert_eq!(found.lost, Lost::default());
    }

    #[test]
    fn an_unanswered_transmission_may_be_missing() {
        assert_eq!(broken_by(|stream| drop(stream.remove(3))), (vec![], Lost::default()));
    }

    #[test]
    fn a_lost_message_is_found_and_placed() {
        let lost = |prefix, middle, postfix| Lost { prefix, middle, postfix };
        let invariant = vec!["I-1 not lost"];
        assert_eq!(broken_by(|stream| drop(stream.remove(0))), (invariant.clone(), lost(1, 0, 0)));
        assert_eq!(broken_by(|stream| drop(stream.remove(1))), (invariant.clone(), lost(0, 1, 0)));
        assert_eq!(broken_by(|stream| drop(stream.remove(4))), (invariant, lost(0, 0, 1)));
    }

    #[test]
    fn a_device_that_lost_everything_is_found() {
        assert_eq!(broken_by(Vec::clear).1.total(), 4);
    }

    #[test]
    fn a_copy_that_the_device_did_not_send_again_is_found() {
        let (broken, _) = broken_by(|stream| stream.insert(1, stream[0].clone()));
        assert_eq!(broken, ["I-3 once"]);
    }

    #[test]
    fn two_messages_in_the_wrong_order_are_found() {
        assert_eq!(broken_by(|stream| stream.swap(0, 1)).0, ["I-5, I-22 order"]);
    }

    #[test]
    fn a_message_of_an_old_connection_behind_a_new_one_is_found() {
        assert_eq!(broken_by(|stream| stream.swap(3, 4)).0, ["I-5, I-22 order"]);
    }

    #[test]
    fn a_message_that_nobody_sent_is_found() {
        let (broken, _) = broken_by(|stream| {
            let phantom =
                StoredCopy { sequence: 9, connection: 2, position: 1, ..stream[0].clone() };
            stream.push(phantom);
        });
        assert_eq!(broken, ["I-4 no phantom"]);
        let (broken, _) = broken_by(|stream| {
            stream.push(StoredCopy { device: "other".to_owned(), ..stream[0].clone() });
        });
        assert_eq!(broken, ["I-4 no phantom"]);
    }

    #[test]
    fn what_a_guest_sent_is_no_phantom() {
        let (history, mut streams) = honest();
        let guest = StoredCopy {
            offset: 5,
            device: format!("{GUEST}1"),
            sequence: 0,
            connection: 0,
            position: 0,
        };
        streams.entry(0).or_default().push(Ok(guest));
        assert_eq!(check(&[history], &streams).violations, []);
    }

    #[test]
    fn a_message_with_foreign_content_is_found() {
        let (history, mut streams) = honest();
        streams.entry(0).or_default().push(Err((5, "not JSON".to_owned())));
        assert_eq!(check(&[history], &streams).violations[0].invariant, "I-4 no phantom");
    }

    #[test]
    fn a_hole_in_the_offsets_is_found() {
        let (history, mut streams) = honest();
        if let Some(Ok(copy)) = streams.entry(0).or_default().last_mut() {
            copy.offset += 1;
        }
        assert_eq!(check(&[history], &streams).violations[0].invariant, "I-6 no holes");
    }

    #[test]
    fn a_message_in_a_foreign_shard_is_found() {
        let (history, mut streams) = honest();
        let stream = streams.remove(&0).unwrap();
        streams.insert(1, stream);
        let found = check(&[history], &streams);
        assert_eq!(found.violations[0].invariant, "I-37 one shard a device");
    }
}
