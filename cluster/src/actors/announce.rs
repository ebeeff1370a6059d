//! Which sessions are live: nodes tell the leaders of shards what they hold, and are told what is stale.
//!
//! Sessions are announced when a shard's leader changes, once more soon afterwards, because what was missing the first
//! time may have been on its way, and then from time to time, for deliveries that were lost on a connection between
//! nodes. A node that dies announces nothing: the records of its devices say "connected" until they connect again.
//! Cleaning that up belongs here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use drover_core::delivery::{Delivery, EndReason};
use drover_core::device::{Channel, Device};
use drover_core::ids::{DeliveryNumber, DeviceId, GroupId, NodeId, SessionEpoch, ShardId, Version};
use drover_core::twin::Twin;
use drover_proto::cluster::AnnounceResponse;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::node::Shared;
use super::router::Target;
use super::shard::ShardMsg;
use crate::storage::state;
use crate::wire::delivery::{
    HeldSession, decode_announce, decode_stale, encode_announce, encode_stale,
};

/// How often a node looks whether there is something to announce.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The second announcement to a new leader.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Sessions of one announcement: a message of about 50 KB.
const SESSIONS_MAX: usize = 1000;
/// How long a leader may take to judge one announcement.
const DEADLINE: Duration = Duration::from_secs(1);

/// A live session as its leader has judged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) device: DeviceId,
    pub(super) epoch: SessionEpoch,
    /// The newest desired version, if the session had not been sent it.
    pub(super) missed: Option<Version>,
    /// The newest delivery from the mailbox that has come, if there have been newer ones.
    pub(super) commands_after: Option<DeliveryNumber>,
}

/// When a shard's sessions are announced again, and to whom they were.
struct Plan {
    target: Target,
    due: Instant,
    rounds: u32,
}

/// Announces this node's sessions until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut plans = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(meta) = shared.meta() else { continue };
        for shard in meta.shard_count.shards() {
            announce_if_due(&shared, shard, &mut plans).await;
        }
    }
}

async fn announce_if_due(shared: &Shared, shard: ShardId, plans: &mut BTreeMap<ShardId, Plan>) {
    let target = shared.router.target(shard);
    let now = Instant::now();
    let plan = plans.get(&shard);
    let due = plan.is_none_or(|plan| plan.target != target || plan.due <= now)
        || shared.sessions.take_behind(shard);
    if !due || target == Target::Unknown {
        return;
    }
    let rounds = plan.filter(|plan| plan.target == target).map_or(0, |plan| plan.rounds + 1);
    let answered = announce(shared, shard, target).await;
    let next = match (answered, rounds) {
        (false, _) => LOOK_EVERY * 5,
        (true, 0) => AGAIN_AFTER,
        (true, _) => shared.config.limits.announce_interval,
    };
    let rounds = if answered { rounds } else { 0 };
    plans.insert(shard, Plan { target, due: Instant::now() + next, rounds });
}

/// Whether the leader has answered for all sessions of the shard.
async fn announce(shared: &Shared, shard: ShardId, target: Target) -> bool {
    let sessions = shared.sessions.of_shard(shard);
    for some in sessions.chunks(SESSIONS_MAX) {
        let stale = match target {
            Target::Here => judge(shared, shard, shared.config.node, some.to_vec()).await,
            Target::Node(node) => {
                let group = GroupId::Shard(shard);
                let announce = encode_announce(some);
                let answer = shared.peers.announce(node, group, announce, DEADLINE).await;
                answer.ok().map(decode_stale)
            }
            Target::Unknown => None,
        };
        let Some(stale) = stale else { return false };
        for HeldSession { device, epoch, .. } in stale {
            let end = Delivery::End(EndReason::Replaced);
            shared.sessions.deliver(shard, &device, epoch, end);
        }
    }
    true
}

/// A peer's announcement. It is not answered when this node does not lead: the peer then announces again.
pub(super) async fn announced(
    shared: Arc<Shared>,
    shard: ShardId,
    from: NodeId,
    announce: drover_proto::cluster::Announce,
    reply: oneshot::Sender<AnnounceResponse>,
) {
    if let Some(stale) = judge(&shared, shard, from, decode_announce(announce)).await {
        drop(reply.send(encode_stale(&stale)));
    }
}

/// Compares sessions with the committed records; the live ones go to the shard, the stale ones are the answer. `None`:
/// this node cannot say, because it does not lead the shard.
async fn judge(
    shared: &Shared,
    shard: ShardId,
    from: NodeId,
    sessions: Vec<HeldSession>,
) -> Option<Vec<HeldSession>> {
    let replica = shared.router.replica(shard)?;
    replica.group.read_barrier().await.ok()?;
    let mut live = Vec::new();
    let mut stale = Vec::new();
    for session in sessions {
        match judge_one(shared, shard, &session) {
            Ok(Some(judged)) => live.push(judged),
            Ok(None) => stale.push(session),
            Err(error) => {
                warn!(%shard, %error, "announced sessions cannot be compared with their records");
                return None;
            }
        }
    }
    replica.actor.send_message(ShardMsg::Announced { node: from, sessions: live }).ok()?;
    Some(stale)
}

fn judge_one(
    shared: &Shared,
    shard: ShardId,
    session: &HeldSession,
) -> Result<Option<Judged>, crate::storage::Error> {
    let group = GroupId::Shard(shard);
    let Some(device) = state::device(&*shared.storage, group, &session.device)? else {
        return Ok(None);
    };
    if device.presence.epoch != session.epoch || device.presence.connected_since.is_none() {
        return Ok(None);
    }
    let twin = state::twin(&*shared.storage, group, &session.device)?;
    let missed = twin.and_then(|twin| missed(&device, &twin, session.desired));
    let head = &device.mailbox;
    let has_newer = head.waiting > 0 && head.epoch == session.epoch && head.sent > session.commands;
    let commands_after = has_newer.then_some(session.commands);
    let (device, epoch) = (session.device.clone(), session.epoch);
    Ok(Some(Judged { device, epoch, missed, commands_after }))
}

/// The desired version that a listening device has not seen. If it has seen none, what counts is whether the properties
/// were written since it connected.
fn missed(device: &Device, twin: &Twin, seen: Option<Version>) -> Option<Version> {
    if !device.presence.subscriptions.contains_key(&Channel::DesiredPatches) {
        return None;
    }
    let behind = match seen {
        Some(seen) => seen < twin.desired.version,
        None => device
            .presence
            .connected_since
            .is_some_and(|since| twin.desired.metadata.updated >= since),
    };
    behind.then_some(twin.desired.version)
}
