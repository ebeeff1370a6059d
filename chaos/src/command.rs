//! Programs of the system (`ip`, `nft`, `tc`, `nsenter`) that are run to their end.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

/// None of them waits for anything.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the words of `line`; what it said on standard output.
pub async fn run(line: &str) -> anyhow::Result<String> {
    run_with(line, "").await
}

/// The same with `input` on its standard input.
pub async fn run_with(line: &str, input: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("a child without standard input")?;
    stdin.write_all(input.as_bytes()).await.with_context(|| line.to_owned())?;
    drop(stdin);
    let output =
        timeout(TIMEOUT, child.wait_with_output()).await.with_context(|| line.to_owned())??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
