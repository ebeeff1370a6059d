//! Work that takes long: how far it is, said on standard error every few seconds, because results alone go to standard output.
//!
//! Ctrl-C and SIGTERM end it with a failure, so that whoever called can say what has become of it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

use super::Failure;

/// Often enough to see that it goes on.
const INTERVAL: Duration = Duration::from_secs(5);

/// Does the work, and says meanwhile what `text` gives.
pub(super) async fn show<T>(
    text: impl Fn() -> String,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut ticks = interval(INTERVAL);
    ticks.tick().await; // the first comes at once
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => eprintln!("drover: {}", text()),
            _ = terminate.recv() => return Err(interrupted()),
            _ = interrupt.recv() => return Err(interrupted()),
        }
    }
}

fn interrupted() -> Failure {
    Failure::Failed("it was interrupted".to_owned())
}

fn no_signals(error: std::io::Error) -> Failure {
    Failure::Failed(format!("no signals: {error}"))
}
