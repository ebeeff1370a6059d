//! A node that was removed and still runs, or runs again: it serves nobody, whatever its disk holds (I-35).

use drover_cluster::actors::cluster::ReadLimits;
use drover_cluster::core::ids::{Offset, ShardCount, ShardId};

use super::Workload;
use crate::promises::Violation;
use crate::promises::twin_section::WriteCondition;

const PAGE: ReadLimits = ReadLimits { messages_max: 1, bytes_max: 1_000, wait_ms: 0 };

impl Workload {
    /// Asks it for everything that a member would give.
    pub(super) async fn check_outcast(&self) {
        let device = &self.devices[0];
        let shards = ShardCount::new(self.plan.shards).expect("a plan has a few shards");
        let stream = self.cluster.read_stream(ShardId::of(device, shards), Offset::new(0), PAGE);
        let served = [
            ("is ready", self.cluster.ready().is_ok()),
            ("reads a stream", stream.await.is_ok()),
            ("reads a twin", self.cluster.twin(device).await.is_ok()),
            ("writes a twin", self.write_desired(device, WriteCondition::None).await),
            ("connects a device", self.open(device).await.is_some()),
        ];
        self.history.lock().counts.checks.outcasts += 1;
        for (what, is_done) in served {
            if is_done {
                let subject = format!("node {}", self.node);
                let seen = format!("it was removed, and {what}");
                self.history.violate(Violation::new("I-35 removed for good", subject, seen));
            }
        }
    }
}
