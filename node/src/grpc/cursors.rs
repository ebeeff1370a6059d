//! The cursors of consumer groups, which the stream of messages and the feedback of commands each have.

use drover_cluster::Cluster;
use drover_cluster::actors::cluster::StreamState;
use drover_cluster::core::ids::Offset;
use drover_proto::admin;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::Status;

use super::convert::messages::{self, Cursor};
use super::{shard_count, status};

/// How many shards are asked at a time for the cursors of a group.
const CONCURRENCY: usize = 32;

/// Checks where the cursor of a group is to stand.
pub(super) fn parse(
    cluster: &Cluster,
    shard: u32,
    group: String,
    next: u64,
) -> Result<Cursor, Status> {
    let shards = shard_count(cluster)?;
    Cursor::from_parts(shard, group, next, shards).map_err(status::invalid)
}

/// The cursors of a group at all shards, among those that `of` takes from a shard's state.
pub(super) async fn list(
    cluster: &Cluster,
    group: String,
    of: fn(StreamState) -> Vec<(String, Offset)>,
) -> Result<Vec<admin::Cursor>, Status> {
    let group = messages::consumer_group(group).map_err(status::invalid)?;
    let shards = shard_count(cluster)?.shards();
    let states =
        stream::iter(shards).map(|shard| cluster.stream_state(shard)).buffered(CONCURRENCY);
    let found = states.map_err(status::of).try_filter_map(async |state| {
        let shard = state.shard;
        let cursor = of(state).into_iter().find(|(name, _)| *name == group);
        Ok(cursor.map(|(group, next)| messages::cursor(shard, group, next)))
    });
    found.try_collect().await
}
