//! The nodes' surroundings: a network namespace, a disk and a clock for each, as far as this machine has them.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::backup::Shelf;
use super::nemesis::{Need, Nemesis};
use super::network::{Cut, Network, Proxies};
use super::plan::Plan;
use crate::disk::{self, Behaviour, Disk};
use crate::net::lab::Lab;
use crate::nodes::spare::Spare;
use crate::nodes::{Nodes, Place};

const PAUSE: Duration = Duration::from_millis(100);
/// Debian puts it into a folder of the machine's architecture.
const LIBRARIES: &str = "/usr/lib";
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// A nemesis that this machine cannot be, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub nemesis: Nemesis,
    pub reason: String,
}

pub(super) struct Site {
    network: Network,
    disks: Vec<Disk>,
    /// What each node's clock is told to add.
    clocks: Vec<PathBuf>,
    /// Of the founders, and of one more node if any is to join.
    places: Vec<Place>,
    founders: usize,
    spare: Option<Arc<Mutex<Spare>>>,
    shelf: Rc<Shelf>,
    _folder: TempDir,
}

impl Site {
    /// Prepares what the plan's nemeses need, and says which of them must be left out. `lab` is the reason if there is none.
    pub(super) async fn prepare(
        plan: &Plan,
        lab: Result<Lab, String>,
    ) -> anyhow::Result<(Self, Vec<LeftOut>)> {
        let folder = TempDir::with_prefix("drover-chaos-site-")?;
        let founders = plan.workload.nodes;
        let mut places = vec![Place::default(); plan.places()];
        let mut obstacles: Vec<(Need, String)> = Vec::new();
        let network = match lab {
            Ok(lab) => {
                for (node, place) in places.iter_mut().enumerate() {
                    place.address = Some(lab.address(node).into());
                    place.wrapper = lab.inside(node);
                }
                Network::Namespaces(lab)
            }
            Err(reason) => {
                tracing::warn!(reason, "no namespaces: proxies stand between the nodes");
                let reason = format!("proxies cannot lose packets, and no namespaces: {reason}");
                obstacles.push((Need::Packets, reason));
                Network::Proxies(Proxies::start(&mut places).await?)
            }
        };
        let disks = match disk::obstacle() {
            None => mount(folder.path(), &mut places[..founders])?,
            Some(reason) => {
                obstacles.push((Need::Disk, reason));
                Vec::new()
            }
        };
        let wants_clocks = plan.nemeses.iter().any(|nemesis| nemesis.need() == Need::Clock);
        let clocks = match faketime() {
            Some(library) if wants_clocks => {
                set_clocks(folder.path(), &library, &mut places[..founders])?
            }
            Some(_) => Vec::new(),
            None => {
                obstacles.push((Need::Clock, "libfaketime is not installed".to_owned()));
                Vec::new()
            }
        };
        let left_out = plan.nemeses.iter().filter_map(|nemesis| {
            let (_, reason) = obstacles.iter().find(|(need, _)| *need == nemesis.need())?;
            Some(LeftOut { nemesis: *nemesis, reason: reason.clone() })
        });
        let left_out = left_out.collect();
        let (spare, shelf) = (None, Shelf::new(folder.path().join("backups")));
        let site = Self { network, disks, clocks, places, founders, spare, shelf, _folder: folder };
        Ok((site, left_out))
    }

    /// Where the founders live.
    pub(super) fn places(&self) -> Vec<Place> {
        self.places[..self.founders].to_vec()
    }

    /// All nodes that there may be.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// Prepares the place where nodes join, if there is one.
    pub(super) fn prepare_spare(&mut self, nodes: &Nodes) -> anyhow::Result<()> {
        let place = self.places.get(self.founders).cloned();
        let spare = place.map(|place| nodes.spare(place)).transpose()?;
        self.spare = spare.map(|spare| Arc::new(Mutex::new(spare)));
        Ok(())
    }

    pub(super) fn spare(&self) -> anyhow::Result<Arc<Mutex<Spare>>> {
        self.spare.clone().context("there is no place where a node could join")
    }

    /// Where backups are put.
    pub(super) fn shelf(&self) -> Rc<Shelf> {
        Rc::clone(&self.shelf)
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn disk(&self, node: usize) -> anyhow::Result<&Disk> {
        self.disks.get(node).context("there is no disk to take apart")
    }

    /// From now on no disk keeps what it says it has synced: all go back to this moment when they lose power.
    pub(super) fn lie(&self) {
        self.disks.iter().for_each(Disk::lie);
    }

    /// Lets the clock of a node be wrong by so many seconds.
    pub(super) fn set_clock(&self, node: usize, offset_s: i64) -> anyhow::Result<()> {
        let file = self.clocks.get(node).context("there is no clock to set")?;
        write_clock(file, offset_s)
    }

    /// Ends every fault that can be ended without a node's help.
    pub(super) async fn heal_all(&self) -> anyhow::Result<()> {
        for disk in &self.disks {
            disk.behave(Behaviour::default());
        }
        for clock in &self.clocks {
            write_clock(clock, 0)?;
        }
        for node in 0..self.places.len() {
            self.network.cut(node, &[], Cut::Silence).await?;
        }
        Ok(())
    }

    /// Waits until every node answers and knows a leader of every shard. Of `may_end`, those that have ended by themselves
    /// are started again; any other that ended is a bug.
    pub(super) async fn until_healthy(
        &self,
        nodes: &mut Nodes,
        may_end: &[usize],
        patience: Duration,
    ) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            restart_ended(nodes, may_end)?;
            nodes.check_alive()?;
            match healthy(nodes).await {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > patience => {
                    bail!("not healthy again after {patience:?}: {error:#}\n{}", nodes.logs());
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// Starts again those of `may_end` that have ended by themselves.
pub(super) fn restart_ended(nodes: &mut Nodes, may_end: &[usize]) -> anyhow::Result<()> {
    for node in may_end {
        if nodes.take_ended(*node)? {
            tracing::info!(node = node + 1, "ended by itself and is started again");
            nodes.restart(*node)?;
        }
    }
    Ok(())
}

/// The same, again and again: whoever waits for something may need them. It returns when one cannot be started.
pub(super) async fn keep_up(nodes: &mut Nodes, may_end: &[usize]) -> anyhow::Error {
    loop {
        if let Err(error) = restart_ended(nodes, may_end) {
            return error;
        }
        sleep(PAUSE).await;
    }
}

async fn healthy(nodes: &Nodes) -> anyhow::Result<()> {
    for node in 0..nodes.count() {
        let status =
            nodes.admin().status_at(node).await.with_context(|| format!("node {}", node + 1))?;
        let leaderless = status.shards.iter().filter(|shard| shard.leader.is_none()).count();
        ensure!(leaderless == 0, "node {} knows no leader of {leaderless} groups", node + 1);
    }
    Ok(())
}

fn mount(folder: &Path, places: &mut [Place]) -> anyhow::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for (node, place) in places.iter_mut().enumerate() {
        let mountpoint = folder.join(format!("disk-{}", node + 1));
        let backing = folder.join(format!("backing-{}", node + 1));
        fs::create_dir(&mountpoint)?;
        fs::create_dir(&backing)?;
        let disk = Disk::mount(&mountpoint, &backing).context("mounting a disk")?;
        place.data = Some(mountpoint.join("data"));
        disks.push(disk);
    }
    Ok(disks)
}

fn faketime() -> Option<PathBuf> {
    let architectures = fs::read_dir(LIBRARIES).ok()?.filter_map(Result::ok);
    architectures.map(|folder| folder.path().join(FAKETIME)).find(|library| library.is_file())
}

/// The wall clock alone is faked: a monotonic one does not jump.
fn set_clocks(folder: &Path, library: &Path, places: &mut [Place]) -> anyhow::Result<Vec<PathBuf>> {
    let mut clocks = Vec::new();
    for (node, place) in places.iter_mut().enumerate() {
        let clock = folder.join(format!("clock-{}", node + 1));
        write_clock(&clock, 0)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let environment = [
            ("LD_PRELOAD", text(library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&clock)),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // A second after the file has changed, the clock has jumped.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ];
        place.environment.extend(environment.map(|(name, value)| (name.to_owned(), value)));
        clocks.push(clock);
    }
    Ok(clocks)
}

fn write_clock(file: &Path, offset_s: i64) -> anyhow::Result<()> {
    fs::write(file, format!("{offset_s:+}\n"))
        .with_context(|| format!("writing {}", file.display()))
}
