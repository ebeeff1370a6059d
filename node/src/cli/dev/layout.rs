//! The folder and the ports of a development hub: what is made on the first start, and found again on the next.
//!
//! ```text
//! ca.pem ca.key          whom devices, API clients and nodes trust
//! server.pem server.key  what all nodes show devices and API clients
//! node-1-0.pem …         what a node shows its peers
//! admin.connection       connection string of a policy that may do everything
//! DEVICE.connection      connection string of the first device
//! node-1/                node.toml and the node's data
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use drover_core::ids::NodeId;

use super::files::write_secret;
use crate::cli::output::counted;
use crate::clock;
use crate::config::{Config, Listen, Listeners, Log, Node, Peer, Tls, show};
use crate::tls::KeyPair;
use crate::tls::authority::Authority;

/// How many ports a node has.
const PORTS: u16 = 6;
/// How far the usual ports of two nodes are apart.
const USUAL_DISTANCE: u16 = 10;

/// Ports of one node, all on loopback.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) mqtt: u16,
    pub(super) mqtts: u16,
    pub(super) https: u16,
    pub(super) grpc: u16,
    pub(super) http: u16,
    peer: u16,
}

impl Ports {
    /// The usual ports, or consecutive ones from `base` on; nodes are numbered from 1.
    fn of(node: u16, base: Option<u16>) -> Result<Self> {
        let index = node - 1;
        let Some(base) = base else {
            let usual = |port: u16| port + index * USUAL_DISTANCE;
            return Ok(Self {
                mqtt: usual(1883),
                mqtts: usual(8883),
                https: usual(8443),
                grpc: usual(7443),
                http: usual(9600),
                peer: usual(7070),
            });
        };
        match base
            .checked_add(index * PORTS)
            .and_then(|first| Some((first, first.checked_add(PORTS)?)))
        {
            Some((first, _)) => Ok(Self {
                mqtt: first,
                mqtts: first + 1,
                grpc: first + 2,
                http: first + 3,
                peer: first + 4,
                https: first + 5,
            }),
            None => bail!("--ports {base} is too high: use 65000 or less"),
        }
    }

    fn listeners(self) -> Listeners {
        Listeners {
            peer: loopback(self.peer),
            mqtts: Listen::At(loopback(self.mqtts)),
            mqtt: Listen::At(loopback(self.mqtt)),
            https: Listen::At(loopback(self.https)),
            grpc: loopback(self.grpc),
            http: Listen::At(loopback(self.http)),
        }
    }

    /// An error now says what to do; one from a node that is being started would come too late to be read.
    fn refuse_taken(self) -> Result<()> {
        for port in [self.mqtt, self.mqtts, self.https, self.grpc, self.http, self.peer] {
            if let Err(problem) = TcpListener::bind(loopback(port)) {
                bail!(
                    "port {port} cannot be used ({problem}): stop what listens there (another drover dev?), or choose \
                     other ports with --ports 20000"
                );
            }
        }
        Ok(())
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One node of the development hub.
#[derive(Debug, Clone)]
pub(super) struct DevNode {
    pub(super) number: u16,
    pub(super) ports: Ports,
    pub(super) config: Config,
    /// Where `config` is written.
    pub(super) file: PathBuf,
}

/// The whole folder.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) folder: PathBuf,
    pub(super) nodes: Vec<DevNode>,
}

impl Layout {
    /// Makes what is not there yet, and writes certificates and the nodes' configuration anew.
    pub(super) fn open(folder: &Path, count: u16, base: Option<u16>, log: &Log) -> Result<Self> {
        fs::create_dir_all(folder)
            .and_then(|()| folder.canonicalize())
            .with_context(|| format!("cannot make the folder {}", folder.display()))
            .and_then(|folder| Self::fill(folder, count, base, log))
    }

    fn fill(folder: PathBuf, count: u16, base: Option<u16>, log: &Log) -> Result<Self> {
        refuse_another_size(&folder, count)?;
        let ports = (1..=count)
            .map(|node| Ok((node, Ports::of(node, base)?)))
            .collect::<Result<Vec<(u16, Ports)>>>()?;
        // Certificates are made anew at each start, so they never run out.
        let authority = Authority::open_or_create(&folder, clock::unix_ms() / 1_000)?;
        let server = authority.issue_server(&host_names())?;
        let mut nodes = Vec::new();
        for (number, own) in &ports {
            own.refuse_taken()?;
            let home = folder.join(format!("node-{number}"));
            fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
            let peer = authority.issue_node(NodeId::new((*number).into(), 0))?;
            let config = Config {
                node: Node { number: (*number).into(), data: home.join("data"), ..Node::default() },
                peers: peers(&ports),
                listen: own.listeners(),
                tls: tls(&server, peer, authority.certificate()),
                log: log.clone(),
                ..Config::default()
            };
            let file = home.join("node.toml");
            write_secret(&file, &show::to_toml(&config))?;
            nodes.push(DevNode { number: *number, ports: *own, config, file });
        }
        Ok(Self { folder, nodes })
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub(super) fn connection_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.connection"))
    }
}

/// A cluster's members are fixed for now: one node cannot become three by another flag.
fn refuse_another_size(folder: &Path, count: u16) -> Result<()> {
    let is_there = |number: u16| folder.join(format!("node-{number}")).exists();
    let found = (1..=9).take_while(|number| is_there(*number)).count();
    if found != 0 && found != usize::from(count) {
        bail!(
            "{} holds a hub of {}, not {count}: run drover dev --nodes {found}, use another folder with \
             --data, or start over with --fresh (this deletes its data)",
            folder.display(),
            counted(found as u64, "node"),
        );
    }
    Ok(())
}

fn tls(server: &KeyPair, peer: KeyPair, ca: PathBuf) -> Tls {
    Tls {
        certificate: server.certificate.clone(),
        key: server.key.clone(),
        client_ca: PathBuf::new(),
        peer_certificate: peer.certificate,
        peer_key: peer.key,
        peer_ca: ca,
    }
}

/// The names that this machine may be called by from itself.
fn host_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = machine.trim().to_ascii_lowercase();
    if !machine.is_empty() && machine.is_ascii() {
        names.push(machine);
    }
    names
}

fn peers(ports: &[(u16, Ports)]) -> Vec<Peer> {
    let peer = |(number, ports): &(u16, Ports)| Peer {
        number: (*number).into(),
        peer_address: loopback(ports.peer).to_string(),
        admin_address: format!("localhost:{}", ports.grpc),
        ..Peer::default()
    };
    ports.iter().map(peer).collect()
}
