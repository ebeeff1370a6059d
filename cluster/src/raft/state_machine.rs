//! The shell around apply: the interface that the groups rely on.

use std::io;
use std::sync::Arc;

use drover_core::ids::{GroupId, Offset};
use drover_core::meta::Meta;
use futures::Stream;
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::watch;

use super::snapshot::SnapshotData;
use super::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::storage::{Error, Storage};

/// What is seen of the applied state from outside.
#[derive(Debug, Clone)]
pub struct View {
    pub meta: watch::Receiver<Option<Arc<Meta>>>,
    pub stream_end: watch::Receiver<Offset>,
}

#[derive(Debug)]
pub struct StateMachine {}

impl StateMachine {
    pub fn open(storage: Arc<dyn Storage>, group: GroupId) -> Result<(Self, View), Error> {
        let _ = (storage, group);
        todo!()
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        todo!()
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        todo!()
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let _ = entries;
        todo!()
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        todo!()
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, _: SnapshotData) -> io::Result<()> {
        todo!()
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        todo!()
    }
}
