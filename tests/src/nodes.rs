//! Real nodes: the built `drover`, in a temporary folder, on free loopback ports, ended by their own pid.
//!
//! When a test fails its folder stays, with a log a node, and the test's output says where.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use tempfile::TempDir;

use crate::clients::Admin;
use crate::programs::signal;
use crate::until_ok;

/// Ports that the system does not hand out by itself (Linux gives from 32768 on).
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORTS_A_NODE: u16 = 6;
const PORT_ATTEMPTS: usize = 20;
/// Enough to see spreading and forwarding, few enough that three nodes start in a second or two.
const SHARDS: u32 = 4;

/// A cluster of real processes.
pub struct Nodes {
    members: Vec<Node>,
    /// `None` once it is to be kept.
    folder: Option<TempDir>,
}

struct Node {
    home: PathBuf,
    /// The first of its ports, in the order that `drover dev --ports` gives them.
    ports: u16,
    /// Keys of the configuration that differ from what `drover dev` writes, as environment variables.
    settings: Vec<(String, String)>,
    /// The size of a file system of its own for the store, as `mount` takes it. It goes when the process goes.
    disk: Option<String>,
    /// How many files the system lets it hold open.
    open_files: Option<u32>,
    build: Build,
    process: Option<Child>,
}

/// Which program a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Current,
    /// Of one feature level less.
    Older,
}

impl Nodes {
    /// Starts a cluster and waits until it serves.
    pub async fn start(count: usize) -> Result<Self> {
        Self::start_with(count, &[]).await
    }

    /// The same, with keys of the configuration set, such as `("storage.reserve", "1GiB")`.
    pub async fn start_with(count: usize, settings: &[(&str, &str)]) -> Result<Self> {
        Self::prepare(count, settings)?.started(count).await
    }

    /// The same with the build of the feature level before.
    pub async fn start_older(count: usize) -> Result<Self> {
        let mut nodes = Self::prepare(count, &[])?;
        for node in &mut nodes.members {
            node.build = Build::Older;
        }
        nodes.started(count).await
    }

    /// One node that the system lets hold so many files open, sockets included.
    pub async fn start_with_few_files(open_files: u32) -> Result<Self> {
        let mut nodes = Self::prepare(1, &[])?;
        nodes.members[0].open_files = Some(open_files);
        nodes.started(1).await
    }

    /// A cluster whose last node keeps its data in this folder.
    pub async fn start_with_last_data(count: usize, data: &Path) -> Result<Self> {
        let mut nodes = Self::prepare(count, &[])?;
        nodes.set(count - 1, "node.data", &data.to_string_lossy());
        nodes.started(count).await
    }

    async fn started(mut self, count: usize) -> Result<Self> {
        for index in 0..count {
            self.restart(index)?;
        }
        self.initialize(count).await?;
        self.until_ready().await;
        Ok(self)
    }

    /// Starts nodes that no cluster was made of yet, and does not wait.
    pub fn start_without_cluster(count: usize) -> Result<Self> {
        let mut nodes = Self::prepare(count, &[])?;
        for index in 0..count {
            nodes.restart(index)?;
        }
        Ok(nodes)
    }

    /// One node whose store is on a file system of this size, such as `64m`. `None` where the system lets this user mount
    /// nothing, not even in a namespace of its own.
    pub async fn start_on_a_small_disk(
        size: &str,
        settings: &[(&str, &str)],
    ) -> Result<Option<Self>> {
        let mut nodes = Self::prepare(1, settings)?;
        let store = nodes.data(0).join("store");
        fs::create_dir_all(&store)?;
        let mut probe = mounting(size, &store);
        if !probe.arg("true").output()?.status.success() {
            return Ok(None);
        }
        nodes.members[0].disk = Some(size.to_owned());
        nodes.restart(0)?;
        nodes.initialize(1).await?;
        nodes.until_ready().await;
        Ok(Some(nodes))
    }

    /// A node's store as the node itself sees it, which may be on a file system of its own.
    pub fn store(&self, index: usize) -> Result<PathBuf> {
        let process = self.members[index].process.as_ref().context("the node does not run")?;
        let root = PathBuf::from(format!("/proc/{}/root", process.id()));
        Ok(root.join(self.data(index).join("store").strip_prefix("/")?))
    }

    fn prepare(count: usize, settings: &[(&str, &str)]) -> Result<Self> {
        let folder = TempDir::with_prefix("drover-test-")?;
        let base = prepare_folder(folder.path(), count)?;
        let settings: Vec<_> = settings.iter().map(|(key, value)| variable(key, value)).collect();
        let node = |number: usize| Node {
            home: folder.path().join(format!("node-{number}")),
            ports: base + (number - 1) as u16 * PORTS_A_NODE,
            settings: settings.clone(),
            disk: None,
            open_files: None,
            build: Build::Current,
            process: None,
        };
        let members = (1..=count).map(node).collect();
        Ok(Self { members, folder: Some(folder) })
    }

    async fn initialize(&self, count: usize) -> Result<()> {
        let token = self.members[0].home.join("data/admin.token");
        let token = until_ok("the first node's token", async || fs::read_to_string(&token)).await;
        let members = self.addresses(count).collect();
        let admin =
            Admin::initialize(&self.ca(), self.grpc(0), token.trim(), members, SHARDS).await?;
        self.keep_admin_key(&admin)
    }

    /// Number, peer address and admin address of the first nodes.
    fn addresses(&self, count: usize) -> impl Iterator<Item = (u32, String, String)> {
        (1..=count).map(|number| {
            let ports = self.ports(number - 1);
            (number as u32, format!("127.0.0.1:{}", ports + 4), format!("localhost:{}", ports + 2))
        })
    }

    /// The same nodes as `--member` takes them.
    pub fn member_arguments(&self, count: usize) -> Vec<String> {
        let member = |(number, peer, admin)| format!("{number}={peer},{admin}");
        self.addresses(count).map(member).collect()
    }

    /// Policy and key of a cluster that was made elsewhere than in [`Nodes::start`].
    pub fn keep_admin_key(&self, key: &str) -> Result<()> {
        fs::write(self.folder().join("admin.key"), key).context("cannot keep the admin key")
    }

    /// A policy with every permission, and its key.
    pub fn admin_key(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder().join("admin.key"))?)
    }

    /// Waits until every running node says that it is ready.
    pub async fn until_ready(&self) {
        for (index, node) in self.members.iter().enumerate() {
            if node.process.is_some() {
                until_ok(&format!("node {} to be ready", index + 1), async || {
                    self.get(index, "/readyz").await
                })
                .await;
            }
        }
    }

    /// A page of a node's HTTP listener; an error if the status is not 200.
    pub async fn get(&self, index: usize, path: &str) -> Result<String> {
        drover_chaos::http::get(self.http(index), path).await
    }

    /// A client of the admin API at one node, with every permission.
    pub fn admin(&self, index: usize) -> Result<Admin> {
        Admin::connect(&self.ca(), self.grpc(index), Some(&self.admin_key()?))
    }

    /// What `drover` needs to reach one node with every permission.
    pub fn cli_arguments(&self, index: usize) -> Result<Vec<String>> {
        let key = self.admin_key()?;
        let (policy, key) = key.trim().split_once(' ').context("policy and key")?;
        let host = crate::clients::HOST;
        let connection =
            format!("HostName={host};SharedAccessKeyName={policy};SharedAccessKey={key}");
        let mut arguments = self.endpoint_arguments(index);
        arguments.extend(["--connection-string".to_owned(), connection]);
        Ok(arguments)
    }

    /// What `drover` needs to find one node, without anything that proves who is calling.
    pub fn endpoint_arguments(&self, index: usize) -> Vec<String> {
        let endpoint = format!("https://{}:{}", crate::clients::HOST, self.grpc(index).port());
        let ca = self.ca().display().to_string();
        ["--endpoint", &endpoint, "--ca", &ca].map(str::to_owned).into()
    }

    /// A client that presents nothing.
    pub fn stranger(&self, index: usize) -> Result<Admin> {
        Admin::connect(&self.ca(), self.grpc(index), None)
    }

    /// Ends a node with SIGKILL.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let mut process = self.members[index].process.take().context("the node does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Waits for a node to end by itself; answers with its exit code.
    pub fn wait_for_end(&mut self, index: usize) -> Result<Option<i32>> {
        let mut process = self.members[index].process.take().context("the node does not run")?;
        // Waiting closes the standard input, which would tell the node to stop.
        let _input = process.stdin.take();
        Ok(process.wait()?.code())
    }

    /// Stops a node in order; answers with its exit code.
    pub fn stop(&mut self, index: usize) -> Result<Option<i32>> {
        let process = self.members[index].process.as_mut().context("the node does not run")?;
        drop(process.stdin.take());
        self.wait_for_end(index)
    }

    pub fn restart(&mut self, index: usize) -> Result<()> {
        let node = &mut self.members[index];
        ensure!(node.process.is_none(), "node {} runs already", index + 1);
        let log = File::options().create(true).append(true).open(node.home.join("log"))?;
        let program = node.build.program()?;
        let mut command = match (&node.disk, node.open_files) {
            (Some(size), _) => {
                let mut mounting = mounting(size, &node.home.join("data/store"));
                mounting.arg(program);
                mounting
            }
            (None, Some(files)) => {
                let mut limiting = Command::new("prlimit");
                limiting.arg(format!("--nofile={files}:{files}")).arg(program);
                limiting
            }
            (None, None) => Command::new(program),
        };
        let process = command
            .args([
                "node",
                "--stop-at-end-of-input",
                "--log-filter",
                "info,openraft=error,rumqttd=off",
                "--config",
            ])
            .arg(node.home.join("node.toml"))
            .envs(node.settings.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        node.process = Some(process);
        Ok(())
    }

    /// Starts a node with an empty folder that joins by a token; answers with its index.
    pub fn join(&mut self, token: &str) -> Result<usize> {
        self.join_as(token, Build::Current)
    }

    pub fn join_as(&mut self, token: &str, build: Build) -> Result<usize> {
        let index = self.members.len();
        let ports = free_ports(PORTS_A_NODE).context("no free ports")?;
        let home = self.folder().join(format!("joined-{index}"));
        fs::create_dir_all(&home)?;
        let listeners = ["mqtt", "mqtts", "grpc", "http", "peer", "https"].iter().zip(ports..);
        let listeners: Vec<String> = listeners
            .map(|(listener, port)| format!("{listener} = \"127.0.0.1:{port}\""))
            .collect();
        let config = format!(
            "[node]\ndata = \"{}\"\nadmin_address = \"localhost:{}\"\n\n\
             [tls]\ncertificate = \"{folder}/server.pem\"\nkey = \"{folder}/server.key\"\n\n\
             [listen]\n{}\n",
            home.join("data").display(),
            ports + 2,
            listeners.join("\n"),
            folder = self.folder().display(),
        );
        fs::write(home.join("node.toml"), config)?;
        let settings = vec![("DROVER_JOIN_TOKEN".to_owned(), token.to_owned())];
        let (disk, open_files, process) = (None, None, None);
        self.members.push(Node { home, ports, settings, disk, open_files, build, process });
        self.restart(index)?;
        Ok(index)
    }

    /// Which program a node runs from its next start on.
    pub fn set_build(&mut self, index: usize, build: Build) {
        self.members[index].build = build;
    }

    /// Sends SIGHUP to a node.
    pub fn hang_up(&self, index: usize) -> Result<()> {
        let process = self.members[index].process.as_ref().context("the node does not run")?;
        signal("HUP", process.id())
    }

    /// Gives a node a sixth of a CPU's time, in pieces of 50 ms, until the answer is dropped.
    pub fn starve(&self, index: usize) -> Result<Starving> {
        let process = self.members[index].process.as_ref().context("the node does not run")?;
        let node = process.id();
        let pieces = format!(
            "while kill -STOP {node} && sleep 0.25 && kill -CONT {node} && sleep 0.05; do :; done"
        );
        let pieces = Command::new("sh").arg("-c").arg(pieces).stderr(Stdio::null()).spawn()?;
        Ok(Starving { node, pieces })
    }

    /// Changes a key of a node's configuration from its next start on.
    pub fn set(&mut self, index: usize, key: &str, value: &str) {
        self.members[index].settings.push(variable(key, value));
    }

    /// The configuration of a node, as it is started with.
    pub fn config(&self, index: usize) -> PathBuf {
        self.members[index].home.join("node.toml")
    }

    /// Where a node keeps its data.
    pub fn data(&self, index: usize) -> PathBuf {
        self.members[index].home.join("data")
    }

    /// What a node has logged so far.
    pub fn log(&self, index: usize) -> String {
        fs::read_to_string(self.members[index].home.join("log")).unwrap_or_default()
    }

    pub fn ca(&self) -> PathBuf {
        self.folder().join("ca.pem")
    }

    pub fn mqtt(&self, index: usize) -> SocketAddr {
        loopback(self.ports(index))
    }

    pub fn mqtts(&self, index: usize) -> SocketAddr {
        loopback(self.ports(index) + 1)
    }

    pub fn grpc(&self, index: usize) -> SocketAddr {
        loopback(self.ports(index) + 2)
    }

    pub fn http(&self, index: usize) -> SocketAddr {
        loopback(self.ports(index) + 3)
    }

    pub fn https(&self, index: usize) -> SocketAddr {
        loopback(self.ports(index) + 5)
    }

    pub fn folder(&self) -> &Path {
        self.folder.as_ref().map(TempDir::path).expect("it is taken on drop only")
    }

    fn ports(&self, index: usize) -> u16 {
        self.members[index].ports
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|node| node.process.as_mut()) {
            // Already ended is as good.
            process.kill().ok();
            process.wait().ok();
        }
        if let Some(folder) = self.folder.take().filter(|_| std::thread::panicking()) {
            eprintln!("the nodes' logs and data are kept in {}", folder.keep().display());
        }
    }
}

/// A node that gets too little CPU as long as this is there.
#[derive(Debug)]
pub struct Starving {
    node: u32,
    pieces: Child,
}

impl Drop for Starving {
    fn drop(&mut self) {
        // What cannot be ended has ended, and so may the node have.
        let _ended = self.pieces.kill().and_then(|()| self.pieces.wait());
        let _continued = signal("CONT", self.node);
    }
}

/// Runs what is appended to it with a file system of this size at `folder`, which nobody else sees.
pub fn mounting(size: &str, folder: &Path) -> Command {
    let script = format!("mount -t tmpfs -o size={size} drover-test \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(folder);
    command
}

/// What a node presents that joins by this token.
pub fn join_credential(token: &str) -> Result<String> {
    use base64::Engine as _;
    let body = token.strip_prefix("drover-join-1.").context("the prefix of a token")?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body)?;
    let token: drover_proto::admin::JoinToken = prost::Message::decode(&*bytes)?;
    let secret: Vec<String> = token.secret.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("Join {}.{}", token.id, secret.concat()))
}

fn variable(key: &str, value: &str) -> (String, String) {
    (format!("DROVER_{}", key.to_uppercase().replace('.', "__")), value.to_owned())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The first of so many ports in a row that nobody listens on at the moment.
fn free_ports(count: u16) -> Option<u16> {
    let is_free = |port| TcpListener::bind(loopback(port)).is_ok();
    let attempts = (0..PORT_ATTEMPTS).map(|_| rand::rng().random_range(PORTS));
    attempts.into_iter().find(|first| (*first..first + count).all(is_free))
}

/// Lets `drover dev` write certificates and configurations; answers with the first port.
fn prepare_folder(folder: &Path, count: usize) -> Result<u16> {
    let mut output = String::new();
    for _ in 0..PORT_ATTEMPTS {
        let Some(base) = free_ports(PORTS_A_NODE * count as u16) else { continue };
        let made = Command::new(program()?)
            .args(["dev", "--prepare", "--nodes", &count.to_string(), "--ports", &base.to_string()])
            .arg("--data")
            .arg(folder)
            .output()?;
        if made.status.success() {
            return Ok(base);
        }
        output = String::from_utf8_lossy(&made.stderr).into_owned();
    }
    bail!("no folder could be prepared: {output}")
}

impl Build {
    fn program(self) -> Result<PathBuf> {
        match self {
            Self::Current => program(),
            Self::Older => built("drover-older"),
        }
    }
}

/// The `drover` beside this test's own executable, as cargo lays them out.
pub fn program() -> Result<PathBuf> {
    built("drover")
}

fn built(name: &str) -> Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    while folder.pop() {
        let program = folder.join(name);
        if program.is_file() {
            return Ok(program);
        }
        if folder.ends_with("debug") || folder.ends_with("release") {
            break;
        }
    }
    bail!("there is no built {name}: run make build first")
}
