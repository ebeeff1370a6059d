//! P2: an acknowledged twin change is there, its version grew by one, and reads see it.
//!
//! A device sends its patches one after the other and never twice, and a patch whose answer is missing may have been
//! applied or not, but not after a later one (its connection is fenced off). So between two acknowledged patches the
//! version grows by one, plus at most one for each unknown patch between them (I-11); the final state is that of the
//! last acknowledged patch or of an unknown one after it (I-13); a read is never older than an acknowledgement before it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Violation;
use crate::history::{DeviceHistory, FinalTwin, PATCH_SLOTS, PatchAttempt};

/// The version of reported properties that nobody has written yet.
const FIRST_VERSION: u64 = 1;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Twins {
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub violations: Vec<Violation>,
}

/// Holds the histories against the twins as they are at the end.
pub fn check(histories: &[DeviceHistory], twins: &BTreeMap<String, FinalTwin>) -> Twins {
    let mut found = Twins::default();
    for history in histories {
        let acked = history.patches.iter().filter(|patch| patch.acked_version.is_some()).count();
        found.acknowledged += acked as u64;
        found.unknown += (history.patches.len() - acked) as u64;
        found.reads += history.twin_reads.len() as u64;
        let mut violate = |invariant, seen: String| {
            found.violations.push(Violation::new(invariant, &history.device, seen));
        };
        for read in history.twin_reads.iter().filter(|read| read.version < read.acked_version) {
            let seen = format!(
                "read version {} after {} was acknowledged",
                read.version, read.acked_version
            );
            violate("I-10 linearizable", seen);
        }
        let Some(twin) = twins.get(&history.device) else {
            violate("I-10 linearizable", "the twin is gone".to_owned());
            continue;
        };
        check_versions(&history.patches, twin, &mut violate);
        check_state(&history.patches, twin, &mut violate);
    }
    found
}

fn check_versions(
    patches: &[PatchAttempt],
    twin: &FinalTwin,
    violate: &mut impl FnMut(&'static str, String),
) {
    let mut version = FIRST_VERSION;
    let mut unknown = 0;
    let mut grow_to = |next: u64, by: u64, unknown: u64, what: &str| {
        let allowed = version + by..=version + by + unknown;
        if !allowed.contains(&next) {
            let seen = format!(
                "{what} has version {next} after {version}, with {unknown} unknown patches between"
            );
            violate("I-11 versions grow by one", seen);
        }
        version = next;
    };
    for patch in patches {
        match patch.acked_version {
            None => unknown += 1,
            Some(acked) => {
                grow_to(acked, 1, unknown, &format!("patch {}", patch.number));
                unknown = 0;
            }
        }
    }
    grow_to(twin.version, 0, unknown, "the twin at the end");
}

fn check_state(
    patches: &[PatchAttempt],
    twin: &FinalTwin,
    violate: &mut impl FnMut(&'static str, String),
) {
    if !may_be(twin.last, patches.iter()) {
        violate("I-13 state", format!("`last` is {}", twin.last));
    }
    for slot in 0..PATCH_SLOTS {
        let value = twin.slots.get(slot as usize).copied().unwrap_or(0);
        let of_slot = patches.iter().filter(|patch| patch.number % PATCH_SLOTS == slot);
        if !may_be(value, of_slot) {
            violate("I-13 state", format!("slot {slot} is {value}"));
        }
    }
}

/// Whether `value` can stand after these patches: the last acknowledged one, or an unknown one after it.
fn may_be<'a>(value: u64, patches: impl Iterator<Item = &'a PatchAttempt> + Clone) -> bool {
    let acked = patches.clone().filter(|patch| patch.acked_version.is_some());
    let last_acked = acked.map(|patch| patch.number).max().unwrap_or(0);
    let mut unknown = patches.filter(|patch| patch.acked_version.is_none());
    value == last_acked || unknown.any(|patch| patch.number == value && value > last_acked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::TwinRead;

    /// Patches 1 to 4; the third has no answer.
    fn patches() -> Vec<PatchAttempt> {
        [Some(2), Some(3), None, Some(5)]
            .into_iter()
            .zip(1..)
            .map(|(acked_version, number)| PatchAttempt { number, sent_ms: 0, acked_version })
            .collect()
    }

    fn twin_of(numbers: &[u64], version: u64) -> FinalTwin {
        let mut slots = vec![0; PATCH_SLOTS as usize];
        for number in numbers {
            slots[(number % PATCH_SLOTS) as usize] = *number;
        }
        FinalTwin { version, last: numbers.last().copied().unwrap_or(0), slots }
    }

    fn broken(patches: Vec<PatchAttempt>, twin: FinalTwin) -> Vec<&'static str> {
        let device = "d".to_owned();
        let history = DeviceHistory { device: device.clone(), patches, ..DeviceHistory::default() };
        let found = check(&[history], &BTreeMap::from([(device, twin)]));
        found.violations.iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn an_unknown_patch_may_have_been_applied_or_not() {
        assert_eq!(broken(patches(), twin_of(&[1, 2, 3, 4], 5)), [""; 0]);
        let mut not_applied = patches();
        not_applied[3].acked_version = Some(4);
        assert_eq!(broken(not_applied, twin_of(&[1, 2, 4], 4)), [""; 0]);
    }

    #[test]
    fn an_unknown_last_patch_may_be_the_final_state() {
        let mut patches = patches();
        patches[3].acked_version = None;
        assert_eq!(broken(patches.clone(), twin_of(&[1, 2, 4], 4)), [""; 0]);
        assert_eq!(broken(patches, twin_of(&[1, 2], 3)), [""; 0]);
    }

    #[test]
    fn a_lost_patch_is_found() {
        let broken = broken(patches(), twin_of(&[1, 2, 3], 4));
        assert!(broken.contains(&"I-11 versions grow by one") && broken.contains(&"I-13 state"));
    }

    #[test]
    fn a_lost_slot_is_found_though_the_version_is_right() {
        assert_eq!(broken(patches(), twin_of(&[2, 3, 4], 5)), ["I-13 state"]);
    }

    #[test]
    fn a_version_that_is_given_twice_or_skipped_is_found() {
        let mut twice = patches();
        twice[1].acked_version = Some(2);
        assert!(broken(twice, twin_of(&[1, 2, 3, 4], 5)).contains(&"I-11 versions grow by one"));
        let mut skipped = patches();
        skipped[1].acked_version = Some(4);
        assert!(broken(skipped, twin_of(&[1, 2, 3, 4], 5)).contains(&"I-11 versions grow by one"));
    }

    #[test]
    fn a_patch_that_was_applied_twice_is_found() {
        let broken = broken(patches(), twin_of(&[1, 2, 3, 4], 6));
        assert_eq!(broken, ["I-11 versions grow by one"]);
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = DeviceHistory {
            device: "d".to_owned(),
            twin_reads: vec![TwinRead { acked_version: 3, version: 2 }],
            ..DeviceHistory::default()
        };
        let twins = BTreeMap::from([("d".to_owned(), twin_of(&[], 1))]);
        assert_eq!(check(&[history], &twins).violations[0].invariant, "I-10 linearizable");
    }
}
