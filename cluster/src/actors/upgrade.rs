//! The feature level follows the builds of the nodes: each says what its build supports, and whoever leads the meta group raises the
//! level when all members support more, unless an operator holds it.
//!
//! Both are changes of the meta state and repeated until they are there. A node that does not support what is active must not
//! go on: it would meet entries that it cannot read.

use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use drover_core::level::{self, FeatureLevel, LevelChange, LevelRefusal};
use drover_core::meta::MetaChange;
use futures::future::BoxFuture;
use tokio::time::sleep;
use tracing::{debug, info};

use super::cluster::Cluster;
use super::error::Error;
use super::mover::led;

/// How often to look, besides whenever the meta state changes: who leads the meta group changes without it.
const INTERVAL: Duration = Duration::from_secs(2);

/// Goes on until the node stops.
pub(super) async fn run(cluster: Cluster) {
    let mut seen = cluster.watch_meta();
    loop {
        seen.mark_unchanged();
        if let Err(error) = look(&cluster).await {
            debug!(%error, "the feature level is looked at again");
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            changed = seen.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(cluster: &Cluster) -> Result<(), Error> {
    let Some(meta) = cluster.meta() else { return Ok(()) };
    let (node, supports) = (cluster.shared.config.node, level::supported());
    if meta.members.contains_key(&node) && meta.supported_by(node) != supports {
        info!(%supports, "saying what this node's build supports");
        return cluster.change_level(LevelChange::Announce { node, supports }).await;
    }
    let due = meta.level_due().filter(|_| led(cluster, GroupId::Meta).is_some());
    let Some(to) = due else { return Ok(()) };
    info!(from = %meta.levels.active, %to, "all nodes support it: the feature level rises");
    cluster.change_level(LevelChange::Raise { to }).await
}

/// How far an upgrade is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeProgress {
    pub active: FeatureLevel,
    /// Members whose builds support no more than that, while others do.
    pub waiting_for: Vec<NodeId>,
}

impl Cluster {
    /// Keeps the feature level where it is, so that nodes can go back to the build that they had.
    pub async fn hold_upgrade(&self) -> Result<(), Error> {
        self.change_level(LevelChange::Hold(true)).await
    }

    /// Lets the feature level rise: at once, if all members support more, and from now on when they do.
    pub async fn finish_upgrade(&self) -> Result<UpgradeProgress, Error> {
        self.change_level(LevelChange::Hold(false)).await?;
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        if let Some(to) = meta.level_due() {
            match self.change_level(LevelChange::Raise { to }).await {
                // The leader was quicker.
                Err(Error::RefusedByMeta(refusal)) => debug!(%refusal, "raised already"),
                raised => raised?,
            }
        }
        let meta = self.meta().ok_or(Error::NotInitialized)?;
        let active = meta.levels.active;
        let highest = meta.members.keys().map(|node| meta.supported_by(*node)).max();
        let waits = highest.is_some_and(|highest| highest > active);
        let behind = |node: &NodeId| waits && meta.supported_by(*node) <= active;
        Ok(UpgradeProgress {
            active,
            waiting_for: meta.members.keys().copied().filter(behind).collect(),
        })
    }

    /// Gives the cluster a name for people. Refused below the level that brings names.
    pub async fn rename(&self, name: String) -> Result<(), Error> {
        self.change_meta(MetaChange::Rename { name }).await
    }

    async fn change_level(&self, change: LevelChange) -> Result<(), Error> {
        self.change_meta(MetaChange::Level(change)).await
    }

    /// Completes when this node learns that its build does not support what is active: the process must end.
    pub fn outdated(&self) -> BoxFuture<'static, LevelRefusal> {
        let groups = self.shared.groups.clone();
        let (mut applied, mut heard) = (groups.meta(), self.shared.peers.heard_active_level());
        Box::pin(async move {
            loop {
                applied.mark_unchanged();
                heard.mark_unchanged();
                if let Err(refusal) = groups.check_level() {
                    return refusal;
                }
                let changed = tokio::select! {
                    changed = applied.changed() => changed,
                    changed = heard.changed() => changed,
                };
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }
}
