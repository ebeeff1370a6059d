//! The one way into the cluster: a method a request. Each may be called at any node.
//!
//! Here: how a node starts and stops, what concerns the whole cluster, and how every request is made. What it asks of
//! devices is in `registry`, of their streams in `streams`, of mailboxes and methods in `commands` and `methods`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_core::authority::AuthorityChange;
use drover_core::change::{Change, DeviceChange, Done};
use drover_core::ids::{DeviceId, GroupId, LogTime, NodeId, Offset, ShardId};
pub use drover_core::message::{Live, StoredMessage, StreamPage};
use drover_core::meta::{Member, Meta, MetaChange, MetaEntry, MetaRefusal, Policy};
use futures::future::BoxFuture;
use ractor::{Actor, ActorRef};
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::admission::{Gauge, Permit};
use super::config::Config;
use super::deferrals::Deferrals;
use super::delay::{self, Delay};
use super::error::Error;
use super::live::LiveHub;
use super::neighbours::Neighbours;
use super::node::{NodeActor, NodeMsg, Shared, actor_name, follow_groups};
pub use super::registry::{DevicePage, DeviceUpdate, TwinChange};
use super::router::{Router, error_of, failure_of};
use super::serve::{self, Entry};
use super::session::{CLOSING_MAX, close_dropped};
use super::sessions::Sessions;
pub use super::streams::{ReadLimits, StreamState};
use super::{
    announce, balance, dispatch, drain, initial, mover, neighbours, retain, status, upgrade,
};
use crate::metrics;
use crate::raft::groups::{Groups, GroupsConfig};
use crate::raft::peers::{IncomingQueue, Peers};
use crate::storage::Storage;
use crate::wire::request::{Answer, Request, encode_change, encode_meta_change};

/// The handle that every protocol edge holds. Cheap to clone. A request may be made at any node: it is carried out where
/// its shard is led, within one deadline.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub(super) shared: Arc<Shared>,
    node: Arc<Running>,
}

/// What runs until the node stops.
#[derive(Debug)]
struct Running {
    supervisor: ActorRef<NodeMsg>,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
    is_stopping: AtomicBool,
}

/// What a cluster is made from.
#[derive(Debug, Clone)]
pub struct Initialization {
    pub members: Vec<(NodeId, Member)>,
    pub shard_count: u32,
    pub replication_factor: u8,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone)]
pub struct ClusterStatus {
    pub meta: Meta,
    pub answered_by: NodeId,
    pub nodes: Vec<NodeStatus>,
    pub shards: Vec<ShardStatus>,
}

#[derive(Debug, Clone)]
pub struct NodeStatus {
    pub node: NodeId,
    pub reachable: bool,
    pub version: String,
    pub sessions: u32,
    pub started: LogTime,
    pub disk_free_bytes: u64,
    /// What making something durable takes there, as a mean over the last seconds.
    pub sync_ms: u64,
    /// How late its timers fire, as a mean over the last seconds: more than a few milliseconds if it gets too little CPU.
    pub delay_ms: u64,
    /// Groups of which it is receiving a snapshot, with the bytes that it has.
    pub receiving: BTreeMap<GroupId, u64>,
    pub problems: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ShardStatus {
    /// `None` for the meta group.
    pub shard: Option<ShardId>,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub committed_index: u64,
    /// Node, matched index if the leader knows it, what is wrong with it.
    pub replicas: Vec<(NodeId, Option<u64>, String)>,
    /// Without a vote, as one that moves has none yet: node, and matched index if the leader knows it.
    pub followers: Vec<(NodeId, Option<u64>)>,
    pub first_offset: Offset,
    pub next_offset: Offset,
    pub device_count: u64,
    /// What its leader writes, in bytes a second over the last seconds; an entry counts a kilobyte more than it has.
    pub load: u64,
}

impl Cluster {
    /// Starts a node: its groups from what is stored, and the actors above them. `peers` and `incoming` are the two ends
    /// of [`Peers::start`].
    pub async fn start(
        config: Config,
        storage: Arc<dyn Storage>,
        peers: Peers,
        incoming: IncomingQueue,
    ) -> Result<Self, Error> {
        let Config { node, timing, log_entries_kept, seed, .. } = config;
        let groups = GroupsConfig { node, timing, log_entries_kept, seed };
        let groups =
            Groups::start(groups, Arc::clone(&storage), peers.clone()).await.map_err(|error| {
                if let crate::raft::Error::Refused(refusal) = error {
                    return Error::RefusedByMeta(refusal);
                }
                stopped(GroupId::Meta, error.to_string())
            })?;
        let (live, publisher) = LiveHub::new(Arc::clone(&storage), groups.clone(), peers.clone());
        let (closing, closed) = mpsc::channel(CLOSING_MAX);
        let random = match seed {
            Some(seed) => rand::rngs::StdRng::seed_from_u64(seed),
            None => rand::rngs::StdRng::from_os_rng(),
        };
        let limits = &config.limits;
        let started = config.clock.now();
        let shared = Arc::new(Shared {
            router: Router::new(node, groups.clone(), peers.clone()),
            sessions: Sessions::default(),
            deferrals: Deferrals::default(),
            neighbours: Arc::new(Neighbours::new(started)),
            moments: Arc::default(),
            delay: Delay::default(),
            gauge: Gauge::new(limits.node_requests_max, limits.node_bytes_max),
            started,
            random: Mutex::new(random),
            config,
            storage,
            peers,
            groups,
            live,
            closing,
        });
        let name = actor_name(node, "supervisor");
        let (supervisor, _) = NodeActor::spawn(Some(name), NodeActor, Arc::clone(&shared))
            .await
            .map_err(|error| stopped(GroupId::Meta, error.to_string()))?;
        let running = Running {
            supervisor: supervisor.clone(),
            tasks: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        };
        let cluster = Self { shared, node: Arc::new(running) };
        cluster.spawn(follow_groups(Arc::clone(&cluster.shared), supervisor));
        cluster.spawn(dispatch::run(Arc::clone(&cluster.shared), incoming));
        cluster.spawn(announce::run(Arc::clone(&cluster.shared)));
        cluster.spawn(neighbours::run(Arc::clone(&cluster.shared)));
        cluster.spawn(retain::run(Arc::clone(&cluster.shared)));
        cluster.spawn(mover::run(cluster.detached()));
        cluster.spawn(balance::run(cluster.detached()));
        cluster.spawn(delay::run(Arc::clone(&cluster.shared)));
        cluster.spawn(upgrade::run(cluster.detached()));
        cluster.spawn(drain::run(Arc::clone(&cluster.shared)));
        cluster.spawn(publisher.run());
        cluster.spawn(close_dropped(cluster.detached(), closed));
        Ok(cluster)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        self.tasks().push(task);
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Vec<AbortOnDropHandle<()>>> {
        self.node.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for this node's own tasks, which must not keep each other alive.
    fn detached(&self) -> Self {
        let node = Running {
            supervisor: self.node.supervisor.clone(),
            tasks: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        };
        Self { shared: Arc::clone(&self.shared), node: Arc::new(node) }
    }

    // ------------------------------------------------------------ the cluster itself

    /// The number of shards and more; `None` before the cluster is initialized.
    pub fn meta(&self) -> Option<Arc<Meta>> {
        self.shared.meta()
    }

    /// The same, for who has to know when it changes.
    pub fn watch_meta(&self) -> watch::Receiver<Option<Arc<Meta>>> {
        self.shared.groups.meta()
    }

    pub async fn initialize(&self, initialization: Initialization) -> Result<Arc<Meta>, Error> {
        if let Some(meta) = self.meta() {
            let cluster_id = meta.cluster_id.clone();
            return Err(MetaRefusal::AlreadyInitialized { cluster_id }.into());
        }
        let meta = {
            let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            initial::meta(initialization, &mut *random)?
        };
        self.found(meta).await
    }

    /// Whoever leads the new meta group gives it its first state: not this node, if it was broken off at this before.
    pub(super) async fn found(&self, meta: Meta) -> Result<Arc<Meta>, Error> {
        let formed = self.shared.groups.form_meta(&meta.members).await;
        formed.map_err(|error| error_of(GroupId::Meta, failure_of(error)))?;
        let first = self.propose_meta(MetaChange::Initialize(Box::new(meta))).await?;
        Ok(Arc::new(first))
    }

    /// `expected_version`: of the meta state that part of the policy was taken from, if it was.
    pub async fn put_policy(
        &self,
        name: String,
        policy: Policy,
        expected_version: Option<u64>,
    ) -> Result<(), Error> {
        self.change_meta(MetaChange::PutPolicy { name, policy, expected_version }).await
    }

    pub async fn delete_policy(&self, name: String) -> Result<(), Error> {
        self.change_meta(MetaChange::DeletePolicy { name }).await
    }

    pub async fn change_authority(
        &self,
        name: String,
        change: AuthorityChange,
    ) -> Result<(), Error> {
        self.change_meta(MetaChange::Authority { name, change }).await
    }

    /// On return this node has applied the change, too: who made it sees it here.
    pub(super) async fn change_meta(&self, change: MetaChange) -> Result<(), Error> {
        if let Some(feature) = change.feature() {
            let meta = self.meta().ok_or(Error::NotInitialized)?;
            // A level never falls: what this node may have seen late, it refuses for a moment longer.
            meta.allows(feature).map_err(MetaRefusal::Level)?;
        }
        self.propose_meta(change).await.map(drop)
    }

    /// Answers with the state that the change has led to.
    async fn propose_meta(&self, change: MetaChange) -> Result<Meta, Error> {
        let at = self.shared.config.clock.now();
        let entry = encode_meta_change(&MetaEntry { at, change });
        let request = Request::Change(entry.clone());
        let here = || self.shared.change_meta_here(entry.clone());
        let deadline = self.deadline();
        let answer = self.shared.router.ask(GroupId::Meta, &request, deadline, here).await?;
        let Answer::Meta(changed) = answer else {
            return Err(Error::LeaderLost { group: GroupId::Meta });
        };
        let mut meta = self.shared.groups.meta();
        let is_applied = |meta: &Option<Arc<Meta>>| {
            meta.as_ref().is_some_and(|meta| meta.version >= changed.version)
        };
        // It is committed: if this node takes longer than the deadline, it lags, and that is all.
        timeout_at(deadline, meta.wait_for(is_applied)).await.ok();
        Ok(*changed)
    }

    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        status::cluster(&self.shared).await
    }

    /// Whether this node can serve: it knows the cluster, and every group it hosts has a leader. The text says what is
    /// missing.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_stopping() {
            return Err("this node is stopping".to_owned());
        }
        if let Some(problem) = self.shared.departure() {
            return Err(problem.to_owned());
        }
        if let Some((group, problem)) = self.shared.groups.problems().into_iter().next() {
            return Err(format!("{group} is stopped: {problem}"));
        }
        let meta = self.meta().ok_or_else(|| Error::NotInitialized.to_string())?;
        if meta.restoring.is_some() {
            return Err(Error::Restoring.to_string());
        }
        let node = self.shared.config.node;
        let placed = meta.placement.iter().filter(|(_, nodes)| nodes.contains(&node));
        let replicas = self.shared.router.replicas();
        for (shard, _) in placed {
            let replica =
                replicas.get(shard).ok_or_else(|| format!("shard {shard} is not started yet"))?;
            if replica.leadership.borrow().leader.is_none() {
                return Err(format!("shard {shard} has no leader"));
            }
            if self.shared.groups.is_cut_off(GroupId::Shard(*shard)) {
                return Err(format!("shard {shard} is out of reach: this node may be cut off"));
            }
        }
        let members = self.shared.groups.get(GroupId::Meta);
        if members.is_none_or(|group| group.leadership().borrow().leader.is_none()) {
            return Err("the meta group has no leader".to_owned());
        }
        Ok(())
    }

    /// Ends sessions, stops the groups, syncs. `deadline_ms` bounds it.
    pub async fn stop(&self, deadline_ms: u64) {
        self.node.is_stopping.store(true, Ordering::Relaxed);
        let deadline = Duration::from_millis(deadline_ms);
        let stopping = async {
            self.shared.sessions.end_all();
            self.shared.groups.stop().await;
            self.shared.peers.stop();
            let tasks = std::mem::take(&mut *self.tasks());
            drop(tasks);
            self.node.supervisor.stop(None);
        };
        // What is not finished by then is finished by the next start, from the log.
        drop(tokio::time::timeout(deadline, stopping).await);
    }

    /// Completes when the store of this node has failed: the process must end and come back by restart.
    pub fn fatal(&self) -> BoxFuture<'static, String> {
        let mut fatal = self.shared.groups.fatal();
        Box::pin(async move {
            loop {
                if let Some(problem) = fatal.borrow_and_update().clone() {
                    return problem;
                }
                if fatal.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }

    // ------------------------------------------------------------ how requests are made

    pub(super) fn shard_of(&self, device: &DeviceId) -> Result<ShardId, Error> {
        let meta = self.shared.groups.meta();
        let meta = meta.borrow();
        let meta = meta.as_ref().ok_or(Error::NotInitialized)?;
        Ok(ShardId::of(device, meta.shard_count))
    }

    /// While shards are being restored there is only a part of everything, and nobody may take it for the whole; what anybody
    /// changed now would be lost if the restore were begun anew.
    pub(super) fn check_restored(&self) -> Result<(), Error> {
        let is_restoring = self.meta().is_some_and(|meta| meta.restoring.is_some());
        if is_restoring { Err(Error::Restoring) } else { Ok(()) }
    }

    pub(super) async fn change_device(
        &self,
        device: &DeviceId,
        change: DeviceChange,
    ) -> Result<Done, Error> {
        let shard = self.shard_of(device)?;
        self.change(shard, Change::Device(device.clone(), change)).await
    }

    pub(super) async fn change(&self, shard: ShardId, change: Change) -> Result<Done, Error> {
        let encoded = encode_change(&change);
        let entry = Entry::new(encoded.clone(), &change);
        drop(change);
        let _permit = self.enter(encoded.len())?;
        let here = || serve::change_here(&self.shared, shard, entry.clone());
        let (group, deadline) = (GroupId::Shard(shard), self.deadline());
        let request = Request::Change(encoded);
        let answer = self.shared.router.ask(group, &request, deadline, here).await?;
        answer.into_done().ok_or_else(|| unexpected(shard))
    }

    /// Waiting for a message is no failure: the answer must come before the deadline does.
    pub(super) fn bounded_wait(&self, wait_ms: u32) -> u32 {
        let wait_max = self.shared.config.limits.deadline / 2;
        wait_ms.min(u32::try_from(wait_max.as_millis()).unwrap_or(u32::MAX))
    }

    pub(super) async fn read(&self, shard: ShardId, request: Request) -> Result<Answer, Error> {
        let _permit = self.enter(0)?;
        let deadline = self.deadline();
        let here = || serve::read_here(&self.shared, shard, &request, deadline);
        self.shared.router.ask(GroupId::Shard(shard), &request, deadline, here).await
    }

    pub(super) fn enter(&self, bytes: usize) -> Result<Permit, Error> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        self.check_restored()?;
        self.shared.gauge.enter(bytes).ok_or_else(|| {
            metrics::refused("busy");
            Error::Busy { what: format!("node {}", self.shared.config.node) }
        })
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.shared.config.limits.deadline
    }

    fn is_stopping(&self) -> bool {
        self.node.is_stopping.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// A number that nobody else has drawn.
    pub(super) fn draw(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}

pub(super) fn check_limit(limit: u32) -> Result<u32, Error> {
    if (1..=1000).contains(&limit) {
        return Ok(limit);
    }
    Err(Error::Invalid { field: "limit".to_owned(), problem: "use 1 to 1000".to_owned() })
}

fn stopped(group: GroupId, problem: String) -> Error {
    Error::GroupStopped { group, problem }
}

/// An answer that does not fit its request, as a newer node might give. Whatever was asked may have been done.
pub(super) fn unexpected(shard: ShardId) -> Error {
    Error::LeaderLost { group: GroupId::Shard(shard) }
}
