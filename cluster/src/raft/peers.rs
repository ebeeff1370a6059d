//! Connections to the other nodes: one a peer and direction, shared by all groups and by forwarded requests.
//!
//! A node calls a peer over the connection that it opened itself, and answers over the one that the peer opened.
//! `link` keeps the first kind, `serve` answers on the second, `network` and `tls` carry the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{GroupId, NodeId, ReplicaId};
use drover_core::level::FeatureLevel;
use drover_proto::cluster::envelope::Body;
use drover_proto::cluster::failure::Kind;
use drover_proto::cluster::{Announce, AnnounceResponse, Deliver, Failure, Hello};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::group::Raft;
use super::heard::Heard;
use super::link::{self, Call, Link};
use super::network::PeerNetwork;
use super::serve;
use super::snapshot_pace::SnapshotPace;
use crate::metrics;
use crate::storage::Storage;
use crate::wire::delivery::encode_beat;

/// What peers ask of the layers above and nobody has taken up yet. More is refused as busy.
const INCOMING_MAX: usize = 8192;
/// Lost connections that nobody has looked at yet. Who misses one falls back on election time-outs.
const LOSSES_MAX: usize = 64;

/// A handle to all peers. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("node", &self.shared.node).finish_non_exhaustive()
    }
}

/// What the connections of a node need.
#[derive(Debug, Clone)]
pub struct PeersConfig {
    pub node: NodeId,
    /// The nodes of the cluster and host:port of their peer listeners, as far as they are known at the start.
    pub members: BTreeMap<NodeId, String>,
    /// Nodes of another cluster are refused. `None` until this node belongs to one.
    pub cluster_id: Option<String>,
    pub network: Arc<dyn PeerNetwork>,
    /// What all snapshots that this node sends may take together, in bytes a second. `None`: as much as there is.
    pub snapshot_rate: Option<NonZeroU64>,
    /// Seeds the jitter of reconnects. `None`: from the system.
    pub seed: Option<u64>,
}

/// What a peer asks of the layers above Raft. Raft messages are answered below.
#[derive(Debug)]
pub enum Incoming {
    /// An encoded `cluster.v1.Request` for the leader of the group; answer with an encoded response.
    Request { from: NodeId, group: GroupId, request: Bytes, reply: oneshot::Sender<Bytes> },
    /// For a session on this node. No answer.
    Deliver { from: NodeId, deliver: Deliver },
    /// Sessions that a node holds, for the leader of the group.
    Announce {
        from: NodeId,
        group: GroupId,
        announce: Announce,
        reply: oneshot::Sender<AnnounceResponse>,
    },
    /// Live events of a peer, best effort.
    Events { from: NodeId, events: Bytes },
    /// Whether a peer wants this node's live events.
    EventsWanted { from: NodeId, wanted: bool },
}

impl Incoming {
    /// Who asks.
    pub fn from(&self) -> NodeId {
        match self {
            Self::Request { from, .. }
            | Self::Deliver { from, .. }
            | Self::Announce { from, .. }
            | Self::Events { from, .. }
            | Self::EventsWanted { from, .. } => *from,
        }
    }
}

/// Why a call to a peer has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was never carried out.
    #[error("node {node} cannot be reached: {problem}")]
    Unreachable { node: NodeId, problem: String },
    /// It was sent; whether it was carried out is unknown.
    #[error("the connection to node {node} was lost")]
    Lost { node: NodeId },
    #[error("node {node} did not answer in time")]
    Timeout { node: NodeId },
    /// It was not carried out: too much waits already, here or there.
    #[error("the queue to node {node} is full")]
    Busy { node: NodeId },
}

/// The queue of what peers ask; bounded.
pub type IncomingQueue = mpsc::Receiver<Incoming>;

impl Peers {
    /// Listens to peers, and keeps a connection to each member. Must be called inside the runtime.
    pub fn start(config: PeersConfig) -> (Self, IncomingQueue) {
        let (incoming, queue) = mpsc::channel(INCOMING_MAX);
        let shared = Arc::new(Shared {
            node: config.node,
            network: config.network,
            cluster_id: Mutex::new(config.cluster_id),
            members: Mutex::new(Members::default()),
            groups: Mutex::new(BTreeMap::new()),
            receiving: Mutex::new(BTreeMap::new()),
            incoming,
            losses: broadcast::channel(LOSSES_MAX).0,
            disowned: watch::channel(false).0,
            active: watch::channel(FeatureLevel::FIRST).0,
            heard_active: watch::channel(FeatureLevel::FIRST).0,
            events_wanted: AtomicBool::new(false),
            snapshot_pace: Arc::new(SnapshotPace::new(config.snapshot_rate)),
            heard: Heard::default(),
            answered: Heard::default(),
            random: Mutex::new(match config.seed {
                Some(seed) => SmallRng::seed_from_u64(seed),
                None => SmallRng::from_os_rng(),
            }),
            stopping: CancellationToken::new(),
        });
        tokio::spawn(serve::listen(Arc::clone(&shared)));
        let peers = Self { shared };
        peers.set_members(config.members);
        (peers, queue)
    }

    /// Who is in the cluster, and where. A node that was a member and is none any more is refused from now on: node
    /// ids are never used twice (I-35).
    pub fn set_members(&self, addresses: BTreeMap<NodeId, String>) {
        let mut members = self.shared.members();
        let gone: Vec<NodeId> =
            members.by_id.keys().filter(|node| !addresses.contains_key(node)).copied().collect();
        for node in gone {
            members.stop(node);
            members.removed.insert(node);
            self.shared.heard.forget(node);
            self.shared.answered.forget(node);
        }
        for (node, address) in addresses {
            let known = members.by_id.get(&node).map(|member| &member.address);
            if node == self.shared.node || known == Some(&address) {
                continue;
            }
            members.stop(node);
            // It cannot have answered yet: its time begins now.
            self.shared.answered.note(node);
            let link = Arc::new(Link::new(node));
            let keeping = link::keep(Arc::clone(&link), address.clone(), Arc::clone(&self.shared));
            let task = tokio::spawn(keeping).abort_handle();
            members.by_id.insert(node, Member { address, link, task });
        }
    }

    /// These nodes were members and never are again, whether or not this node has known them.
    pub fn refuse(&self, removed: &BTreeSet<NodeId>) {
        self.shared.members().removed.extend(removed);
    }

    /// Whether a peer has said that this node was removed.
    pub fn disowned(&self) -> watch::Receiver<bool> {
        self.shared.disowned.subscribe()
    }

    /// The feature level at which the cluster is. Peers that do not support it are refused from now on.
    pub fn set_active_level(&self, level: FeatureLevel) {
        rise(&self.shared.active, level);
    }

    /// The highest level that a peer has said to be active.
    pub fn heard_active_level(&self) -> watch::Receiver<FeatureLevel> {
        self.shared.heard_active.subscribe()
    }

    /// This node belongs to a cluster from now on.
    pub fn set_cluster_id(&self, cluster_id: &str) {
        let mut known = self.shared.cluster_id.lock().expect("nobody panics with it in hand");
        if known.as_deref() != Some(cluster_id) {
            *known = Some(cluster_id.to_owned());
        }
    }

    /// Asks a peer; `request` is an encoded `cluster.v1.Request`.
    pub async fn request(
        &self,
        to: NodeId,
        group: GroupId,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let answer = self.call(to, group, Body::Request(request), deadline).await?;
        if let Body::Response(response) = answer {
            return Ok(response);
        }
        Err(unexpected(to, answer))
    }

    /// Best effort, no answer.
    pub fn deliver(&self, to: NodeId, deliver: Deliver) {
        self.tell(to, Body::Deliver(deliver));
    }

    pub async fn announce(
        &self,
        to: NodeId,
        group: GroupId,
        announce: Announce,
        deadline: Duration,
    ) -> Result<AnnounceResponse, CallError> {
        let answer = self.call(to, group, Body::Announce(announce), deadline).await?;
        if let Body::AnnounceResponse(response) = answer {
            return Ok(response);
        }
        Err(unexpected(to, answer))
    }

    /// Best effort, no answer.
    pub fn send_events(&self, to: NodeId, events: Bytes) {
        self.tell(to, Body::Events(events));
    }

    pub fn want_events(&self, wanted: bool) {
        if self.shared.events_wanted.swap(wanted, Ordering::Relaxed) != wanted {
            for member in self.shared.members().by_id.values() {
                self.shared.introduce(&member.link);
            }
        }
    }

    /// Whether the connection to a peer is up.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.shared.link(node).is_ok_and(|link| link.is_up())
    }

    /// For how long nothing has come from a node; `None` if nothing ever has in this life of the process. A leader is heard
    /// with each heartbeat, any member with the beats of the layers above.
    pub fn silence(&self, node: NodeId) -> Option<Duration> {
        self.shared.heard.silence(node)
    }

    /// Ends all connections; nothing is answered any more.
    pub fn stop(&self) {
        self.shared.stopping.cancel();
        let mut members = self.shared.members();
        let nodes: Vec<NodeId> = members.by_id.keys().copied().collect();
        for node in nodes {
            members.stop(node);
        }
    }

    /// Nodes to which the connection broke, as it happens.
    pub(super) fn losses(&self) -> broadcast::Receiver<NodeId> {
        self.shared.losses.subscribe()
    }

    /// Nodes that have been silent for `least` or longer, and for how long.
    pub(super) fn silent(&self, least: Duration) -> Vec<(NodeId, Duration)> {
        self.shared.heard.silent(least)
    }

    /// For how long each member has answered nothing that this node has asked it.
    pub(super) fn unanswered(&self) -> BTreeMap<NodeId, Duration> {
        self.shared.answered.silent(Duration::ZERO).into_iter().collect()
    }

    /// Asks a node for a sign of life. That it answers at all is what counts, so nobody has to wait for the call.
    pub(super) fn probe(&self, node: NodeId) -> Result<Call, CallError> {
        let (of_node, no_deadline) = (ReplicaId::first(node).incarnation(), Duration::MAX);
        self.link(node)?.call(GroupId::Meta, of_node, no_deadline, Body::Announce(encode_beat()))
    }

    /// Messages for this group go to this replica from now on.
    pub(super) fn register(&self, group: GroupId, replica: Replica) {
        self.shared.groups.lock().expect("nobody panics with it in hand").insert(group, replica);
    }

    pub(super) fn unregister(&self, group: GroupId) {
        self.shared.groups.lock().expect("nobody panics with it in hand").remove(&group);
    }

    pub(super) fn link(&self, to: NodeId) -> Result<Arc<Link>, CallError> {
        self.shared.link(to)
    }

    pub(super) fn hello(&self, to: NodeId) -> Hello {
        self.shared.hello(to)
    }

    /// What this node's own replicas are reached by.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Groups of which a snapshot is being received, with the bytes of keys and values that are here.
    pub fn receiving(&self) -> BTreeMap<GroupId, u64> {
        self.shared.receiving().clone()
    }

    /// Asks a node and waits for the answer, at the most until the deadline.
    async fn call(
        &self,
        to: NodeId,
        group: GroupId,
        body: Body,
        deadline: Duration,
    ) -> Result<Body, CallError> {
        // What is asked of a node is not for a certain replica.
        self.call_replica(ReplicaId::first(to), group, body, deadline).await
    }

    /// The same of a replica of the group: another one on the same node does not answer.
    pub(super) async fn call_replica(
        &self,
        to: ReplicaId,
        group: GroupId,
        body: Body,
        deadline: Duration,
    ) -> Result<Body, CallError> {
        let (incarnation, to) = (to.incarnation(), to.node());
        let call = self.link(to)?.call(group, incarnation, deadline, body)?;
        tokio::time::timeout(deadline, call).await.unwrap_or(Err(CallError::Timeout { node: to }))
    }

    fn tell(&self, to: NodeId, body: Body) {
        let sent = self.link(to).and_then(|link| link.tell(GroupId::Meta, body));
        if let Err(error) = sent {
            metrics::peer_message_dropped();
            tracing::debug!(%error, "dropped a message without an answer");
        }
    }
}

/// A level never falls.
fn rise(known: &watch::Sender<FeatureLevel>, level: FeatureLevel) {
    known.send_if_modified(|known| {
        let rises = level > *known;
        *known = level.max(*known);
        rises
    });
}

/// The answer is not what was asked for: mostly a failure.
pub(super) fn unexpected(node: NodeId, body: Body) -> CallError {
    let Body::Failure(Failure { kind, text }) = body else {
        return CallError::Lost { node };
    };
    match Kind::try_from(kind) {
        Ok(Kind::Busy) => CallError::Busy { node },
        Ok(Kind::Absent | Kind::Invalid) => CallError::Unreachable { node, problem: text },
        Ok(Kind::Stopped | Kind::Unspecified) | Err(_) => CallError::Lost { node },
    }
}

/// The replica of a group on this node, for those who carry messages to it.
#[derive(Clone)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) raft: Raft,
    pub(super) storage: Arc<dyn Storage>,
}

/// What all connections of the node share.
pub(super) struct Shared {
    pub(super) node: NodeId,
    pub(super) network: Arc<dyn PeerNetwork>,
    pub(super) incoming: mpsc::Sender<Incoming>,
    pub(super) stopping: CancellationToken,
    /// Who has said anything, on whatever connection.
    pub(super) heard: Heard,
    /// Who has answered this node, on its own connection.
    answered: Heard,
    cluster_id: Mutex<Option<String>>,
    members: Mutex<Members>,
    groups: Mutex<BTreeMap<GroupId, Replica>>,
    /// Groups of which a snapshot is being received, and how many bytes of it are here.
    receiving: Mutex<BTreeMap<GroupId, u64>>,
    losses: broadcast::Sender<NodeId>,
    disowned: watch::Sender<bool>,
    /// The feature level that is active as this node has applied it, and the highest that a peer has spoken of. What peers say is
    /// not passed on.
    active: watch::Sender<FeatureLevel>,
    heard_active: watch::Sender<FeatureLevel>,
    events_wanted: AtomicBool,
    pub(super) snapshot_pace: Arc<SnapshotPace>,
    random: Mutex<SmallRng>,
}

#[derive(Default)]
struct Members {
    by_id: BTreeMap<NodeId, Member>,
    removed: BTreeSet<NodeId>,
}

struct Member {
    address: String,
    link: Arc<Link>,
    task: AbortHandle,
}

impl Members {
    fn stop(&mut self, node: NodeId) {
        if let Some(member) = self.by_id.remove(&node) {
            member.task.abort();
            member.link.take_down("it is no member, or has moved".into());
        }
    }
}

/// The right to receive a snapshot of a group.
pub(super) struct Receiving {
    shared: Arc<Shared>,
    group: GroupId,
}

impl Receiving {
    /// So many bytes of keys and values more are here.
    pub(super) fn add(&self, bytes: usize) {
        if let Some(received) = self.shared.receiving().get_mut(&self.group) {
            *received += bytes as u64;
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.shared.receiving().remove(&self.group);
    }
}

impl Shared {
    pub(super) fn hello(&self, to: NodeId) -> Hello {
        link::hello(self.node, to, self.cluster_id(), self.active_level())
    }

    pub(super) fn active_level(&self) -> FeatureLevel {
        *self.active.borrow()
    }

    pub(super) fn hear_active_level(&self, level: FeatureLevel) {
        rise(&self.heard_active, level);
    }

    pub(super) fn cluster_id(&self) -> Option<String> {
        self.cluster_id.lock().expect("nobody panics with it in hand").clone()
    }

    pub(super) fn is_removed(&self, node: NodeId) -> bool {
        self.members().removed.contains(&node)
    }

    /// Claims the right to receive a snapshot of a group, until the claim is dropped.
    pub(super) fn begin_receiving(self: &Arc<Self>, group: GroupId) -> Option<Receiving> {
        let mut receiving = self.receiving();
        if receiving.contains_key(&group) {
            return None;
        }
        receiving.insert(group, 0);
        Some(Receiving { shared: Arc::clone(self), group })
    }

    fn receiving(&self) -> MutexGuard<'_, BTreeMap<GroupId, u64>> {
        self.receiving.lock().expect("nobody panics with it in hand")
    }

    /// The replica of a group that runs here, if it is the one that is meant.
    pub(super) fn replica(&self, group: GroupId, incarnation: u32) -> Option<Replica> {
        let groups = self.groups.lock().expect("nobody panics with it in hand");
        groups.get(&group).filter(|run| u32::from(run.id.incarnation()) == incarnation).cloned()
    }

    /// The replica of a group that runs here, whichever it is.
    pub(super) fn running(&self, group: GroupId) -> Option<Replica> {
        self.groups.lock().expect("nobody panics with it in hand").get(&group).cloned()
    }

    /// A peer that has refused this node because it is no member knows better than this node, which nobody tells any more.
    pub(super) fn note_refusal(&self, code: tonic::Code) {
        if code == serve::DISOWNED && !self.disowned.send_replace(true) {
            tracing::error!("this node was removed from the cluster: stop it");
        }
    }

    /// Something came from a node on the connection on which this one asks.
    pub(super) fn answered(&self, node: NodeId) {
        self.heard.note(node);
        self.answered.note(node);
    }

    /// A connection to or from this node broke.
    pub(super) fn lost(&self, node: NodeId) {
        // Nobody listens while no group runs.
        self.losses.send(node).ok();
    }

    /// Tells a peer what it must know about this node beyond its name.
    pub(super) fn introduce(&self, link: &Link) {
        let wanted = self.events_wanted.load(Ordering::Relaxed);
        if let Err(error) = link.tell(GroupId::Meta, Body::EventsWanted(wanted)) {
            tracing::debug!(%error, "a peer will learn later which events are wanted");
        }
    }

    pub(super) fn draw(&self) -> u64 {
        self.random.lock().expect("nobody panics with it in hand").random()
    }

    fn link(&self, to: NodeId) -> Result<Arc<Link>, CallError> {
        let members = self.members();
        let member = members.by_id.get(&to).ok_or_else(|| {
            let problem = "it is no member of the cluster, as far as this node knows".into();
            CallError::Unreachable { node: to, problem }
        })?;
        Ok(Arc::clone(&member.link))
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().expect("nobody panics with the members in hand")
    }
}
