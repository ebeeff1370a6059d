//! Clients that nobody here wrote, run as programs: mosquitto's, and small scripts over the vendors' packages.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
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

/// The same with Node, and the packages that it has installed.
pub fn node(script: &str) -> Command {
    let checkout = checkout();
    let mut command = Command::new("node");
    command
        .env("NODE_PATH", checkout.join(".env/node/node_modules"))
        .arg(checkout.join("tests/clients").join(script));
    command
}

/// There is no safe call for it in the standard library; every shell has one built in.
pub(crate) fn signal(name: &str, process: u32) -> Result<()> {
    let mut command = std::process::Command::new("sh");
    let sent = command.arg("-c").arg(format!("kill -{name} {process}")).status();
    ensure!(sent?.success(), "the signal was not sent");
    Ok(())
}

/// A program that runs beside the test, to its end or until the test breaks it off. Dropped, it is killed.
pub struct Beside {
    child: Child,
    errors: Lines<BufReader<ChildStderr>>,
    said: String,
}

impl Beside {
    pub fn start(command: &mut Command) -> Result<Self> {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = piped
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{command:?} cannot be run: make build"))?;
        let errors = BufReader::new(child.stderr.take().context("it is piped")?).lines();
        Ok(Self { child, errors, said: String::new() })
    }

    /// Waits until a line of its standard error contains `wanted`.
    pub async fn until_it_says(&mut self, wanted: &str) -> Result<()> {
        timeout(PATIENCE, self.listen(wanted))
            .await
            .with_context(|| format!("no {wanted:?}"))??;
        ensure!(self.said.contains(wanted), "it ended and said {:?}, not {wanted:?}", self.said);
        Ok(())
    }

    /// Ctrl-C.
    pub fn interrupt(&self) -> Result<()> {
        signal("INT", self.child.id().context("it has ended already")?)
    }

    /// Waits for its end; answers with whether it has succeeded, and all that its standard error said.
    pub async fn end(mut self) -> Result<(bool, String)> {
        let ending = async {
            self.listen("\n").await?; // which no line has
            self.child.wait().await
        };
        let status = timeout(PATIENCE, ending).await.context("it does not end")??;
        Ok((status.success(), self.said))
    }

    async fn listen(&mut self, wanted: &str) -> std::io::Result<()> {
        while let Some(line) = self.errors.next_line().await? {
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(wanted) {
                break;
            }
        }
        Ok(())
    }
}

/// A program that runs for as long as the test listens to it.
pub struct Running {
    said: Lines<BufReader<ChildStdout>>,
    heard: Vec<String>,
    _child: Child,
}

impl Running {
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{command:?} cannot be run: make test installs it"))?;
        let said = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        Ok(Self { said, heard: Vec::new(), _child: child })
    }

    /// Waits for a line that begins so; answers with the rest of it. Lines before it are passed over.
    pub async fn says(&mut self, wanted: &str) -> Result<String> {
        let listen = async {
            while let Some(line) = self.said.next_line().await? {
                let rest = line.strip_prefix(wanted).map(|rest| rest.trim().to_owned());
                self.heard.push(line);
                if let Some(rest) = rest {
                    return Ok(rest);
                }
            }
            bail!("the program ended before it said {wanted:?}")
        };
        timeout(crate::PATIENCE, listen).await.with_context(|| format!("no {wanted:?}"))?
    }

    /// The same for a line whose rest is JSON.
    pub async fn says_json(&mut self, wanted: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.says(wanted).await?)?)
    }

    /// How many of the lines so far begin so.
    pub fn times_heard(&self, wanted: &str) -> usize {
        self.heard.iter().filter(|line| line.starts_with(wanted)).count()
    }
}

/// The folder of the workspace: cargo runs tests in their package's. What was known when this was compiled may be another
/// checkout's, because checkouts share the folder of what is built.
pub fn checkout() -> PathBuf {
    let tests = std::env::current_dir().expect("the package is there");
    tests.parent().expect("the package is in the workspace").to_owned()
}
