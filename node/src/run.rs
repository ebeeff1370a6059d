//! One node from start to stop: storage, then the cluster, then the protocols; stop is the reverse, within a deadline.
//!
//! Listeners are bound before anything else, so that a taken port is found before a lock on the data folder or a peer
//! notices this node. The pages of health and metrics are served first and last: whoever watches sees all of it.

mod bootstrap;
mod certificates;
mod node;
mod open_files;
mod sockets;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use drover_cluster::Cluster;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::node::RunningNode;
use self::sockets::Sockets;
use crate::config::Config;
use crate::observe::{self, Readiness};

pub use bootstrap::BOOTSTRAP_TOKEN;
pub(crate) use node::{node_id, open_storage};

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
    /// What other nodes write this build cannot read.
    #[error("the build is too old for the cluster, nothing on the disk was changed: {0}")]
    Outdated(String),
    #[error("{0}")]
    Failed(String),
}

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
        info!(?read, "the standard input has ended");
        stop.cancel();
    });
}

/// Is notified at each SIGHUP, which from now on does not end the process.
pub fn notify_on_hangup() -> Result<Arc<Notify>, Error> {
    let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
    let hung_up = Arc::new(Notify::new());
    let notify = Arc::clone(&hung_up);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            notify.notify_one();
        }
    });
    Ok(hung_up)
}

fn no_signals(error: std::io::Error) -> Error {
    Error::Failed(format!("no signals: {error}"))
}

fn stop_on_signal(stop: CancellationToken) -> Result<JoinHandle<()>, Error> {
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

/// Runs a node until `stop`, or until its storage fails. At each `reload` it reads its certificates again.
pub async fn until(
    mut config: Config,
    stop: CancellationToken,
    reload: &Notify,
) -> Result<(), Error> {
    open_files::fit(&mut config.limits)?;
    let handle = observe::start_metrics().map_err(Error::Failed)?;
    let mut sockets = Sockets::bind(&config).await?;
    observe::start_purging();
    let seeing = CancellationToken::new();
    let _seen_to_the_end = seeing.clone().drop_guard();
    tokio::spawn(observe::upkeep(handle.clone(), seeing.clone()));
    let cluster = Arc::new(OnceLock::new());
    if let Some(listener) = sockets.http.take() {
        let readiness = readiness(Arc::clone(&cluster));
        tokio::spawn(observe::serve(listener, handle, readiness, seeing));
    }
    let node = RunningNode::start(&config, sockets).await?;
    // It is set once, here.
    cluster.set(node.cluster().clone()).ok();
    info!(node = config.node.number, "started");
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        problem = node.failure() => Err(problem),
        never = keep_reloading(&node, reload) => match never {},
    };
    info!("stopping");
    node.stop(config.stop.deadline.as_duration()).await;
    ended
}

async fn keep_reloading(node: &RunningNode, reload: &Notify) -> Infallible {
    loop {
        reload.notified().await;
        match node.reload_certificates() {
            Ok(()) => info!("certificates were read again"),
            Err(problem) => {
                error!(%problem, "not all certificates were replaced: mend the file, then send SIGHUP again");
            }
        }
    }
}

fn readiness(cluster: Arc<OnceLock<Cluster>>) -> Readiness {
    Arc::new(move || match cluster.get() {
        Some(cluster) => cluster.ready(),
        None => Err("the node is starting: its storage is being opened".to_owned()),
    })
}
