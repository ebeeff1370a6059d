//! A load balancer before the nodes, as small as can be: SDKs know one name and one port, and this is what stands there.
//!
//! A client that loses its node dials the same address again and finds whatever node the test has put behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Balancer {
    port: u16,
    target: watch::Sender<Option<SocketAddr>>,
    connections: Arc<AtomicU32>,
    /// Dropping it ends the listener and every connection.
    _serving: JoinSet<()>,
}

impl Balancer {
    /// Listens on a free port, with a node behind it.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (target, targets) = watch::channel(Some(target));
        let connections = Arc::new(AtomicU32::new(0));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, targets, Arc::clone(&connections)));
        Ok(Self { port, target, connections, _serving: serving })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where connections go from now on; with `None` they are closed at once. Those that are open stay.
    pub fn set_target(&self, target: Option<SocketAddr>) {
        self.target.send_replace(target);
    }

    /// How many connections it has passed on so far.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(
    listener: TcpListener,
    targets: watch::Receiver<Option<SocketAddr>>,
    connections: Arc<AtomicU32>,
) {
    let mut open = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let target = *targets.borrow();
        if let Some(target) = target {
            connections.fetch_add(1, Ordering::Relaxed);
            open.spawn(pass_on(client, target));
        }
    }
}

/// However it ends, both ends see it.
async fn pass_on(mut client: TcpStream, target: SocketAddr) {
    if let Ok(mut node) = TcpStream::connect(target).await {
        copy_bidirectional(&mut client, &mut node).await.ok();
    }
}
