//! `chaos run`: real nodes, each with a network and a disk of its own, under faults that a seed draws.
//!
//! [`nemesis`] names the faults, [`plan`] draws a timetable of them, [`site`] is the nodes with what surrounds them, and
//! [`fault`] does each thing to them and undoes it. The workload and its checks are those of the kill test
//! ([`crate::kill`]). [`timeline`], [`around`] and [`outage`] measure what devices felt, [`report`] judges, [`page`] draws.
//!
//! Processes on a real machine do not repeat themselves to the letter: the same seed gives the same faults at the same
//! times and the same devices, not the same interleaving.

mod around;
mod backup;
mod fault;
mod flips;
mod herd;
mod member;
pub mod nemesis;
mod network;
mod outage;
pub mod page;
pub mod plan;
mod poison;
pub mod report;
mod site;
mod timeline;

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::kill::report::Verdict;
use crate::kill::{self, Driven};
use crate::net::lab::Lab;
use crate::nodes::Nodes;
use crate::promises::restored::Restored;
use fault::{Fault, Seen};
use nemesis::Nemesis;
use plan::{Draw, Period, Plan};
use report::Report;
use site::Site;

/// After a period's faults have ended, the cluster has this long until every shard is led and every node answers.
const HEAL_TIMEOUT: Duration = Duration::from_mins(1);
/// A nemesis that has hit nothing when the time is over gets so many more turns. One that never can would make a run endless.
const MORE_TURNS_MAX: u64 = 3;

/// Runs the plan on a cluster of its own, each node in its namespace of `lab`, or without any for the reason given. What the
/// nodes said goes to the folder `logs` if the run does not pass.
pub async fn run(
    plan: &Plan,
    lab: Result<Lab, String>,
    logs: Option<&Path>,
) -> anyhow::Result<Report> {
    // Faults that go on by themselves are tasks of this thread.
    LocalSet::new().run_until(run_all(plan, lab, logs)).await
}

async fn run_all(
    plan: &Plan,
    lab: Result<Lab, String>,
    logs: Option<&Path>,
) -> anyhow::Result<Report> {
    let (mut site, left_out) = Site::prepare(plan, lab).await?;
    let mut plan = plan.clone();
    plan.nemeses.retain(|nemesis| !left_out.iter().any(|left| left.nemesis == *nemesis));
    let mut nodes = Nodes::start_at(site.places(), plan.workload.shards).await?;
    prepare(&plan, &mut site, &nodes).await?;
    let driven = kill::drive(&plan.workload, &mut nodes, async |nodes, begin| {
        let mut faults = Vec::new();
        // Devices are registered by now. Were that forgotten, too, nobody could say what else was.
        if plan.has_lying_disks {
            site.lie();
        }
        let applied = apply(&plan, &site, nodes, begin, &mut faults).await;
        // Whatever went wrong, nothing stays broken: the checks read from all nodes.
        let healed = site.heal_all().await;
        (faults, applied.and(healed), begin)
    })
    .await;
    let driven = match driven {
        Ok((applied, driven)) => Ok(restore_backup(&plan, &site, &nodes, applied, driven).await),
        Err(error) => Err(error),
    };
    // A disk can be unmounted only when nobody has files open on it.
    for node in 0..nodes.count() {
        nodes.end(node).await?;
    }
    let judged = driven
        .map(|(faults, driven, restored)| Report::new(&plan, faults, driven, restored, left_out))
        .with_context(|| plan.replay());
    let has_passed = judged.as_ref().is_ok_and(|report| report.verdict == Verdict::Valid);
    if let Some(logs) = logs.filter(|_| !has_passed) {
        nodes.copy_logs(logs)?;
    }
    judged
}

/// What was applied, and from when on.
type Applied = (Vec<Fault>, anyhow::Result<()>, Instant);

/// A cluster that does not heal has broken a promise: that is a finding, and the report shows how it came to it. Of one that
/// heals, the last backup is looked at, too.
async fn restore_backup(
    plan: &Plan,
    site: &Site,
    nodes: &Nodes,
    (faults, applied, begin): Applied,
    mut driven: Driven,
) -> (Vec<Fault>, Driven, Restored) {
    driven.unfinished.extend(applied.err().map(|error| format!("{error:#}")));
    let mut restored = Restored::default();
    if driven.unfinished.is_empty() {
        let found =
            backup::restore(&site.shelf(), nodes, plan.workload.shards, begin, &driven).await;
        match found {
            Ok(found) => restored = found,
            Err(error) => driven.unfinished.push(format!("{error:#}")),
        }
    }
    (faults, driven, restored)
}

/// What some nemeses need that can be had only while all is well.
async fn prepare(plan: &Plan, site: &mut Site, nodes: &Nodes) -> anyhow::Result<()> {
    if plan.nemeses.contains(&Nemesis::Herd) {
        herd::register(nodes).await?;
    }
    if plan.nemeses.contains(&Nemesis::Poison) {
        poison::register(nodes).await?;
    }
    site.prepare_spare(nodes)
}

/// One period after the other until the time is over, and then some for those that have hit nothing. Puts down what
/// happened, also if it fails.
async fn apply(
    plan: &Plan,
    site: &Site,
    nodes: &mut Nodes,
    begin: Instant,
    faults: &mut Vec<Fault>,
) -> anyhow::Result<()> {
    let mut doomed = Vec::new();
    for period in plan.periods() {
        if begin.elapsed() + period.length > plan.workload.duration {
            break;
        }
        endure(&period, site, nodes, begin, &mut doomed, faults).await?;
    }
    for turn in 0..MORE_TURNS_MAX {
        for period in plan.more_turns(&report::never_hit(plan, faults), turn) {
            tracing::info!(faults = ?period.faults, "another turn: it has hit nothing yet");
            endure(&period, site, nodes, begin, &mut doomed, faults).await?;
        }
    }
    sleep_until(begin + plan.workload.duration).await;
    Ok(())
}

/// A period from its calm to the moment when all is well again. Its faults begin together and end together. `doomed` are nodes
/// that may end because of the period before: a node whose storage has failed goes on answering until it has stopped.
async fn endure(
    period: &Period,
    site: &Site,
    nodes: &mut Nodes,
    begin: Instant,
    doomed: &mut Vec<usize>,
    faults: &mut Vec<Fault>,
) -> anyhow::Result<()> {
    sleep(period.calm).await;
    site::restart_ended(nodes, doomed)?;
    let installed = install(period, site, nodes, begin).await?;
    sleep(period.length).await;
    let (mut may_end, mut healed) = (std::mem::take(doomed), Vec::new());
    for (draw, shards, from_ms, state) in installed {
        let until_ms = begin.elapsed().as_millis() as u64;
        let seen = fault::heal(site, nodes, &draw, state)
            .await
            .with_context(|| format!("ending {} at node {}", draw.nemesis, draw.node + 1))?;
        doomed.extend(fault::may_end(draw.nemesis).then_some(draw.node));
        healed.push((draw, shards, from_ms..until_ms, seen));
    }
    may_end.extend_from_slice(doomed);
    tokio::select! {
        completed = complete(healed, faults) => completed?,
        error = site::keep_up(nodes, &may_end) => return Err(error),
    }
    let ended = Instant::now();
    site.until_healthy(nodes, &may_end, HEAL_TIMEOUT)
        .await
        .with_context(|| format!("after {:?}", period.faults))?;
    tracing::info!(after = ?ended.elapsed(), "healthy again");
    Ok(())
}

/// Waits for what goes on by itself after all faults were healed, and puts down what is known of each.
async fn complete(healed: Vec<Healed>, faults: &mut Vec<Fault>) -> anyhow::Result<()> {
    let is_alone = healed.len() == 1;
    for (draw, shards, time_ms, seen) in healed {
        let seen = seen
            .complete(is_alone)
            .await
            .with_context(|| format!("{} at node {}", draw.nemesis, draw.node + 1))?;
        tracing::info!(nemesis = %draw.nemesis, evidence = seen.evidence, "ends");
        faults.push(Fault::new(&draw, shards, time_ms, seen));
    }
    Ok(())
}

/// A fault that has ended, and when it was.
type Healed = (Draw, Vec<u32>, Range<u64>, Seen);

/// A fault that has begun: what it is, the shards that its node led, since when, and what is known of it.
type Installed = (Draw, Vec<u32>, u64, Seen);

async fn install(
    period: &Period,
    site: &Site,
    nodes: &mut Nodes,
    begin: Instant,
) -> anyhow::Result<Vec<Installed>> {
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
    Ok(installed)
}
