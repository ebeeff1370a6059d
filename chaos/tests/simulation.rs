//! The simulation, as CI runs it: seeds that failed once, some fresh ones, the same seed twice, and planted mistakes.

#![expect(clippy::print_stdout, reason = "what a run has counted is a part of its result")]

use std::path::Path;

use drover_chaos::sim::seeds::{Runner, check_not_vacuous, known, total};
use drover_chaos::sim::verdict::Verdict;
use drover_core::mutants::Mutation;

/// The machines that run this have two cores.
const JOBS: usize = 2;
/// A second of CPU each. Planted mistakes have to be found within the same seeds.
const SEEDS: u64 = 20;

fn runner() -> Runner {
    Runner::new(Path::new(env!("CARGO_BIN_EXE_chaos")), JOBS)
}

fn shown(verdict: &Verdict) -> String {
    serde_json::to_string_pretty(verdict).expect("a verdict is plain data")
}

#[tokio::test]
async fn the_promises_hold_through_power_losses_and_partitions() {
    let seeds = known().into_iter().chain(0..SEEDS);
    let verdicts = runner().run(seeds, Verdict::is_valid).await.expect("every seed ends");
    for verdict in &verdicts {
        let seed = verdict.seed;
        let replay = format!("make sim ARGS=\"--seed {seed}\"");
        assert!(verdict.is_valid(), "replay it: {replay}\n{}", shown(verdict));
    }
    let total = total(&verdicts);
    check_not_vacuous(&total).expect("enough has happened");
    println!("{} seeds\n{total}", verdicts.len());
}

#[tokio::test]
async fn a_seed_replays_to_the_same_trace() {
    let twice = [1, 1, 2, 2, 3, 3];
    let verdicts = runner().run(twice, |_| true).await.expect("every seed ends");
    for pair in verdicts.chunks(2) {
        let [first, second] = pair else { panic!("each seed runs twice") };
        assert_eq!(first.trace, second.trace, "seed {}", first.seed);
        assert_eq!(first.events, second.events, "seed {}", first.seed);
    }
    assert_ne!(verdicts[0].trace, verdicts[2].trace, "the trace does not tell runs apart");
}

#[tokio::test]
async fn every_planted_mistake_is_found() {
    for mutation in Mutation::ALL {
        let mut runner = runner();
        runner.mutant = Some(mutation);
        let verdicts = runner.run(0..SEEDS, Verdict::is_valid).await.expect("every seed ends");
        let found = verdicts.iter().find(|verdict| !verdict.is_valid());
        let found = found.unwrap_or_else(|| panic!("{} survives {SEEDS} seeds", mutation.name()));
        println!("{} is found by seed {}: {}", mutation.name(), found.seed, found.problems[0]);
    }
}
