//! Accepts sockets, within limits, and starts a task for each.
//!
//! A stranger's socket costs a place among the half-open ones until its device is connected, and a place among all
//! connections until it ends. There are no queues for places: whoever finds none is turned away at once and tries again,
//! perhaps at another node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use drover_cluster::Cluster;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::attempts::Attempts;
use super::close::CloseReason;
use super::config::Config;
use super::connection::{self, Shared};
use super::metrics::Meters;
use crate::tls::ServerTls;

/// The wait after a failed accept, doubled each time up to the second figure. Without it a node that has run out of file
/// descriptors would spin.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// All MQTT listeners of a node. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    half_open_places: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// What carries MQTT. WebSocket joins these.
#[derive(Debug, Clone)]
pub enum Transport {
    Plain,
    Tls(ServerTls),
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
        let mut back_off = BACK_OFF_MIN;
        loop {
            let accepted = tokio::select! {
                () = self.shared.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    back_off = BACK_OFF_MIN;
                    self.admit(socket, peer, &transport);
                }
                Err(error) => {
                    warn!(%error, wait = ?back_off, "a connection could not be accepted");
                    sleep(back_off).await;
                    back_off = BACK_OFF_MAX.min(back_off * 2);
                }
            }
        }
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

    fn admit(&self, socket: TcpStream, peer: SocketAddr, transport: &Transport) {
        let places = (
            Arc::clone(&self.places).try_acquire_owned(),
            Arc::clone(&self.half_open_places).try_acquire_owned(),
        );
        let (Ok(place), Ok(half_open)) = places else {
            self.shared.meters.turned_away.increment(1);
            debug!(%peer, "turned away: no place is free");
            return;
        };
        // An answer of a few bytes should not wait for more to come.
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%peer, %error, "the socket was gone at once");
            return;
        }
        self.shared.meters.accepted.increment(1);
        let shared = Arc::clone(&self.shared);
        match transport {
            Transport::Plain => {
                self.tasks.spawn(counted(place, Arc::clone(&shared), async move {
                    connection::run(socket, peer.ip(), shared, half_open).await;
                }));
            }
            Transport::Tls(tls) => {
                let acceptor = TlsAcceptor::from(tls.config());
                self.tasks.spawn(counted(
                    place,
                    Arc::clone(&shared),
                    over_tls(acceptor, socket, peer, shared, half_open),
                ));
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
    peer: SocketAddr,
    shared: Arc<Shared>,
    half_open: OwnedSemaphorePermit,
) {
    // Boxed, so that an open connection does not carry the room that its handshake took.
    let handshake = Box::pin(timeout(shared.config.handshake_timeout, acceptor.accept(socket)));
    match handshake.await {
        Ok(Ok(stream)) => connection::run(stream, peer.ip(), shared, half_open).await,
        Ok(Err(error)) => {
            debug!(%peer, %error, "TLS handshake failed");
            Meters::closed(CloseReason::HandshakeFailed);
        }
        Err(_) => {
            debug!(%peer, "TLS handshake timed out");
            Meters::closed(CloseReason::HandshakeFailed);
        }
    }
}
