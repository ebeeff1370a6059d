//! Child processes: started here, measured here, ended here and nowhere else.
//!
//! What is done to a process is done through its own handle, so a wrong pid cannot be killed.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::process::{Child, Command};

use crate::command;

/// Linux counts CPU time in hundredths of a second for every program (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running child. It is killed when this is dropped.
pub struct Process {
    pub name: String,
    child: Child,
}

/// What a process has used up to now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub rss_bytes: u64,
    pub written_bytes: u64,
}

impl Process {
    /// Starts `command`; what it says is appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let output = open().with_context(|| format!("opening {}", log.display()))?;
        let errors = output.try_clone()?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// SIGKILL, and the end of it.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Sends a signal by name: STOP and CONT are what `kill` is for here.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        command::run(&format!("kill -{name} {pid}")).await.map(drop)
    }

    /// Whether it stands still after SIGSTOP: all of its threads, or it did not work.
    pub fn is_stopped(&self) -> anyhow::Result<bool> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(status.lines().any(|line| line.starts_with("State:") && line.contains('T')))
    }

    /// Whether it has loaded a library of this name.
    pub fn has_mapped(&self, library: &str) -> anyhow::Result<bool> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        Ok(fs::read_to_string(format!("/proc/{pid}/maps"))?.contains(library))
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.ended()?.is_some())
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        Ok(Usage {
            cpu: cpu_time(&read("stat")?)?,
            rss_bytes: 1024 * field(&read("status")?, "VmRSS:")?,
            // Without the right to read it (another user's process) the figure is left out.
            written_bytes: read("io").and_then(|text| field(&text, "write_bytes:")).unwrap_or(0),
        })
    }
}

/// User and system time: fields 14 and 15, counted after the name, which may hold anything.
fn cpu_time(stat: &str) -> anyhow::Result<Duration> {
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.sum::<Result<u64, _>>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
}

fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    value.ok_or_else(|| anyhow!("no {name}"))?.parse().context("not a number")
}

/// Lets this process and those that it starts hold as many files as the machine allows, up to `files`.
pub async fn raise_file_limit(files: u32) -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    for limit in [format!("--nofile={files}:{files}"), "--nofile=20000:".to_owned()] {
        let output = Command::new("prlimit").args(["--pid", &pid, &limit]).output().await?;
        if output.status.success() {
            return Ok(());
        }
    }
    Err(anyhow!("this user may not hold 20,000 files: raise `ulimit -Hn`"))
}

/// How many files this process, and those that it starts, may hold.
pub fn file_limit() -> anyhow::Result<u64> {
    field(&fs::read_to_string("/proc/self/limits")?, "Max open files")
}

/// The bytes of all files below `folder`, as `du` counts them.
pub async fn disk_bytes(folder: &Path) -> anyhow::Result<u64> {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output().await?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().context("du said nothing")?.parse().context("du said no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_hostile_process_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_time(stat).unwrap(), Duration::from_secs(2));
    }
}
