//! A shard's stream: offsets without holes (P1), retention, consumer groups' cursors, and the shard's counters.
//!
//! It is the one record that every change of the shard may move. The messages themselves are written by the shell; who
//! may append is decided in `shard`.

use std::collections::BTreeMap;

use crate::change::{Done, Effect, Message, Refusal, StreamChange};
use crate::device::{Device, Status};
use crate::feedback::FeedbackLog;
use crate::ids::{DeviceId, LogTime, Offset};
use crate::shard::Applied;
use crate::twin::Twin;

/// How many consumer groups a shard keeps cursors for (`spec/twin-semantics.md` section 8).
pub const CONSUMER_GROUPS_MAX: usize = 20;

/// The small state that each change of a shard may move: where the stream begins and ends, who has read how far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    /// Modules do not count as devices.
    pub device_count: u64,
    pub disabled_count: u64,
    /// At least every etag and epoch that a deleted device has had. New devices begin above it, so that nothing from
    /// before a deletion can speak for a device that was made anew under the same id (I-22, I-28).
    pub retired: u64,
    /// How the commands of the shard's devices ended, for their senders.
    pub feedback: FeedbackLog,
}

impl Stream {
    /// The time of an entry with this stamp. The shell takes it for what it writes beside the records.
    pub fn advance(&mut self, stamp: LogTime) -> LogTime {
        self.at = self.at.max(stamp);
        self.at
    }

    /// Takes the messages in at the end. The answer is the effect, if there was any message.
    pub(crate) fn append(&mut self, messages: &[Message]) -> Option<Effect> {
        let first = self.next;
        let count = messages.len() as u64;
        let bytes: u64 = messages.iter().map(Message::bytes).sum();
        self.next = first.plus(count);
        self.bytes = self.bytes.saturating_add(bytes);
        (count > 0).then_some(Effect::Appended { first, count })
    }

    /// Keeps count of the devices, and of the disabled ones. `None` is a device that is not there (before, after).
    pub(crate) fn count_status(
        &mut self,
        id: &DeviceId,
        before: Option<Status>,
        after: Option<Status>,
    ) {
        if id.is_module() {
            return;
        }
        let (removed, added) = (u64::from(after.is_none()), u64::from(before.is_none()));
        self.device_count = self.device_count.saturating_sub(removed).saturating_add(added);
        if before == Some(Status::Disabled) {
            self.disabled_count = self.disabled_count.saturating_sub(1);
        }
        if after == Some(Status::Disabled) {
            self.disabled_count = self.disabled_count.saturating_add(1);
        }
    }

    /// Notes that a device is no more.
    pub(crate) fn retire(&mut self, device: &Device, twin: &Twin) {
        self.count_status(&device.id, Some(device.status), None);
        let had = [device.etag.get(), device.presence.epoch.get(), twin.etag.get()];
        self.retired = had.into_iter().fold(self.retired, u64::max);
    }

    pub(crate) fn apply(&mut self, change: &StreamChange) -> Result<Applied, Refusal> {
        match change {
            StreamChange::CommitCursor { group, next } => {
                commit_cursor(&mut self.cursors, self.next, group, *next)
            }
            StreamChange::SeekCursor { group, next } => {
                set_cursor(&mut self.cursors, self.next, group, *next)
            }
            StreamChange::DeleteCursor { group } => {
                self.cursors.remove(group);
                Ok(Applied::accepted(Done::Deleted))
            }
            StreamChange::Retain { from, before, bytes } => Ok(self.retain(*from, *before, *bytes)),
            StreamChange::CommitFeedbackCursor { group, next } => {
                let FeedbackLog { cursors, next: end, .. } = &mut self.feedback;
                commit_cursor(cursors, *end, group, *next)
            }
            StreamChange::SeekFeedbackCursor { group, next } => {
                let FeedbackLog { cursors, next: end, .. } = &mut self.feedback;
                set_cursor(cursors, *end, group, *next)
            }
            StreamChange::DeleteFeedbackCursor { group } => {
                self.feedback.cursors.remove(group);
                Ok(Applied::accepted(Done::Deleted))
            }
            StreamChange::RetainFeedback { before } => Ok(self.feedback.retain(*before)),
        }
    }

    /// A plan that was made from another beginning is void: its bytes would be counted twice.
    fn retain(&mut self, from: Offset, before: Offset, bytes: u64) -> Applied {
        let before = before.min(self.next);
        if from != self.first || before <= self.first {
            return Applied::accepted(Done::Retained { first: self.first });
        }
        self.first = before;
        self.bytes = if before == self.next { 0 } else { self.bytes.saturating_sub(bytes) };
        let applied = Applied::accepted(Done::Retained { first: before });
        Applied { retain_from: Some(before), ..applied }
    }
}

fn commit_cursor(
    cursors: &mut BTreeMap<String, Offset>,
    end: Offset,
    group: &str,
    next: Offset,
) -> Result<Applied, Refusal> {
    match cursors.get(group) {
        Some(current) if next < *current => {
            Err(Refusal::CursorBehind { group: group.to_owned(), current: *current })
        }
        Some(_) | None => set_cursor(cursors, end, group, next),
    }
}

/// A cursor before the first offset is legal: it reads on from what retention has left.
fn set_cursor(
    cursors: &mut BTreeMap<String, Offset>,
    end: Offset,
    group: &str,
    next: Offset,
) -> Result<Applied, Refusal> {
    if next > end {
        return Err(Refusal::OffsetOutOfRange { given: next, end });
    }
    if !cursors.contains_key(group) && cursors.len() >= CONSUMER_GROUPS_MAX {
        return Err(Refusal::TooManyConsumerGroups { limit: CONSUMER_GROUPS_MAX });
    }
    cursors.insert(group.to_owned(), next);
    Ok(Applied::accepted(Done::Cursor { next }))
}

/// How long and how much a shard keeps: a message stays while any configured limit still holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Older messages may go. `None`: age is no reason.
    pub age_ms_max: Option<u64>,
    /// Messages beyond so many bytes of newer ones may go. `None`: size is no reason.
    pub bytes_max: Option<u64>,
}

/// What the retention planner needs to know of a stored run of messages. Runs are dropped whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSummary {
    /// The offset after its last message.
    pub end: Offset,
    pub at: LogTime,
    /// Bytes of its messages, as `Stream::bytes` counts them.
    pub bytes: u64,
}

impl Retention {
    /// What may go: the longest prefix of chunks each of which is older than `age_ms_max`, or is followed by at least
    /// `bytes_max` bytes (I-8). `chunks` are the stream's oldest, in order; later ones need not be given.
    pub fn plan(
        &self,
        stream: &Stream,
        chunks: impl IntoIterator<Item = ChunkSummary>,
        now: LogTime,
    ) -> Option<StreamChange> {
        let mut dropped = None;
        let mut bytes: u64 = 0;
        for chunk in chunks {
            let through = bytes.saturating_add(chunk.bytes);
            let kept = stream.bytes.saturating_sub(through);
            if !self.is_old(chunk.at, now) && !self.is_beyond(kept) {
                break;
            }
            bytes = through;
            dropped = Some(chunk.end);
        }
        dropped.map(|before| StreamChange::Retain { from: stream.first, before, bytes })
    }

    fn is_old(&self, at: LogTime, now: LogTime) -> bool {
        self.age_ms_max.is_some_and(|age_ms| at.plus_ms(age_ms) < now)
    }

    fn is_beyond(&self, kept_bytes: u64) -> bool {
        self.bytes_max.is_some_and(|bytes| kept_bytes >= bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(first: u64, next: u64, bytes: u64) -> Stream {
        let [first, next] = [first, next].map(Offset::new);
        Stream { first, next, bytes, ..Stream::default() }
    }

    fn commit(stream: &mut Stream, group: &str, next: u64) -> Result<(), Refusal> {
        let change =
            StreamChange::CommitCursor { group: group.to_owned(), next: Offset::new(next) };
        stream.apply(&change).map(|_| ())
    }

    #[test]
    fn a_committed_cursor_never_goes_back() {
        let mut stream = stream(0, 10, 100);
        assert_eq!(commit(&mut stream, "g", 5), Ok(()));
        assert_eq!(commit(&mut stream, "g", 5), Ok(()), "a repeat is fine");
        let current = Offset::new(5);
        assert_eq!(
            commit(&mut stream, "g", 4),
            Err(Refusal::CursorBehind { group: "g".to_owned(), current })
        );
        assert_eq!(stream.cursors["g"], current);
    }

    #[test]
    fn a_cursor_stays_within_the_stream() {
        let mut stream = stream(0, 10, 100);
        assert_eq!(commit(&mut stream, "g", 10), Ok(()));
        let [given, end] = [11, 10].map(Offset::new);
        assert_eq!(commit(&mut stream, "h", 11), Err(Refusal::OffsetOutOfRange { given, end }));
    }

    #[test]
    fn the_twenty_first_group_is_refused_until_one_is_deleted() {
        let mut stream = stream(0, 10, 100);
        for n in 0..20 {
            assert_eq!(commit(&mut stream, &format!("g{n}"), 1), Ok(()));
        }
        assert_eq!(
            commit(&mut stream, "late", 1),
            Err(Refusal::TooManyConsumerGroups { limit: 20 })
        );
        stream.apply(&StreamChange::DeleteCursor { group: "g3".to_owned() }).expect("total");
        assert_eq!(commit(&mut stream, "late", 1), Ok(()));
    }

    #[test]
    fn retention_moves_forward_only_and_never_past_the_end() {
        let mut stream = stream(3, 10, 100);
        let mut retain = |from, before| {
            let [from, before] = [from, before].map(Offset::new);
            let applied = stream.retain(from, before, 30);
            (applied.retain_from.map(Offset::get), stream.first.get(), stream.bytes)
        };
        assert_eq!(retain(3, 2), (None, 3, 100), "backwards");
        assert_eq!(retain(0, 5), (None, 3, 100), "planned from another beginning");
        assert_eq!(retain(3, 5), (Some(5), 5, 70));
        assert_eq!(retain(5, 99), (Some(10), 10, 0), "no further than the end");
    }

    #[test]
    fn log_time_never_falls() {
        let mut stream = Stream::default();
        assert_eq!(stream.advance(LogTime::new(7)), LogTime::new(7));
        assert_eq!(stream.advance(LogTime::new(5)), LogTime::new(7));
    }

    #[test]
    fn without_a_policy_nothing_goes() {
        let policy = Retention { age_ms_max: None, bytes_max: None };
        let chunk = ChunkSummary { end: Offset::new(1), at: LogTime::new(0), bytes: 1 };
        assert_eq!(policy.plan(&stream(0, 9, 9), [chunk], LogTime::new(u64::MAX)), None);
    }

    /// Chunks of one message each, oldest first, with rising times.
    fn chunks() -> impl Strategy<Value = Vec<ChunkSummary>> {
        prop::collection::vec((0_u64..50, 0_u64..50), 0..20).prop_map(|steps| {
            let mut at = LogTime::default();
            let mut end = Offset::default();
            let mut chunk = |(ms, bytes)| {
                (at, end) = (at.plus_ms(ms), end.next());
                ChunkSummary { end, at, bytes }
            };
            steps.into_iter().map(&mut chunk).collect()
        })
    }

    proptest! {
        #[test]
        fn retention_takes_nothing_younger_nor_leaves_less_than_the_policy_says(
            chunks in chunks(), age_ms in prop::option::of(0_u64..500),
            bytes_max in prop::option::of(0_u64..500), now in 0_u64..1000,
        ) {
            let total = chunks.iter().map(|chunk| chunk.bytes).sum();
            let mut stream = stream(0, chunks.len() as u64, total);
            let now = LogTime::new(now);
            let policy = Retention { age_ms_max: age_ms, bytes_max };
            let dropped = match policy.plan(&stream, chunks.iter().copied(), now) {
                Some(change) => {
                    stream.apply(&change).expect("total");
                    stream.first.get() as usize
                }
                None => 0,
            };
            let kept_after = |n: usize| chunks[n..].iter().map(|chunk| chunk.bytes).sum::<u64>();
            let may_go = |n: usize| {
                age_ms.is_some_and(|age| now > chunks[n].at.plus_ms(age))
                    || bytes_max.is_some_and(|bytes| kept_after(n + 1) >= bytes)
            };
            prop_assert!((0..dropped).all(may_go), "something went too early");
            prop_assert!(dropped == chunks.len() || !may_go(dropped), "something was forgotten");
            prop_assert_eq!(stream.bytes, kept_after(dropped));
        }
    }
}
