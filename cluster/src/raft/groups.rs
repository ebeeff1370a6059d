//! All groups of this node: started from what the meta group says, stopped one by one when their data fails.
//!
//! A group that fails is taken out and listed with its problem; its replica here serves and votes no more, and the others
//! go on. When the store itself has failed there is nothing to go on with: [`Groups::fatal`] says so, and the program ends the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use drover_core::ids::{GroupId, NodeId, ReplicaId, ShardCount, ShardId};
use drover_core::level::{self, LevelRefusal};
use drover_core::meta::{Member, Meta};
use openraft::errors::{InitializeError, RaftError};
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::group::{Group, Raft};
use super::lease::{self, Users};
use super::log_store::LogStore;
use super::peers::{Peers, Replica};
use super::reach::OutOfReach;
use super::runtime::Runtime;
use super::state_machine::StateMachine;
use super::syncs::Syncs;
use super::transport::Transport;
use super::types::PeerNode;
use super::{Error, Leadership, balance, bootstrap, election, incarnation, lag, load, reach};
use crate::metrics;
use crate::storage::{self, Storage};

/// The meta group has at most this many voters: five survive two failures, and more only make each write slower.
const META_VOTERS_MAX: usize = 5;
/// How long a new cluster may take to elect its first leader.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries of one append. An entry is a batch already, so that this many are some megabytes.
const APPEND_ENTRIES_MAX: u64 = 64;
/// Appends, votes and proposals that wait for one group.
const INBOX_MAX: u64 = 4096;
/// What openraft allows a snapshot to take, some gigabytes over a slow network. A dead peer is noticed much earlier.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_hours(1);

/// Timers of all groups, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    /// Also the leader's lease: until it has run out, nobody votes for another.
    pub election_max_ms: u64,
}

impl Default for Timing {
    /// For two loaded cores: three heartbeats may be late, and a dead leader is replaced within a second.
    fn default() -> Self {
        Self { heartbeat_ms: 200, election_min_ms: 500, election_max_ms: 750 }
    }
}

impl Timing {
    /// Above so many shards the heartbeats of idle groups would take a tenth of a core and more from each node.
    const SHARDS_UNSTRETCHED_MAX: u32 = 128;

    /// The timers of the shards of a cluster of this size: with many shards a dead leader is replaced later, so that
    /// idle groups stay cheap (`docs/decisions/0006`).
    fn of_shards(self, count: ShardCount) -> Self {
        if count.get() <= Self::SHARDS_UNSTRETCHED_MAX {
            return self;
        }
        let stretched = |ms: u64| ms.saturating_mul(5) / 2;
        Self {
            heartbeat_ms: stretched(self.heartbeat_ms),
            election_min_ms: stretched(self.election_min_ms),
            election_max_ms: stretched(self.election_max_ms),
        }
    }
}

/// What the groups of a node need.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    pub node: NodeId,
    pub timing: Timing,
    /// Entries of the log that are kept after they were applied, for followers that lag.
    pub log_entries_kept: u64,
    /// Seeds what openraft draws at random. `None`: from the system.
    pub seed: Option<u64>,
}

/// How long what belonged to a group may go on after its end: a batch that is being applied, an fsync.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// The groups of this node. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

struct Inner {
    config: GroupsConfig,
    storage: Arc<dyn Storage>,
    peers: Peers,
    running: watch::Sender<Arc<BTreeMap<GroupId, Group>>>,
    problems: Mutex<BTreeMap<GroupId, String>>,
    syncs: Arc<Syncs>,
    /// What still uses the records of each group.
    users: Mutex<BTreeMap<GroupId, Users>>,
    /// Incarnations whose predecessors are known to be gone.
    left: Mutex<BTreeSet<(GroupId, ReplicaId)>>,
    /// Published by the state machine of the meta group, from the start on.
    meta: OnceLock<watch::Receiver<Option<Arc<Meta>>>>,
    fatal: watch::Sender<Option<String>>,
    out_of_reach: watch::Receiver<Arc<OutOfReach>>,
    stopping: CancellationToken,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Groups {
    /// Starts the meta group from what is stored, and the shards that the meta state places here; goes on starting
    /// shards as the meta state changes.
    pub async fn start(
        config: GroupsConfig,
        storage: Arc<dyn Storage>,
        peers: Peers,
    ) -> Result<Self, Error> {
        let (published, out_of_reach) = watch::channel(Arc::default());
        let inner = Inner {
            config,
            storage,
            peers,
            running: watch::channel(Arc::new(BTreeMap::new())).0,
            problems: Mutex::new(BTreeMap::new()),
            syncs: Arc::default(),
            users: Mutex::new(BTreeMap::new()),
            left: Mutex::new(BTreeSet::new()),
            meta: OnceLock::new(),
            fatal: watch::channel(None).0,
            out_of_reach,
            stopping: CancellationToken::new(),
        };
        let groups = Self { inner: Arc::new(inner) };
        groups.start_group(GroupId::Meta, 0).await?;
        if let Err(refusal) = groups.check_level() {
            groups.stop().await;
            return Err(Error::Refused(refusal.into()));
        }
        groups.spawn(election::watch(groups.clone()));
        groups.spawn(reach::watch(groups.clone(), published));
        groups.spawn(balance::run(groups.clone()));
        groups.spawn(lag::run(groups.clone()));
        groups.spawn(load::run(groups.clone()));
        groups.spawn(groups.clone().follow_meta());
        Ok(groups)
    }

    /// Makes a meta group of this node and others of these, if there is none, and waits until somebody leads it: another node, if
    /// this one was broken off before. Who does not vote follows when the group has a state.
    pub async fn form_meta(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), Error> {
        let group = self.get(GroupId::Meta).ok_or_else(|| self.stopped(GroupId::Meta))?;
        let this = self.inner.config.node;
        let voter = |node: NodeId| {
            let address = members.get(&node)?.peer_address.clone();
            Some((ReplicaId::first(node), PeerNode { address }))
        };
        let voters: BTreeMap<_, _> =
            meta_voters(this, members.keys()).into_iter().filter_map(voter).collect();
        match group.raft().initialize(voters).await {
            // Repeating it goes on where the first attempt stopped.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(Error::Stopped { problem: error.to_string() }),
        }
        let mut leadership = group.leadership();
        let leads = |now: &Leadership| now.serving || now.leader.is_some_and(|node| node != this);
        let elected = leadership.wait_for(leads);
        match tokio::time::timeout(FORM_TIMEOUT, elected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::NotLeader { leader: None }),
        }
    }

    /// Whether this build can read what the cluster writes, as far as this node knows.
    pub fn check_level(&self) -> Result<(), LevelRefusal> {
        let heard = *self.inner.peers.heard_active_level().borrow();
        let applied = self.meta().borrow().as_ref().map(|meta| meta.levels.active);
        let active = applied.map_or(heard, |applied| applied.max(heard));
        let supports = level::supported();
        if supports >= active { Ok(()) } else { Err(LevelRefusal::Outdated { supports, active }) }
    }

    /// The meta state as this node has applied it.
    pub fn meta(&self) -> watch::Receiver<Option<Arc<Meta>>> {
        let published = self.inner.meta.get().cloned();
        // Nothing is known, and nothing will be, if not even the state of the meta group could be read.
        published.unwrap_or_else(|| watch::channel(None).1)
    }

    pub fn get(&self, group: GroupId) -> Option<Group> {
        self.inner.running.borrow().get(&group).cloned()
    }

    /// The groups that run here; changes as shards are placed or stopped.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeMap<GroupId, Group>>> {
        self.inner.running.subscribe()
    }

    /// Groups that were stopped because their data cannot be trusted, and why.
    pub fn problems(&self) -> BTreeMap<GroupId, String> {
        self.inner.problems.lock().expect("nobody panics with the problems in hand").clone()
    }

    /// What a sync of this node takes, as a mean over the last seconds, or for how long one has waited if that is longer.
    pub fn sync_wait(&self) -> Duration {
        self.inner.syncs.wait()
    }

    /// Something once the store has failed: this process must end.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.inner.fatal.subscribe()
    }

    /// Whether this node can do nothing for the group, because it does not reach those whom it would have to ask.
    pub fn is_cut_off(&self, group: GroupId) -> bool {
        self.inner.out_of_reach.borrow().groups.contains(&group)
    }

    /// Returns when that is so.
    pub async fn until_cut_off(&self, group: GroupId) {
        self.until_out_of_reach(|now| now.groups.contains(&group)).await;
    }

    /// Whether a node has answered nothing for so long that it is no use to wait for it.
    pub fn is_silent(&self, node: NodeId) -> bool {
        self.inner.out_of_reach.borrow().nodes.contains(&node)
    }

    /// Returns when that is so.
    pub async fn until_silent(&self, node: NodeId) {
        self.until_out_of_reach(|now| now.nodes.contains(&node)).await;
    }

    async fn until_out_of_reach(&self, is_it: impl Fn(&OutOfReach) -> bool) {
        let mut out_of_reach = self.inner.out_of_reach.clone();
        if out_of_reach.wait_for(|now| is_it(now)).await.is_err() {
            // The node stops: whoever waits hears that from others.
            std::future::pending::<()>().await;
        }
    }

    pub async fn stop(&self) {
        self.inner.stopping.cancel();
        let running = Arc::clone(&self.inner.running.borrow());
        let stopping = running.values().map(|group| async {
            self.inner.peers.unregister(group.id());
            if group.raft().shutdown().await.is_err() {
                tracing::warn!(group = %group.id(), "the group had failed before it was stopped");
            }
        });
        futures::future::join_all(stopping).await;
    }

    pub(super) fn node(&self) -> NodeId {
        self.inner.config.node
    }

    pub(super) fn timing(&self, group: GroupId) -> Timing {
        let timing = self.inner.config.timing;
        let meta = self.meta();
        let shards = meta.borrow().as_ref().map(|meta| meta.shard_count);
        match (group, shards) {
            (GroupId::Shard(_), Some(count)) => timing.of_shards(count),
            (GroupId::Shard(_), None) | (GroupId::Meta, _) => timing,
        }
    }

    pub(super) fn seed(&self) -> Option<u64> {
        self.inner.config.seed
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// Runs a task until the node stops.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.inner.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = task => {}
            }
        });
    }

    async fn follow_meta(self) {
        let mut meta = self.meta();
        loop {
            let current = meta.borrow_and_update().clone();
            if let Some(current) = current
                && let Err(error) = self.take_up(&current).await
            {
                self.fail(error.to_string());
                return;
            }
            if meta.changed().await.is_err() {
                return;
            }
        }
    }

    /// Starts what the meta state places here, and ends what it has declared void. What it says nothing about is left
    /// alone: data is never removed because something is absent.
    async fn take_up(&self, meta: &Meta) -> Result<(), Error> {
        let peers = &self.inner.peers;
        peers.set_cluster_id(&meta.cluster_id);
        peers.set_active_level(meta.levels.active);
        let address = |member: &Member| member.peer_address.clone();
        peers.set_members(
            meta.members.iter().map(|(node, member)| (*node, address(member))).collect(),
        );
        peers.refuse(&meta.membership.removed);
        let node = self.node();
        for shard in meta.shard_count.shards() {
            let (id, replica) = (GroupId::Shard(shard), meta.replica(shard, node));
            self.leave_former(id, replica).await?;
            if !meta.hosts(shard, node) || self.is_known(id) {
                continue;
            }
            self.start_group(id, replica.incarnation()).await?;
            // Who joins a group that has a leader, or had one, must not found it again. One that is restored is founded by the
            // replica that its records are brought to.
            let arrives = meta.membership.moves.get(&shard).is_some_and(|m| m.to == node);
            let founds = !arrives && meta.restoring.is_none();
            if let Some(group) = self.get(id).filter(|_| founds) {
                let voters = founders(meta, shard);
                self.spawn(bootstrap::run(self.clone(), group, voters));
            }
        }
        Ok(())
    }

    /// Ends the replica of an earlier incarnation and removes what it has stored.
    async fn leave_former(&self, id: GroupId, replica: ReplicaId) -> Result<(), Error> {
        // Nearly all are the first, which nothing came before.
        if replica.incarnation() == 0 || self.left().contains(&(id, replica)) {
            return Ok(());
        }
        let storage = &*self.inner.storage;
        if incarnation::stored(storage, id)? < replica.incarnation() {
            tracing::info!(group = %id, %replica, "removing the replica that was here before");
            self.end(id).await?;
            incarnation::begin(storage, id, replica.incarnation()).await?;
            self.inner
                .problems
                .lock()
                .expect("nobody panics with the problems in hand")
                .remove(&id);
        }
        self.left().insert((id, replica));
        Ok(())
    }

    /// Stops a group here and returns when nothing of it reads or writes any more.
    async fn end(&self, id: GroupId) -> Result<(), Error> {
        self.inner.peers.unregister(id);
        let mut ended = None;
        self.inner.running.send_modify(|running| ended = Arc::make_mut(running).remove(&id));
        if let Some(group) = ended
            && group.raft().shutdown().await.is_err()
        {
            tracing::warn!(group = %id, "the group had failed before it was ended");
        }
        let users = self.inner.users.lock().expect("nobody panics with it in hand").remove(&id);
        let Some(users) = users else { return Ok(()) };
        tokio::time::timeout(END_TIMEOUT, users.wait()).await.map_err(|_| Error::Stopped {
            problem: format!("{id} was ended and something still uses its records"),
        })
    }

    fn left(&self) -> std::sync::MutexGuard<'_, BTreeSet<(GroupId, ReplicaId)>> {
        self.inner.left.lock().expect("nobody panics with it in hand")
    }

    fn is_known(&self, group: GroupId) -> bool {
        self.get(group).is_some() || self.problems().contains_key(&group)
    }

    /// Starts one group from what is stored. Data that cannot be trusted stops the group, anything else the node.
    async fn start_group(&self, id: GroupId, incarnation: u16) -> Result<(), Error> {
        let Inner { config, storage, peers, meta, .. } = &*self.inner;
        let replica = ReplicaId::new(config.node, incarnation);
        let (used, users) = lease::lend(Arc::clone(storage), Arc::clone(&self.inner.syncs));
        self.inner.users.lock().expect("nobody panics with it in hand").insert(id, users);
        // What was applied may be sound when the log is not: then the other groups can still be found.
        let opened = StateMachine::open(Arc::clone(&used), id).and_then(|(state, view)| {
            if id == GroupId::Meta {
                meta.get_or_init(|| view.meta.clone());
            }
            Ok((LogStore::open(Arc::clone(&used), id)?, state, view))
        });

        let (log, state, view) = match opened {
            Ok(opened) => opened,
            Err(error @ (storage::Error::Corrupt { .. } | storage::Error::Amnesia { .. })) => {
                self.note_problem(id, error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let transport = Transport::new(replica, id, peers.clone());
        let raft_config = Arc::new(raft_config(id, self.timing(id), config.log_entries_kept)?);
        let starting = Raft::new(replica, raft_config, transport, log, state);
        let started = match config.seed {
            // Every group has a sequence of its own.
            Some(seed) => Runtime::seeded(seed ^ u64::from(id.number()) << 32, starting).await,
            None => starting.await,
        };
        let raft = match started {
            Ok(raft) => raft,
            Err(fatal) => {
                self.note_problem(id, fatal.to_string());
                self.check_store();
                return Ok(());
            }
        };
        peers.register(id, Replica { id: replica, raft: raft.clone(), storage: used });
        let groups = self.clone();
        let stopped = move |problem| groups.on_stopped(id, replica, problem);
        let group = Group::new(id, replica, raft, view, stopped);
        self.inner.running.send_modify(|running| {
            Arc::make_mut(running).insert(id, group);
        });
        Ok(())
    }

    fn on_stopped(&self, group: GroupId, replica: ReplicaId, problem: String) {
        let was_ended = self.get(group).is_none_or(|group| group.replica() != replica);
        if self.inner.stopping.is_cancelled() || was_ended {
            return;
        }
        self.inner.peers.unregister(group);
        self.note_problem(group, problem);
        self.inner.running.send_modify(|running| {
            Arc::make_mut(running).remove(&group);
        });
        self.check_store();
    }

    fn note_problem(&self, group: GroupId, problem: String) {
        tracing::error!(%group, problem, "stopped a group: its replica here has failed");
        metrics::group_stopped();
        let mut problems =
            self.inner.problems.lock().expect("nobody panics with the problems in hand");
        problems.insert(group, problem);
    }

    /// A store that has failed answers no sync any more; one that only found damaged records does.
    fn check_store(&self) {
        let (sender, synced) = oneshot::channel();
        self.inner.storage.sync(Box::new(move |result| {
            sender.send(result).ok();
        }));
        let groups = self.clone();
        self.spawn(async move {
            match synced.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => groups.fail(error.to_string()),
                Err(_) => groups.fail("the store has gone".to_owned()),
            }
        });
    }

    fn fail(&self, problem: String) {
        tracing::error!(problem, "the store has failed: this process must end");
        self.inner.fatal.send_replace(Some(problem));
    }

    fn stopped(&self, group: GroupId) -> Error {
        let problem = self.problems().remove(&group);
        Error::Stopped { problem: problem.unwrap_or_else(|| "it was not started".into()) }
    }
}

/// Who is to found the group of a shard: its replicas as they are placed.
pub(super) fn founders(meta: &Meta, shard: ShardId) -> BTreeMap<ReplicaId, PeerNode> {
    let placed = meta.placement.get(&shard).into_iter().flatten();
    let founder = |node: &NodeId| {
        let member = meta.members.get(node);
        let address = member.map(|member| member.peer_address.clone()).unwrap_or_default();
        (meta.replica(shard, *node), PeerNode { address })
    };
    placed.map(founder).collect()
}

/// Who votes in a new meta group, this node among them.
fn meta_voters<'a>(this: NodeId, members: impl Iterator<Item = &'a NodeId>) -> Vec<NodeId> {
    let others = members.copied().filter(|node| *node != this);
    std::iter::once(this).chain(others).take(META_VOTERS_MAX).collect()
}

fn raft_config(group: GroupId, timing: Timing, log_entries_kept: u64) -> Result<Config, Error> {
    let Timing { heartbeat_ms, election_min_ms, election_max_ms } = timing;
    let kept = log_entries_kept.max(1);
    let raft = Config {
        cluster_name: group.to_string(),
        heartbeat_interval: heartbeat_ms,
        // A follower that has just acknowledged entries needs no heartbeat.
        heartbeat_min_interval: Some(heartbeat_ms / 2),
        election_timeout_min: election_min_ms,
        election_timeout_max: election_max_ms,
        enable_pre_vote: Some(true),
        // A leader that has lost its quorum goes quiet for so long that the others can elect one of theirs.
        quorum_loss_probe_interval: Some(election_max_ms * 2),
        // What is applied is not forced to disk, so a restarted leader may know less than it served: it must be elected.
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        max_payload_entries: APPEND_ENTRIES_MAX,
        api_channel_size: Some(INBOX_MAX),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(kept),
        max_in_snapshot_log_to_keep: kept,
        purge_batch_size: (kept / 4).max(1),
        // As long as the entries are there they are cheaper than a snapshot.
        replication_lag_threshold: u64::MAX / 2,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT.as_millis() as u64,
        ..Config::default()
    };
    raft.validate().map_err(|error| Error::Stopped { problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_group_has_five_voters_at_the_most_and_its_founder_is_one() {
        let nodes: Vec<_> = (1..=7).map(|number| NodeId::new(number, 0)).collect();
        let voters = meta_voters(nodes[6], nodes.iter());
        assert_eq!(voters.len(), 5);
        assert!(voters.contains(&nodes[6]));
        assert_eq!(meta_voters(nodes[0], nodes[..3].iter()), nodes[..3]);
    }

    #[test]
    fn the_default_timers_are_valid() {
        assert!(raft_config(GroupId::Meta, Timing::default(), 1000).is_ok());
    }

    #[test]
    fn many_shards_have_slower_timers_that_are_valid_too() {
        let of =
            |count| Timing::default().of_shards(ShardCount::new(count).expect("a legal count"));
        assert_eq!(of(128), Timing::default());
        assert_eq!(of(129).heartbeat_ms, 500);
        assert!(raft_config(GroupId::Meta, of(4096), 1000).is_ok());
    }
}
