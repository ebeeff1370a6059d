//! Leaders go where the placement wants them.
//!
//! The first replica of a placement should lead, so that the load is spread as it was planned. After a failure others
//! lead; when the first one is back and has caught up, it is handed the leadership again, a few groups at a time,
//! because writes pause for the time of an election.

use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::group::Group;
use super::groups::Groups;

/// How often a node looks at what it leads.
const PERIOD: Duration = Duration::from_secs(2);
/// Groups that are handed over in one period.
const TRANSFERS_MAX: usize = 8;

/// Goes on until the node stops.
pub(super) async fn run(groups: Groups) {
    let mut random = match groups.seed() {
        Some(seed) => SmallRng::seed_from_u64(seed),
        None => SmallRng::from_os_rng(),
    };
    loop {
        // Nodes that look at different times do not hand over all at once.
        sleep(PERIOD.mul_f64(random.random_range(0.75..1.25))).await;
        let running = groups.watch().borrow().clone();
        let misplaced = running.values().filter_map(|group| {
            preferred(&groups, group).map(|preferred| (group.clone(), preferred))
        });
        for (group, to) in misplaced.take(TRANSFERS_MAX).collect::<Vec<_>>() {
            match group.transfer_leader(to).await {
                Ok(()) => tracing::info!(group = %group.id(), %to, "handed the leadership over"),
                Err(error) => {
                    tracing::info!(group = %group.id(), %to, %error, "could not hand the leadership over");
                    break;
                }
            }
        }
    }
}

/// Who should lead instead of this node, if that replica can.
fn preferred(groups: &Groups, group: &Group) -> Option<NodeId> {
    let GroupId::Shard(shard) = group.id() else { return None };
    if !group.leadership().borrow().serving {
        return None;
    }
    let (first, goes) = {
        let meta = groups.meta();
        let meta = meta.borrow();
        let meta = meta.as_ref()?;
        let first = *meta.placement.get(&shard)?.first()?;
        (first, meta.membership.begun(shard).is_some_and(|m| m.from == Some(first)))
    };
    if first == groups.node() || goes || !groups.peers().is_connected(first) {
        return None;
    }
    let replicas = group.replicas();
    let voter = replicas.voters.iter().find(|replica| replica.node() == first)?;
    (!replicas.is_changing && replicas.has_caught_up(*voter)).then_some(first)
}
