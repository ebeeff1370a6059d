//! P2: what the history of one section of one twin may look like (I-10 to I-13), as a model for `linearizable`.
//!
//! Write `n` sets `last` to `n` and one of a few slots to `n`. So every state shows which writes are in it, a write that
//! was lost, applied twice or merged wrongly does not fit, and neither does a condition that was met on another state.

use super::linearizable::Model;

/// How many slots a section has.
pub const SLOTS: u64 = 4;

/// What a section holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SectionState {
    pub version: u64,
    /// Of the twin; 0 for the reported properties, which leave it alone.
    pub etag: u64,
    /// 0 if it was never written.
    pub last: u64,
    pub slots: [u64; SLOTS as usize],
}

/// One operation, with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SectionOperation {
    Read(SectionState),
    Write { value: u64, condition: WriteCondition, answer: WriteAnswer },
}

/// What the state had to be for a write to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteCondition {
    None,
    Version(u64),
    Etag(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteAnswer {
    Accepted {
        version: u64,
    },
    /// Refused: the version, or the etag, is another one.
    Mismatch {
        current: u64,
    },
    Unknown,
}

impl SectionOperation {
    /// Whether a condition was answered to be met. Nothing where there was none, or no answer.
    pub fn condition(&self) -> Option<bool> {
        match self {
            Self::Read(_)
            | Self::Write { condition: WriteCondition::None, .. }
            | Self::Write { answer: WriteAnswer::Unknown, .. } => None,
            Self::Write { answer: WriteAnswer::Accepted { .. }, .. } => Some(true),
            Self::Write { answer: WriteAnswer::Mismatch { .. }, .. } => Some(false),
        }
    }
}

impl SectionState {
    pub fn slot(value: u64) -> usize {
        (value % SLOTS) as usize
    }

    fn written(&self, value: u64) -> Self {
        let mut after = self.clone();
        after.version += 1;
        after.etag += u64::from(self.etag > 0);
        after.last = value;
        after.slots[Self::slot(value)] = value;
        after
    }

    fn meets(&self, condition: WriteCondition) -> bool {
        match condition {
            WriteCondition::None => true,
            WriteCondition::Version(version) => version == self.version,
            WriteCondition::Etag(etag) => etag == self.etag,
        }
    }
}

/// A section of a twin.
#[derive(Debug, Clone, Copy)]
pub struct TwinSection;

impl Model for TwinSection {
    type State = SectionState;
    type Operation = SectionOperation;

    fn step(&self, state: &SectionState, operation: &SectionOperation) -> Option<SectionState> {
        match operation {
            SectionOperation::Read(seen) => (seen == state).then(|| state.clone()),
            SectionOperation::Write { value, condition, answer } => {
                let met = state.meets(*condition);
                match answer {
                    WriteAnswer::Accepted { version } => {
                        (met && *version == state.version + 1).then(|| state.written(*value))
                    }
                    WriteAnswer::Mismatch { current } => {
                        let is_current = match condition {
                            WriteCondition::None => false,
                            WriteCondition::Version(_) => *current == state.version,
                            WriteCondition::Etag(_) => *current == state.etag,
                        };
                        (!met && is_current).then(|| state.clone())
                    }
                    WriteAnswer::Unknown => met.then(|| state.written(*value)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::linearizable::{Judgement, Timed, check};
    use super::*;

    fn initial() -> SectionState {
        SectionState { version: 1, etag: 1, ..SectionState::default() }
    }

    fn write(value: u64, version: u64) -> SectionOperation {
        let answer = WriteAnswer::Accepted { version };
        SectionOperation::Write { value, condition: WriteCondition::None, answer }
    }

    fn judge(operations: Vec<SectionOperation>) -> Judgement {
        let one_by_one = (0..).zip(operations).map(|(at, operation)| Timed {
            operation,
            begun: 2 * at,
            ended: Some(2 * at + 1),
        });
        check(&TwinSection, initial(), &one_by_one.collect::<Vec<_>>())
    }

    #[test]
    fn writes_that_are_all_there_fit() {
        let after = initial().written(1).written(2);
        assert_eq!(
            judge(vec![write(1, 2), write(2, 3), SectionOperation::Read(after)]),
            Judgement::Linearizable
        );
    }

    #[test]
    fn a_lost_write_a_skipped_version_and_a_lost_slot_are_found() {
        let lost = initial().written(2);
        let slot = SectionState { slots: [0, 0, 2, 0], ..initial().written(1).written(2) };
        for broken in [
            vec![write(1, 2), write(2, 3), SectionOperation::Read(lost)],
            vec![write(1, 2), write(2, 4)],
            vec![write(1, 2), write(2, 2)],
            vec![write(1, 2), write(2, 3), SectionOperation::Read(slot)],
        ] {
            assert_ne!(judge(broken.clone()), Judgement::Linearizable, "{broken:?}");
        }
    }

    #[test]
    fn a_condition_holds_on_the_state_that_it_named_and_no_other() {
        let conditional = |condition, answer| {
            judge(vec![write(1, 2), SectionOperation::Write { value: 2, condition, answer }])
        };
        let accepted = WriteAnswer::Accepted { version: 3 };
        let fits = [
            (WriteCondition::Version(2), accepted),
            (WriteCondition::Etag(2), accepted),
            (WriteCondition::Version(1), WriteAnswer::Mismatch { current: 2 }),
        ];
        for (condition, answer) in fits {
            assert_eq!(conditional(condition, answer), Judgement::Linearizable);
        }
        let broken = [
            (WriteCondition::Version(1), accepted),
            (WriteCondition::Etag(1), accepted),
            (WriteCondition::Version(2), WriteAnswer::Mismatch { current: 2 }),
        ];
        for (condition, answer) in broken {
            assert_ne!(conditional(condition, answer), Judgement::Linearizable);
        }
    }
}
