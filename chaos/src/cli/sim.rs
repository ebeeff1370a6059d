//! `chaos sim`: seeds of the simulation.

use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use drover_chaos::sim::plan::Plan;
use drover_chaos::sim::seeds::{Runner, check_not_vacuous, known, total};
use drover_chaos::sim::verdict::Verdict;
use drover_chaos::sim::{self};
use drover_core::mutants::{Mutation, plant};

/// Deep recursions of a debugger's kind of build need more than a thread's usual stack.
const STACK_BYTES: usize = 16 * 1024 * 1024;

#[derive(Args)]
pub(super) struct Sim {
    /// Run this seed only, in this process.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run so many seeds, or a range of them (10..20), a process each; seeds that failed once come first.
    #[arg(long, default_value = "20")]
    seeds: String,
    /// How many seeds at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Plant a mistake that the simulation has to find; a wrong name gets the list.
    #[arg(long)]
    mutant: Option<Mutation>,
    #[arg(long)]
    json: bool,
}

impl Sim {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.seed {
            Some(seed) => self.run_here(seed),
            None => self.run_processes().await,
        }
    }

    fn run_here(self, seed: u64) -> anyhow::Result<()> {
        if let Some(mutant) = self.mutant {
            plant(mutant);
        }
        // A simulated node has a runtime of its own, which cannot run inside this thread's.
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let running = thread.spawn(move || sim::run(Plan::new(seed)))?;
        let Ok(verdict) = running.join() else { bail!("the simulation of seed {seed} panicked") };
        super::print(&Shown(&verdict), &verdict, self.json)?;
        ensure!(verdict.is_valid(), "seed {seed} did not pass");
        Ok(())
    }

    async fn run_processes(self) -> anyhow::Result<()> {
        let program: PathBuf = std::env::current_exe()?;
        let mut runner = Runner::new(&program, self.jobs);
        runner.mutant = self.mutant;
        let fresh = range(&self.seeds)?;
        let seeds = known().into_iter().chain(fresh);
        let verdicts = runner
            .run(seeds, |verdict| {
                eprintln!("{}", Brief(verdict));
                verdict.is_valid()
            })
            .await?;
        let failed = verdicts.iter().find(|verdict| !verdict.is_valid());
        if let Some(mutant) = self.mutant {
            let mutant = mutant.name();
            let Some(found) = failed else { bail!("the mutant {mutant} survives") };
            let first = found.problems.first().map_or("", String::as_str);
            let line = format!("the mutant {mutant} is found by seed {}: {first}", found.seed);
            return super::print(&line, &found, self.json);
        }
        let total = total(&verdicts);
        let line = format!("{} seeds\n{total}", verdicts.len());
        super::print(&line, &total, self.json)?;
        if let Some(failed) = failed {
            bail!("seed {} did not pass; replay it: make sim ARGS=\"--seed {0}\"", failed.seed);
        }
        check_not_vacuous(&total)
    }
}

fn range(text: &str) -> anyhow::Result<Range<u64>> {
    let (first, end) = text.split_once("..").unwrap_or(("0", text));
    let number = |text: &str| {
        text.parse::<u64>().with_context(|| format!("{text} is not a number of seeds"))
    };
    Ok(number(first)?..number(end)?)
}

/// A verdict in a line, or in full where there is something to look into.
struct Brief<'a>(&'a Verdict);

impl std::fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Verdict { seed, trace, events, .. } if self.0.is_valid() => {
                write!(f, "seed {seed} passed: trace {trace}, {events} events")
            }
            failed => write!(f, "{}", Shown(failed)),
        }
    }
}

/// A verdict for people.
struct Shown<'a>(&'a Verdict);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Verdict { seed, problems, counts, trace, events, simulated_ms, recent } = self.0;
        let word = if problems.is_empty() { "passed" } else { "FAILED" };
        writeln!(f, "seed {seed} {word}: trace {trace}, {events} events in {simulated_ms} ms")?;
        write!(f, "{counts}")?;
        for problem in problems.iter().take(10) {
            write!(f, "\n  {problem}")?;
        }
        if problems.len() > 10 {
            write!(f, "\n  and {} more", problems.len() - 10)?;
        }
        for event in recent {
            write!(f, "\n    {event}")?;
        }
        if !problems.is_empty() {
            write!(f, "\n  replay it: make sim ARGS=\"--seed {seed}\"")?;
        }
        Ok(())
    }
}
