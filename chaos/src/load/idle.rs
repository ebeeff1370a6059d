//! Connections that say nothing: how fast they come (a storm), and what they cost while they stand.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::report::{Report, Tally};
use crate::fleet::Fleet;
use crate::mqtt::link::Link;

/// Handshakes at once. A storm is this wide: more would measure the generator's own queue.
const PARALLEL: usize = 256;

/// Connects the devices `numbers`, as fast as the hub lets them, and reports the latency of each connect.
pub async fn connect(
    fleet: &Fleet,
    numbers: Range<usize>,
) -> anyhow::Result<(Vec<(usize, Link)>, Report)> {
    let start = Instant::now();
    let end = numbers.end;
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let mut tasks = JoinSet::new();
    for _ in 0..PARALLEL.min(numbers.len()) {
        let next = Arc::clone(&next);
        let fleet = fleet.clone();
        tasks.spawn(async move {
            let mut links = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok::<_, anyhow::Error>(links);
                }
                let begin = Instant::now();
                let mut link = fleet.connect(number).await?;
                link.shrink();
                links.push((number, link, begin.elapsed()));
            }
        });
    }
    let mut tally = Tally::new();
    let mut links = Vec::with_capacity(numbers.len());
    while let Some(joined) = tasks.join_next().await {
        for (number, link, latency) in joined.context("a connecting task panicked")?? {
            tally.record(latency);
            links.push((number, link));
        }
    }
    links.sort_by_key(|(number, _)| *number);
    Ok((links, tally.report(start.elapsed(), Vec::new())))
}
