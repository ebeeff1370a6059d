//! The simulation, as CI runs it: seeds that failed once, some fresh ones, and the same seed twice.

use std::path::Path;

use drover_chaos::sim::seeds::{Runner, check_not_vacuous, known, total};
use drover_chaos::sim::verdict::Verdict;

/// The machines that run this have two cores.
const JOBS: usize = 2;
const SEEDS: u64 = 10;

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
    check_not_vacuous(&total(&verdicts)).expect("enough has happened");
}

#[tokio::test]
async fn a_seed_replays_to_the_same_trace() {
    let twice = [1, 1, 2, 2];
    let verdicts = runner().run(twice, |_| true).await.expect("every seed ends");
    for pair in verdicts.chunks(2) {
        assert_eq!(pair[0].trace, pair[1].trace, "seed {}", pair[0].seed);
    }
}
