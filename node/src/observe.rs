//! Seeing inside: the log, and an HTTP listener with `/metrics`, `/healthz` and `/readyz`.
//!
//! The listener has no login, so nothing it says names a device or a client: labels have small, known sets of values.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::metrics;

/// Histograms of times, in seconds: from an in-memory hop to a failover.
const SECONDS: [f64; 16] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

/// Histograms of counts and bytes: powers of four.
const AMOUNTS: [f64; 12] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
];

/// How often histograms are folded and memory is measured. Between two scrapes nothing must grow.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sends the log of this process to standard error. Once a process.
pub fn start_logging(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| format!("log.filter {:?} cannot be read: {error}", log.filter))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => subscriber.with_ansi(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}

/// Starts counting. Once a process, before anything that counts.
pub fn start_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets(&AMOUNTS))
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("metrics cannot be started: {error}"))?;
    metrics::describe();
    drover_cluster::metrics::describe();
    Ok(handle)
}

/// Says what keeps this node from serving, if anything.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
struct Seen {
    handle: PrometheusHandle,
    readiness: Readiness,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    handle: PrometheusHandle,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Seen { handle, readiness });
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Folds histograms and measures memory, until `stop`.
pub async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        handle.run_upkeep();
        measure_memory();
    }
}

async fn exposition(State(seen): State<Seen>) -> impl IntoResponse {
    measure_memory();
    ([("content-type", "text/plain; version=0.0.4")], seen.handle.render())
}

async fn ready(State(seen): State<Seen>) -> impl IntoResponse {
    match (seen.readiness)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
    }
}

/// jemalloc's own figures, refreshed by advancing its epoch. Where they cannot be read the gauges stay away.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 bytes, which is 8192 TiB")]
fn measure_memory() {
    use tikv_jemalloc_ctl::{epoch, stats};
    if epoch::advance().is_err() {
        return;
    }
    let figures = [
        (metrics::PROCESS_ALLOCATED_BYTES, stats::allocated::read()),
        (metrics::PROCESS_RESIDENT_BYTES, stats::resident::read()),
        (metrics::PROCESS_RETAINED_BYTES, stats::retained::read()),
    ];
    for (name, figure) in figures {
        if let Ok(bytes) = figure {
            ::metrics::gauge!(name).set(bytes as f64);
        }
    }
}

/// Lets jemalloc give freed pages back from a thread of its own: without it an idle node keeps what a storm took.
pub fn start_purging() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "freed memory is given back only while the node works");
    }
}
