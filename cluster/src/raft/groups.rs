//! All groups of this node: started from what the meta group says, stopped one by one when their data fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use drover_core::ids::{GroupId, NodeId};
use drover_core::meta::Meta;
use tokio::sync::watch;

use super::Error;
use super::group::Group;
use super::peers::Peers;
use crate::storage::Storage;

/// Timers of all groups, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

/// What the groups of a node need.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    pub node: NodeId,
    pub timing: Timing,
    /// Entries of the log that are kept after they were applied, for followers that lag.
    pub log_entries_kept: u64,
    /// Seeds what openraft draws at random. `None`: from the system.
    pub seed: Option<u64>,
}

/// The groups of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Groups {}

impl Groups {
    /// Starts the meta group from what is stored, and the shards that the meta state places here; goes on starting
    /// shards as the meta state changes.
    pub async fn start(
        config: GroupsConfig,
        storage: Arc<dyn Storage>,
        peers: Peers,
    ) -> Result<Self, Error> {
        let _ = (config, storage, peers);
        todo!()
    }

    /// Makes this node the first voter of a new meta group together with the other members, and commits `meta`.
    pub async fn initialize(&self, meta: Meta) -> Result<Arc<Meta>, Error> {
        let _ = meta;
        todo!()
    }

    /// The meta state as this node has applied it.
    pub fn meta(&self) -> watch::Receiver<Option<Arc<Meta>>> {
        todo!()
    }

    pub fn get(&self, group: GroupId) -> Option<Group> {
        let _ = group;
        todo!()
    }

    /// The groups that run here; changes as shards are placed or stopped.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeMap<GroupId, Group>>> {
        todo!()
    }

    /// Groups that were stopped because their data cannot be trusted, and why.
    pub fn problems(&self) -> BTreeMap<GroupId, String> {
        todo!()
    }

    pub async fn stop(&self) {
        todo!()
    }
}
