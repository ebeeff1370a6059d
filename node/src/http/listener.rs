//! Sockets to requests. A request carries the [`Peer`] that sent it as an extension.
//!
//! A connection takes a place until it ends or is upgraded to something else, which has places of its own. Whoever finds
//! none is turned away at once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use tracing::debug;

use crate::accept::accept_each;
use crate::peer::{Peer, shake_hands};
use crate::tls::ServerTls;

/// The longest head of a request. Tokens and the SDKs' user agents need two or three thousand bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What clients may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sockets, less those that were upgraded.
    pub connections_max: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the end of the handshake, or of the former request, to the end of a request's head.
    pub head_timeout: Duration,
}

/// What all connections share.
struct Shared {
    acceptor: TlsAcceptor,
    routes: Router,
    limits: Limits,
    stop: CancellationToken,
}

/// Serves until `stop`. Returns when the requests that were under way are answered.
pub async fn serve(
    listener: TcpListener,
    tls: &ServerTls,
    routes: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let tasks = TaskTracker::new();
    let shared = Arc::new(Shared { acceptor: offering_http1(tls), routes, limits, stop });
    accept_each(&listener, &shared.stop, |socket, address| {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            debug!(%address, "turned away: no place is free");
            return;
        };
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let _place = place;
            let limit = shared.limits.handshake_timeout;
            let shaking = shake_hands(&shared.acceptor, socket, address, limit);
            // Whoever has not asked yet is not waited for.
            if let Some(Some((stream, peer))) = shared.stop.run_until_cancelled(shaking).await {
                answer(stream, peer, &shared).await;
            }
        });
    })
    .await;
    tasks.close();
    tasks.wait().await;
}

fn offering_http1(tls: &ServerTls) -> TlsAcceptor {
    let mut config = Arc::unwrap_or_clone(tls.config());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(stream: TlsStream<TcpStream>, peer: Peer, shared: &Shared) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        shared.routes.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(address = %peer.address, %error, "an HTTP connection broke off");
    }
}
