//! One simulated machine: a disk that outlives its node, and the node, started again after each crash.
//!
//! The node is the product above storage, unchanged: cluster, actors, Raft, peers, MQTT sessions. Its back ends run on the
//! same machine and are lost with it, and so do some devices, which use it as a session would.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use drover_cluster::actors::cluster::Initialization;
use drover_cluster::actors::config::Config;
use drover_cluster::core::change::{DeviceSpec, Refusal};
use drover_cluster::core::device::{Authentication, Key, Status};
use drover_cluster::core::document::Object;
use drover_cluster::core::ids::{DeviceId, NodeId};
use drover_cluster::core::meta::Member;
use drover_cluster::core::stream::Retention;
use drover_cluster::raft::peers::{Peers, PeersConfig};
use drover_cluster::storage::simulated::SimulatedDisk;
use drover_cluster::{Cluster, Error};
use drover_node::mqtt;
use futures::future::join;
use rand::Rng;
use tokio::time::sleep;

use super::clock::SkewedClock;
use super::history::{History, Phase};
use super::network::{Directory, SimulatedNetwork, address, serve_devices};
use super::operator::Operator;
use super::plan::{Plan, REPLICATION_FACTOR, stream};
use super::sockets::{self, HUB};
use super::workload::Workload;
use crate::promises::Violation;

const POLL: Duration = Duration::from_millis(50);
/// A snapshot of a few hundred records fits into a deadline many times; what waits longer is lost.
const DEADLINE: Duration = Duration::from_secs(4);
/// Few enough to be full at times, and to be emptied within seconds.
const MAILBOX_DEPTH: u32 = 20;

/// A machine. Cheap to clone.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) number: u32,
    pub(super) disk: SimulatedDisk,
    plan: Rc<Plan>,
    devices: Rc<Vec<DeviceId>>,
    history: History,
    directory: Directory,
    operator: Operator,
    lives: Rc<Cell<u64>>,
}

impl Machine {
    pub(super) fn new(
        number: u32,
        plan: Rc<Plan>,
        devices: Rc<Vec<DeviceId>>,
        history: History,
        directory: Directory,
        operator: Operator,
    ) -> Self {
        let seed = stream(plan.seed, "disk", u64::from(number)).random();
        let disk = SimulatedDisk::new(seed, plan.disk.sound());
        Self { number, disk, plan, devices, history, directory, operator, lives: Rc::default() }
    }

    /// The node that this machine is, from the time on at which it has joined.
    async fn joined(&self) -> NodeId {
        loop {
            if let Some(node) = self.directory.node(self.number) {
                return node;
            }
            sleep(POLL).await;
        }
    }

    /// One life of the node, until its machine loses power.
    pub(super) async fn live(self) -> turmoil::Result {
        let node = self.joined().await;
        let life = self.lives.replace(self.lives.get() + 1);
        self.history.note(format_args!("node {} starts its life {life} as {node}", self.number));
        let cluster = match self.start(node, life).await {
            Ok(cluster) => cluster,
            Err(error) => {
                self.fail(error.to_string());
                return std::future::pending().await;
            }
        };
        let mqtt = mqtt::Config { host_names: vec![HUB.to_owned()], ..mqtt::Config::default() };
        let devices = serve_devices(mqtt::Server::new(cluster.clone(), mqtt));
        let work = async {
            self.work(cluster.clone(), life).await;
            // A node whose clients have finished still serves those of the others.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            problem = cluster.fatal() => self.fail(problem),
            served = devices => served?,
            () = work => {}
        }
        // A process that has ended does nothing more; the machine is still there.
        drop(cluster);
        std::future::pending().await
    }

    async fn start(&self, node: NodeId, life: u64) -> Result<Cluster, Error> {
        let mut draw = stream(self.plan.seed, "life", u64::from(self.number) << 32 | life);
        // Who joins is told nothing: it is found, and then knows from the meta state.
        let named = if self.number <= self.plan.nodes { self.plan.nodes } else { 0 };
        let members = (1..=named).map(|number| (NodeId::new(number, 0), address(number)));
        let peers = PeersConfig {
            node,
            members: members.collect(),
            cluster_id: None,
            network: Arc::new(SimulatedNetwork { directory: self.directory.clone() }),
            snapshot_rate: None,
            seed: Some(draw.random()),
        };
        let (peers, incoming) = Peers::start(peers);
        let ahead = stream(self.plan.seed, "clock", u64::from(self.number))
            .random_range(0..=self.plan.skew_ms_max);
        let mut config = Config::new(node);
        config.seed = Some(draw.random());
        config.clock = Arc::new(SkewedClock { ahead_ms: ahead });
        config.timing = self.plan.timing;
        config.log_entries_kept = self.plan.log_entries_kept;
        config.retention = Retention { age_ms_max: None, bytes_max: None };
        config.limits.deadline = DEADLINE;
        config.commands.limits.depth_max = MAILBOX_DEPTH;
        config.commands.limits.lock_ms = self.plan.lock_ms;
        // Whoever sends one again finds it, however late.
        config.commands.limits.ended_max = 10_000;
        Cluster::start(config, Arc::new(self.disk.open()), peers, incoming).await
    }

    /// The store of a node may fail by its own; anything else that ends a node is a finding.
    fn fail(&self, problem: String) {
        self.history.note(format_args!("node {} ends itself: {problem}", self.number));
        if problem.contains("has lost what it acknowledged") || problem.contains("corrupt") {
            let subject = format!("node {}", self.number);
            self.history.violate(Violation::new("I-33 nothing forgotten", subject, &problem));
        }
        self.history.lock().failed.insert(self.number, problem);
    }

    async fn work(&self, cluster: Cluster, life: u64) {
        let workload = self.workload(cluster.clone());
        let serving = async {
            self.begin(&cluster).await;
            workload.run(life).await;
        };
        // Also of a replica that was stopped as soon as it started, because of which the node never gets ready.
        join(serving, workload.repair()).await;
    }

    fn workload(&self, cluster: Cluster) -> Workload {
        Workload {
            node: self.number,
            cluster,
            plan: Rc::clone(&self.plan),
            devices: Rc::clone(&self.devices),
            history: self.history.clone(),
            directory: self.directory.clone(),
            operator: self.operator.clone(),
        }
    }

    /// Until the node serves, and clients may begin.
    async fn begin(&self, cluster: &Cluster) {
        if self.number == 1 && self.history.phase() == Phase::Start {
            self.initialize(cluster).await;
        }
        while let Err(missing) = cluster.ready() {
            tracing::trace!(missing, "not ready");
            // Who was removed never is.
            if self.operator.is_outcast(self.number) {
                break;
            }
            sleep(POLL).await;
        }
        self.history.note(format_args!("node {} is ready", self.number));
        self.history.lock().finished.insert(self.number, false);
        if self.number == 1 && self.history.phase() == Phase::Start {
            self.create_devices(cluster).await;
        }
        while self.history.phase() == Phase::Start {
            sleep(POLL).await;
        }
    }

    async fn initialize(&self, cluster: &Cluster) {
        let members = (1..=self.plan.nodes).map(|number| (NodeId::new(number, 0), member(number)));
        let initialization = Initialization {
            members: members.collect(),
            shard_count: self.plan.shards,
            replication_factor: REPLICATION_FACTOR,
        };
        // Repeated, because the others may not listen yet.
        while let Err(error) = cluster.initialize(initialization.clone()).await {
            self.history.note(format_args!("the cluster is not initialized: {error}"));
            sleep(POLL).await;
            if cluster.ready().is_ok() {
                return;
            }
        }
    }

    async fn create_devices(&self, cluster: &Cluster) {
        for device in self.devices.iter() {
            loop {
                match cluster.create_device(device.clone(), spec()).await {
                    Ok(_) | Err(Error::Refused(Refusal::DeviceAlreadyExists { .. })) => break,
                    Err(error) => {
                        self.history.note(format_args!("{device} is not created: {error}"));
                        sleep(POLL).await;
                    }
                }
            }
            super::workload::note_initial(cluster, device, &self.history).await;
        }
        self.history.note("every device is created");
        self.history.lock().finished.insert(0, true);
    }
}

/// What the cluster knows of a machine.
pub(super) fn member(number: u32) -> Member {
    let (admin_address, zone) = (String::new(), String::new());
    Member { peer_address: address(number), admin_address, zone }
}

/// What all devices sign their tokens with.
pub(super) const DEVICE_KEY: [u8; 32] = [1; 32];

fn spec() -> DeviceSpec {
    let key = |bytes: [u8; 32]| Key::new(bytes.to_vec()).expect("32 bytes are a legal key");
    DeviceSpec {
        status: Status::Enabled,
        status_reason: None,
        authentication: Authentication::Sas { primary: key(DEVICE_KEY), secondary: key([2; 32]) },
        tags: Object::new(),
        desired: Object::new(),
    }
}

/// Ids of devices: those that live at the nodes, of which every shard has some, and then those that speak MQTT.
pub(super) fn devices(plan: &Plan) -> Vec<DeviceId> {
    use drover_cluster::core::ids::{ShardCount, ShardId};
    let shards = ShardCount::new(plan.shards).expect("a plan has a few shards");
    let each = plan.devices.div_ceil(plan.shards as usize);
    let mut chosen = Vec::new();
    let mut of_shard: BTreeMap<u32, usize> = BTreeMap::new();
    for number in 0_u32.. {
        if chosen.len() >= each * plan.shards as usize {
            break;
        }
        let id: DeviceId = format!("device-{number:03}").parse().expect("a legal id");
        let count = of_shard.entry(ShardId::of(&id, shards).number()).or_default();
        if *count < each {
            *count += 1;
            chosen.push(id);
        }
    }
    chosen.extend(sockets::ids(plan.socket_devices));
    chosen
}
