//! Clients that nobody here wrote, run as programs: mosquitto's, and small Python scripts over the vendors' packages.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::time::timeout;

/// An SDK that waits for something that never comes waits for ever.
const PATIENCE: Duration = Duration::from_mins(2);

/// Runs a program to its end; fails with what it said if it fails.
pub async fn run(command: &mut Command) -> Result<String> {
    let output = output(command).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    bail!(
        "{command:?} failed ({}): {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program to its end, however that is.
pub async fn output(command: &mut Command) -> Result<Output> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(PATIENCE, running)
        .await
        .with_context(|| format!("{command:?} did not end in {PATIENCE:?}"))?
        .with_context(|| format!("{command:?} cannot be run: make setup and make test install it"))
}

/// One of the scripts in `tests/clients`, with the Python that `.ci/setup test` has made.
pub fn python(script: &str) -> Command {
    let checkout = checkout();
    let mut command = Command::new(checkout.join(".env/bin/python"));
    command.arg("-u").arg(checkout.join("tests/clients").join(script));
    command
}

/// The folder of the workspace.
pub fn checkout() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the package is in the workspace").to_owned()
}
