//! Which sessions are live: nodes tell the leaders of shards what they hold, and are told what is stale.
//!
//! A node announces all that it holds of a shard: when the leader changes, once more soon afterwards, because what was
//! missing the first time may have been on its way, when the leader asks for it, when the end of a session could not be
//! recorded, and from time to time, for deliveries that were lost between nodes.
//!
//! What a node leaves out it does not hold, and the leader ends it (`addresses`). That a list is newer than what it is
//! compared with is certain by the moment that the leader gave with its answer to the list before: so the first one to a
//! leader ends nothing, and the second is never far. Nodes that are silent are `neighbours`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use drover_core::delivery::{Delivery, EndReason};
use drover_core::device::{Channel, Device};
use drover_core::ids::{DeliveryNumber, DeviceId, GroupId, NodeId, SessionEpoch, ShardId, Version};
use drover_core::twin::Twin;
use drover_proto::cluster::AnnounceResponse;
use futures::stream::{self, StreamExt};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::addresses::Announced;
use super::node::Shared;
use super::router::Target;
use super::serve;
use super::shard::ShardMsg;
use crate::storage::state;
use crate::wire::delivery::{
    HeldPart, HeldSession, Moment, PartAnswer, decode_announce, decode_part_answer,
    encode_announce, encode_part_answer,
};

/// How often a node looks whether there is something to announce.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The second announcement to a new leader, and whatever else follows an announcement soon.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Shards that are announced at the same time.
const TOGETHER_MAX: usize = 64;
/// Devices of one part of an announcement: a message of about 50 KB.
const DEVICES_MAX: usize = 1000;
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
    announced: Instant,
    due: Instant,
    /// How many announcements in a row it has answered since there was a reason for them.
    answered: u32,
    /// What the target had asked for when the sessions were announced to it.
    asked: u64,
    /// What it answered to the last announcement.
    moment: Option<Moment>,
}

/// An announcement to make now.
struct Due {
    shard: ShardId,
    target: Target,
    answered: u32,
    asked: u64,
    after: Option<Moment>,
}

/// Announces this node's sessions until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut plans = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(meta) = shared.meta() else { continue };
        let due = meta.shard_count.shards().filter_map(|shard| due(&shared, shard, &plans));
        let announced = stream::iter(due.collect::<Vec<_>>()).map(async |due| {
            let moment = announce(&shared, due.shard, due.target, due.after).await;
            (due, moment)
        });
        // A leader that does not answer holds up the announcements to few others.
        let announced: Vec<_> = announced.buffer_unordered(TOGETHER_MAX).collect().await;
        for (due, moment) in announced {
            plans.insert(due.shard, due.plan_next(moment, shared.config.limits.announce_interval));
        }
    }
}

/// Whether the sessions of a shard are to be announced now.
fn due(shared: &Shared, shard: ShardId, plans: &BTreeMap<ShardId, Plan>) -> Option<Due> {
    let now = Instant::now();
    let target = shared.router.target(shard);
    let asked = match target {
        // It would only hold up what is announced to others. It is due when the node answers again.
        Target::Node(node) if shared.groups.is_silent(node) => return None,
        Target::Node(node) => shared.neighbours.asked(node),
        Target::Here => shared.neighbours.wanted(shared.config.node),
        Target::Unknown => return None,
    };
    let Some(plan) = plans.get(&shard).filter(|plan| plan.target == target) else {
        return Some(Due { shard, target, answered: 0, asked, after: None });
    };
    let Plan { moment: after, answered, .. } = *plan;
    let is_overdue = plan.announced + AGAIN_AFTER <= now && shared.sessions.take_overdue(shard);
    if is_overdue || plan.asked != asked {
        return Some(Due { shard, target, answered: 0, asked, after });
    }
    (plan.due <= now).then_some(Due { shard, target, answered, asked, after })
}

impl Due {
    /// The sessions were announced, and the leader has answered or not.
    fn plan_next(self, moment: Option<Moment>, interval: Duration) -> Plan {
        let Self { target, asked, .. } = self;
        let answered = moment.map_or(0, |_| self.answered.saturating_add(1));
        let wait = if answered < 2 { AGAIN_AFTER } else { interval };
        let announced = Instant::now();
        Plan { target, announced, due: announced + wait, answered, asked, moment }
    }
}

/// Announces all that is held of the shard. The answer is a moment after which the leader has heard of it all, if it has.
async fn announce(
    shared: &Shared,
    shard: ShardId,
    target: Target,
    after: Option<Moment>,
) -> Option<Moment> {
    let mut heard = None;
    for part in shared.sessions.of_shard(shard, DEVICES_MAX) {
        let part = HeldPart { after, ..part };
        let answer = match target {
            Target::Here => judge(shared, shard, shared.config.node, part).await,
            Target::Node(node) => {
                let (group, part) = (GroupId::Shard(shard), encode_announce(&part));
                let answer = shared.peers.announce(node, group, part, DEADLINE).await;
                answer.ok().and_then(decode_part_answer)
            }
            Target::Unknown => None,
        };
        let PartAnswer { stale, moment } = answer?;
        for (device, epoch) in stale {
            let end = Delivery::End(EndReason::Replaced);
            shared.sessions.deliver(shard, &device, epoch, end);
        }
        heard = Some(moment);
    }
    heard
}

/// A peer's announcement. It is not answered when this node does not lead: the peer then announces again.
pub(super) async fn announced(
    shared: Arc<Shared>,
    shard: ShardId,
    from: NodeId,
    announce: drover_proto::cluster::Announce,
    reply: oneshot::Sender<AnnounceResponse>,
) {
    let Some(part) = decode_announce(announce) else { return };
    if let Some(answer) = judge(&shared, shard, from, part).await {
        drop(reply.send(encode_part_answer(&answer)));
    }
}

/// Compares sessions with the committed records; the live ones go to the shard, the stale ones are the answer. `None`:
/// this node cannot say, because it does not lead the shard.
async fn judge(
    shared: &Shared,
    shard: ShardId,
    node: NodeId,
    part: HeldPart,
) -> Option<PartAnswer> {
    let replica = shared.router.replica(shard)?;
    replica.group.read_barrier().await.ok()?;
    let leadership = *replica.leadership.borrow();
    let mut sessions = Vec::new();
    let mut stale = Vec::new();
    for session in part.sessions {
        match judge_one(shared, shard, &session) {
            Ok(Some(judged)) => sessions.push(judged),
            Ok(None) => stale.push((session.device, session.epoch)),
            Err(error) => {
                warn!(%shard, %error, "announced sessions cannot be compared with their records");
                serve::unreadable(&replica.group, error);
                return None;
            }
        }
    }
    let live = sessions.iter().map(|judged| (judged.device.clone(), judged.epoch)).collect();
    let HeldPart { covers, unsettled, after, .. } = part;
    let announced = Announced { node, covers, live, unsettled, after };
    replica.actor.send_message(ShardMsg::Announced { announced, sessions }).ok()?;
    let moment = Moment { term: leadership.term, count: shared.moments.next() };
    Some(PartAnswer { stale, moment })
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
    let missed = if device.presence.subscriptions.contains_key(&Channel::DesiredPatches) {
        let twin = state::twin(&*shared.storage, group, &session.device)?;
        twin.and_then(|twin| missed(&device, &twin, session.desired))
    } else {
        None
    };
    let head = &device.mailbox;
    let has_newer = head.waiting > 0 && head.epoch == session.epoch && head.sent > session.commands;
    let commands_after = has_newer.then_some(session.commands);
    let (device, epoch) = (session.device.clone(), session.epoch);
    Ok(Some(Judged { device, epoch, missed, commands_after }))
}

/// The desired version that a listening device has not seen. If it has seen none, what counts is whether the properties
/// were written since it connected.
fn missed(device: &Device, twin: &Twin, seen: Option<Version>) -> Option<Version> {
    let behind = match seen {
        Some(seen) => seen < twin.desired.version,
        None => device
            .presence
            .connected_since
            .is_some_and(|since| twin.desired.metadata.updated >= since),
    };
    behind.then_some(twin.desired.version)
}
