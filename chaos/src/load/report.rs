//! What a run of load came to: for people a line, for programs JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies are kept in microseconds, up to ten minutes, to three digits.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Counts of one connection, merged at the end.
pub(crate) struct Tally {
    pub(crate) acked: u64,
    pub(crate) unanswered: u64,
    pub(crate) latency_us: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .expect("the bounds are constants in order");
        Self { acked: 0, unanswered: 0, latency_us }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.acked += 1;
        self.latency_us.saturating_record(latency.as_micros() as u64);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.acked += other.acked;
        self.unanswered += other.unanswered;
        self.latency_us.add(&other.latency_us).expect("all tallies have the same bounds");
    }

    pub(crate) fn report(&self, elapsed: Duration, failed: Vec<String>) -> Report {
        let quantile = |q| self.latency_us.value_at_quantile(q) as f64 / 1000.0;
        Report {
            acked: self.acked,
            unanswered: self.unanswered,
            seconds: elapsed.as_secs_f64(),
            per_second: self.acked as f64 / elapsed.as_secs_f64(),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            p999_ms: quantile(0.999),
            max_ms: self.latency_us.max() as f64 / 1000.0,
            failed_connections: failed.len(),
            first_failure: failed.into_iter().next(),
        }
    }
}

/// The result of a run. Latency runs from when a request was (or, in the open loop, should have been) sent.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub acked: u64,
    /// Sent, and not acknowledged when the run gave up waiting.
    pub unanswered: u64,
    pub seconds: f64,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    pub failed_connections: usize,
    pub first_failure: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged in {:.1} s: {:.0}/s; latency p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            self.acked, self.seconds, self.per_second, self.p50_ms, self.p99_ms, self.max_ms
        )?;
        if self.unanswered > 0 {
            write!(f, "; {} unanswered", self.unanswered)?;
        }
        if let Some(failure) = &self.first_failure {
            write!(f, "; {} connections failed: {failure}", self.failed_connections)?;
        }
        Ok(())
    }
}
