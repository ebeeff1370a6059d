//! The peers' network inside the simulation: `turmoil`'s sockets, which it delays, cuts and loses.

use std::io;

use drover_cluster::core::ids::NodeId;
use drover_cluster::raft::network::{PeerIo, PeerNetwork, ProvenPeer};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use turmoil::net::{TcpListener, TcpStream};

const PORT: u16 = 7000;

/// A node's name in the network.
pub(super) fn host(number: u32) -> String {
    format!("node-{number}")
}

/// The address of a node's listener.
pub(super) fn address(number: u32) -> String {
    format!("{}:{PORT}", host(number))
}

/// A host's listener and connections. A host's name proves who it is.
#[derive(Debug)]
pub(super) struct SimulatedNetwork;

impl PeerNetwork for SimulatedNetwork {
    fn connect(&self, node: NodeId, address: &str) -> BoxFuture<'static, io::Result<PeerIo>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address.as_str()).await?;
            Ok(PeerIo::new(stream, ProvenPeer(Some(node))))
        })
    }

    fn incoming(&self) -> BoxStream<'static, io::Result<PeerIo>> {
        let listening = stream::once(TcpListener::bind(("0.0.0.0", PORT)));
        let accepted = |listener| {
            stream::unfold(
                listener,
                |listener| async move { Some((accept(&listener).await, listener)) },
            )
        };
        listening
            .flat_map(move |bound| match bound {
                Ok(listener) => accepted(listener).left_stream(),
                Err(error) => stream::once(async { Err(error) }).right_stream(),
            })
            .boxed()
    }
}

async fn accept(listener: &TcpListener) -> io::Result<PeerIo> {
    let (stream, from) = listener.accept().await?;
    let name = turmoil::reverse_lookup(from.ip());
    let number = name.and_then(|name| name.strip_prefix("node-")?.parse().ok());
    Ok(PeerIo::new(stream, ProvenPeer(number.map(|number| NodeId::new(number, 0)))))
}
