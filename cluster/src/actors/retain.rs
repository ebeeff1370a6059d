//! What leaves the streams: the leader of a shard plans by its own configuration and commits the plan, so that every
//! replica drops the same prefix (I-8).

use std::sync::Arc;

use drover_core::change::Change;
use drover_core::ids::{GroupId, ShardId};
use tracing::{debug, warn};

use super::node::Shared;
use super::serve::{Entry, change_here, unreadable};
use crate::raft::group::Group;
use crate::storage::{self, state, stream};
use crate::wire::request::encode_change;

/// Steps of one round for one shard: a step drops some chunks, and other shards wait for their turn.
const STEPS_MAX: usize = 64;

/// Retains until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(shared.config.limits.retention_interval).await;
        for (shard, replica) in &*shared.router.replicas() {
            if replica.leadership.borrow().serving {
                retain(&shared, *shard, &replica.group).await;
            }
        }
    }
}

async fn retain(shared: &Shared, shard: ShardId, group: &Group) {
    for _ in 0..STEPS_MAX {
        match plan(shared, shard) {
            Ok(Some(change)) => {
                let entry = Entry::new(encode_change(&change), &change);
                if let Err(failure) = change_here(shared, shard, entry).await {
                    debug!(%shard, ?failure, "old messages stay for now");
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                warn!(%shard, %error, "retention cannot read the stream");
                unreadable(group, error);
                return;
            }
        }
    }
}

fn plan(shared: &Shared, shard: ShardId) -> Result<Option<Change>, storage::Error> {
    let group = GroupId::Shard(shard);
    let stream = state::stream(&*shared.storage, group)?;
    let chunks = stream::oldest_chunks(&*shared.storage, group)?;
    let now = shared.config.clock.now();
    Ok(shared.config.retention.plan(&stream, chunks, now).map(Change::Stream))
}
