//! What the machine does by itself: how long an fsync takes, how long a wake-up, how even a core is.
//!
//! Two figures that differ by less than these vary are equal.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::figures::median;

const FSYNCS: usize = 200;
const ROUNDS: u64 = 20_000_000;

/// A line for each of the machine's habits.
pub(super) async fn measure(repeats: usize) -> anyhow::Result<impl Iterator<Item = String>> {
    let mut fsyncs = Vec::new();
    let mut cores = Vec::new();
    for _ in 0..repeats {
        fsyncs.push(fsync_us()?);
        cores.push(core_ms());
        sleep(Duration::from_millis(200)).await;
    }
    let line = |what: &str, unit: &str, runs: Vec<f64>| {
        let middle = median(&runs).unwrap_or_default();
        let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = runs.iter().copied().fold(0.0, f64::max);
        format!("{what} {middle:.0} {unit} ({least:.0} to {most:.0})")
    };
    let lines = [
        processor(),
        line("append of 4 KiB and fdatasync, median", "us", fsyncs),
        line("a fixed piece of work on one core", "ms", cores),
    ];
    Ok(lines.into_iter())
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} cores, {}", model.map_or("unknown", |(_, name)| name))
}

fn fsync_us() -> anyhow::Result<f64> {
    let folder = TempDir::new()?;
    let path = folder.path().join("fsync");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut times = Vec::with_capacity(FSYNCS);
    for _ in 0..FSYNCS {
        let begin = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&times).unwrap_or_default())
}

fn core_ms() -> f64 {
    let begin = Instant::now();
    let mut state = 1_u64;
    for round in 0..ROUNDS {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round));
    }
    begin.elapsed().as_secs_f64() * 1e3
}
