//! How far a copy is.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::cli::{Failure, progress};

/// Counts while the work is done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    groups: AtomicUsize,
    groups_done: AtomicUsize,
}

impl Progress {
    pub(super) fn expect(&self, groups: usize) {
        self.groups.store(groups, Ordering::Relaxed);
    }

    pub(super) fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn group_done(&self) {
        self.groups_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Does the work, and says meanwhile how far it is.
    pub(super) async fn show<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        progress::show(|| self.text(), work).await
    }

    fn text(&self) -> String {
        let mib = self.bytes.load(Ordering::Relaxed) >> 20;
        let (done, groups) = (&self.groups_done, &self.groups);
        let [done, groups] = [done, groups].map(|count| count.load(Ordering::Relaxed));
        format!("{done} of {groups} groups, {mib} MiB")
    }
}
