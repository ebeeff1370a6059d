//! Whom this node reaches, and the groups that it can do nothing for because it does not reach those whom it would have to ask.
//!
//! A node that is stopped or cut off keeps its connections and answers nothing; a leader without a quorum goes on leading as
//! far as it knows; a follower goes on naming a leader that is gone. Whoever waits for one of them does better to ask
//! elsewhere, and must be told so soon. So a node that has answered nothing for a lease is asked for a sign of life, and is out of
//! reach when none comes within another. What counts is answers on this node's own connection: one whose words come
//! through, and that does not hear what it is asked, is no use.
//!
//! Nothing is decided here: what was proposed may still be committed, and nobody takes part in an election for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId};
use drover_core::mutants::{Mutation, is_planted};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::group::Group;
use super::groups::Groups;
use super::link::Call;
use super::peers::Peers;

/// What is out of this node's reach.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OutOfReach {
    pub(super) groups: BTreeSet<GroupId>,
    pub(super) nodes: BTreeSet<NodeId>,
}

/// How often to look; small beside what it is about.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// This node itself was stopped, or starved, if it has not looked for so long.
const STALL_MIN: Duration = Duration::from_millis(500);
/// A leader proposes nothing any more when its lease has run out. So much later what it proposed before is given up.
const PATIENCE: Duration = Duration::from_millis(250);
/// Leases without an answer after which a node is out of reach: in the first of them nobody may have asked it anything.
const SILENT_LEASES: u32 = 2;
/// Leases in which a majority that is there has elected another leader: one to notice, one to elect, one for a split vote.
const ELECTION_LEASES: u32 = 3;

/// Publishes what is out of reach, as long as the node runs.
pub(super) async fn watch(groups: Groups, published: watch::Sender<Arc<OutOfReach>>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut presence, mut probes) = (Presence::default(), BTreeMap::new());
    let mut awake = Awake::now();
    loop {
        looks.tick().await;
        let lease = lease(&groups, GroupId::Meta);
        let silences = awake.look(groups.peers().unanswered());
        probe(groups.peers(), &silences, lease, &mut probes);
        presence.look(&silences, lease * SILENT_LEASES);
        let running = Arc::clone(&groups.watch().borrow());
        let cut_off = running.values().filter(|group| is_cut_off(&groups, group, &presence));
        let now = OutOfReach { groups: cut_off.map(Group::id).collect(), nodes: presence.absent() };
        published.send_if_modified(|before| {
            let is_new = **before != now;
            if is_new {
                tracing::info!(groups = now.groups.len(), nodes = ?now.nodes, "out of reach");
                *before = Arc::new(now);
            }
            is_new
        });
    }
}

fn lease(groups: &Groups, group: GroupId) -> Duration {
    Duration::from_millis(groups.timing(group).election_max_ms)
}

/// Asks for a sign of life who has answered nothing for a lease. `asked` holds what is not answered yet: once is enough,
/// because what a connection takes it keeps in order, and a new connection is an answer.
fn probe(
    peers: &Peers,
    silences: &BTreeMap<NodeId, Duration>,
    lease: Duration,
    asked: &mut BTreeMap<NodeId, Call>,
) {
    let is_quiet = |node: &NodeId| silences.get(node).is_some_and(|silence| *silence >= lease);
    asked.retain(|node, _| is_quiet(node));
    for node in silences.keys().filter(|node| is_quiet(node)) {
        if !asked.contains_key(node)
            // One that is not connected cannot be asked, and need not be.
            && let Ok(call) = peers.probe(*node)
        {
            asked.insert(*node, call);
        }
    }
}

fn is_cut_off(groups: &Groups, group: &Group, presence: &Presence) -> bool {
    // A leader that does not ask whether it still is one is not to notice it here either.
    if is_planted(Mutation::ReadWithoutBarrier) {
        return false;
    }
    let (me, lease) = (groups.node(), lease(groups, group.id()));
    let leader = group.leadership().borrow().leader;
    if leader == Some(me) {
        return group.quorum_silence().is_some_and(|silence| silence > lease + PATIENCE);
    }
    presence.is_in_vain(me, leader, &group.voters(), lease * ELECTION_LEASES)
}

/// A node that has stalled finds everybody's last answer long ago, and must not blame them: silence counts while it looks.
struct Awake {
    since: Instant,
    looked: Instant,
}

impl Awake {
    fn now() -> Self {
        Self { since: Instant::now(), looked: Instant::now() }
    }

    /// What of each silence counts.
    fn look(&mut self, mut silences: BTreeMap<NodeId, Duration>) -> BTreeMap<NodeId, Duration> {
        if self.looked.elapsed() > STALL_MIN {
            self.since = Instant::now();
        }
        self.looked = Instant::now();
        let counts_max = self.since.elapsed();
        for silence in silences.values_mut() {
            *silence = (*silence).min(counts_max);
        }
        silences
    }
}

/// Which of the other nodes answer, and since when.
#[derive(Debug, Default)]
struct Presence {
    nodes: BTreeMap<NodeId, Node>,
}

#[derive(Debug)]
struct Node {
    silence: Duration,
    /// `None`: it does not answer.
    since: Option<Instant>,
}

impl Presence {
    /// Takes note of who has answered last when. Whoever has not for `patience` is absent.
    fn look(&mut self, silences: &BTreeMap<NodeId, Duration>, patience: Duration) {
        self.nodes.retain(|node, _| silences.contains_key(node));
        for (node, silence) in silences {
            let known = self.nodes.entry(*node).or_insert(Node { silence: *silence, since: None });
            known.silence = *silence;
            let answers = *silence < patience;
            known.since = answers.then(|| known.since.unwrap_or_else(Instant::now));
        }
    }

    fn absent(&self) -> BTreeSet<NodeId> {
        let absent = self.nodes.iter().filter(|(_, node)| node.since.is_none());
        absent.map(|(id, _)| *id).collect()
    }

    /// Whether a follower, `me`, asks in vain: no majority of the `voters` answers, or one that has had the time to elect another
    /// leader, `patience`, has not, so that it must be hearing the one that this node does not reach.
    fn is_in_vain(
        &self,
        me: NodeId,
        leader: Option<NodeId>,
        voters: &[BTreeSet<NodeId>],
        patience: Duration,
    ) -> bool {
        let majorities = voters.iter().filter(|voters| !voters.is_empty());
        let times: Option<Vec<Duration>> =
            majorities.map(|voters| self.majority_for(me, voters)).collect();
        let Some(times) = times else { return true };
        let has_had_time = times.into_iter().all(|time| time > patience);
        has_had_time && leader.is_some_and(|leader| self.silence(leader) > patience)
    }

    /// For how long a majority of these has been there. `None` if none is.
    fn majority_for(&self, me: NodeId, voters: &BTreeSet<NodeId>) -> Option<Duration> {
        let present = voters.iter().filter_map(|voter| match self.nodes.get(voter) {
            _ if *voter == me => Some(Duration::MAX),
            Some(node) => node.since.map(|since| since.elapsed()),
            None => None,
        });
        let mut times: Vec<Duration> = present.collect();
        times.sort_unstable_by(|one, other| other.cmp(one));
        times.get(voters.len() / 2).copied()
    }

    /// A node that is no member is never heard again.
    fn silence(&self, node: NodeId) -> Duration {
        self.nodes.get(&node).map_or(Duration::MAX, |node| node.silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_millis(1_500);
    const ELECTION: Duration = Duration::from_millis(2_250);

    fn node(number: u32) -> NodeId {
        NodeId::new(number, 0)
    }

    fn voters(numbers: &[u32]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| node(*number)).collect()
    }

    /// Node 1, which looks at the others every tenth of a second.
    #[derive(Default)]
    struct Follower {
        presence: Presence,
        silences: BTreeMap<NodeId, Duration>,
    }

    impl Follower {
        /// So much time, in which of all others only `answering` say something.
        async fn pass(&mut self, time: Duration, answering: &[u32]) {
            for number in [2, 3] {
                self.silences.entry(node(number)).or_default();
            }
            for _ in 0..time.as_millis() / LOOK_INTERVAL.as_millis() {
                tokio::time::advance(LOOK_INTERVAL).await;
                for (id, silence) in &mut self.silences {
                    let answers = answering.iter().any(|number| node(*number) == *id);
                    *silence = if answers { Duration::ZERO } else { *silence + LOOK_INTERVAL };
                }
                self.presence.look(&self.silences, SILENT);
            }
        }

        /// Whether it is no use to ask it, with node 2 for the leader as far as it knows.
        fn is_in_vain(&self, sets: &[BTreeSet<NodeId>]) -> bool {
            self.presence.is_in_vain(node(1), Some(node(2)), sets, ELECTION)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_majority_nothing_can_be_done_and_with_one_there_is_an_election_first() {
        let (mut follower, all) = (Follower::default(), [voters(&[1, 2, 3])]);
        follower.pass(ELECTION, &[2, 3]).await;
        assert!(!follower.is_in_vain(&all));
        follower.pass(SILENT, &[]).await;
        assert!(follower.is_in_vain(&all), "neither of the others answers");
        assert_eq!(follower.presence.absent(), voters(&[2, 3]));
        // The leader that it remembers is dead, and the two that are left can elect one of them.
        follower.pass(ELECTION, &[3]).await;
        assert!(!follower.is_in_vain(&all), "a majority has just returned");
        follower.pass(LOOK_INTERVAL * 2, &[3]).await;
        assert!(
            follower.is_in_vain(&all),
            "the others hear a leader that this node does not reach"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_does_not_answer_has_successors_to_wait_for() {
        let (mut follower, all) = (Follower::default(), [voters(&[1, 2, 3])]);
        follower.pass(ELECTION * 2, &[2, 3]).await;
        follower.pass(ELECTION, &[3]).await;
        assert_eq!(follower.presence.absent(), voters(&[2]));
        assert!(!follower.is_in_vain(&all));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_stopped_does_not_take_the_others_for_silent() {
        let mut awake = Awake::now();
        let silent_for = |silence| BTreeMap::from([(node(2), silence)]);
        for _ in 0..20 {
            tokio::time::advance(LOOK_INTERVAL).await;
            awake.look(silent_for(Duration::ZERO));
        }
        tokio::time::advance(LOOK_INTERVAL).await;
        assert_eq!(awake.look(silent_for(SILENT)), silent_for(SILENT));
        tokio::time::advance(SILENT * 5).await;
        assert_eq!(awake.look(silent_for(SILENT * 6)), silent_for(Duration::ZERO));
        tokio::time::advance(LOOK_INTERVAL).await;
        assert_eq!(awake.look(silent_for(SILENT * 6)), silent_for(LOOK_INTERVAL));
    }

    #[tokio::test(start_paused = true)]
    async fn while_voters_change_a_majority_of_both_sets_is_needed() {
        let mut follower = Follower::default();
        follower.pass(SILENT, &[3]).await;
        assert!(!follower.is_in_vain(&[voters(&[1, 2, 3])]));
        assert!(follower.is_in_vain(&[voters(&[1, 2, 3]), voters(&[1, 2])]));
        assert!(!follower.is_in_vain(&[]), "a replica that knows nobody yet");
        assert!(!follower.is_in_vain(&[voters(&[1])]), "one that is alone");
    }
}
