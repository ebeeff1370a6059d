//! What every long stream of answers needs: a place among the readers of the node, and an end when its caller's right or
//! the node ends.

use std::sync::Arc;

use drover_cluster::{Cluster, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::auth::Caller;
use super::convert::RECHECK;
use super::status;
use crate::clock;

/// Streams that are read at one time at a node. Each holds a page of messages and a place in a queue.
const READERS_MAX: usize = 1_000;

/// The readers of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Readers {
    places: Arc<Semaphore>,
    cluster: Cluster,
    /// Ends the streams, so that the server can stop.
    stop: CancellationToken,
}

impl Readers {
    pub(crate) fn new(cluster: Cluster, stop: CancellationToken) -> Self {
        Self { places: Arc::new(Semaphore::new(READERS_MAX)), cluster, stop }
    }

    pub(crate) fn guard<T>(&self, request: &Request<T>) -> Result<Guard, Status> {
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let text =
                format!("{READERS_MAX} streams are read at this node already: use another node");
            status::refused(Code::ResourceExhausted, "TOO_MANY_READERS", &text)
        })?;
        Ok(Guard {
            caller: caller(request),
            cluster: self.cluster.clone(),
            stop: self.stop.clone(),
            _permit: permit,
        })
    }
}

/// Holds a stream's place among the readers, and ends it when its caller's right has ended.
pub(crate) struct Guard {
    caller: Caller,
    cluster: Cluster,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Guard {
    pub(crate) async fn unless_stopped<T>(
        &self,
        next: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            () = self.stop.cancelled() => Err(status::of(Error::Stopping)),
            next = next => next,
        }
    }

    /// What comes next, if the caller may still have it; `None` if nothing came for a while.
    pub(crate) async fn next<T>(&self, next: impl Future<Output = T>) -> Result<Option<T>, Status> {
        let next = timeout(RECHECK, next).await.ok();
        self.check()?;
        Ok(next)
    }

    pub(crate) fn check(&self) -> Result<(), Status> {
        let meta = self.cluster.meta();
        if self.caller.still_stands(meta.as_deref(), clock::unix_ms() / 1_000) {
            return Ok(());
        }
        let text = "the token has expired or its policy was changed: go on with a new one from where you are";
        Err(status::refused(Code::Unauthenticated, "EXPIRED", text))
    }
}

/// The authorization layer has put it there; without it nobody gets in.
fn caller<T>(request: &Request<T>) -> Caller {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .expect("every call passes the authorization layer")
}
