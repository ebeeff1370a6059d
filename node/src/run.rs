//! One node from start to stop: storage, then the cluster, then the protocols; stop is the reverse, within a deadline.
//!
//! Listeners are bound before anything else, so that a taken port is found before a lock on the data folder or a peer
//! notices this node.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Listen};
use crate::observe;

/// Why a node is not running any more, or never was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot listen on {address} ({what}): {problem}; stop what uses the port, or set listen.{what} to another address"
    )]
    Listen { what: &'static str, address: SocketAddr, problem: std::io::Error },
    /// Nothing on this disk can be trusted until it was looked at: see `docs/operations.md`.
    #[error("the storage of this node failed: {0}")]
    Storage(String),
    #[error("{0}")]
    Failed(String),
}

/// The sockets of a node, bound and not yet accepting.
struct Sockets {
    http: Option<TcpListener>,
}

impl Sockets {
    async fn bind(config: &Config) -> Result<Self, Error> {
        Ok(Self { http: bind_if_on("http", config.listen.http).await? })
    }
}

async fn bind_if_on(what: &'static str, listen: Listen) -> Result<Option<TcpListener>, Error> {
    match listen {
        Listen::Off => Ok(None),
        Listen::At(address) => bind(what, address).await.map(Some),
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|problem| Error::Listen { what, address, problem })
}

/// The file in the data folder with the token that may make a cluster of this node, and nothing else.
pub const BOOTSTRAP_TOKEN: &str = "admin.token";

/// Runs `task` on a runtime of its own; its token is cancelled at SIGTERM and SIGINT.
pub fn block_on<E, F>(task: impl FnOnce(CancellationToken) -> F) -> Result<(), E>
where
    E: From<Error>,
    F: Future<Output = Result<(), E>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Failed(format!("no threads to run on: {error}")))?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop_on_signal(stop.clone())?;
        let ended = task(stop).await;
        signals.abort();
        ended
    });
    // Reading the standard input cannot be interrupted: whoever waits for it is left behind.
    runtime.shutdown_background();
    ended
}

/// Cancels `stop` when nobody holds the other end of the standard input any more.
pub fn stop_at_end_of_input(stop: CancellationToken) {
    tokio::task::spawn_blocking(move || {
        let read = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        tracing::info!(?read, "the standard input has ended");
        stop.cancel();
    });
}

fn stop_on_signal(stop: CancellationToken) -> Result<tokio::task::JoinHandle<()>, Error> {
    let no_signals = |error: std::io::Error| Error::Failed(format!("no signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    }))
}

/// Runs a node until `stop`.
pub async fn until(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let handle = observe::start_metrics().map_err(Error::Failed)?;
    let sockets = Sockets::bind(&config).await?;
    observe::start_purging();
    let seeing = stop.child_token();
    let upkeep = tokio::spawn(observe::upkeep(handle.clone(), seeing.clone()));
    if let Some(listener) = sockets.http {
        let readiness: observe::Readiness = Arc::new(|| Err("the node is starting".to_owned()));
        tokio::spawn(observe::serve(listener, handle, readiness, seeing.clone()));
    }
    stop.cancelled().await;
    upkeep.abort();
    Ok(())
}
