//! I-42: a cluster that is made of a backup has everything that was acknowledged before the backup began, and nothing that was
//! never sent.
//!
//! Of what went on while it was made, some may be in it: that counts as unanswered here, and the checks of the other promises
//! say the rest. What was sent after it had ended counts as never sent. And each stream is the beginning of the one that it was
//! copied from, offset for offset. Mailboxes are not looked at: what their commands were told is their devices' history.

use std::collections::BTreeMap;

use serde::Serialize;

use super::p1_telemetry::{self, Streams};
use super::{Violation, p2_twin};
use crate::history::{DeviceHistory, FinalTwin};

const INVARIANT: &str = "I-42 restored backups";

/// When a backup was made, in milliseconds of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub began_ms: u64,
    pub ended_ms: u64,
}

/// What was restored, and what is wrong with it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Restored {
    /// In its streams.
    pub messages: u64,
    /// Messages and patches that had to be there: they were acknowledged before the backup began.
    pub owed: u64,
    pub violations: Vec<Violation>,
}

/// Holds what was restored against the histories, and against the streams of the cluster that was copied.
pub fn check(
    histories: &[DeviceHistory],
    original: &Streams,
    taken: Taken,
    streams: &Streams,
    twins: &BTreeMap<String, FinalTwin>,
) -> Restored {
    let histories: Vec<DeviceHistory> =
        histories.iter().map(|history| as_of(history, taken)).collect();
    let telemetry = p1_telemetry::check(&histories, streams);
    let patches = p2_twin::check(&histories, twins);
    let broken = telemetry.violations.into_iter().chain(patches.violations);
    let broken = broken.map(|Violation { invariant, subject, seen }| {
        Violation::new(INVARIANT, subject, format!("{invariant}: {seen}"))
    });
    Restored {
        messages: telemetry.stored,
        owed: telemetry.acknowledged + patches.acknowledged,
        violations: broken.chain(other_beginnings(original, streams)).collect(),
    }
}

/// What a device did as a backup owes it.
fn as_of(history: &DeviceHistory, taken: Taken) -> DeviceHistory {
    let mut owed = history.clone();
    owed.transmissions.retain(|sent| sent.sent_ms <= taken.ended_ms);
    for sent in &mut owed.transmissions {
        sent.acked_ms = sent.acked_ms.filter(|acked| *acked < taken.began_ms);
    }
    owed.patches.retain(|patch| patch.sent_ms <= taken.ended_ms);
    // A device that sends a patch has what there is of an answer to the one before it.
    let last = owed.patches.iter().rposition(|patch| patch.sent_ms < taken.began_ms);
    for patch in owed.patches.iter_mut().skip(last.unwrap_or(0)) {
        patch.acked_version = None;
    }
    owed.twin_reads.clear();
    owed
}

fn other_beginnings(original: &Streams, streams: &Streams) -> Vec<Violation> {
    let nothing = Vec::new();
    let differ = streams.iter().filter_map(|(shard, stream)| {
        let first = original.get(shard).unwrap_or(&nothing);
        let differs = |at: &usize| first.get(*at) != stream.get(*at);
        let at = (0..stream.len()).find(differs)?;
        let seen = format!("{:?} stands where there was {:?}", stream.get(at), first.get(at));
        Some(Violation::new(INVARIANT, format!("shard {shard} place {at}"), seen))
    });
    differ.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{PATCH_SLOTS, PatchAttempt, StoredCopy, Transmission};

    const TAKEN: Taken = Taken { began_ms: 100, ended_ms: 200 };

    /// Messages 0 and 1 were acknowledged before the backup began, 2 meanwhile, and 3 was sent when it had ended; the patches
    /// 1 to 4 likewise.
    fn history() -> DeviceHistory {
        let times = [(10, 20), (30, 40), (110, 120), (210, 220)];
        let transmissions = (0..).zip(times).map(|(sequence, (sent_ms, acked_ms))| Transmission {
            sequence,
            connection: 1,
            position: sequence as u32,
            sent_ms,
            acked_ms: Some(acked_ms),
        });
        let patches = (1..).zip([10, 30, 90, 210]).map(|(number, sent_ms)| PatchAttempt {
            number,
            sent_ms,
            acked_version: Some(number + 1),
        });
        DeviceHistory {
            device: "d".to_owned(),
            transmissions: transmissions.collect(),
            patches: patches.collect(),
            ..DeviceHistory::default()
        }
    }

    fn stream(sequences: &[u64]) -> Streams {
        let copy = |(offset, sequence): (u64, &u64)| {
            let (device, sequence, position) = ("d".to_owned(), *sequence, *sequence as u32);
            Ok(StoredCopy { offset, device, sequence, connection: 1, position })
        };
        BTreeMap::from([(0, (0..).zip(sequences).map(copy).collect())])
    }

    /// The twin after so many patches.
    fn twin(patches: u64) -> FinalTwin {
        let mut slots = vec![0; PATCH_SLOTS as usize];
        for number in 1..=patches {
            slots[number as usize] = number;
        }
        FinalTwin { version: patches + 1, last: patches, slots }
    }

    fn broken(sequences: &[u64], patches: u64) -> Vec<String> {
        let twins = BTreeMap::from([("d".to_owned(), twin(patches))]);
        let original = stream(&[0, 1, 2, 3]);
        let found = check(&[history()], &original, TAKEN, &stream(sequences), &twins);
        found.violations.iter().map(ToString::to_string).collect()
    }

    fn one(broken: &[String], what: &str) {
        assert!(!broken.is_empty(), "it was not found");
        let all = |text: &String| text.starts_with(INVARIANT) && text.contains(what);
        assert!(broken.iter().all(all), "{broken:?}");
    }

    #[test]
    fn what_went_on_meanwhile_may_be_in_a_backup_or_not() {
        assert_eq!(broken(&[0, 1], 2), [""; 0]);
        assert_eq!(broken(&[0, 1, 2], 3), [""; 0]);
    }

    #[test]
    fn a_message_that_was_acknowledged_before_and_is_not_there_is_found() {
        one(&broken(&[0], 2), "I-1 not lost");
    }

    #[test]
    fn a_message_that_was_sent_after_the_end_is_found() {
        one(&broken(&[0, 1, 2, 3], 2), "I-4 no phantom");
    }

    #[test]
    fn a_patch_that_was_acknowledged_before_and_is_not_there_is_found() {
        let broken = broken(&[0, 1], 1);
        assert!(broken.iter().any(|text| text.contains("I-13 state")), "{broken:?}");
    }

    #[test]
    fn a_patch_that_was_sent_after_the_end_is_found() {
        let broken = broken(&[0, 1], 4);
        assert!(broken.iter().any(|text| text.contains("I-13 state")), "{broken:?}");
    }

    #[test]
    fn a_device_that_is_not_there_is_found() {
        let found =
            check(&[history()], &stream(&[0, 1]), TAKEN, &stream(&[0, 1]), &BTreeMap::new());
        assert!(found.violations.iter().any(|violation| violation.seen.contains("twin is gone")));
    }

    #[test]
    fn another_message_at_an_offset_than_where_it_was_copied_is_found() {
        let twins = BTreeMap::from([("d".to_owned(), twin(2))]);
        let mut original = stream(&[0, 1]);
        if let Some(Ok(copy)) = original.entry(0).or_default().last_mut() {
            copy.connection = 2;
        }
        let found = check(&[history()], &original, TAKEN, &stream(&[0, 1]), &twins);
        let found: Vec<String> = found.violations.iter().map(ToString::to_string).collect();
        one(&found, "shard 0 place 1");
    }
}
