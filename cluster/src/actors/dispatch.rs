//! What peers ask, put where it belongs. Nothing here waits: what takes time is a task, and tasks have a limit.

use std::sync::Arc;

use drover_core::delivery::Delivery;
use drover_core::ids::{CallId, DeviceId, GroupId, NodeId, SessionEpoch, ShardId};
use drover_core::method::CallReport;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tracing::debug;

use super::announce;
use super::methods;
use super::node::Shared;
use super::reply::Caller;
use super::serve::{change_of_peer, read_for_peer};
use crate::metrics;
use crate::raft::peers::{Incoming, IncomingQueue};
use crate::wire::delivery::{decode_delivery, encode_wanted};
use crate::wire::events::decode_events;
use crate::wire::request::{Failure, Reported, Request, decode_request};

/// Takes what peers ask until their connections are closed.
pub(super) async fn run(shared: Arc<Shared>, mut incoming: IncomingQueue) {
    let tasks = Arc::new(Semaphore::new(shared.config.limits.waiting_reads_max));
    while let Some(incoming) = incoming.recv().await {
        shared.neighbours.heard(incoming.from());
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
                    let call = match &delivery {
                        Delivery::Call(call) => Some(call.id),
                        Delivery::End(_) | Delivery::Desired { .. } | Delivery::Command(_) => None,
                    };
                    if !shared.sessions.deliver(shard, &device, epoch, delivery)
                        && let Some(call) = call
                    {
                        give_back(&shared, &tasks, shard, device, epoch, call);
                    }
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
            // The meta group has no sessions: the node says that it is there.
            Incoming::Announce { group: GroupId::Meta, from, reply, .. } => {
                drop(reply.send(encode_wanted(shared.neighbours.wanted(from))));
            }
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
        (GroupId::Shard(shard), Request::Invoke(invoke)) => {
            methods::submit(shared, shard, *invoke, Caller::Peer(reply));
        }
        (GroupId::Shard(shard), Request::ReportCall(reported)) => {
            Caller::Peer(reply).answer(methods::report_here(shared, shard, *reported));
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

/// Tells the leader that a call has not been sent, because its connection is not here any more. If there is no room for
/// that, the leader finds out by the end of the connection or by the time.
fn give_back(
    shared: &Arc<Shared>,
    tasks: &Arc<Semaphore>,
    shard: ShardId,
    device: DeviceId,
    epoch: SessionEpoch,
    call: CallId,
) {
    let Ok(permit) = Arc::clone(tasks).try_acquire_owned() else { return };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let reported = Reported { device, epoch, call, report: CallReport::NotSent };
        let deadline = Instant::now() + shared.config.limits.deadline;
        if let Err(error) = methods::report(&shared, shard, reported, deadline).await {
            debug!(%shard, %error, "a leader could not be told that a call was not sent");
        }
        drop(permit);
    });
}
