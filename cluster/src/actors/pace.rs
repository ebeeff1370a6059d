//! When the next entry of a shard leaves: at once, or a moment later because it is about to become larger.
//!
//! An entry costs about the same whatever it carries, so under load few large ones are worth more than many small ones.
//! Whoever has just been answered often asks again at once (a device with a bounded window does), while those who came
//! during the commit wait already. Without a pause the two would take turns for ever, each in entries of half the size.
//! This is the commit delay of databases (`commit_delay` and `commit_siblings` of `PostgreSQL`), which here finds out by
//! itself whether it pays: a pause in which too few came back is not repeated soon, and a lone caller never waits.

use std::time::Duration;

use tokio::time::Instant;

use crate::raft::grid::line_from;

/// Fewer callers are not worth waiting for.
const SIBLINGS_MIN: usize = 3;
/// A pause may be this many times as long as the last commit took. It ends when all that are expected have come, so it
/// takes as long as that only where they come late, which is where the processors are busy.
const COMMITS_MAX: u32 = 2;
/// A quicker commit means that there is nothing to save.
const COMMIT_MIN: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(12);
/// Pauses end at multiples of this, so that entries of a node's shards leave together and share frames and fsyncs.
const GRID: Duration = Duration::from_millis(4);
/// After pauses in vain, one in so many commits tries again at the least.
const SKIP_MAX: u32 = 63;

/// The pause before the next entry.
#[derive(Debug)]
pub(super) struct Pace {
    /// Where the grid begins, the same for all shards of a node.
    origin: Instant,
    pause: Option<Pause>,
    /// Pauses in vain since one was worth it, as the number of commits to let pass before the next.
    vain: u32,
    skip: u32,
}

#[derive(Debug)]
struct Pause {
    answered: usize,
    waiting: usize,
    until: Instant,
}

impl Pace {
    pub(super) fn new(origin: Instant) -> Self {
        Self { origin, pause: None, vain: 0, skip: 0 }
    }

    /// An entry was committed that answers so many, and so many wait already.
    pub(super) fn committed(
        &mut self,
        answered: usize,
        waiting: usize,
        took: Duration,
        now: Instant,
    ) {
        self.pause = None;
        if answered + waiting < SIBLINGS_MIN || took < COMMIT_MIN {
            return;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let until = self.on_grid(now + (took * COMMITS_MAX).min(PAUSE_MAX));
        self.pause = Some(Pause { answered, waiting, until });
    }

    /// Whether an entry of all that waits may leave now.
    pub(super) fn may_leave(&self, waiting: usize, now: Instant) -> bool {
        self.pause
            .as_ref()
            .is_none_or(|pause| waiting >= pause.answered + pause.waiting || now >= pause.until)
    }

    /// An entry of so many leaves.
    pub(super) fn left(&mut self, changes: usize) {
        let Some(pause) = self.pause.take() else { return };
        let came = changes.saturating_sub(pause.waiting);
        self.vain = if came * 2 >= pause.answered { 0 } else { (self.vain * 2 + 1).min(SKIP_MAX) };
        self.skip = self.vain;
    }

    /// Resolves when what waits need not wait any longer. Never, if it need not at all.
    pub(super) async fn over(&self) {
        match &self.pause {
            Some(pause) => tokio::time::sleep_until(pause.until).await,
            None => std::future::pending().await,
        }
    }

    fn on_grid(&self, until: Instant) -> Instant {
        self.origin + line_from(GRID, until.saturating_duration_since(self.origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Duration = Duration::from_millis(4);

    /// A pace whose grid begins now.
    fn pace() -> (Pace, Instant) {
        let now = Instant::now();
        (Pace::new(now), now)
    }

    #[test]
    fn an_entry_waits_until_those_who_were_answered_ask_again_but_not_for_ever() {
        let (mut pace, now) = pace();
        assert!(pace.may_leave(1, now), "nothing was committed yet");
        pace.committed(3, 2, COMMIT, now);
        assert!(!pace.may_leave(4, now), "one of the three has not asked again");
        assert!(pace.may_leave(5, now), "all are here");
        assert!(!pace.may_leave(1, now + COMMIT));
        assert!(pace.may_leave(1, now + COMMIT * COMMITS_MAX));
        pace.left(5);
        assert!(pace.may_leave(1, now));
    }

    #[test]
    fn a_lone_caller_and_a_quick_commit_never_wait() {
        let (mut pace, now) = pace();
        pace.committed(1, 1, COMMIT, now);
        assert!(pace.may_leave(1, now));
        pace.committed(100, 100, COMMIT_MIN / 2, now);
        assert!(pace.may_leave(1, now));
    }

    #[test]
    fn pauses_end_on_the_grid_and_a_hanging_disk_makes_them_no_longer() {
        let (mut pace, now) = pace();
        pace.committed(3, 0, Duration::from_millis(1), now + Duration::from_millis(1));
        assert!(!pace.may_leave(1, now + Duration::from_millis(3)));
        assert!(pace.may_leave(1, now + GRID));
        pace.committed(3, 0, Duration::from_mins(1), now);
        assert!(pace.may_leave(1, now + PAUSE_MAX));
    }

    #[test]
    fn where_nobody_comes_back_pauses_become_rare_and_one_that_pays_brings_them_back() {
        let (mut pace, now) = pace();
        let mut pauses = 0;
        for _ in 0..1000 {
            pace.committed(4, 0, COMMIT, now);
            if !pace.may_leave(1, now) {
                pauses += 1;
                pace.left(1);
            }
        }
        assert!((10..30).contains(&pauses), "{pauses} pauses");
        let mut paid = 0;
        for _ in 0..1000 {
            pace.committed(4, 0, COMMIT, now);
            if !pace.may_leave(1, now) {
                paid += 1;
                pace.left(4);
            }
        }
        assert!(paid > 900, "only {paid} pauses");
    }
}
