//! What clients do at one node: connections of every device, and back ends.
//!
//! Every node opens connections of every device, so they take over from each other all the time. Some connections go on
//! after they were told that they had been replaced, as a node that is cut off would: what they send must have no effect.
//! At the end of a run the mailboxes are emptied, every device is connected (`presence`), and each node writes to every
//! device and reads everything.

mod administration;
mod backends;
mod commands;
mod content;
mod devices;
mod outcast;
mod presence;
mod repair;

use std::rc::Rc;
use std::time::Duration;

use drover_cluster::Cluster;
use drover_cluster::core::ids::DeviceId;
use futures::future::{join, join_all};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use self::content::states;
use super::history::{History, Phase, Section};
use super::network::Directory;
use super::operator::Operator;
use super::plan::{Plan, stream};
use crate::promises::twin_section::WriteCondition;

const BACK_ENDS: u64 = 2;
const POLL: Duration = Duration::from_millis(20);

/// The clients of one node, in one of its lives.
pub(super) struct Workload {
    pub(super) node: u32,
    pub(super) cluster: Cluster,
    pub(super) plan: Rc<Plan>,
    pub(super) devices: Rc<Vec<DeviceId>>,
    pub(super) history: History,
    pub(super) directory: Directory,
    pub(super) operator: Operator,
}

impl Workload {
    pub(super) async fn run(&self, life: u64) {
        let draw = |client: u64| {
            let number = (u64::from(self.node) << 48) | (life << 16) | client;
            stream(self.plan.seed, "client", number)
        };
        let at_nodes = self.devices.len() - self.plan.socket_devices;
        let devices = (0..).zip(&self.devices[..at_nodes]);
        let connections = devices.map(|(client, device)| self.connect_often(device, draw(client)));
        let back_ends = (0..BACK_ENDS).map(|client| self.serve_often(draw(1000 + client)));
        let clients = join(join_all(connections), join_all(back_ends));
        join(clients, self.administer()).await;
        while self.history.phase() < Phase::Final {
            sleep(POLL).await;
        }
        if self.operator.is_outcast(self.node) {
            self.check_outcast().await;
        } else {
            self.finish().await;
        }
        self.history.note(format_args!("node {} has finished", self.node));
        self.history.lock().finished.insert(self.node, true);
    }

    fn is_working(&self) -> bool {
        self.history.phase() == Phase::Load
    }

    async fn pause(&self, draw: &mut StdRng, times: u64) {
        let pause_ms = draw.random_range(0..=self.plan.pause_ms_max * times);
        sleep(Duration::from_millis(pause_ms)).await;
    }

    /// The first member empties the mailboxes and connects every device. Then each writes to every device until it is
    /// accepted, and reads it. That it ends is checked from outside.
    async fn finish(&self) {
        let mut connected = Vec::new();
        if self.operator.members().first() == Some(&self.node) {
            join_all(self.devices.iter().map(|device| self.empty_mailbox(device))).await;
            connected = self.connect_all().await;
        }
        for device in self.devices.iter() {
            while !self.write_desired(device, WriteCondition::None).await {
                sleep(POLL).await;
            }
            while self.read_twin(device).await.is_none() {
                sleep(POLL).await;
            }
        }
        self.check_connected(connected).await;
    }
}

/// Notes what a new device begins with.
pub(super) async fn note_initial(cluster: &Cluster, device: &DeviceId, history: &History) {
    loop {
        if let Ok(twin) = cluster.twin(device).await {
            let (desired, reported) = states(&twin);
            let mut history = history.lock();
            history.initial.insert((device.to_string(), Section::Desired), desired);
            history.initial.insert((device.to_string(), Section::Reported), reported);
            return;
        }
        sleep(POLL).await;
    }
}
