//! A real cluster: `drover node` processes on loopback, started, killed and started again.
//!
//! [`authority`] makes the certificates, [`files`] the configuration, [`admin`] speaks to the API, [`commands`] to devices
//! through it, and [`backend`] as fast as it goes; [`spare`] is a node that joins later, [`backup`] copies all of it. What the cluster stores lives in a
//! temporary folder that goes when the cluster goes.

pub mod admin;
pub mod authority;
pub mod backend;
pub mod backup;
pub mod commands;
mod files;
mod program;
pub mod spare;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::fleet::Fleet;
use crate::mqtt::link::Tls;
use crate::peers::{total, until_ok};
use crate::process::{Process, Usage};
use admin::Admin;
use files::Layout;
pub use spare::Spare;

/// The name that the hub answers to.
pub const HOST: &str = "localhost";
/// The key of every device of a run, base64 of 32 bytes: a measurement keeps no secrets.
pub const DEVICE_KEY: &str = "ZHJvdmVyLWNoYW9zLWRldmljZS1rZXktMDEyMzQ1Njc=";
/// Three nodes on two busy cores elect the leaders of all shards well within this.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Debug, Clone)]
pub struct Shape {
    pub nodes: usize,
    pub shards: u32,
}

/// Where a node lives, where that is not a temporary folder and loopback.
#[derive(Debug, Clone, Default)]
pub struct Place {
    pub address: Option<IpAddr>,
    /// An empty folder.
    pub data: Option<PathBuf>,
    /// What stands before its command.
    pub wrapper: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub front: Option<Front>,
}

/// Something that stands before a node's peer listener.
#[derive(Debug, Clone, Copy)]
pub struct Front {
    /// Where the node listens.
    pub listener: SocketAddr,
    /// Where the others are told that it does.
    pub shown: SocketAddr,
}

/// A running cluster. Its processes end and its data goes when this is dropped.
pub struct Nodes {
    program: PathBuf,
    layout: Layout,
    places: Vec<Place>,
    processes: Vec<Option<Process>>,
    admin: Admin,
    folder: TempDir,
}

impl Nodes {
    /// Starts the nodes, initializes the cluster and waits until each shard has a leader.
    pub async fn start(shape: &Shape) -> anyhow::Result<Self> {
        Self::start_at(vec![Place::default(); shape.nodes], shape.shards).await
    }

    /// The same with a node at each of `places`.
    pub async fn start_at(places: Vec<Place>, shards: u32) -> anyhow::Result<Self> {
        let program = program::find()?;
        let folder = TempDir::with_prefix("drover-chaos-")?;
        let layout = Layout::create(folder.path(), &places)?;
        let mut processes = Vec::new();
        for (node, place) in places.iter().enumerate() {
            processes.push(Some(spawn(&program, &layout, node, place)?));
        }
        let token =
            bootstrap_token(&layout, &mut processes).await.with_context(|| logs(&layout))?;
        let admin = Admin::initialize(&layout, &token, shards, READY_TIMEOUT)
            .await
            .with_context(|| logs(&layout))?;
        let nodes = Self { program, layout, places, processes, admin, folder };
        nodes.until_led(READY_TIMEOUT).await?;
        Ok(nodes)
    }

    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a node keeps its data.
    pub fn data(&self, node: usize) -> PathBuf {
        self.layout.data(node)
    }

    pub fn count(&self) -> usize {
        self.processes.len()
    }

    /// Devices that connect without TLS, spread over the nodes.
    pub fn fleet(&self, client_id: &str) -> Fleet {
        Fleet::hub(self.layout.mqtt_addresses(), HOST, client_id, DEVICE_KEY)
    }

    /// The same by TLS.
    pub fn fleet_tls(&self, client_id: &str) -> anyhow::Result<Fleet> {
        let addresses: Vec<SocketAddr> = self.layout.mqtts_addresses();
        let tls = Tls::new(self.layout.ca_pem.as_bytes(), HOST)?;
        Ok(Fleet::hub(addresses, HOST, client_id, DEVICE_KEY).with_tls(tls))
    }

    /// Where the nodes show their metrics.
    pub fn http(&self) -> Vec<SocketAddr> {
        self.layout.http_addresses()
    }

    /// A place for a node that joins.
    pub fn spare(&self, place: Place) -> anyhow::Result<Spare> {
        Spare::new(&self.layout, place)
    }

    pub async fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let mut process = self.processes[node].take().context("the node is down already")?;
        process.kill().await
    }

    /// Ends a node for good, whether it is up or not.
    pub async fn end(&mut self, node: usize) -> anyhow::Result<()> {
        match self.processes[node].take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// All that each node said, into files in `folder`.
    pub fn copy_logs(&self, folder: &Path) -> anyhow::Result<()> {
        for node in 0..self.count() {
            std::fs::copy(self.layout.log(node), folder.join(format!("node-{}.log", node + 1)))?;
        }
        Ok(())
    }

    /// The last lines that each node said.
    pub fn logs(&self) -> String {
        logs(&self.layout)
    }

    pub fn restart(&mut self, node: usize) -> anyhow::Result<()> {
        ensure!(self.processes[node].is_none(), "the node is up already");
        self.processes[node] = Some(spawn(&self.program, &self.layout, node, &self.places[node])?);
        Ok(())
    }

    /// The same, with other settings of the environment from now on.
    pub fn restart_with(
        &mut self,
        node: usize,
        environment: Vec<(String, String)>,
    ) -> anyhow::Result<()> {
        self.places[node].environment = environment;
        self.restart(node)
    }

    /// The process of a node that is up.
    pub fn process(&mut self, node: usize) -> anyhow::Result<&mut Process> {
        self.processes[node].as_mut().with_context(|| format!("node {} is down", node + 1))
    }

    /// Whether a node that was started has ended by itself; it may then be restarted.
    pub fn take_ended(&mut self, node: usize) -> anyhow::Result<bool> {
        let Some(process) = &mut self.processes[node] else { return Ok(false) };
        let has_ended = process.has_ended()?;
        if has_ended {
            self.processes[node] = None;
        }
        Ok(has_ended)
    }

    pub fn usage_of(&self, node: usize) -> anyhow::Result<Usage> {
        self.processes[node].as_ref().context("the node is down")?.usage()
    }

    /// What the running nodes have used together.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        total(self.processes.iter().flatten())
    }

    /// A node that ended by itself has a bug: the end of its log says which.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        for process in self.processes.iter_mut().flatten() {
            let ended = process.has_ended()?;
            ensure!(!ended, "{} ended by itself\n{}", process.name, logs(&self.layout));
        }
        Ok(())
    }

    /// Waits until every shard, and the meta group, has a leader that is up.
    pub async fn until_led(&self, patience: Duration) -> anyhow::Result<()> {
        until_ok("every shard has a leader", patience, async || {
            let status = self.admin.status().await?;
            let leaderless = status.shards.iter().filter(|shard| shard.leader.is_none()).count();
            ensure!(
                leaderless == 0,
                "{leaderless} of {} groups have no leader",
                status.shards.len()
            );
            Ok(())
        })
        .await
        .with_context(|| logs(&self.layout))
    }

    /// Waits until `node` answers for itself; says how long that took.
    pub async fn until_answers(&self, node: usize, patience: Duration) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if self.admin.status_at(node).await.is_ok() {
                return Ok(begin.elapsed());
            }
            sleep(PAUSE).await;
        }
        self.admin.status_at(node).await.with_context(|| logs(&self.layout))?;
        Ok(begin.elapsed())
    }
}

/// What the first node writes when it starts. A node that ends instead is not waited for.
async fn bootstrap_token(
    layout: &Layout,
    processes: &mut [Option<Process>],
) -> anyhow::Result<String> {
    let begin = Instant::now();
    loop {
        for process in processes.iter_mut().flatten() {
            ensure!(!process.has_ended()?, "{} ended by itself", process.name);
        }
        match layout.bootstrap_token() {
            Err(_) if begin.elapsed() < READY_TIMEOUT => sleep(PAUSE).await,
            answer => return answer.context("the first node does not start"),
        }
    }
}

fn spawn(program: &Path, layout: &Layout, node: usize, place: &Place) -> anyhow::Result<Process> {
    let mut words = place.wrapper.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().expect("the program itself is a word"));
    command.args(words).envs(place.environment.iter().cloned());
    // With this program gone, by whatever signal, the nodes go too.
    command.args(["node", "--stop-at-end-of-input", "--config"]).arg(layout.config(node));
    Process::start(&format!("node {}", node + 1), &mut command, &layout.log(node))
}

/// The last lines that each node said.
fn logs(layout: &Layout) -> String {
    const LINES: usize = 8;
    let mut text = String::new();
    for node in 0..layout.count() {
        let log = std::fs::read_to_string(layout.log(node)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(LINES).collect();
        for line in lines.iter().rev() {
            text.extend(["node ", &(node + 1).to_string(), " | ", line, "\n"]);
        }
    }
    text
}
