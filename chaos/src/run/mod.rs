//! `chaos run`: real nodes, each with a network and a disk of its own, under faults that a seed draws.
//!
//! [`nemesis`] names the faults, [`plan`] draws a timetable of them, [`site`] is the nodes with what surrounds them, and
//! [`fault`] does each thing to them and undoes it. The workload and its checks are those of the kill test
//! ([`crate::kill`]). [`timeline`] and [`outage`] measure what devices felt, [`report`] judges, [`page`] draws.
//!
//! Processes on a real machine do not repeat themselves to the letter: the same seed gives the same faults at the same
//! times and the same devices, not the same interleaving.

mod fault;
pub mod nemesis;
mod outage;
pub mod page;
pub mod plan;
pub mod report;
mod site;
mod timeline;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep, sleep_until};

use crate::kill;
use crate::kill::report::Verdict;
use crate::net::lab::Lab;
use crate::nodes::Nodes;
use fault::Fault;
use plan::{Period, Plan};
use report::Report;
use site::Site;

/// After a period's faults have ended, the cluster has this long until every shard is led and every node answers.
const HEAL_TIMEOUT: Duration = Duration::from_mins(1);

/// Runs the plan on a cluster of its own, each node in its namespace of `lab`, or without any for the reason given. What the
/// nodes said goes to the folder `logs` if the run does not pass.
pub async fn run(
    plan: &Plan,
    lab: Result<Lab, String>,
    logs: Option<&Path>,
) -> anyhow::Result<Report> {
    let (site, left_out) = Site::prepare(plan, lab)?;
    let mut plan = plan.clone();
    plan.nemeses.retain(|nemesis| !left_out.iter().any(|left| left.nemesis == *nemesis));
    let mut nodes = Nodes::start_at(site.places(), plan.workload.shards).await?;
    let driven = kill::drive(&plan.workload, &mut nodes, async |nodes, begin| {
        let faults = apply(&plan, &site, nodes, begin).await;
        // Whatever went wrong, nothing stays broken: the checks read from all nodes.
        site.heal_all().await?;
        faults
    })
    .await;
    // A disk can be unmounted only when nobody has files open on it.
    for node in 0..nodes.count() {
        nodes.end(node).await?;
    }
    let judged = driven
        .map(|(faults, driven)| Report::new(&plan, faults, driven, left_out))
        .with_context(|| plan.replay());
    let has_passed = judged.as_ref().is_ok_and(|report| report.verdict == Verdict::Valid);
    if let Some(logs) = logs.filter(|_| !has_passed) {
        nodes.copy_logs(logs)?;
    }
    judged
}

/// One period after the other until the time is over.
async fn apply(
    plan: &Plan,
    site: &Site,
    nodes: &mut Nodes,
    begin: Instant,
) -> anyhow::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for period in plan.periods() {
        if begin.elapsed() + period.length > plan.workload.duration {
            break;
        }
        sleep(period.calm).await;
        faults.extend(endure(&period, site, nodes, begin).await?);
        let healed = Instant::now();
        let hit = faults.iter().rev().take(period.faults.len());
        let may_end = hit.filter(|fault| fault::may_end(fault.nemesis));
        let may_end: Vec<usize> = may_end.map(|fault| fault.node as usize - 1).collect();
        site.until_healthy(nodes, &may_end, HEAL_TIMEOUT)
            .await
            .with_context(|| format!("after {:?}", period.faults))?;
        tracing::info!(after = ?healed.elapsed(), "healthy again");
    }
    sleep_until(begin + plan.workload.duration).await;
    Ok(faults)
}

/// The faults of a period begin together and end together.
async fn endure(
    period: &Period,
    site: &Site,
    nodes: &mut Nodes,
    begin: Instant,
) -> anyhow::Result<Vec<Fault>> {
    let status = nodes.admin().status().await.context("before a period")?;
    let mut installed = Vec::new();
    for draw in period.resolve(&status, nodes.count()) {
        tracing::info!(nemesis = %draw.nemesis, node = draw.node + 1, "begins");
        let led = fault::led_by(&status, &draw);
        let from_ms = begin.elapsed().as_millis() as u64;
        let state = fault::install(site, nodes, &draw)
            .await
            .with_context(|| format!("{} at node {}", draw.nemesis, draw.node + 1))?;
        installed.push((draw, led, from_ms, state));
    }
    sleep(period.length).await;
    let mut faults = Vec::new();
    for (draw, shards, from_ms, state) in installed {
        let until_ms = begin.elapsed().as_millis() as u64;
        let seen = fault::heal(site, nodes, &draw, state)
            .await
            .with_context(|| format!("ending {} at node {}", draw.nemesis, draw.node + 1))?;
        tracing::info!(nemesis = %draw.nemesis, evidence = seen.evidence, "ends");
        faults.push(Fault::new(&draw, shards, from_ms, until_ms, seen));
    }
    Ok(faults)
}
