//! The folder of a cluster: certificates, a configuration a node, data, logs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml::{Table, Value, toml};

use super::authority::Authority;
use super::{Front, Place};
use crate::ports;

/// Written by a node that has not been initialized; it proves that whoever initializes it may read its disk.
pub(super) const BOOTSTRAP_TOKEN: &str = "admin.token";

pub(super) struct Layout {
    folder: PathBuf,
    pub(super) ca_pem: String,
    nodes: Vec<Addresses>,
}

/// A node has so many listeners.
const PORTS: usize = 5;

/// Where one node listens and keeps its data.
struct Addresses {
    data: PathBuf,
    mqtt: SocketAddr,
    mqtts: SocketAddr,
    admin: SocketAddr,
    http: SocketAddr,
    peer: SocketAddr,
    /// Where the others connect to reach `peer`.
    shown: SocketAddr,
}

impl Layout {
    /// Writes everything that a node at each of `places` needs to start.
    pub(super) fn create(folder: &Path, places: &[Place]) -> anyhow::Result<Self> {
        let count = places.len();
        let ports = ports::several(PORTS * count)?;
        let nodes =
            ports.chunks_exact(PORTS).zip(places).enumerate().map(|(node, (ports, place))| {
                Addresses::new(ports, place, &folder.join(format!("node-{}", node + 1)))
            });
        let hub = Authority::new("chaos hub")?;
        let members = Authority::new("chaos members")?;
        let addresses = places.iter().filter_map(|place| place.address);
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        let names = [super::HOST, "127.0.0.1"].into_iter();
        let names: Vec<&str> = names.chain(addresses.iter().map(String::as_str)).collect();
        hub.sign(folder, "server", &names)?;
        fs::write(folder.join("peer-ca.pem"), &members.pem)?;
        let layout =
            Self { folder: folder.to_owned(), ca_pem: hub.pem.clone(), nodes: nodes.collect() };
        for node in 0..count {
            let home = layout.home(node);
            fs::create_dir_all(&home)?;
            members.sign(&home, "peer", &[&format!("node-{}-0.drover", node + 1)])?;
            fs::write(layout.config(node), layout.text(node).to_string())?;
        }
        Ok(layout)
    }

    /// Whom the command line is to trust.
    pub(super) fn write_ca(&self) -> anyhow::Result<PathBuf> {
        let file = self.folder.join("ca.pem");
        fs::write(&file, &self.ca_pem)?;
        Ok(file)
    }

    /// Writes what a node at `place` needs that is no founder, into a folder of its own. Answers the folder, and where the node
    /// shows its metrics.
    pub(super) fn write_spare(&self, place: &Place) -> anyhow::Result<(PathBuf, SocketAddr)> {
        let home = tempfile::Builder::new().prefix("spare-").tempdir_in(&self.folder)?.keep();
        let own = Addresses::new(&ports::several(PORTS)?, place, &home);
        let mut table = self.common(&own);
        let addresses = [("peer_address", own.shown), ("admin_address", own.admin)];
        let addresses = addresses.map(|(key, address)| (key, Value::from(address.to_string())));
        extend(&mut table, "node", addresses);
        fs::write(home.join("node.toml"), table.to_string())?;
        Ok((home, own.http))
    }

    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    fn home(&self, node: usize) -> PathBuf {
        self.folder.join(format!("node-{}", node + 1))
    }

    pub(super) fn config(&self, node: usize) -> PathBuf {
        self.home(node).join("node.toml")
    }

    pub(super) fn log(&self, node: usize) -> PathBuf {
        self.home(node).join("log")
    }

    pub(super) fn data(&self, node: usize) -> PathBuf {
        self.nodes[node].data.clone()
    }

    pub(super) fn mqtt_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.mqtt).collect()
    }

    pub(super) fn mqtts_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.mqtts).collect()
    }

    pub(super) fn admin_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.admin).collect()
    }

    pub(super) fn http_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.http).collect()
    }

    pub(super) fn peer_addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.shown).collect()
    }

    /// What the first node wrote when it started.
    pub(super) fn bootstrap_token(&self) -> anyhow::Result<String> {
        let file = self.data(0).join(BOOTSTRAP_TOKEN);
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    fn text(&self, node: usize) -> Table {
        let mut table = self.common(&self.nodes[node]);
        extend(&mut table, "node", [("number", Value::from(node as i64 + 1))]);
        let files = [
            ("peer_certificate", text(&self.home(node).join("peer.pem"))),
            ("peer_key", text(&self.home(node).join("peer.key"))),
            ("peer_ca", text(&self.folder.join("peer-ca.pem"))),
        ];
        extend(&mut table, "tls", files);
        table.insert("peers".to_owned(), Value::from(self.peers()));
        table
    }

    /// What founders and those who join have in common.
    fn common(&self, own: &Addresses) -> Table {
        let address = |address: SocketAddr| Value::from(address.to_string());
        // A measurement asks for all a device can send: the rate limit of one device is off, and
        // its mailbox is as deep as may be.
        let mut table = toml! {
            [node]
            [listen]
            [tls]
            [limits]
            device_messages_per_second = 0
            [commands]
            per_device = 1_000
            [log]
            filter = "warn,rumqttd=off"
        };
        let node = [("data", text(&own.data)), ("host_names", Value::from(vec![super::HOST]))];
        extend(&mut table, "node", node);
        let listen = [
            ("peer", address(own.peer)),
            ("mqtts", address(own.mqtts)),
            ("mqtt", address(own.mqtt)),
            ("https", Value::from("off")),
            ("grpc", address(own.admin)),
            ("http", address(own.http)),
        ];
        extend(&mut table, "listen", listen);
        let files = [
            ("certificate", text(&self.folder.join("server.pem"))),
            ("key", text(&self.folder.join("server.key"))),
        ];
        extend(&mut table, "tls", files);
        table
    }

    fn peers(&self) -> Vec<Value> {
        let peer = |(node, own): (usize, &Addresses)| {
            let mut table = Table::new();
            table.insert("number".to_owned(), Value::from(node as i64 + 1));
            table.insert("peer_address".to_owned(), Value::from(own.shown.to_string()));
            table.insert("admin_address".to_owned(), Value::from(own.admin.to_string()));
            Value::Table(table)
        };
        self.nodes.iter().enumerate().map(peer).collect()
    }
}

impl Addresses {
    /// Of a node at `place`, with these ports unless it has an address of its own, and its data below `home` likewise.
    fn new(ports: &[SocketAddr], place: &Place, home: &Path) -> Self {
        let at = |which: usize| {
            SocketAddr::new(place.address.unwrap_or(ports[which].ip()), ports[which].port())
        };
        let front = place.front.unwrap_or(Front { listener: at(4), shown: at(4) });
        Self {
            data: place.data.clone().unwrap_or_else(|| home.join("data")),
            mqtt: at(0),
            mqtts: at(1),
            admin: at(2),
            // Without TLS or login: it stays on the node's own loopback.
            http: ports[3],
            peer: front.listener,
            shown: front.shown,
        }
    }
}

fn text(path: &Path) -> Value {
    Value::from(path.to_string_lossy().into_owned())
}

fn extend(
    table: &mut Table,
    section: &str,
    values: impl IntoIterator<Item = (&'static str, Value)>,
) {
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let section = section.as_table_mut().expect("sections are tables");
    section.extend(values.into_iter().map(|(key, value)| (key.to_owned(), value)));
}
