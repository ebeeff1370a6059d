//! The folder and the ports of a development hub: what is made on the first start, and found again on the next.
//!
//! ```text
//! ca.pem ca.key            whom devices and API clients trust
//! server.pem server.key    what all nodes show them
//! peer-ca.pem peer-ca.key  signs the nodes' own certificates
//! admin.connection         connection string of a policy that may do everything
//! DEVICE.connection        connection string of the first device
//! node-1/                  node.toml, peer.pem, peer.key, and the node's data
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use drover_core::ids::NodeId;

use super::certificates::{self, Authority};
use crate::config::{Config, Listen, Listeners, Log, Node, Peer, Tls, show};

/// How many ports a node has.
const PORTS: u16 = 5;
/// How far the usual ports of two nodes are apart.
const USUAL_DISTANCE: u16 = 10;

/// Ports of one node, all on loopback.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) mqtt: u16,
    pub(super) mqtts: u16,
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
                grpc: usual(7443),
                http: usual(9600),
                peer: usual(7070),
            });
        };
        match base
            .checked_add(index * PORTS)
            .and_then(|first| Some((first, first.checked_add(PORTS)?)))
        {
            Some((mqtt, _)) => {
                Ok(Self { mqtt, mqtts: mqtt + 1, grpc: mqtt + 2, http: mqtt + 3, peer: mqtt + 4 })
            }
            None => bail!("--ports {base} is too high: use 65000 or less"),
        }
    }

    /// An error now says what to do; one from a node that is being started would come too late to be read.
    fn refuse_taken(self) -> Result<()> {
        for port in [self.mqtt, self.mqtts, self.grpc, self.http, self.peer] {
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
        let hub = Authority::open(&folder, "ca", "Drover development CA")?;
        hub.sign(&folder, "server", certificates::host_names())?;
        let members = Authority::open(&folder, "peer-ca", "Drover development CA for nodes")?;
        let mut nodes = Vec::new();
        for (number, own) in &ports {
            own.refuse_taken()?;
            let home = folder.join(format!("node-{number}"));
            fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
            let id = NodeId::new((*number).into(), 0);
            members.sign(&home, "peer", certificates::node_names(id))?;
            let mut config = config(&folder, &home, *number, *own, log);
            config.peers = peers(&ports);
            let file = home.join("node.toml");
            certificates::write(&file, &show::to_toml(&config))?;
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
            "{} holds a hub of {found} node(s), not {count}: run drover dev --nodes {found}, use another folder with \
             --data, or start over with --fresh (this deletes its data)",
            folder.display()
        );
    }
    Ok(())
}

fn config(folder: &Path, home: &Path, number: u16, ports: Ports, log: &Log) -> Config {
    Config {
        node: Node { number: number.into(), data: home.join("data"), ..Node::default() },
        listen: Listeners {
            peer: loopback(ports.peer),
            mqtts: Listen::At(loopback(ports.mqtts)),
            mqtt: Listen::At(loopback(ports.mqtt)),
            grpc: loopback(ports.grpc),
            http: Listen::At(loopback(ports.http)),
        },
        tls: Tls {
            certificate: folder.join("server.pem"),
            key: folder.join("server.key"),
            peer_certificate: home.join("peer.pem"),
            peer_key: home.join("peer.key"),
            peer_ca: folder.join("peer-ca.pem"),
        },
        log: log.clone(),
        ..Config::default()
    }
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
