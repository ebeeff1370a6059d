//! The kill test: nodes are ended with SIGKILL while devices send, and nothing that was acknowledged may be lost.
//!
//! [`plan`] draws a run from a seed, [`device`] is what each device does that only sends, [`talk`] is commands and methods
//! ([`recipient`], [`backend`], [`caller`]), [`faults`] kills and restarts, [`readback`] reads what was kept, and [`report`]
//! is the verdict. Processes on a real machine do not repeat themselves to the letter: the same seed gives the same
//! timetable and the same devices, not the same interleaving.
//!
//! What it cannot show: a kernel keeps what a killed process has written, so a hub that never calls fsync would pass. The
//! simulation takes that away too, and so does [`crate::run`], which drives the same devices.

mod backend;
mod caller;
mod clock;
mod device;
pub mod failover;
mod faults;
pub mod plan;
pub(crate) mod readback;
mod recipient;
pub mod report;
mod talk;

pub use talk::UnderWay;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_core::ids::{DeviceId, ShardCount, ShardId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::fleet::Fleet;
use crate::history::DeviceHistory;
use crate::nodes::{Nodes, Shape};
use crate::promises::p1_telemetry::Streams;
use crate::promises::p3_commands::{self, Terms};
use crate::promises::{Checked, p1_telemetry, p2_twin, p4_methods};
use clock::Clock;
use failover::Failover;
use plan::Plan;
use recipient::LOCK_MAX;
use report::{Findings, Report};
use talk::{Talk, Talked};

/// After the last heal, devices have this long to get every answer that they wait for.
const HEAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The hub's default.
const DELIVERIES_MAX: u32 = 10;

/// Runs the plan on a cluster of its own.
pub async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut nodes = Nodes::start(&Shape { nodes: plan.nodes, shards: plan.shards }).await?;
    let kill = async |nodes: &mut Nodes, begin| faults::run(plan, nodes, begin).await;
    let (kills, driven) = drive(plan, &mut nodes, kill).await?;
    let kills = kills?;
    ensure!(driven.unfinished.is_empty(), "{}", driven.unfinished.join("\n"));
    let times: Vec<u64> = kills.iter().map(|kill| kill.at_ms).collect();
    let findings = Findings {
        failover: Failover::measure(&kills, &driven.senders),
        under_way_at_kills: driven.under_way.at(&times),
        checked: driven.checked,
        terms: driven.terms,
    };
    Ok(Report::new(plan, &kills, findings, &driven.histories))
}

/// What the devices and those who talk to them did, and what the checks say of it.
#[derive(Default)]
pub struct Driven {
    /// Devices that only send.
    pub senders: Vec<DeviceHistory>,
    /// All devices.
    pub histories: Vec<DeviceHistory>,
    pub checked: Checked,
    /// The stream of each shard at the end.
    pub streams: Streams,
    /// When commands and calls were under way.
    pub under_way: UnderWay,
    /// How far all groups' terms have grown together.
    pub terms: u64,
    /// What kept the cluster, or its clients, from coming to an end. If there is anything, the promises are not checked:
    /// nobody can say what was kept.
    pub unfinished: Vec<String>,
}

/// Lets the devices of `plan` work while `faults` happen, and checks the promises when they are over. What `faults` did it
/// must have undone.
pub async fn drive<F>(
    plan: &Plan,
    nodes: &mut Nodes,
    faults: impl AsyncFnOnce(&mut Nodes, Instant) -> F,
) -> anyhow::Result<(F, Driven)> {
    let clock = Clock::start();
    let devices = Devices::start(plan, nodes, clock).await?;
    let before = faults::terms(&nodes.admin().status().await?);
    let faults = faults(nodes, clock.begin()).await;
    let mut driven = devices.finish(plan, nodes).await;
    if let Some(after) = driven.note(nodes.admin().status().await) {
        driven.terms = faults::terms(&after).saturating_sub(before);
    }
    Ok((faults, driven))
}

impl Driven {
    /// What could not be done is put down, and the run goes on to its end.
    fn note<T>(&mut self, outcome: anyhow::Result<T>) -> Option<T> {
        outcome.map_err(|error| self.unfinished.push(format!("{error:#}"))).ok()
    }
}

/// What all promises say of what clients saw and of what the cluster kept.
async fn check(
    plan: &Plan,
    nodes: &Nodes,
    histories: &[DeviceHistory],
    talked: &Talked,
) -> anyhow::Result<(Checked, Streams)> {
    let kept = readback::read(nodes, plan.shards, histories).await?;
    let mut telemetry = p1_telemetry::check(histories, &kept.streams);
    telemetry.violations.extend(kept.violations);
    let terms = Terms { deliveries_max: DELIVERIES_MAX, skew_ms: plan.skew_ms };
    let checked = Checked {
        telemetry,
        twins: p2_twin::check(histories, &kept.twins),
        commands: p3_commands::check(&talked.mailboxes, &kept.ledgers, terms),
        methods: p4_methods::check(&talked.calls),
    };
    Ok((checked, kept.streams))
}

/// All devices of a run.
struct Devices {
    senders: JoinSet<DeviceHistory>,
    stop: watch::Sender<bool>,
    talk: Talk,
}

impl Devices {
    async fn start(plan: &Plan, nodes: &Nodes, clock: Clock) -> anyhow::Result<Self> {
        let fleet = |name: &str| {
            let mut fleet = nodes.fleet(name);
            fleet.clean_session = false;
            fleet
        };
        let (senders, recipients) = (fleet("kill-{n}"), Arc::new(fleet("talk-{n}")));
        nodes.admin().create_devices(&senders, 0..plan.devices).await?;
        nodes.admin().create_devices(&recipients, 0..plan.recipients).await?;
        let (stop, stopped) = watch::channel(false);
        let senders = start_senders(plan, senders, clock.begin(), &stopped)?;
        let talk = Talk::start(plan, &recipients, nodes.admin(), clock)?;
        Ok(Self { senders, stop, talk })
    }

    /// Faults are over: waits until everybody has the answers that they wait for, and checks the promises.
    async fn finish(mut self, plan: &Plan, nodes: &mut Nodes) -> Driven {
        let mut driven = Driven::default();
        driven.note(nodes.until_led(HEAL_TIMEOUT).await);
        let talked = driven.note(self.talk.finish().await);
        let told = self.stop.send(true);
        driven.note(told.context("every device has ended before it was told to"));
        let senders = driven.note(finish(&mut self.senders).await);
        driven.note(nodes.check_alive());
        let mut talked = talked.unwrap_or_default();
        if Duration::from_millis(plan.skew_ms) >= LOCK_MAX {
            talked.allow_relocking();
        }
        driven.under_way = talked.under_way();
        driven.senders = senders.unwrap_or_default();
        driven.histories = [driven.senders.clone(), talked.telemetry.clone()].concat();
        if driven.unfinished.is_empty() {
            let checked = check(plan, nodes, &driven.histories, &talked).await;
            (driven.checked, driven.streams) = driven.note(checked).unwrap_or_default();
        }
        driven
    }
}

fn start_senders(
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
