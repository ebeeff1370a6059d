//! Takes sockets, within limits, and starts a task for each.
//!
//! A stranger's socket costs a place among the half-open ones until its device is connected, and a place among all
//! connections until it ends. There are no queues for places: whoever finds none is turned away at once and tries again,
//! perhaps at another node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use drover_cluster::Cluster;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::attempts::Attempts;
use super::close::CloseReason;
use super::config::Config;
use super::connection::{self, Shared};
use super::metrics::Meters;
use crate::accept::accept_each;
use crate::peer::{Peer, shake_hands};
use crate::tls::ServerTls;

/// All MQTT listeners of a node. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    half_open_places: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// What carries MQTT over a socket of its own. Over WebSocket it is carried by the HTTPS port: [`super::websocket`].
#[derive(Debug, Clone)]
pub enum Transport {
    Plain,
    Tls(ServerTls),
}

/// What a connection holds: one place for as long as it lasts, one until its device is connected.
pub(super) struct Places {
    connection: OwnedSemaphorePermit,
    half_open: OwnedSemaphorePermit,
}

impl Server {
    /// To be made after the metrics recorder is installed.
    pub fn new(cluster: Cluster, config: Config) -> Self {
        let places = Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
        let half_open = config.handshakes_max.min(Semaphore::MAX_PERMITS);
        let shared = Shared {
            cluster,
            attempts: Attempts::new(config.login_failures_max, Instant::now()),
            config: Arc::new(config),
            meters: Meters::new(),
            stop: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            places,
            half_open_places: Arc::new(Semaphore::new(half_open)),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts until [`Server::stop`].
    pub async fn serve(&self, listener: TcpListener, transport: Transport) {
        accept_each(&listener, &self.shared.stop, |socket, address| {
            if let Some(places) = self.take_places() {
                self.admit(socket, address, &transport, places);
            }
        })
        .await;
    }

    /// Ends all connections: what is with the cluster is answered if it is soon, then the sockets are closed, and devices
    /// connect elsewhere. Returns when all have ended or at the deadline.
    pub async fn stop(&self, deadline: Duration) {
        self.shared.stop.cancel();
        self.tasks.close();
        if timeout(deadline, self.tasks.wait()).await.is_err() {
            warn!(left = self.tasks.len(), "some connections did not end in time");
        }
    }

    /// `None`: whoever asks has to be turned away.
    pub(super) fn take_places(&self) -> Option<Places> {
        let connection = Arc::clone(&self.places).try_acquire_owned();
        let half_open = Arc::clone(&self.half_open_places).try_acquire_owned();
        let (Ok(connection), Ok(half_open)) = (connection, half_open) else {
            self.shared.meters.turned_away.increment(1);
            debug!("turned away: no place is free");
            return None;
        };
        self.shared.meters.accepted.increment(1);
        Some(Places { connection, half_open })
    }

    /// Carries a connection over any stream of bytes to its end, without TLS; turns it away if no place is free. For sockets
    /// that are not the system's.
    pub async fn serve_one(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        address: IpAddr,
    ) {
        if let Some(places) = self.take_places() {
            self.serve_stream(stream, Peer::without_tls(address), places).await;
        }
    }

    /// Carries a connection whose bytes somebody else has brought to this point, to its end.
    pub(super) async fn serve_stream(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        peer: Peer,
        places: Places,
    ) {
        let shared = Arc::clone(&self.shared);
        let Places { connection, half_open } = places;
        let work = connection::run(stream, peer, Arc::clone(&shared), half_open);
        self.tasks.track_future(counted(connection, shared, work)).await;
    }

    fn admit(&self, socket: TcpStream, address: SocketAddr, transport: &Transport, places: Places) {
        let shared = Arc::clone(&self.shared);
        let Places { connection, half_open } = places;
        match transport {
            Transport::Plain => {
                let peer = Peer::without_tls(address.ip());
                let work = connection::run(socket, peer, Arc::clone(&shared), half_open);
                self.tasks.spawn(counted(connection, shared, work));
            }
            Transport::Tls(tls) => {
                let acceptor = TlsAcceptor::from(tls.config());
                let work = over_tls(acceptor, socket, address, Arc::clone(&shared), half_open);
                self.tasks.spawn(counted(connection, shared, work));
            }
        }
    }
}

async fn counted(
    _place: OwnedSemaphorePermit,
    shared: Arc<Shared>,
    work: impl Future<Output = ()>,
) {
    shared.meters.connections.increment(1.0);
    work.await;
    shared.meters.connections.decrement(1.0);
}

async fn over_tls(
    acceptor: TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
    shared: Arc<Shared>,
    half_open: OwnedSemaphorePermit,
) {
    // Boxed, so that an open connection does not carry the room that its handshake took.
    let handshake =
        Box::pin(shake_hands(&acceptor, socket, address, shared.config.handshake_timeout));
    let (stream, peer) = match shared.stop.run_until_cancelled(handshake).await {
        Some(Some(shaken)) => shaken,
        Some(None) => return Meters::closed(CloseReason::HandshakeFailed),
        None => return Meters::closed(CloseReason::Stopping),
    };
    connection::run(stream, peer, shared, half_open).await;
}
