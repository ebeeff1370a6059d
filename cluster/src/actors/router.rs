//! Device to shard to leader: every request finds the node that may carry it out, or an error that says what to do.
//!
//! A request is repeated only while it is certain that nothing was proposed, nor a device called: nobody leads, the node that was asked does
//! not lead, or it could not be reached. Once a change is under way, a lost leader or a missing answer means an unknown
//! outcome, and the caller decides. Reads are repeated after any loss. All of it counts against one deadline.
//!
//! Nobody waits for a node that cannot answer any more: one that was cut off or stopped says nothing, so what it was asked is
//! given up when the replica here hears of another leader, or when it has said nothing for too long (`raft/reach`). It is asked
//! nothing new until it is heard again. Whatever this node cannot reach is refused at once, because whoever asks can ask
//! elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId, ShardId};
use ractor::ActorRef;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::admission::Gauge;
use super::error::Error;
use super::proposer::Growth;
use super::shard::ShardMsg;
use crate::metrics;
use crate::raft::Leadership;
use crate::raft::group::Group;
use crate::raft::groups::Groups;
use crate::raft::peers::{CallError, Peers};
use crate::wire::request::{Answer, Failure, Request, Response, decode_response, encode_request};

/// The first pause before a request is repeated; each further one is twice as long, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Shorter than an election, so that a new leader is found soon after it was elected.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A leader that hands over, and can still speak, answers within this time what it was asked before.
const LAST_WORD_MAX: Duration = Duration::from_millis(250);

/// Why a wait for a leader is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// There is another one, which serves in a moment: pauses begin anew, or what they have grown to would be added to each hand-over.
    ByLeader,
    ByTime,
}

/// A replica of a shard on this node, with its actor.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) group: Group,
    pub(super) actor: ActorRef<ShardMsg>,
    pub(super) gauge: Arc<Gauge>,
    /// Calls of methods that wait for their answers.
    pub(super) calls: Arc<Gauge>,
    pub(super) leadership: watch::Receiver<Leadership>,
    /// Where the stream ends, as far as this node has proposed.
    pub(super) growth: watch::Receiver<Growth>,
}

/// Who is asked next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Here,
    Node(NodeId),
    Unknown,
}

/// Finds leaders.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) node: NodeId,
    pub(super) groups: Groups,
    pub(super) peers: Peers,
    replicas: RwLock<Arc<BTreeMap<ShardId, Replica>>>,
    /// Leaders of groups that have no replica here, as peers have named them.
    hints: Mutex<BTreeMap<GroupId, NodeId>>,
}

/// What one attempt came to.
enum Attempt {
    Answered(Response),
    /// Nothing was proposed: ask again.
    Again,
    /// The request was sent, and no answer came.
    Lost(Error),
}

impl Router {
    pub(super) fn new(node: NodeId, groups: Groups, peers: Peers) -> Self {
        let replicas = RwLock::default();
        Self { node, groups, peers, replicas, hints: Mutex::default() }
    }

    pub(super) fn set_replicas(&self, replicas: BTreeMap<ShardId, Replica>) {
        *self.replicas.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(replicas);
    }

    pub(super) fn replicas(&self) -> Arc<BTreeMap<ShardId, Replica>> {
        Arc::clone(&self.replicas.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn replica(&self, shard: ShardId) -> Option<Replica> {
        self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    /// The leader of a shard, as far as it is known.
    pub(super) fn target(&self, shard: ShardId) -> Target {
        self.target_of(GroupId::Shard(shard), 0)
    }

    pub(super) fn target_of(&self, group: GroupId, attempt: u32) -> Target {
        if let Some(group) = self.groups.get(group) {
            let leadership = *group.leadership().borrow();
            match leadership.leader {
                Some(leader) if leader != self.node => return Target::Node(leader),
                _ if leadership.serving => return Target::Here,
                // One that only begins to follow knows less than others do.
                None if !group.replicas().voters.contains(&group.replica()) => {}
                _ => return Target::Unknown,
            }
        }
        if let Some(hint) = self.hints().get(&group) {
            return Target::Node(*hint);
        }
        self.guess(group, attempt)
    }

    /// Any replica knows its leader: ask one after the other.
    fn guess(&self, group: GroupId, attempt: u32) -> Target {
        let others = self.others_with(group);
        match others.len() {
            0 => Target::Unknown,
            count => Target::Node(others[attempt as usize % count]),
        }
    }

    /// Where the other replicas of the group are.
    fn others_with(&self, group: GroupId) -> Vec<NodeId> {
        let meta = self.groups.meta();
        let meta = meta.borrow();
        let Some(meta) = meta.as_ref() else { return Vec::new() };
        let members: Vec<NodeId> = match group {
            GroupId::Shard(shard) => meta.placement.get(&shard).cloned().unwrap_or_default(),
            GroupId::Meta => meta.members.keys().copied().collect(),
        };
        members.into_iter().filter(|node| *node != self.node).collect()
    }

    /// Whether it is no use to ask anybody for the group. Without a replica here, whoever has one can say who leads.
    fn is_out_of_reach(&self, group: GroupId) -> bool {
        if self.groups.get(group).is_some() {
            return self.groups.is_cut_off(group);
        }
        let others = self.others_with(group);
        !others.is_empty() && others.iter().all(|node| self.groups.is_silent(*node))
    }

    /// Asks whoever leads the group until it is answered or `deadline` is over. `here` carries it out when that is this
    /// node. Bounded by the deadline.
    pub(super) async fn ask<H, F>(
        &self,
        group: GroupId,
        request: &Request,
        deadline: Instant,
        here: H,
    ) -> Result<Answer, Error>
    where
        H: Fn() -> F,
        F: Future<Output = Response>,
    {
        let changes = matches!(request, Request::Change(_) | Request::Invoke(_));
        let mut encoded = None;
        let mut pause = PAUSE_MIN;
        for attempt in 0.. {
            if self.is_out_of_reach(group) {
                break;
            }
            let target = self.target_of(group, attempt);
            let asking = async {
                match target {
                    Target::Unknown => Attempt::Again,
                    Target::Here => match timeout_at(deadline, here()).await {
                        Ok(response) => Attempt::Answered(response),
                        Err(_) => Attempt::Lost(Error::Timeout),
                    },
                    // It is not sent what nobody would wait for: so nothing of it can be under way.
                    Target::Node(node) if self.groups.is_silent(node) => {
                        self.learn(group, None);
                        Attempt::Again
                    }
                    Target::Node(node) => {
                        let encoded = encoded.get_or_insert_with(|| encode_request(request));
                        self.ask_peer(node, group, encoded.clone(), deadline).await
                    }
                }
            };
            let result = tokio::select! {
                biased;
                result = asking => result,
                () = self.in_vain(group, target) => {
                    self.learn(group, None);
                    Attempt::Lost(Error::LeaderLost { group })
                }
            };
            match result {
                Attempt::Answered(Ok(answer)) => return Ok(answer),
                Attempt::Answered(Err(Failure::NotLeader { leader })) => self.learn(group, leader),
                Attempt::Answered(Err(Failure::Unknown)) if !changes => {}
                // Another replica will lead.
                Attempt::Answered(Err(Failure::GroupStopped { .. })) if !changes => {
                    self.learn(group, None);
                }
                Attempt::Answered(Err(failure)) => return Err(error_of(group, failure)),
                Attempt::Lost(error) if changes || Instant::now() >= deadline => return Err(error),
                Attempt::Lost(_) | Attempt::Again => {}
            }
            if Instant::now() + pause >= deadline {
                break;
            }
            pause = match self.wait(group, pause).await {
                Woken::ByLeader => PAUSE_MIN,
                Woken::ByTime => (pause * 2).min(PAUSE_MAX),
            };
        }
        match self.groups.problems().remove(&group) {
            Some(problem) => Err(Error::GroupStopped { group, problem }),
            None => Err(Error::NoLeader { group }),
        }
    }

    async fn ask_peer(
        &self,
        node: NodeId,
        group: GroupId,
        encoded: Bytes,
        deadline: Instant,
    ) -> Attempt {
        metrics::forwarded();
        let left = deadline.saturating_duration_since(Instant::now());
        match self.peers.request(node, group, encoded, left).await {
            Ok(response) => Attempt::Answered(decode_response(response)),
            Err(CallError::Unreachable { .. } | CallError::Busy { .. }) => {
                self.learn(group, None);
                Attempt::Again
            }
            Err(CallError::Lost { .. }) => {
                self.learn(group, None);
                Attempt::Lost(Error::LeaderLost { group })
            }
            Err(CallError::Timeout { .. }) => Attempt::Lost(Error::Timeout),
        }
    }

    /// Returns when no answer is to be expected any more.
    async fn in_vain(&self, group: GroupId, asked: Target) {
        let Target::Node(node) = asked else {
            return self.groups.until_cut_off(group).await;
        };
        tokio::select! {
            () = self.groups.until_cut_off(group) => {}
            () = self.groups.until_silent(node) => {}
            () = self.deposed(group, node) => {}
        }
    }

    /// Returns when the replica here has heard of a leader other than `node`, and that has had its time for a last word: what
    /// it was asked it cannot commit any more.
    async fn deposed(&self, group: GroupId, node: NodeId) {
        let Some(group) = self.groups.get(group) else { return std::future::pending().await };
        let mut leadership = group.leadership();
        let is_other = |now: &Leadership| now.leader.is_some_and(|leader| leader != node);
        if leadership.wait_for(is_other).await.is_err() {
            return std::future::pending().await;
        }
        if self.peers.silence(node).is_some_and(|silence| silence < LAST_WORD_MAX) {
            tokio::time::sleep(LAST_WORD_MAX).await;
        }
    }

    fn learn(&self, group: GroupId, leader: Option<NodeId>) {
        match leader {
            Some(leader) if leader != self.node => self.hints().insert(group, leader),
            Some(_) | None => self.hints().remove(&group),
        };
    }

    /// For a while, or until the group's leader changes.
    async fn wait(&self, group: GroupId, pause: Duration) -> Woken {
        let leadership = self.groups.get(group).map(|group| group.leadership());
        let changed = async {
            match leadership {
                Some(mut leadership) => {
                    // What the group's own receiver has not seen is no news: without this, nobody would wait.
                    leadership.mark_unchanged();
                    if leadership.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => Woken::ByTime,
            () = changed => Woken::ByLeader,
        }
    }

    fn hints(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupId, NodeId>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a failure at the leader means to the caller.
pub(super) fn error_of(group: GroupId, failure: Failure) -> Error {
    match failure {
        Failure::Refused(refusal) => Error::Refused(refusal),
        Failure::RefusedByMeta(refusal) => Error::RefusedByMeta(refusal),
        Failure::Method(failure) => Error::Method(failure),
        Failure::Invalid { field, problem } => Error::Invalid { field, problem },
        Failure::NotLeader { .. } => Error::NoLeader { group },
        Failure::Busy { what } => Error::Busy { what },
        Failure::Restarted { device } => Error::Restarted { device },
        Failure::DiskFull { node, free_bytes } => Error::DiskFull { node, free_bytes },
        Failure::Stopping => Error::Stopping,
        Failure::GroupStopped { problem } => Error::GroupStopped { group, problem },
        Failure::NotInitialized => Error::NotInitialized,
        Failure::Unknown => Error::LeaderLost { group },
    }
}

/// Why Raft could not do what has proposed nothing.
pub(super) fn failure_of(error: crate::raft::Error) -> Failure {
    match error {
        crate::raft::Error::NotLeader { leader } => Failure::NotLeader { leader },
        crate::raft::Error::Unknown | crate::raft::Error::Timeout => Failure::Unknown,
        crate::raft::Error::Refused(refusal) => Failure::RefusedByMeta(refusal),
        crate::raft::Error::Stopped { problem }
        | crate::raft::Error::NotChanged { problem }
        | crate::raft::Error::Interrupted { problem } => Failure::GroupStopped { problem },
        crate::raft::Error::Storage(error) => Failure::GroupStopped { problem: error.to_string() },
    }
}
