//! Does each fault to a node and undoes it, and says by what it is known to have been there.

use std::ops::Range;
use std::time::Duration;

use drover_proto::admin::ClusterStatus;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};

use super::backup::Copying;
use super::flips;
use super::herd::Herd;
use super::member::Churn;
use super::nemesis::Nemesis;
use super::network::{Cut, Network};
use super::plan::{CLOCK_JUMP_S, Draw};
use super::poison::Poison;
use super::site::Site;
use crate::disk::{Behaviour, Kept, Sync};
use crate::nodes::Nodes;

/// A node whose disk failed a sync must have ended by then.
const END_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// A fault that was.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    pub nemesis: Nemesis,
    /// Counted from 1.
    pub node: u32,
    /// The shards that the node led when it began.
    pub shards: Vec<u32>,
    pub from_ms: u64,
    pub until_ms: u64,
    /// Packets, writes, syncs, processes, connections, replicas, answers or backups that it hit. With 0 there was no fault.
    pub evidence: u64,
    pub detail: String,
    /// What the node did that it must not.
    pub complaint: Option<String>,
}

/// What is known of a fault: once when it begins, and more when it ends.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) evidence: u64,
    detail: String,
    complaint: Option<String>,
    /// What somebody noticed who should have noticed nothing.
    suffered: Option<String>,
    /// What goes on by itself while the fault lasts.
    task: Option<Task>,
}

#[derive(Debug)]
struct Task {
    over: watch::Sender<bool>,
    running: JoinHandle<anyhow::Result<Seen>>,
}

impl Seen {
    pub(super) fn of(evidence: u64, detail: impl Into<String>) -> Self {
        Self { evidence, detail: detail.into(), ..Self::default() }
    }

    pub(super) fn complaining(self, complaint: Option<String>) -> Self {
        Self { complaint, ..self }
    }

    pub(super) fn suffering(self, suffered: Option<String>) -> Self {
        Self { suffered, ..self }
    }

    #[cfg(test)]
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    #[cfg(test)]
    pub(super) fn suffered(&self) -> Option<&str> {
        self.suffered.as_deref()
    }

    /// What `begin` starts; it is told when the faults of the period are over, and must end some time after that.
    pub(super) fn later<F>(begin: impl FnOnce(watch::Receiver<bool>) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<Self>> + 'static,
    {
        let (over, is_over) = watch::channel(false);
        let running = spawn_local(begin(is_over));
        Self { task: Some(Task { over, running }), ..Self::default() }
    }

    /// Waits for what goes on by itself, after all faults were healed. `is_alone`: nothing else happened in the period that
    /// could excuse what was suffered.
    pub(super) async fn complete(self, is_alone: bool) -> anyhow::Result<Self> {
        let Some(Task { over, running }) = self.task else { return Ok(self) };
        over.send_replace(true);
        let seen = running.await??;
        let suffered = seen.suffered.filter(|_| is_alone);
        let details = [self.detail, seen.detail];
        let details: Vec<String> = details.into_iter().filter(|text| !text.is_empty()).collect();
        Ok(Self {
            evidence: self.evidence + seen.evidence,
            detail: details.join("; "),
            complaint: self.complaint.or(seen.complaint).or(suffered),
            ..Self::default()
        })
    }

    /// What is known by now of what goes on by itself.
    pub(super) fn adding(self, known: Self) -> Self {
        Self { task: self.task, ..known }
    }
}

impl Fault {
    /// A fault of node 1 that hit something.
    #[cfg(test)]
    pub(super) fn sample(nemesis: Nemesis, shards: Vec<u32>, from_ms: u64) -> Self {
        Self {
            nemesis,
            node: 1,
            shards,
            from_ms,
            until_ms: from_ms + 1,
            evidence: 1,
            detail: String::new(),
            complaint: None,
        }
    }

    pub(super) fn new(draw: &Draw, shards: Vec<u32>, time_ms: Range<u64>, seen: Seen) -> Self {
        let Seen { evidence, detail, complaint, .. } = seen;
        let (node, nemesis) = (draw.node as u32 + 1, draw.nemesis);
        let Range { start: from_ms, end: until_ms } = time_ms;
        Self { nemesis, node, shards, from_ms, until_ms, evidence, detail, complaint }
    }
}

/// The shards that the node of `draw` leads; all of them if it befalls all nodes.
pub(super) fn led_by(status: &ClusterStatus, draw: &Draw) -> Vec<u32> {
    let is_hit = |leader: u32| {
        draw.nemesis == Nemesis::PowerAll || usize::try_from(leader) == Ok(draw.node + 1)
    };
    let led = status.shards.iter().filter(|group| group.leader.is_some_and(is_hit));
    led.filter_map(|group| group.shard).collect()
}

/// Whether a node that suffered it may have ended by itself.
pub(super) fn may_end(nemesis: Nemesis) -> bool {
    matches!(
        nemesis,
        Nemesis::HungDisk | Nemesis::FailingDisk | Nemesis::FullDisk | Nemesis::FlippedBits
    )
}

pub(super) async fn install(site: &Site, nodes: &mut Nodes, draw: &Draw) -> anyhow::Result<Seen> {
    let (node, mut random) = (draw.node, StdRng::seed_from_u64(draw.seed));
    match draw.nemesis {
        Nemesis::Kill => {
            nodes.kill(node).await?;
            Ok(Seen::of(1, "killed"))
        }
        Nemesis::Power => cut_power(site, nodes, &[node], &mut random).await,
        Nemesis::PowerAll => {
            let all: Vec<usize> = (0..nodes.count()).collect();
            cut_power(site, nodes, &all, &mut random).await
        }
        Nemesis::Pause => {
            nodes.process(node)?.signal("STOP").await?;
            Ok(Seen::default())
        }
        Nemesis::HungDisk => misbehave(site, node, |behaviour| behaviour.sync = Sync::Hung),
        Nemesis::FailingDisk => misbehave(site, node, |behaviour| behaviour.sync = Sync::Fails),
        Nemesis::SlowDisk => {
            let delay = Duration::from_millis(random.random_range(60..250));
            misbehave(site, node, |behaviour| behaviour.sync = Sync::Slow(delay))
        }
        Nemesis::FullDisk => {
            // With a little room the node's own reserve must refuse; without any the kernel does.
            let room_bytes = if random.random() { 0 } else { 32 << 20 };
            let capacity_bytes = Some(site.disk(node)?.used_bytes() + room_bytes);
            misbehave(site, node, |behaviour| behaviour.capacity_bytes = capacity_bytes)
        }
        Nemesis::FlippedBits => flips::install(site, nodes, node, &mut random).await,
        Nemesis::SlowNet => {
            let kilobits_per_second = random.random_range(1_000..4_000);
            site.network().throttle(node, Some(kilobits_per_second)).await?;
            Ok(Seen::of(0, format!("{kilobits_per_second} kbit/s")))
        }
        Nemesis::Partition => Links::of(site, node).cut_all(Cut::Silence).await,
        Nemesis::Reset => Links::of(site, node).cut_all(Cut::Reset).await,
        Nemesis::OneWay => Links::of(site, node).cut_one_way(random.random()).await,
        Nemesis::Bridge => Links::of(site, node).cut_one(&mut random).await,
        Nemesis::Loss => {
            let percent = random.random_range(5..30);
            site.network().lose(node, percent).await?;
            Ok(Seen::of(0, format!("{percent} %")))
        }
        Nemesis::Clock => jump(site, nodes, node, &mut random),
        Nemesis::Herd => {
            let herd = Herd::gather(nodes, node).await?;
            site.network().cut_clients(node, true).await?;
            Ok(Seen::later(|over| herd.stampede(over)))
        }
        Nemesis::Member => {
            let (admin, spare) = (nodes.admin().clone(), site.spare()?);
            let founders = u32::try_from(nodes.count())?;
            let churn = Churn { admin, spare, founders, drained: node as u32 + 1 };
            Ok(Seen::later(|_| churn.run()))
        }
        Nemesis::Poison => {
            let poison = Poison::at(nodes, node);
            Ok(Seen::later(|over| poison.spread(over)))
        }
        Nemesis::Backup => {
            let copying = Copying { operator: nodes.operator(node)?, shelf: site.shelf() };
            Ok(Seen::later(|over| copying.repeat(over)))
        }
    }
}

/// Lets a node's clock jump, forwards or back.
fn jump(site: &Site, nodes: &mut Nodes, node: usize, random: &mut StdRng) -> anyhow::Result<Seen> {
    let jump_s = random.random_range(CLOCK_JUMP_S).cast_signed();
    let offset_s = if random.random() { jump_s } else { -jump_s };
    site.set_clock(node, offset_s)?;
    // A node that is down, because another fault of the period wants it so, has no clock to be wrong.
    let is_faked = nodes.process(node).and_then(|process| process.has_mapped("libfaketime"));
    Ok(Seen::of(u64::from(is_faked.unwrap_or(false)), format!("{offset_s:+} s")))
}

/// Ends a fault; what is known of it now.
pub(super) async fn heal(
    site: &Site,
    nodes: &mut Nodes,
    draw: &Draw,
    mut seen: Seen,
) -> anyhow::Result<Seen> {
    let node = draw.node;
    match draw.nemesis {
        Nemesis::Kill | Nemesis::Power => nodes.restart(node)?,
        Nemesis::PowerAll => (0..nodes.count()).try_for_each(|node| nodes.restart(node))?,
        Nemesis::Pause => {
            let process = nodes.process(node)?;
            seen.evidence = u64::from(process.is_stopped()?);
            process.signal("CONT").await?;
        }
        Nemesis::HungDisk | Nemesis::SlowDisk => {
            seen.evidence = behave_well(site, node, |counters| counters.delayed)?;
        }
        Nemesis::FullDisk => {
            seen.evidence = behave_well(site, node, |counters| {
                counters.failed_writes + counters.told_capacity
            })?;
        }
        Nemesis::FailingDisk => {
            seen.evidence = site.disk(node)?.counters().failed_syncs;
            if seen.evidence > 0 && !ends(nodes, node).await? {
                seen.complaint = Some(format!("node {} goes on after a failed sync", node + 1));
            }
            behave_well(site, node, |counters| counters.failed_syncs)?;
        }
        Nemesis::FlippedBits => seen = seen.adding(flips::heal(site, nodes, node).await?),
        Nemesis::SlowNet => seen.evidence = site.network().throttle(node, None).await?,
        Nemesis::Partition | Nemesis::OneWay | Nemesis::Bridge | Nemesis::Reset | Nemesis::Loss => {
            for node in 0..site.count() {
                seen.evidence += site.network().cut(node, &[], Cut::Silence).await?;
            }
        }
        Nemesis::Clock => site.set_clock(node, 0)?,
        Nemesis::Herd => site.network().cut_clients(node, false).await?,
        // They end by themselves.
        Nemesis::Member | Nemesis::Poison | Nemesis::Backup => {}
    }
    Ok(seen)
}

/// All of `victims` go dark before any of them loses its pages, as they would together.
async fn cut_power(
    site: &Site,
    nodes: &mut Nodes,
    victims: &[usize],
    random: &mut StdRng,
) -> anyhow::Result<Seen> {
    for node in victims {
        nodes.process(*node)?.signal("KILL").await?;
    }
    let (mut evidence, mut details) = (0, Vec::new());
    for node in victims {
        nodes.kill(*node).await?;
        let kept =
            if random.random_bool(0.3) { Kept::Nothing } else { Kept::Some(random.random()) };
        let loss = site.disk(*node)?.lose_power(kept)?;
        evidence += loss.names + loss.writes;
        details.push(format!(
            "node {}: {} writes ({} bytes, {} torn) and {} names lost",
            node + 1,
            loss.writes,
            loss.bytes,
            loss.torn,
            loss.names
        ));
    }
    Ok(Seen::of(evidence, details.join("; ")))
}

fn misbehave(
    site: &Site,
    node: usize,
    change: impl FnOnce(&mut Behaviour),
) -> anyhow::Result<Seen> {
    let mut behaviour = Behaviour::default();
    change(&mut behaviour);
    let disk = site.disk(node)?;
    disk.reset_counters();
    disk.behave(behaviour);
    Ok(Seen::of(0, format!("{behaviour:?}")))
}

fn behave_well(
    site: &Site,
    node: usize,
    evidence: fn(crate::disk::Counters) -> u64,
) -> anyhow::Result<u64> {
    let disk = site.disk(node)?;
    disk.behave(Behaviour::default());
    Ok(evidence(disk.counters()))
}

/// Whether the node ends by itself. It is started again by whoever waits until all are healthy.
async fn ends(nodes: &mut Nodes, node: usize) -> anyhow::Result<bool> {
    let begin = Instant::now();
    while begin.elapsed() < END_TIMEOUT {
        if nodes.process(node)?.has_ended()? {
            return Ok(true);
        }
        sleep(PAUSE).await;
    }
    Ok(false)
}

/// The links of one node.
struct Links<'a> {
    network: &'a Network,
    victim: usize,
    others: Vec<usize>,
}

impl<'a> Links<'a> {
    fn of(site: &'a Site, victim: usize) -> Self {
        let others = (0..site.count()).filter(|node| *node != victim).collect();
        Self { network: site.network(), victim, others }
    }

    async fn deafen(&self, cut: Cut) -> anyhow::Result<()> {
        self.network.cut(self.victim, &self.others, cut).await.map(drop)
    }

    async fn mute(&self, cut: Cut) -> anyhow::Result<()> {
        for other in &self.others {
            self.network.cut(*other, &[self.victim], cut).await?;
        }
        Ok(())
    }

    async fn cut_all(&self, cut: Cut) -> anyhow::Result<Seen> {
        self.deafen(cut).await?;
        self.mute(cut).await?;
        Ok(Seen::of(0, format!("node {} and the others", self.victim + 1)))
    }

    async fn cut_one_way(&self, is_deaf: bool) -> anyhow::Result<Seen> {
        let node = self.victim + 1;
        if is_deaf {
            self.deafen(Cut::Silence).await?;
            return Ok(Seen::of(0, format!("node {node} hears nobody")));
        }
        self.mute(Cut::Silence).await?;
        Ok(Seen::of(0, format!("nobody hears node {node}")))
    }

    async fn cut_one(&self, random: &mut StdRng) -> anyhow::Result<Seen> {
        let other = self.others[random.random_range(0..self.others.len())];
        self.network.cut(self.victim, &[other], Cut::Silence).await?;
        self.network.cut(other, &[self.victim], Cut::Silence).await?;
        Ok(Seen::of(0, format!("nodes {} and {}", self.victim + 1, other + 1)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    async fn completed(seen: Seen, is_alone: bool) -> Seen {
        let later = Seen::later(async |mut over| {
            over.wait_for(|is_over| *is_over).await?;
            Ok(seen)
        });
        later.complete(is_alone).await.expect("it has ended")
    }

    #[tokio::test]
    async fn what_was_suffered_is_a_complaint_unless_another_fault_can_explain_it() {
        let noticed = || Seen::of(1, "noticed").suffering(Some("it was cut off".to_owned()));
        let accepted = || noticed().complaining(Some("it was accepted".to_owned()));
        let judged = async {
            assert_eq!(completed(noticed(), true).await.complaint(), Some("it was cut off"));
            assert_eq!(completed(noticed(), false).await.complaint(), None);
            // Nothing excuses this.
            assert_eq!(completed(accepted(), false).await.complaint(), Some("it was accepted"));
        };
        LocalSet::new().run_until(judged).await;
    }

    #[tokio::test]
    async fn what_goes_on_by_itself_and_fails_is_no_fault_that_was() {
        let failing = async {
            Seen::later(async |_| anyhow::bail!("no node joins")).complete(true).await.map(drop)
        };
        LocalSet::new().run_until(failing).await.expect_err("it has not been there");
    }
}
