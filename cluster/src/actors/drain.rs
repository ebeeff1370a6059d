//! A drained node gives its sessions away, after all else: a few at a time, so that the other nodes are not stormed.
//!
//! While it has moves to make or leads a shard, its devices stay: they are served by others soon anyway, and one interruption
//! is enough. New connections are refused from the start of the drain on.

use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::GroupId;
use drover_core::moves;
use tracing::info;

use super::node::Shared;

/// How often some are ended: a second's worth at once would be a small storm itself.
const INTERVAL: Duration = Duration::from_millis(100);

/// Goes on until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut meta = shared.groups.meta();
    loop {
        if !shared.is_departing() {
            // Nothing else can make it one.
            if meta.changed().await.is_err() {
                return;
            }
            continue;
        }
        if has_given_all(&shared) {
            let share = shared.config.limits.drained_sessions_per_second;
            let ended = shared.sessions.end_some(share.div_ceil(10).max(1));
            if ended > 0 {
                info!(ended, left = shared.sessions.count(), "drained sessions");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether this node leads no shard, and nothing moves away from it any more.
fn has_given_all(shared: &Shared) -> bool {
    let Some(meta) = shared.meta() else { return false };
    let node = shared.config.node;
    let goes = meta.membership.moves.values().any(|m| m.from == Some(node));
    let leads = shared.groups.watch().borrow().iter().any(|(id, group)| {
        matches!(id, GroupId::Shard(_)) && group.leadership().borrow().leader == Some(node)
    });
    !goes && !leads && moves::next(&meta).is_empty()
}
