//! What peers ask, put where it belongs. Nothing here waits: what takes time is a task, and tasks have a limit.

use std::sync::Arc;

use drover_core::ids::{GroupId, NodeId};
use tokio::sync::{Semaphore, oneshot};

use super::announce;
use super::node::Shared;
use super::reply::Caller;
use super::serve::{change_of_peer, read_for_peer};
use crate::metrics;
use crate::raft::peers::{Incoming, IncomingQueue};
use crate::wire::delivery::decode_delivery;
use crate::wire::events::decode_events;
use crate::wire::request::{Failure, Request, decode_request};

/// Takes what peers ask until their connections are closed.
pub(super) async fn run(shared: Arc<Shared>, mut incoming: IncomingQueue) {
    let tasks = Arc::new(Semaphore::new(shared.config.limits.waiting_reads_max));
    while let Some(incoming) = incoming.recv().await {
        match incoming {
            Incoming::Request { from, group, request, reply } => match decode_request(request) {
                Ok(request) => take(&shared, &tasks, from, group, request, reply),
                Err(error) => Caller::Peer(reply).answer(Err(Failure::Invalid {
                    field: "request".to_owned(),
                    problem: error.to_string(),
                })),
            },
            Incoming::Deliver { deliver, .. } => {
                if let Some((device, epoch, delivery)) = decode_delivery(deliver)
                    && let Some(shard) = shared.shard_of(&device)
                {
                    shared.sessions.deliver(shard, &device, epoch, delivery);
                }
            }
            Incoming::Announce { from, group: GroupId::Shard(shard), announce, reply } => {
                let Ok(permit) = Arc::clone(&tasks).try_acquire_owned() else { continue };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    announce::announced(shared, shard, from, announce, reply).await;
                    drop(permit);
                });
            }
            // The meta group has no sessions.
            Incoming::Announce { group: GroupId::Meta, .. } => {}
            Incoming::Events { events, .. } => shared.live.hand_out(&decode_events(events)),
            Incoming::EventsWanted { from, wanted } => shared.live.peer_wants(from, wanted),
        }
    }
}

fn take(
    shared: &Arc<Shared>,
    tasks: &Arc<Semaphore>,
    from: NodeId,
    group: GroupId,
    request: Request,
    reply: oneshot::Sender<bytes::Bytes>,
) {
    match (group, request) {
        (GroupId::Shard(shard), Request::Change(change)) => {
            change_of_peer(shared, shard, change, from, reply);
        }
        (group, request) => {
            let caller = Caller::Peer(reply);
            let Ok(permit) = Arc::clone(tasks).try_acquire_owned() else {
                metrics::refused("busy");
                let what = format!("the reads of node {}", shared.config.node);
                return caller.answer(Err(Failure::Busy { what }));
            };
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                read_for_peer(shared, group, request, caller).await;
                drop(permit);
            });
        }
    }
}
