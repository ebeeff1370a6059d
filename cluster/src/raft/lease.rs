//! The store as one replica uses it, so that somebody can wait until nothing of the replica uses it any more.
//!
//! A group that is shut down has tasks that end a little later: a batch that is being applied, a callback of an fsync.
//! None of them may write after the group's records were removed.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use drover_core::ids::GroupId;
use tokio::sync::mpsc;

use super::syncs::Syncs;
use crate::storage::{
    Batch, Error, Export, Fence, Import, OnDurable, Order, Record, ScanLimit, Storage, Table, Usage,
};

/// The other end of all leases of one replica.
#[derive(Debug)]
pub(super) struct Users {
    gone: mpsc::Receiver<Infallible>,
}

impl Users {
    /// Completes when the last of them has gone.
    pub(super) async fn wait(mut self) {
        // Nothing is ever sent: it ends when no sender is left.
        self.gone.recv().await;
    }
}

/// Lends the store to one replica.
pub(super) fn lend(storage: Arc<dyn Storage>, syncs: Arc<Syncs>) -> (Arc<dyn Storage>, Users) {
    let (user, gone) = mpsc::channel(1);
    (Arc::new(Lease { storage, syncs, _user: user }), Users { gone })
}

struct Lease {
    storage: Arc<dyn Storage>,
    syncs: Arc<Syncs>,
    /// Dropped with the last handle.
    _user: mpsc::Sender<Infallible>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storage.fmt(f)
    }
}

impl Storage for Lease {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.storage.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        range: Range<Vec<u8>>,
        order: Order,
        limit: ScanLimit,
    ) -> Result<Vec<Record>, Error> {
        self.storage.scan(table, range, order, limit)
    }

    fn write(&self, batch: Batch) -> Result<(), Error> {
        self.storage.write(batch)
    }

    fn sync(&self, done: OnDurable) {
        self.syncs.begin();
        let syncs = Arc::clone(&self.syncs);
        self.storage.sync(Box::new(move |result| {
            syncs.end();
            done(result);
        }));
    }

    fn fences(&self) -> Result<Vec<(GroupId, Fence)>, Error> {
        self.storage.fences()
    }

    fn write_fence(&self, group: GroupId, fence: Fence) {
        self.storage.write_fence(group, fence);
    }

    fn write_fence_now(&self, group: GroupId, fence: Fence) -> Result<(), Error> {
        self.storage.write_fence_now(group, fence)
    }

    fn export(&self, group: GroupId, chunk_bytes: usize) -> Result<Export, Error> {
        self.storage.export(group, chunk_bytes)
    }

    fn import(&self, group: GroupId) -> Result<Box<dyn Import>, Error> {
        self.storage.import(group)
    }

    fn usage(&self) -> Result<Usage, Error> {
        self.storage.usage()
    }
}
