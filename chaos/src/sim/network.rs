//! The network inside the simulation: `turmoil`'s sockets, which it delays, cuts and loses, between peers and to devices.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_cluster::core::ids::NodeId;
use drover_cluster::raft::network::{PeerIo, PeerNetwork, ProvenPeer};
use drover_node::mqtt::Server;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use turmoil::net::{TcpListener, TcpStream};

const PORT: u16 = 7000;
const MQTT_PORT: u16 = 1883;

/// A machine's name in the network.
pub(super) fn host(number: u32) -> String {
    format!("node-{number}")
}

/// The address of a machine's listener.
pub(super) fn address(number: u32) -> String {
    format!("{}:{PORT}", host(number))
}

/// The address under which a machine takes devices.
pub(super) fn mqtt_address(number: u32) -> String {
    format!("{}:{MQTT_PORT}", host(number))
}

/// Takes devices, as the system's listeners do.
pub(super) async fn serve_devices(server: Server) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", MQTT_PORT)).await?;
    loop {
        let (stream, from) = listener.accept().await?;
        let server = server.clone();
        tokio::spawn(async move { server.serve_one(stream, from.ip()).await });
    }
}

/// Which node runs on which machine. A machine that has joined nothing has none. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    nodes: Arc<Mutex<BTreeMap<u32, NodeId>>>,
}

impl Directory {
    /// The first members are numbered as their machines.
    pub(super) fn new(nodes: u32) -> Self {
        let first = (1..=nodes).map(|number| (number, NodeId::new(number, 0)));
        Self { nodes: Arc::new(Mutex::new(first.collect())) }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u32, NodeId>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, machine: u32, node: NodeId) {
        self.nodes().insert(machine, node);
    }

    pub(super) fn node(&self, machine: u32) -> Option<NodeId> {
        self.nodes().get(&machine).copied()
    }

    pub(super) fn machine(&self, node: NodeId) -> Option<u32> {
        self.nodes().iter().find(|(_, known)| **known == node).map(|(machine, _)| *machine)
    }

    /// As a certificate would, a host's name proves which node is there.
    fn proven(&self, host: Option<&str>) -> ProvenPeer {
        let machine = host.and_then(|host| host.strip_prefix("node-")?.parse().ok());
        ProvenPeer(machine.and_then(|machine| self.node(machine)))
    }
}

/// A host's listener and connections.
#[derive(Debug)]
pub(super) struct SimulatedNetwork {
    pub(super) directory: Directory,
}

impl PeerNetwork for SimulatedNetwork {
    fn connect(&self, node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let (address, directory) = (address.to_owned(), self.directory.clone());
        Box::pin(async move {
            let stream = TcpStream::connect(address.as_str()).await?;
            let proven = directory.proven(address.split_once(':').map(|(host, _)| host));
            if proven.0 != Some(node) {
                return Err(io::Error::other(format!("{address} is not node {node}")));
            }
            Ok(PeerIo::new(stream, proven))
        })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let listening = stream::once(TcpListener::bind(("0.0.0.0", PORT)));
        let directory = self.directory.clone();
        let accepted = move |listener| {
            stream::unfold((listener, directory.clone()), |(listener, directory)| async move {
                Some((accept(&listener, &directory).await, (listener, directory)))
            })
        };
        listening
            .flat_map(move |bound| match bound {
                Ok(listener) => accepted(listener).left_stream(),
                Err(error) => stream::once(async { Err(error) }).right_stream(),
            })
            .boxed()
    }
}

async fn accept(listener: &TcpListener, directory: &Directory) -> io::Result<PeerIo> {
    let (stream, from) = listener.accept().await?;
    let host = turmoil::reverse_lookup(from.ip());
    Ok(PeerIo::new(stream, directory.proven(host.as_deref())))
}
