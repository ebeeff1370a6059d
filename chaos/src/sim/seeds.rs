//! Many seeds, a process each, a few at a time.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drover_core::mutants::Mutation;
use futures::StreamExt as _;
use futures::stream;
use tokio::process::Command;

use super::counts::{Counts, Operations};
use super::verdict::Verdict;

/// A seed takes a second or two. One that takes so long has stopped making progress.
const SEED_TIMEOUT: Duration = Duration::from_mins(5);

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
    pub mutant: Option<Mutation>,
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
        if let Some(mutant) = self.mutant {
            command.args(["--mutant", mutant.name()]);
        }
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let Ok(output) = tokio::time::timeout(SEED_TIMEOUT, command.output()).await else {
            bail!("seed {seed} has not ended within {SEED_TIMEOUT:?}");
        };
        let output = output.context("cannot start the simulation of a seed")?;
        let verdict = serde_json::from_slice(&output.stdout);
        verdict.with_context(|| format!("seed {seed} ended without a verdict: {}", output.status))
    }
}

/// What all runs did together.
pub fn total(verdicts: &[Verdict]) -> Counts {
    verdicts.iter().fold(Counts::default(), |sum, verdict| sum.plus(verdict.counts))
}

/// A suite in which nothing happened proves nothing: each kind of operation, fault and check must have occurred.
pub fn check_not_vacuous(total: &Counts) -> anyhow::Result<()> {
    let Counts { operations, sockets, operator, faults, checks } = total;
    let Operations { appends_acknowledged, reported_acknowledged, desired_acknowledged, .. } =
        operations;
    for (what, count, least) in [
        ("messages acknowledged", *appends_acknowledged, 100),
        ("reported patches acknowledged", *reported_acknowledged, 50),
        ("desired patches acknowledged", *desired_acknowledged, 50),
    ] {
        ensure!(
            count >= least,
            "the runs prove nothing: {count} {what}, at least {least} are needed"
        );
    }
    let never = operations.zeros().chain(sockets.zeros()).chain(operator.zeros());
    let never: Vec<_> = never.chain(faults.zeros()).chain(checks.zeros()).collect();
    ensure!(never.is_empty(), "the runs prove nothing: there were no {}", never.join(", no "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::counts::{Checks, Faults, Orders, Sockets};
    use super::*;

    #[test]
    fn a_suite_in_which_one_kind_of_fault_never_happened_proves_nothing() {
        let mut total = Counts::default();
        assert!(check_not_vacuous(&total).is_err());
        total.operations = Operations::all(100);
        total.sockets = Sockets::all(100);
        total.operator = Orders::all(100);
        total.checks = Checks::all(100);
        total.faults = Faults { writes_lost: 0, ..Faults::all(100) };
        let error = check_not_vacuous(&total).expect_err("no write was lost");
        assert!(error.to_string().contains("no writes lost"), "{error}");
        total.faults = Faults::all(100);
        assert!(check_not_vacuous(&total).is_ok());
    }
}
