//! What an operator does about a replica whose data has rotted: its node has stopped it, and it is rebuilt from the others.

use std::time::Duration;

use drover_cluster::core::ids::{GroupId, NodeId, ShardId};
use tokio::time::sleep;

use super::Workload;

/// How often somebody looks whether all is well, and so the least for which a stopped replica stays as it is.
const EVERY: Duration = Duration::from_millis(1_500);

impl Workload {
    /// For as long as the node lives.
    pub(in crate::sim) async fn repair(&self) {
        loop {
            sleep(EVERY).await;
            let is_stopped = self.cluster.ready().is_err_and(|why| why.contains("is stopped"));
            if !is_stopped || self.operator.is_outcast(self.node) {
                continue;
            }
            let Some(node) = self.directory.node(self.node) else { continue };
            for shard in self.stopped(node).await {
                self.rebuild(node, shard).await;
            }
        }
    }

    /// The shards whose replica at this node was stopped, as the status has them.
    async fn stopped(&self, node: NodeId) -> Vec<ShardId> {
        let Ok(status) = self.cluster.status().await else { return Vec::new() };
        let is_it = |(of, _, problem): &(NodeId, Option<u64>, String)| {
            *of == node && problem.as_str() == "stopped"
        };
        let stopped = status.shards.iter().filter(|shard| shard.replicas.iter().any(is_it));
        stopped.filter_map(|shard| shard.shard).collect()
    }

    /// When it is seen for the second time: until then it has to stand still.
    async fn rebuild(&self, node: NodeId, shard: ShardId) {
        let Some(meta) = self.cluster.meta() else { return };
        if meta.membership.moves.get(&shard).is_some_and(|underway| underway.to == node) {
            return;
        }
        let stopped = (meta.replica(shard, node), GroupId::Shard(shard));
        if self.history.lock().stopped.insert(stopped) {
            self.history
                .note(format_args!("node {}: its replica of {shard} is stopped", self.node));
            return;
        }
        let rebuilt = self.cluster.rebuild(node, shard).await;
        self.history.note(format_args!("node {}: rebuild {shard}: {rebuilt:?}", self.node));
        self.history.lock().counts.operator.replicas_rebuilt += u64::from(rebuilt.is_ok());
    }
}
