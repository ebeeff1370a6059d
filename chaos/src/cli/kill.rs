//! `chaos kill`: nodes die, acknowledged messages do not.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use drover_chaos::kill::plan::Plan;
use drover_chaos::kill::report::Verdict;
use drover_chaos::{kill, process};

#[derive(Args)]
pub(super) struct Kill {
    /// Draws the run. Default: a new one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, conflicts_with = "seconds")]
    minutes: Option<u64>,
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long)]
    devices: Option<usize>,
    #[arg(long)]
    shards: Option<u32>,
    /// Also write the report here, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

impl Kill {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        process::raise_file_limit(65_536).await?;
        let seconds = self.minutes.map_or(self.seconds, |minutes| minutes * 60);
        let seed = self.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
        let mut plan = Plan::new(seed, Duration::from_secs(seconds));
        plan.devices = self.devices.unwrap_or(plan.devices);
        plan.shards = self.shards.unwrap_or(plan.shards);
        let report =
            kill::run(&plan).await.with_context(|| format!("kill test with seed {seed}"))?;
        if let Some(path) = self.report {
            std::fs::write(&path, serde_json::to_vec_pretty(&report)?)?;
        }
        super::print(&report, &report, self.json)?;
        ensure!(report.verdict == Verdict::Valid, "the run did not pass: {:?}", report.verdict);
        Ok(())
    }
}
