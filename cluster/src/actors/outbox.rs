//! The way to a session, on whichever node it is.

use drover_core::delivery::Delivery;
use drover_core::ids::{DeviceId, NodeId, SessionEpoch, ShardId};

use super::sessions::Sessions;
use crate::raft::peers::Peers;
use crate::wire::delivery::encode_delivery;

/// Sends deliveries, best effort: what is lost shows as a gap in versions, here or in the next announcement.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    pub(super) node: NodeId,
    pub(super) sessions: Sessions,
    pub(super) peers: Peers,
}

impl Outbox {
    /// `false`: the connection is not at this node any more, or takes nothing. What goes to another node is on its way.
    pub(super) fn deliver(
        &self,
        to: NodeId,
        shard: ShardId,
        device: &DeviceId,
        epoch: SessionEpoch,
        delivery: Delivery,
    ) -> bool {
        if to == self.node {
            return self.sessions.deliver(shard, device, epoch, delivery);
        }
        self.peers.deliver(to, encode_delivery(device, epoch, &delivery));
        true
    }
}
