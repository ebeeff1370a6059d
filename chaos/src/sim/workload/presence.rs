//! Who is shown as connected once the faults are over: nobody who is not, and whoever is.
//!
//! The connections of the run have ended by then, many of them with their node and with nobody to say so. The first node
//! waits until that is seen of every device, and connects it: from then on it must stay.

use drover_cluster::core::ids::DeviceId;
use tokio::time::sleep;

use super::devices::Connection;
use super::{POLL, Workload};
use crate::promises::Violation;

impl Workload {
    /// Connects every device. That it ends is checked from outside: one that is shown as connected for ever holds it up.
    pub(super) async fn connect_all(&self) -> Vec<(DeviceId, Connection)> {
        let mut connected = Vec::new();
        for device in self.devices.iter() {
            while self.is_shown_connected(device).await != Some(false) {
                sleep(POLL).await;
            }
            let connection = loop {
                if let Some(connection) = self.open(device).await {
                    break connection;
                }
                sleep(POLL).await;
            };
            connected.push((device.clone(), connection));
        }
        connected
    }

    /// Whoever was not told that its connection has ended is connected, and shown to be.
    pub(super) async fn check_connected(&self, connected: Vec<(DeviceId, Connection)>) {
        for (device, mut connection) in connected {
            let shown = loop {
                if let Some(shown) = self.is_shown_connected(&device).await {
                    break shown;
                }
                sleep(POLL).await;
            };
            self.receive(&device, &mut connection);
            let mut history = self.history.lock();
            history.counts.checks.connections += 1;
            if !shown && !connection.has_ended {
                let seen = format!("it is shown as gone, and connected to node {}", self.node);
                history.violations.push(Violation::new("presence", device.as_str(), seen));
            }
        }
    }

    /// `None`: nobody could say.
    async fn is_shown_connected(&self, device: &DeviceId) -> Option<bool> {
        let device = self.cluster.device(device).await.ok()?;
        Some(device.presence.connected_since.is_some())
    }
}
