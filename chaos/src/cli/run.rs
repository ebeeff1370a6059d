//! `chaos run`: real nodes under faults that a seed draws.
//!
//! Where there are namespaces, this process makes them and runs itself once more inside the clients' one. So somebody is
//! left to take everything away again, however the run ends.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum as _};
use drover_chaos::kill::report::Verdict;
use drover_chaos::net::lab::{self, Lab};
use drover_chaos::run::nemesis::Nemesis;
use drover_chaos::run::plan::Plan;
use drover_chaos::run::{self, page};
use drover_chaos::{disk, process};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::signal::ctrl_c;

/// Runs keep what they need here, each below the number of its process.
const PREFIX: &str = "drover-chaos-run-";

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Run {
    /// Draws the run. Default: a new one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// What happens to the cluster. Default: everything.
    #[arg(long, value_enum, value_delimiter = ',')]
    nemesis: Vec<Nemesis>,
    /// Write the report here, as report.json and report.html.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Run with one seed after the other until one fails or this is interrupted.
    #[arg(long)]
    until_stopped: bool,
    /// One fault at a time and none left out: for the times of failovers.
    #[arg(long)]
    single: bool,
    /// Disks forget what they said was synced. The run must find that: it fails unless acknowledged messages are missed.
    #[arg(long)]
    lying_disks: bool,
    /// Do without namespaces, as where this is not root: proxies stand between the nodes.
    #[arg(long)]
    userspace: bool,
    #[arg(long)]
    json: bool,
    /// The process that made the namespaces, one of which this one runs in.
    #[arg(long, hide = true)]
    lab_of: Option<u32>,
}

impl Run {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if let Some(owner) = self.lab_of {
            end_with_watcher();
            let plan = self.plan(self.seed.context("a run inside a lab is told its seed")?);
            let lab = Lab::of(owner, plan.places());
            return self.here(&plan, Ok(lab)).await;
        }
        remove_stale().await?;
        if let Some(reason) = disk::obstacle().filter(|_| self.lying_disks) {
            eprintln!("LEFT OUT   disks that lie: {reason}");
            return Ok(());
        }
        loop {
            let seed = self.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
            self.once(seed).await?;
            if !self.until_stopped {
                return Ok(());
            }
            ensure!(self.seed.is_none(), "--until-stopped draws its seeds itself");
        }
    }

    fn plan(&self, seed: u64) -> Plan {
        let seconds = self.minutes.map_or(self.seconds, |minutes| minutes * 60);
        let nemeses = if self.nemesis.is_empty() {
            Nemesis::value_variants().to_vec()
        } else {
            self.nemesis.clone()
        };
        let mut plan = Plan::new(seed, Duration::from_secs(seconds), nemeses);
        if self.lying_disks {
            // Lost messages are counted, and nobody waits for commands that the hub has forgotten.
            plan.workload.recipients = 0;
        }
        Plan {
            is_single: self.single,
            has_lying_disks: self.lying_disks,
            is_userspace: self.userspace,
            ..plan
        }
    }

    async fn once(&self, seed: u64) -> anyhow::Result<()> {
        let plan = self.plan(seed);
        if self.userspace {
            return self.here(&plan, Err("--userspace".to_owned())).await;
        }
        match lab::obstacle().await {
            Some(reason) => self.here(&plan, Err(reason)).await,
            None => self.inside(&plan).await,
        }
    }

    /// In this process.
    async fn here(&self, plan: &Plan, lab: Result<Lab, String>) -> anyhow::Result<()> {
        process::raise_file_limit(65_536).await?;
        // Inside a lab this is a folder of the run's own, which whoever watches over it keeps if it fails.
        let logs = self.lab_of.map(|_| std::env::temp_dir());
        let report = run::run(plan, lab, logs.as_deref()).await?;
        if let Some(folder) = &self.report {
            std::fs::create_dir_all(folder)?;
            std::fs::write(folder.join("report.json"), serde_json::to_vec_pretty(&report)?)?;
            std::fs::write(folder.join("report.html"), page::html(&report))?;
        }
        super::print(&report, &report, self.json)?;
        if self.lying_disks {
            let lost = report.checked.telemetry.lost.total();
            ensure!(lost > 0, "disks that lie were not found out: no message is missed");
            eprintln!(
                "found out, as it must be: on disks that lie {lost} acknowledged messages are lost"
            );
            return Ok(());
        }
        ensure!(report.verdict == Verdict::Valid, "the run did not pass: {:?}", report.verdict);
        Ok(())
    }

    /// In a process of its own, in a network of its own.
    async fn inside(&self, plan: &Plan) -> anyhow::Result<()> {
        let lab = Lab::create(plan.places()).await.context("making namespaces")?;
        let folder = TempDir::with_prefix(format!("{PREFIX}{}-", std::process::id()))?;
        let ended = self.child(plan, &lab, folder.path()).await;
        lab.remove().await;
        disk::remove_stale()?;
        let status = ended?;
        if !status.success() {
            let kept = folder.keep();
            anyhow::bail!("{status}; the nodes' logs are in {}", kept.display());
        }
        Ok(())
    }

    async fn child(&self, plan: &Plan, lab: &Lab, folder: &Path) -> anyhow::Result<ExitStatus> {
        let inside = lab.inside_clients();
        let mut command = Command::new(&inside[0]);
        command.args(&inside[1..]).arg(std::env::current_exe()?).arg("run");
        let names: Vec<String> = plan.nemeses.iter().map(ToString::to_string).collect();
        command
            .args(["--seed", &plan.workload.seed.to_string()])
            .args(["--seconds", &plan.workload.duration.as_secs().to_string()])
            .args(["--nemesis", &names.join(",")])
            .args(["--lab-of", &std::process::id().to_string()])
            .env("TMPDIR", folder)
            .stdin(Stdio::piped())
            .kill_on_drop(true);
        if let Some(report) = &self.report {
            command.arg("--report").arg(report);
        }
        let flags =
            [("--json", self.json), ("--single", self.single), ("--lying-disks", self.lying_disks)];
        command.args(flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag));
        let mut child = command.spawn().context("starting this program once more")?;
        // Waiting for the child would close its input, which tells it that nobody watches any more.
        let watched = child.stdin.take();
        let status = tokio::select! {
            status = child.wait() => Ok(status?),
            interrupted = ctrl_c() => {
                interrupted?;
                child.kill().await?;
                Err(anyhow::anyhow!("interrupted"))
            }
        };
        drop(watched);
        status
    }
}

/// When whoever watches over this run is gone, its end of our standard input closes: nothing may go on in namespaces that
/// the next start takes for left behind. The nodes end with this process.
fn end_with_watcher() {
    std::thread::spawn(|| {
        // Whatever comes of reading, nobody writes: it returns when there is nobody to read from.
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(1);
    });
}

/// Takes away what runs left that were killed together with whoever watched over them.
async fn remove_stale() -> anyhow::Result<()> {
    let namespaces = lab::remove_stale().await?;
    let disks = disk::remove_stale()?;
    for entry in std::fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        if is_stale(&entry.file_name().to_string_lossy()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    if namespaces + disks > 0 {
        tracing::warn!(namespaces, disks, "removed what an earlier run had left");
    }
    Ok(())
}

/// A folder that a failed run kept is not stale until its process is gone; then it has been looked at, or never will be.
fn is_stale(name: &str) -> bool {
    let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    owner.is_some_and(|owner| {
        owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists()
    })
}
