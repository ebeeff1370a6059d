//! The node's supervisor, and what everything on the node shares.
//!
//! It has one child for each shard that has a replica here, and starts it again when it fails: the shard's actors are
//! made anew from committed state, and what waited in them is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use drover_core::ids::{DeviceId, GroupId, LogTime, NodeId, ShardId};
use drover_core::meta::Meta;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorRuntime, SupervisionEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::error;

use super::addresses::Moments;
use super::admission::Gauge;
use super::config::Config;
use super::deferrals::Deferrals;
use super::delay::Delay;
use super::live::LiveHub;
use super::neighbours::Neighbours;
use super::outbox::Outbox;
use super::proposer::{Growth, Proposer};
use super::router::{Replica, Router, failure_of};
use super::sessions::{Closed, Sessions};
use super::shard::{ShardActor, ShardArguments, ShardMsg};
use crate::metrics;
use crate::raft::group::Group;
use crate::raft::groups::Groups;
use crate::raft::peers::Peers;
use crate::storage::Storage;
use crate::wire::request::{Answer, Failure, Response};

/// What every request on this node uses. Fixed at the start.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) peers: Peers,
    pub(super) groups: Groups,
    pub(super) router: Router,
    pub(super) sessions: Sessions,
    pub(super) deferrals: Deferrals,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) moments: Arc<Moments>,
    pub(super) delay: Delay,
    pub(super) live: LiveHub,
    /// Everything that was taken in at this node.
    pub(super) gauge: Arc<Gauge>,
    /// Sessions that were dropped without being closed.
    pub(super) closing: mpsc::Sender<Closed>,
    pub(super) started: LogTime,
    pub(super) random: std::sync::Mutex<rand::rngs::StdRng>,
}

impl Shared {
    pub(super) fn meta(&self) -> Option<Arc<Meta>> {
        self.groups.meta().borrow().clone()
    }

    /// Whether this node was a member and is none any more, as far as it was told.
    pub(super) fn is_removed(&self) -> bool {
        let node = self.config.node;
        let meta = self.meta();
        let is_removed = meta.is_some_and(|meta| meta.membership.removed.contains(&node));
        is_removed || *self.peers.disowned().borrow()
    }

    /// Why this node takes no sessions, if it is to be emptied or is no member any more.
    pub(super) fn departure(&self) -> Option<&'static str> {
        if self.is_removed() {
            return Some("this node was removed from the cluster: stop it, nothing needs its data");
        }
        let node = self.config.node;
        let departs =
            self.meta().is_some_and(|meta| meta.membership.departures.contains_key(&node));
        departs.then_some("this node is drained: it takes no sessions")
    }

    /// Whether the device should rather be at a node of a newer build, which an upgrade does not restart any more.
    pub(super) fn is_for_newer(&self, device: &DeviceId) -> bool {
        let Some(meta) = self.meta() else { return false };
        let is_there = meta.newer(self.config.node).any(|newer| self.peers.is_connected(newer));
        is_there && self.deferrals.defer(device, Instant::now())
    }

    pub(super) fn shard_of(&self, device: &DeviceId) -> Option<ShardId> {
        let meta = self.groups.meta();
        let count = meta.borrow().as_ref()?.shard_count;
        Some(ShardId::of(device, count))
    }

    /// Proposes an encoded change of the meta group at this node.
    pub(super) async fn change_meta_here(&self, entry: Bytes) -> Response {
        let Some(group) = self.groups.get(GroupId::Meta) else {
            return Err(Failure::NotLeader { leader: None });
        };
        match group.propose(entry).await.map_err(failure_of)? {
            crate::raft::Response::Meta(Ok(meta)) => Ok(Answer::Meta(meta)),
            crate::raft::Response::Meta(Err(refusal)) => Err(Failure::RefusedByMeta(refusal)),
            crate::raft::Response::None | crate::raft::Response::Shard { .. } => {
                Err(Failure::Unknown)
            }
        }
    }
}

/// ractor's registry is shared by the whole process, where several nodes may live, or several lives of one.
static INCARNATIONS: AtomicU64 = AtomicU64::new(0);

/// A name that no other actor of the process has had.
pub(super) fn actor_name(node: NodeId, role: &str) -> String {
    format!("node-{node}/{role}/{}", INCARNATIONS.fetch_add(1, Ordering::Relaxed))
}

/// What the supervisor can be told.
#[derive(Debug)]
pub(super) enum NodeMsg {
    /// From the groups: these run here now.
    Groups(Arc<BTreeMap<GroupId, Group>>),
}

pub(super) struct NodeActor;

pub(super) struct NodeState {
    shared: Arc<Shared>,
    started: Instant,
    running: BTreeMap<ShardId, Replica>,
}

impl Actor for NodeActor {
    type Msg = NodeMsg;
    type State = NodeState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<NodeMsg>,
        shared: Arc<Shared>,
    ) -> Result<NodeState, ActorProcessingErr> {
        Ok(NodeState { shared, started: Instant::now(), running: BTreeMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<NodeMsg>,
        message: NodeMsg,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMsg::Groups(groups) => state.host(&myself, &groups),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<NodeMsg>,
        event: SupervisionEvent,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(actor, problem) = event {
            let failed = |replica: &Replica| replica.actor.get_id() == actor.get_id();
            let found = state.running.iter().find(|(_, replica)| failed(replica));
            if let Some((shard, group)) =
                found.map(|(shard, replica)| (*shard, replica.group.clone()))
            {
                error!(%shard, error = %problem, "a shard's actor failed and is restarted");
                metrics::shard_restarted();
                state.shared.neighbours.want_all(state.shared.config.node);
                state.start(&myself, shard, group);
                state.publish();
            }
        }
        Ok(())
    }
}

impl NodeState {
    fn host(&mut self, myself: &ActorRef<NodeMsg>, groups: &BTreeMap<GroupId, Group>) {
        self.running.retain(|shard, replica| {
            let stays = groups.contains_key(&GroupId::Shard(*shard));
            if !stays {
                replica.actor.stop(None);
            }
            stays
        });
        for (id, group) in groups {
            if let GroupId::Shard(shard) = id
                && !self.running.contains_key(shard)
            {
                self.start(myself, *shard, group.clone());
            }
        }
        self.publish();
    }

    fn start(&mut self, myself: &ActorRef<NodeMsg>, shard: ShardId, group: Group) {
        let Shared { config, .. } = &*self.shared;
        let name = actor_name(config.node, &format!("shard-{shard}"));
        let (growth_sender, growth) = watch::channel(Growth::default());
        let arguments = self.arguments(shard, &group, growth_sender);
        let cell = myself.get_cell();
        match ActorRuntime::spawn_linked_instant(Some(name), ShardActor, arguments, cell) {
            Ok((actor, _)) => {
                let limits = &config.limits;
                let gauge = Gauge::new(limits.shard_requests_max, limits.node_bytes_max);
                let calls = Gauge::new(limits.shard_calls_max, limits.node_bytes_max);
                let leadership = group.leadership();
                let replica = Replica { group, actor, gauge, calls, leadership, growth };
                self.running.insert(shard, replica);
            }
            // Only a name that is taken comes here, and no name is used twice.
            Err(problem) => error!(%shard, error = %problem, "a shard's actor cannot be started"),
        }
    }

    fn arguments(
        &self,
        shard: ShardId,
        group: &Group,
        growth: watch::Sender<Growth>,
    ) -> ShardArguments {
        let Shared { config, storage, peers, sessions, live, neighbours, moments, .. } =
            &*self.shared;
        let (node, limits) = (config.node, config.limits.clone());
        let (storage, clock) = (Arc::clone(storage), Arc::clone(&config.clock));
        let started = self.started;
        let (read, time) = (Arc::clone(&storage), Arc::clone(&clock));
        let proposed = group.clone();
        let proposer = move |shard: ActorRef<ShardMsg>, queue| {
            let group = proposed;
            Proposer { node, group, shard, storage, clock, limits, queue, started, growth }
        };
        ShardArguments {
            shard,
            group: group.clone(),
            outbox: Outbox { node, sessions: sessions.clone(), peers: peers.clone() },
            live: live.clone(),
            neighbours: Arc::clone(neighbours),
            moments: Arc::clone(moments),
            limits: config.limits.clone(),
            storage: read,
            clock: time,
            proposer: Box::new(proposer),
        }
    }

    fn publish(&self) {
        self.shared.router.set_replicas(self.running.clone());
    }
}

/// Tells the supervisor which groups run here, until either side ends.
pub(super) async fn follow_groups(shared: Arc<Shared>, node: ActorRef<NodeMsg>) {
    let mut groups = shared.groups.watch();
    loop {
        let now = Arc::clone(&groups.borrow_and_update());
        if node.send_message(NodeMsg::Groups(now)).is_err() || groups.changed().await.is_err() {
            return;
        }
    }
}
