//! The systems that Drover is measured beside, from Debian's packages, on loopback.

pub mod etcd;
pub mod mosquitto;
pub mod nats;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::process::{Process, Usage};

/// How long a system may take until it serves its first request.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

/// A running system. Everything is ended and deleted when this is dropped.
pub struct Peer {
    /// Where clients connect.
    pub addresses: Vec<SocketAddr>,
    processes: Vec<Process>,
    _folder: TempDir,
}

impl Peer {
    /// What its processes have used together.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        total(self.processes.iter())
    }
}

/// The sum over processes.
pub fn total<'a>(processes: impl Iterator<Item = &'a Process>) -> anyhow::Result<Usage> {
    let mut sum = Usage::default();
    for process in processes {
        let usage = process.usage()?;
        sum.cpu += usage.cpu;
        sum.rss_bytes += usage.rss_bytes;
        sum.written_bytes += usage.written_bytes;
    }
    Ok(sum)
}

/// Repeats `attempt` until it succeeds or time is up; then its last error is the answer.
pub async fn until_ok<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let give_up = Instant::now() + patience;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= give_up => {
                return Err(error).with_context(|| format!("{what}: not in {patience:?}"));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
