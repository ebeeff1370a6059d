//! One Raft group of this node: proposing, reading, and who leads.
//!
//! The replica itself is openraft's. This file turns its answers into ours, and its states into the one claim that the
//! layers above act on: whether this node may serve.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId, Offset, ReplicaId};
use drover_core::mutants::{Mutation, is_planted};
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{ChangeMembers, ReadPolicy, ServerState};
use tokio::sync::{RwLock, oneshot, watch};

use super::load::Meter;
use super::state_machine::{StateMachine, View};
use super::types::{LogId, PeerNode, Proposal, TypeConfig};
use super::{Error, Leadership, Response};
use crate::metrics;

pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// How long a hand-over may take: one election, and the disk of the new leader.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a hand-over waits for the entries that are under way. With a disk that hangs it begins without them.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(500);

/// A handle of a running group. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    id: GroupId,
    replica: ReplicaId,
    raft: Raft,
    view: View,
    leadership: watch::Receiver<Leadership>,
    barrier: Mutex<Barrier>,
    meter: Meter,
    /// Read by each entry under way, written by a hand-over: it begins when there is none, and meanwhile no other is taken.
    under_way: RwLock<()>,
    /// Why it stopped.
    problem: OnceLock<String>,
}

/// Callers that wait for the next read barrier.
#[derive(Default)]
struct Barrier {
    running: bool,
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

/// How far a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub last_log_index: u64,
    /// The log begins after this.
    pub purged_index: u64,
    pub voters: Vec<NodeId>,
    /// On the leader: the last index that each other replica has acknowledged to it. A replica that has acknowledged
    /// nothing in this term is not listed: it may have failed.
    pub matched: Vec<(NodeId, u64)>,
}

/// The replicas of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replicas {
    pub voters: BTreeSet<ReplicaId>,
    pub learners: BTreeSet<ReplicaId>,
    /// Between two sets of voters: a majority of each decides.
    pub is_changing: bool,
    /// On the leader: the last index that each replica has acknowledged to it.
    pub matched: BTreeMap<ReplicaId, u64>,
    pub last_log_index: u64,
}

impl Replicas {
    /// A replica this close to the end of the log has caught up: the rest arrives while it is made a voter or leader.
    const LAG_MAX: u64 = 32;

    pub fn has_caught_up(&self, replica: ReplicaId) -> bool {
        let matched = self.matched.get(&replica);
        matched.is_some_and(|matched| matched + Self::LAG_MAX >= self.last_log_index)
    }
}

/// What becomes of a replica that loses its vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demoted {
    Follow,
    Leave,
}

impl Group {
    /// A handle of a replica, and the task that follows who leads it. The task ends when the replica stops, and says why
    /// in `stopped`.
    pub(super) fn new(
        id: GroupId,
        replica: ReplicaId,
        raft: Raft,
        view: View,
        stopped: impl FnOnce(String) + Send + 'static,
    ) -> Self {
        let (sender, leadership) = watch::channel(Leadership::default());
        let inner = Arc::new(Inner {
            id,
            replica,
            raft: raft.clone(),
            view,
            leadership,
            barrier: Mutex::new(Barrier::default()),
            meter: Meter::default(),
            under_way: RwLock::default(),
            problem: OnceLock::new(),
        });
        let group = Self { inner };
        let followed = group.clone();
        tokio::spawn(async move {
            follow(&raft, replica, &sender).await;
            sender.send_replace(Leadership::default());
            let ended = || match &raft.metrics().borrow_watched().running_state {
                Ok(()) => "it was stopped".to_owned(),
                Err(fatal) => fatal.to_string(),
            };
            stopped(followed.inner.problem.get_or_init(ended).clone());
        });
        group
    }

    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Which replica of the group this one is.
    pub fn replica(&self) -> ReplicaId {
        self.inner.replica
    }

    /// Proposes one entry (an encoded `record.v1.Batch` or `MetaChange`) and waits until it is applied here.
    pub async fn propose(&self, entry: Bytes) -> Result<Response, Error> {
        let Ok(_under_way) = self.inner.under_way.try_read() else {
            return Err(Error::NotLeader { leader: None });
        };
        let started = tokio::time::Instant::now();
        self.inner.meter.count(entry.len());
        let written = self.inner.raft.client_write(Proposal(entry)).await;
        let response = written.map_err(|error| match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                Error::NotLeader { leader: to.leader_id.map(ReplicaId::node) }
            }
            // It was in this node's log, and may be in those of others.
            RaftError::APIError(_) => Error::Unknown,
            RaftError::Fatal(fatal) => self.stopped(&fatal),
        })?;
        metrics::proposed(started.elapsed());
        Ok(response.data)
    }

    /// `ReadIndex` (Raft thesis, 6.4): on return this node was the leader after the call began, and has applied
    /// everything that was committed before it. Callers that arrive while one round is under way share the next.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        if is_planted(Mutation::ReadWithoutBarrier) {
            return Ok(());
        }
        let (sender, passed) = oneshot::channel();
        let must_run = {
            let mut barrier = self.barrier();
            barrier.waiting.push(sender);
            !std::mem::replace(&mut barrier.running, true)
        };
        if must_run {
            tokio::spawn(self.clone().run_barriers());
        }
        passed.await.unwrap_or(Err(Error::Timeout))
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// What the group has to write while it is led here, in bytes a second over the last seconds; an entry counts a kilobyte more
    /// than it has.
    pub fn load(&self) -> u64 {
        self.inner.meter.bytes_per_second()
    }

    /// Where the shard's stream ends, as far as this node has applied it.
    pub fn stream_end(&self) -> watch::Receiver<Offset> {
        self.inner.view.stream_end.clone()
    }

    pub fn progress(&self) -> Progress {
        let watched = self.inner.raft.metrics();
        let now = watched.borrow_watched();
        let index = |id: &Option<LogId>| id.as_ref().map_or(0, |id| id.index);
        let matched = now.replication.iter().flatten();
        Progress {
            term: now.current_term,
            committed_index: index(&now.local_committed),
            applied_index: index(&now.last_applied),
            last_log_index: now.last_log_index.unwrap_or(0),
            purged_index: index(&now.purged),
            voters: nodes(now.membership_config.membership().voter_ids()),
            matched: matched
                .filter(|(replica, _)| **replica != self.inner.replica)
                .filter_map(|(replica, id)| Some((replica.node(), id.as_ref()?.index)))
                .collect(),
        }
    }

    /// On the leader: for how long no quorum has confirmed that it leads. `None` elsewhere, before the first confirmation, and
    /// where this node is the only voter.
    pub(super) fn quorum_silence(&self) -> Option<Duration> {
        let watched = self.inner.raft.metrics();
        let now = watched.borrow_watched();
        let is_alone = now.membership_config.membership().voter_ids().count() <= 1;
        let confirmed = now.last_quorum_acked.filter(|_| !is_alone)?;
        Some(confirmed.elapsed())
    }

    /// The sets of voters of each of which a majority decides: two while they change.
    pub(super) fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        let watched = self.inner.raft.metrics();
        let now = watched.borrow_watched();
        let sets = now.membership_config.membership().get_joint_config().iter();
        sets.map(|set| set.iter().map(|replica| replica.node()).collect()).collect()
    }

    /// Who votes in the group and who only follows it, as this replica's log has it.
    pub fn replicas(&self) -> Replicas {
        let watched = self.inner.raft.metrics();
        let now = watched.borrow_watched();
        let membership = now.membership_config.membership();
        let matched = now.replication.iter().flatten();
        Replicas {
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            is_changing: membership.get_joint_config().len() > 1,
            matched: matched
                .filter_map(|(replica, id)| Some((*replica, id.as_ref()?.index)))
                .collect(),
            last_log_index: now.last_log_index.unwrap_or(0),
        }
    }

    /// Lets a replica follow the group, without a vote. The leader begins at once to send it what it lacks.
    pub async fn add_learner(&self, replica: ReplicaId, address: String) -> Result<(), Error> {
        let added = self.inner.raft.add_learner(replica, PeerNode { address }, false).await;
        added.map(drop).map_err(|error| self.not_changed(error))
    }

    /// Makes these the voters, by way of a joint configuration; all of them must follow the group by now. Who has a vote
    /// no more is out of the group, or goes on without one if it is to `follow`. Repeating it finishes what was begun.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<ReplicaId>,
        others: Demoted,
    ) -> Result<(), Error> {
        let follow = matches!(others, Demoted::Follow);
        let changed = self.inner.raft.change_membership(voters, follow).await;
        changed.map(drop).map_err(|error| self.not_changed(error))
    }

    /// Takes out replicas that have no vote.
    pub async fn remove_learners(&self, replicas: BTreeSet<ReplicaId>) -> Result<(), Error> {
        let change = ChangeMembers::RemoveNodes(replicas);
        let changed = self.inner.raft.change_membership(change, true).await;
        changed.map(drop).map_err(|error| self.not_changed(error))
    }

    /// Hands the leadership to another replica. What is under way is finished first, because nobody could tell what became of it
    /// otherwise; other writes are refused until the heir has taken over, or has failed to.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), Error> {
        let mut leadership = self.leadership();
        let before = *leadership.borrow_and_update();
        if before.leader != Some(self.inner.replica.node()) {
            return Err(Error::NotLeader { leader: before.leader });
        }
        let voters = self.replicas().voters;
        let Some(replica) = voters.into_iter().find(|replica| replica.node() == to) else {
            return Err(Error::NotLeader { leader: before.leader });
        };
        let _held = tokio::time::timeout(SETTLE_TIMEOUT, self.inner.under_way.write()).await;
        let triggered = self.inner.raft.trigger().transfer_leader(replica).await;
        triggered.map_err(|fatal| self.stopped(&fatal))?;
        let taken_over = leadership.wait_for(|now| now.term > before.term && now.leader.is_some());
        match tokio::time::timeout(TRANSFER_TIMEOUT, taken_over).await {
            Ok(Ok(now)) if now.leader == Some(to) => Ok(()),
            Ok(Ok(now)) => Err(Error::NotLeader { leader: now.leader }),
            Ok(Err(_)) | Err(_) => Err(Error::Timeout),
        }
    }

    /// Stops this replica for good, because its data cannot be trusted: it serves and votes no more, the others go on.
    pub fn condemn(&self, problem: String) {
        if self.inner.problem.set(problem).is_ok() {
            let raft = self.inner.raft.clone();
            // One that has failed by itself meanwhile is stopped as well.
            tokio::spawn(async move { raft.shutdown().await.ok() });
        }
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.inner.raft
    }

    /// One round after the other, until nobody waits.
    async fn run_barriers(self) {
        loop {
            let waiting = {
                let mut barrier = self.barrier();
                let waiting = std::mem::take(&mut barrier.waiting);
                barrier.running = !waiting.is_empty();
                waiting
            };
            if waiting.is_empty() {
                return;
            }
            let passed = self.pass_barrier().await;
            for caller in waiting {
                // A caller that has given up needs no answer.
                caller.send(passed.clone()).ok();
            }
        }
    }

    async fn pass_barrier(&self) -> Result<(), Error> {
        let passed = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
        passed.map(drop).map_err(|error| match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
                Error::NotLeader { leader: to.leader_id.map(ReplicaId::node) }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                Error::NotLeader { leader: None }
            }
            RaftError::Fatal(fatal) => self.stopped(&fatal),
        })
    }

    fn not_changed(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Error {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                Error::NotLeader { leader: to.leader_id.map(ReplicaId::node) }
            }
            RaftError::APIError(error) => Error::NotChanged { problem: error.to_string() },
            RaftError::Fatal(fatal) => self.stopped(&fatal),
        }
    }

    fn stopped(&self, fatal: &impl ToString) -> Error {
        let problem = self.inner.problem.get().cloned();
        Error::Stopped { problem: problem.unwrap_or_else(|| fatal.to_string()) }
    }

    fn barrier(&self) -> std::sync::MutexGuard<'_, Barrier> {
        self.inner.barrier.lock().expect("nobody panics with the barrier in hand")
    }
}

/// A node stands once, also while two of its replicas are voters because one replaces the other.
fn nodes(replicas: impl Iterator<Item = ReplicaId>) -> Vec<NodeId> {
    replicas.map(ReplicaId::node).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Publishes who leads, until the replica stops. It wakes on changes of leader, term and membership only, and on
/// applied entries only while a new leader catches up with its own term: heartbeats and writes cost nothing here.
async fn follow(raft: &Raft, replica: ReplicaId, sender: &watch::Sender<Leadership>) {
    let mut server = raft.server_metrics();
    let mut applied = raft.watch_apply_progress();
    loop {
        let (leads, now) = {
            let server = server.borrow_and_update();
            let term = server.vote.leader_id.term;
            let leads = server.state == ServerState::Leader;
            let own = applied.get().is_some_and(|id| id.leader_id.term == term);
            let leader = server.current_leader;
            let serving = leads && own && leader == Some(replica);
            (leads, Leadership { leader: leader.map(ReplicaId::node), term, serving })
        };
        sender.send_if_modified(|before| {
            let is_new = *before != now;
            if before.leader != now.leader {
                metrics::leader_changed();
            }
            *before = now;
            is_new
        });
        tokio::select! {
            biased;
            changed = server.changed() => if changed.is_err() { return },
            changed = applied.changed(), if leads && !now.serving => if changed.is_err() { return },
        }
    }
}
