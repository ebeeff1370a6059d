//! Nodes as child processes: started, watched, started again when they die, stopped together.
//!
//! A child reads the end of its standard input as "stop", so it also stops when this process was killed.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::layout::DevNode;

/// Between a node's death and its next start, so that a port in use or a full disk does not make a busy loop.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A node that has died this often is broken: starting it again would only hide that.
const RESTARTS_MAX: u32 = 10;

/// Runs one node until `stop`; starts it again when it dies.
pub(super) async fn keep_running(node: DevNode, stop: CancellationToken) -> Result<()> {
    for _ in 0..RESTARTS_MAX {
        let mut child = start(&node.file)?;
        // Taken out of the child, because waiting for it would close it, and that says "stop".
        let input = child.stdin.take();
        if let Some(process) = child.id() {
            eprintln!("node {} is process {process}", node.number);
        }
        tokio::spawn(prefix_lines(node.number, child.stdout.take()));
        tokio::spawn(prefix_lines(node.number, child.stderr.take()));
        tokio::select! {
            () = stop.cancelled() => {
                drop(input);
                return end(child, &node).await;
            }
            status = child.wait() => report(&node, status?),
        }
        if stop.run_until_cancelled(sleep(RESTART_PAUSE)).await.is_none() {
            return Ok(());
        }
    }
    bail!("node {} died {RESTARTS_MAX} times: its output above says why", node.number)
}

fn start(config: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    Command::new(program)
        .args(["node", "--stop-at-end-of-input", "--config"])
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a node")
}

fn report(node: &DevNode, status: ExitStatus) {
    eprintln!("node {} ended ({status}); it is started again", node.number);
}

/// Waits for a node that was told to stop; ends it if it does not.
async fn end(mut child: Child, node: &DevNode) -> Result<()> {
    let patience = node.config.stop.deadline.as_duration() + RESTART_PAUSE;
    match timeout(patience, child.wait()).await {
        Ok(status) => status.map(drop).context("cannot wait for a node"),
        Err(_) => child.kill().await.context("cannot end a node"),
    }
}

async fn prefix_lines(number: u16, output: Option<impl AsyncRead + Unpin>) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("node {number} | {line}");
    }
}
