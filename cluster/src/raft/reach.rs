//! Groups that this node can do nothing for, because it does not reach those whom it would have to ask.
//!
//! A leader without a quorum goes on leading as far as it knows, and a follower goes on naming a leader from which it hears
//! nothing. Whoever asks at such a node does better to ask at another one, and must be told so soon. Nothing is decided
//! here: what was proposed may still be committed, and nobody takes part in an election for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::GroupId;
use drover_core::mutants::{Mutation, is_planted};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::group::Group;
use super::groups::Groups;

/// Groups that are out of this node's reach.
pub(super) type CutOff = Arc<BTreeSet<GroupId>>;

/// How often to look; small beside what it is about.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A leader proposes nothing any more when its lease has run out. So much later what it proposed before is given up.
const PATIENCE: Duration = Duration::from_millis(250);

/// Publishes what is out of reach, as long as the node runs.
pub(super) async fn watch(groups: Groups, published: watch::Sender<CutOff>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let running = Arc::clone(&groups.watch().borrow());
        let cut_off = running.values().filter(|group| is_cut_off(&groups, group));
        let cut_off: BTreeSet<GroupId> = cut_off.map(Group::id).collect();
        published.send_if_modified(|before| {
            let is_new = **before != cut_off;
            if is_new {
                tracing::info!(groups = cut_off.len(), "groups are out of reach");
                *before = Arc::new(cut_off);
            }
            is_new
        });
    }
}

fn is_cut_off(groups: &Groups, group: &Group) -> bool {
    // A leader that does not ask whether it still is one is not to notice it here either.
    if is_planted(Mutation::ReadWithoutBarrier) {
        return false;
    }
    let lease = Duration::from_millis(groups.timing(group.id()).election_max_ms);
    let leader = group.leadership().borrow().leader;
    match leader {
        Some(leader) if leader == groups.node() => {
            group.quorum_silence().is_some_and(|silence| silence > lease + PATIENCE)
        }
        // Were this node among those who can elect another one, they would have by now.
        Some(leader) => groups.peers().silence(leader).is_some_and(|silence| silence > lease * 2),
        // There may be an election.
        None => false,
    }
}
