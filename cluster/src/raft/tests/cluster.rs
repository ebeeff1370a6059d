//! A cluster for tests. Each node has a runtime of its own, so that it can be killed: its tasks and sockets go at once,
//! and nothing of it is told goodbye.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drover_core::ids::{GroupId, LogTime, NodeId, ShardCount, ShardId};
use drover_core::level::Levels;
use drover_core::membership::Membership;
use drover_core::meta::{Member, Meta, MetaChange, MetaEntry};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::raft::group::Group;
use crate::raft::groups::{Groups, GroupsConfig, Timing};
use crate::raft::network::{PeerNetwork, PlainNetwork};
use crate::raft::peers::{IncomingQueue, Peers, PeersConfig};
use crate::raft::tls::{TlsIdentity, TlsNetwork, certificate_name};
use crate::storage::simulated::{Behaviour, SimulatedDisk};
use crate::wire::record;

/// The longest that a test waits for anything. Generous: the machine may be loaded.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Entries that are kept in the tests' logs.
pub(super) const ENTRIES_KEPT: u64 = 20;

/// Signs the certificates of one cluster.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.self_signed(&key).expect("the parameters are complete");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// What proves that its owner is `name`.
    pub(super) fn identity(&self, name: String) -> TlsIdentity {
        let params = CertificateParams::new(vec![name]).expect("a DNS name");
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority may sign");
        TlsIdentity {
            authorities: vec![self.certificate.der().clone()],
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }
}

pub(super) fn node_id(number: u32) -> NodeId {
    NodeId::new(number, 0)
}

/// An entry that changes nothing.
pub(super) fn entry() -> Bytes {
    Bytes::new()
}

pub(super) fn shard(number: u32) -> GroupId {
    let count = ShardCount::new(ShardCount::MAX).expect("the greatest count is one");
    GroupId::Shard(ShardId::new(number, count).expect("tests use small numbers"))
}

/// A node that runs.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) groups: Groups,
    /// Nobody reads it; dropping it would refuse requests.
    _incoming: IncomingQueue,
    runtime: Option<Runtime>,
}

impl Node {
    pub(super) fn group(&self, id: GroupId) -> Group {
        self.groups.get(id).expect("the group runs here")
    }

    pub(super) fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().expect("it was not killed").block_on(future)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// Three nodes, some of which run.
pub(super) struct Cluster {
    disks: BTreeMap<NodeId, SimulatedDisk>,
    addresses: BTreeMap<NodeId, String>,
    authority: Option<Authority>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
}

impl Cluster {
    /// Starts nodes 1 to 3 and makes them a cluster with `shards` shards.
    pub(super) fn start(shards: u32, authority: Option<Authority>) -> Self {
        let mut cluster = Self::unformed(authority);
        for number in 1..=3 {
            cluster.start_node(number);
        }
        let meta = cluster.meta(shards);
        let first = &cluster.nodes[&node_id(1)];
        first.run(first.groups.form_meta(&meta.members)).expect("a group is formed once");
        let change = MetaChange::Initialize(Box::new(meta));
        let entry = record::meta_entry_to_bytes(&MetaEntry { at: LogTime::new(1), change });
        let leader = cluster.leader_of(GroupId::Meta);
        let group = leader.groups.get(GroupId::Meta).expect("it leads the group");
        leader.run(group.propose(entry)).expect("the first state");
        for number in 0..shards {
            cluster.leader_of(shard(number));
        }
        cluster
    }

    fn unformed(authority: Option<Authority>) -> Self {
        let disks = (1..=3).map(|number| (node_id(number), disk(number.into()))).collect();
        Self { disks, addresses: BTreeMap::new(), authority, nodes: BTreeMap::new() }
    }

    /// Starts a node, on what it had stored if it has run before.
    pub(super) fn start_node(&mut self, number: u32) {
        let id = node_id(number);
        self.reserve_addresses();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let address = self.addresses[&id].clone();
        let identity =
            self.authority.as_ref().map(|authority| authority.identity(certificate_name(id)));
        let members = self.addresses.clone();
        let storage = Arc::new(self.disks[&id].open());
        let (incoming, groups) = runtime.block_on(async move {
            let listener = listen(&address).await;
            let network: Arc<dyn PeerNetwork> = match identity {
                Some(identity) => {
                    Arc::new(TlsNetwork::new(listener, identity).expect("the identity is complete"))
                }
                None => Arc::new(PlainNetwork::new(listener)),
            };
            let config = PeersConfig {
                node: id,
                members,
                cluster_id: None,
                network,
                snapshot_rate: None,
                seed: None,
            };
            let (peers, incoming) = Peers::start(config);
            let config = GroupsConfig {
                node: id,
                timing: Timing::default(),
                log_entries_kept: ENTRIES_KEPT,
                seed: None,
            };
            let groups = Groups::start(config, storage, peers).await;
            (incoming, groups.expect("the store is sound"))
        });
        let node = Node { id, groups, _incoming: incoming, runtime: Some(runtime) };
        self.nodes.insert(id, node);
    }

    /// Ends a node without a word, and cuts its power: what was not forced to disk may be gone.
    pub(super) fn kill(&mut self, id: NodeId) {
        drop(self.nodes.remove(&id).expect("it runs"));
        self.disks[&id].crash();
    }

    /// The node that serves a group.
    pub(super) fn leader_of(&self, group: GroupId) -> &Node {
        until("a node serves the group", || {
            let serves = |node: &&Node| {
                node.groups.get(group).is_some_and(|group| group.leadership().borrow().serving)
            };
            self.nodes.values().find(serves).ok_or_else(|| self.describe(group))
        })
    }

    /// What each node says of a group.
    pub(super) fn describe(&self, group: GroupId) -> String {
        let describe = |node: &Node| {
            let progress = node.groups.get(group).map(|group| group.progress());
            let led = node.groups.get(group).map(|group| *group.leadership().borrow());
            format!("{}: {progress:?} {led:?} {:?}\n", node.id, node.groups.problems())
        };
        self.nodes.values().map(describe).collect()
    }

    fn reserve_addresses(&mut self) {
        if !self.addresses.is_empty() {
            return;
        }
        let listeners: Vec<_> = (1..=3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        for (number, listener) in (1..).zip(&listeners) {
            let address = listener.local_addr().expect("it is bound");
            self.addresses.insert(node_id(number), address.to_string());
        }
    }

    fn meta(&self, shards: u32) -> Meta {
        let shard_count = ShardCount::new(shards).expect("a legal count");
        let member = |address: &String| Member {
            peer_address: address.clone(),
            admin_address: String::new(),
            zone: String::new(),
        };
        let replicas = |shard: ShardId| {
            let mut nodes: Vec<_> = self.addresses.keys().copied().collect();
            let first = shard.number() as usize % nodes.len();
            nodes.rotate_left(first);
            (shard, nodes)
        };
        Meta {
            cluster_id: "test".to_owned(),
            name: String::new(),
            shard_count,
            replication_factor: 3,
            members: self.addresses.iter().map(|(id, at)| (*id, member(at))).collect(),
            placement: shard_count.shards().map(replicas).collect(),
            policies: BTreeMap::new(),
            authorities: BTreeMap::new(),
            membership: Membership::default(),
            levels: Levels::default(),
            restoring: None,
            version: 0,
        }
    }
}

fn disk(seed: u64) -> SimulatedDisk {
    SimulatedDisk::new(seed, Behaviour { sync_us_max: 1000, failing_syncs_per_mille: 0 })
}

/// Binds an address that a killed node may still be giving back.
async fn listen(address: &str) -> TcpListener {
    let bound = tokio::time::timeout(PATIENCE, async {
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    bound.await.expect("the port becomes free again")
}

/// Waits for a condition, and says what it saw last if it waits in vain.
pub(super) fn until<T>(claim: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        match condition() {
            Ok(found) => return found,
            Err(seen) if started.elapsed() > PATIENCE => panic!("in vain: {claim}\n{seen}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}
