//! The kill test: nodes are ended with SIGKILL while devices send, and nothing that was acknowledged may be lost.
//!
//! [`plan`] draws a run from a seed, [`device`] is what each device does, [`faults`] kills and restarts, [`readback`] reads
//! what was kept, and [`report`] is the verdict. Processes on a real machine do not repeat themselves to the letter: the
//! same seed gives the same timetable and the same devices, not the same interleaving.
//!
//! What it cannot show: a kernel keeps what a killed process has written, so a hub that never calls fsync would pass. The
//! simulation takes that away too.

mod device;
mod faults;
pub mod plan;
mod readback;
pub mod report;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use drover_core::ids::{DeviceId, ShardCount, ShardId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::fleet::Fleet;
use crate::history::DeviceHistory;
use crate::nodes::{Nodes, Shape};
use crate::promises::{p1_telemetry, p2_twin};
use plan::Plan;
use report::{Failover, Report};

/// After the last heal, devices have this long to get every answer that they wait for.
const HEAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the plan on a cluster of its own.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut nodes = Nodes::start(&Shape { nodes: plan.nodes, shards: plan.shards }).await?;
    let mut fleet = nodes.fleet("kill-{n}");
    fleet.clean_session = false;
    nodes.admin().create_devices(&fleet, 0..plan.devices).await?;
    let begin = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let mut devices = start_devices(plan, fleet, begin, &stopped)?;
    let before = nodes.admin().status().await?;
    let kills = faults::run(plan, &mut nodes, begin).await;
    let led = nodes.until_led(HEAL_TIMEOUT).await;
    let after = nodes.admin().status().await?;
    stop.send(true).context("every device has ended before it was told to")?;
    let histories = finish(&mut devices).await?;
    let kills = kills?;
    led?;
    nodes.check_alive()?;
    let kept = readback::read(&nodes, plan.shards, &histories).await?;
    let mut telemetry = p1_telemetry::check(&histories, &kept.streams);
    telemetry.violations.extend(kept.violations);
    let twins = p2_twin::check(&histories, &kept.twins);
    let failover = Failover::measure(&kills, &histories);
    let terms = faults::terms(&after).saturating_sub(faults::terms(&before));
    Ok(Report::new(plan, &kills, terms, telemetry, twins, failover, &histories))
}

fn start_devices(
    plan: &Plan,
    fleet: Fleet,
    begin: Instant,
    stopped: &watch::Receiver<bool>,
) -> anyhow::Result<JoinSet<DeviceHistory>> {
    let fleet = Arc::new(fleet);
    let shards = ShardCount::new(plan.shards).context("a cluster has 1 to 4096 shards")?;
    let mut tasks = JoinSet::new();
    for number in 0..plan.devices {
        let id: DeviceId = fleet.id(number).parse()?;
        let shard = ShardId::of(&id, shards).number();
        let device = device::Device::new(number, shard, Arc::clone(&fleet), plan, begin);
        tasks.spawn(device.run(stopped.clone()));
    }
    Ok(tasks)
}

async fn finish(devices: &mut JoinSet<DeviceHistory>) -> anyhow::Result<Vec<DeviceHistory>> {
    let mut histories = Vec::with_capacity(devices.len());
    // A device bounds its own end; this bounds a bug in it.
    timeout(HEAL_TIMEOUT * 2, async {
        while let Some(joined) = devices.join_next().await {
            histories.push(joined.context("a device's task panicked")?);
        }
        anyhow::Ok(())
    })
    .await
    .context("the devices do not end")??;
    histories.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(histories)
}
