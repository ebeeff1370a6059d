//! Many seeds, a process each, a few at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::stream;
use tokio::process::Command;

use super::history::Counts;
use super::verdict::Verdict;

/// The seeds that have failed once, one a line; they are run first, for ever.
const KNOWN: &str = include_str!("../../seeds.txt");

/// Seeds that have once found something.
pub fn known() -> Vec<u64> {
    let lines = KNOWN.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter_map(|line| line.parse().ok()).collect()
}

/// How to run seeds.
#[derive(Debug, Clone)]
pub struct Runner {
    /// The program `chaos`.
    pub program: PathBuf,
    /// How many at a time.
    pub jobs: usize,
    pub mutant: Option<String>,
}

impl Runner {
    pub fn new(program: &Path, jobs: usize) -> Self {
        Self { program: program.to_owned(), jobs, mutant: None }
    }

    /// Runs all, and tells `finished` of each as it ends. Stops when that answers `false`.
    pub async fn run(
        &self,
        seeds: impl IntoIterator<Item = u64>,
        mut finished: impl FnMut(&Verdict) -> bool,
    ) -> anyhow::Result<Vec<Verdict>> {
        let runs = stream::iter(seeds).map(|seed| self.one(seed));
        let mut running = runs.buffered(self.jobs.max(1));
        let mut verdicts = Vec::new();
        while let Some(verdict) = running.next().await {
            let verdict = verdict?;
            let goes_on = finished(&verdict);
            verdicts.push(verdict);
            if !goes_on {
                break;
            }
        }
        Ok(verdicts)
    }

    /// Runs one seed in a process of its own.
    pub async fn one(&self, seed: u64) -> anyhow::Result<Verdict> {
        let mut command = Command::new(&self.program);
        command.args(["sim", "--json", "--seed", &seed.to_string()]);
        if let Some(mutant) = &self.mutant {
            command.args(["--mutant", mutant]);
        }
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let output = command.output().await.context("cannot start the simulation of a seed")?;
        let verdict = serde_json::from_slice(&output.stdout);
        verdict.with_context(|| format!("seed {seed} ended without a verdict: {}", output.status))
    }
}

/// What all runs did together.
pub fn total(verdicts: &[Verdict]) -> Counts {
    verdicts.iter().fold(Counts::default(), |sum, verdict| sum.plus(&verdict.counts))
}

/// A suite in which nothing happened proves nothing: each kind of fault and of answer must have occurred.
pub fn check_not_vacuous(total: &Counts) -> anyhow::Result<()> {
    let needed: BTreeMap<_, _> = [
        ("messages acknowledged", (total.appends_acked, 100)),
        ("reported patches acknowledged", (total.reported_acked, 50)),
        ("desired patches acknowledged", (total.desired_acked, 50)),
        ("twins read", (total.twin_reads, 50)),
        ("pages of streams read", (total.stream_reads, 10)),
        ("outcomes unknown", (total.unknown, 1)),
        ("requests fenced", (total.fenced, 1)),
        ("desired patches delivered", (total.deliveries, 1)),
        ("take-overs", (total.takeovers, 10)),
        ("take-overs with a publish in flight", (total.takeovers_in_flight, 1)),
        ("crashes", (total.crashes + total.power_cuts, 1)),
        ("unsynced writes at crashes", (total.unsynced_at_crash, 1)),
        ("partitions", (total.partitions, 1)),
        ("changes of leader", (total.leader_changes, 1)),
    ]
    .into();
    for (what, (count, least)) in needed {
        ensure!(
            count >= least,
            "the runs prove nothing: {count} {what}, at least {least} are needed"
        );
    }
    Ok(())
}
