//! One queue into a shard's group: order, batches, time.
//!
//! What arrives while an entry is under way goes into the next one together. This is the only reader of the wall clock.
//! Outcomes go to the callers and effects to the shard, in the order of the log; the shard is told first, so that the
//! address of a new connection is known before its device can act on it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use drover_core::change::{Done, Effect, Outcome};
use drover_core::ids::{DeviceId, LogTime, NodeId, Offset, SessionEpoch};
use drover_core::mutants::{Mutation, is_planted};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use ractor::ActorRef;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use super::clock::Clock;
use super::config::Limits;
use super::mutant::{acknowledge_early, connect_early};
use super::pace::Pace;
use super::reply::{Proposed, Waiting};
use super::shard::ShardMsg;
use crate::metrics;
use crate::raft::group::Group;
use crate::raft::{Error, Leadership, Response};
use crate::storage::Storage;
use crate::wire::batch::{encode_batch, encoded_change_bytes};
use crate::wire::request::{Answer, Failure};

/// A change on its way into the log.
#[derive(Debug)]
pub(super) struct Proposal {
    /// An encoded `record.v1.Change`.
    pub(super) change: Bytes,
    /// The node of the connection that this change makes live.
    pub(super) connects: Option<(DeviceId, NodeId)>,
    /// It makes room, so a full disk is no reason to refuse it.
    pub(super) frees: bool,
    pub(super) reply: Waiting,
}

/// A connection whose epoch has been committed, and the node that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connected {
    pub(super) device: DeviceId,
    pub(super) node: NodeId,
    pub(super) epoch: SessionEpoch,
}

/// Where what readers wait for ends, as far as this leader has seen it grow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growth {
    pub(super) messages: Offset,
    pub(super) feedback: Offset,
}

pub(super) struct Proposer {
    pub(super) node: NodeId,
    pub(super) group: Group,
    pub(super) shard: ActorRef<ShardMsg>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) queue: mpsc::Receiver<Proposal>,
    /// When the node started: its shards keep pace together.
    pub(super) started: Instant,
    /// Where the stream ends, for those who wait for more.
    pub(super) growth: watch::Sender<Growth>,
}

/// Callers of an entry that is under way, in the order of its changes.
struct Callers {
    replies: Vec<Proposed>,
    connects: Vec<Option<(DeviceId, NodeId)>>,
    proposed: Instant,
}

type InFlight = Pin<Box<dyn Future<Output = (Callers, Result<Response, Error>)> + Send>>;

impl Proposer {
    /// Runs until the shard's side of the queue is dropped.
    pub(super) async fn run(mut self) {
        let mut leadership = self.group.leadership();
        let mut waiting = VecDeque::new();
        let mut arrived = Vec::new();
        let mut in_flight: FuturesOrdered<InFlight> = FuturesOrdered::new();
        let mut last = LogTime::new(0);
        let mut pace = Pace::new(self.started);
        loop {
            while !waiting.is_empty()
                && in_flight.len() < self.limits.entries_in_flight_max
                && pace.may_leave(waiting.len(), Instant::now())
            {
                pace.left(waiting.len());
                last = last.max(self.clock.now());
                if let Some(entry) = self.next_entry(&mut waiting, last) {
                    in_flight.push_back(entry);
                }
            }
            let room = self.limits.entry_changes_max.saturating_sub(waiting.len());
            tokio::select! {
                biased;
                changed = leadership.changed() => {
                    let now = *leadership.borrow_and_update();
                    if changed.is_err() || !now.serving {
                        give_up(&mut waiting, &mut in_flight, now);
                    }
                    if changed.is_err() {
                        return;
                    }
                }
                Some((callers, result)) = in_flight.next(), if !in_flight.is_empty() => {
                    let took = callers.proposed.elapsed();
                    pace.committed(callers.replies.len(), waiting.len(), took, Instant::now());
                    self.finish(callers, result);
                }
                count = self.queue.recv_many(&mut arrived, room), if room > 0 => {
                    if count == 0 {
                        return;
                    }
                    waiting.extend(arrived.drain(..));
                }
                () = pace.over(), if !waiting.is_empty() && in_flight.is_empty() => {}
            }
        }
    }

    /// Takes the changes of the next entry out of the queue and proposes them. openraft takes the entry in at the first
    /// poll, in the order of the calls, so entries keep their order also when several are under way.
    fn next_entry(&self, waiting: &mut VecDeque<Proposal>, at: LogTime) -> Option<InFlight> {
        let mut proposals = self.refuse_if_full(self.gather(waiting));
        if proposals.is_empty() {
            return None;
        }
        let entry = encode_batch(at, proposals.iter().map(|proposal| &proposal.change));
        if is_planted(Mutation::AcknowledgeBeforeCommit) {
            acknowledge_early(&mut proposals, *self.group.stream_end().borrow());
        }
        if is_planted(Mutation::EpochInMemory) {
            connect_early(&mut proposals, &*self.storage, self.group.id());
        }
        metrics::entry_proposed(proposals.len(), entry.len());
        let mut callers = Callers {
            replies: Vec::with_capacity(proposals.len()),
            connects: Vec::with_capacity(proposals.len()),
            proposed: Instant::now(),
        };
        for proposal in proposals {
            callers.replies.push(proposal.reply.proposed());
            callers.connects.push(proposal.connects);
        }
        let group = self.group.clone();
        Some(Box::pin(async move { (callers, group.propose(entry).await) }))
    }

    fn gather(&self, waiting: &mut VecDeque<Proposal>) -> Vec<Proposal> {
        let mut bytes = 0;
        let mut count = 0;
        for proposal in waiting.iter().take(self.limits.entry_changes_max) {
            bytes += encoded_change_bytes(&proposal.change);
            // A change that is larger than the limit travels alone.
            if bytes > self.limits.entry_bytes_max && count > 0 {
                break;
            }
            count += 1;
        }
        waiting.drain(..count).collect()
    }

    /// A full disk refuses what needs room before the store is in trouble; what makes room goes on.
    fn refuse_if_full(&self, proposals: Vec<Proposal>) -> Vec<Proposal> {
        let Some(free_bytes) = self.full() else { return proposals };
        let (kept, refused): (Vec<_>, Vec<_>) =
            proposals.into_iter().partition(|proposal| proposal.frees);
        for proposal in refused {
            metrics::refused("disk_full");
            proposal.reply.fail(Failure::DiskFull { node: self.node.to_string(), free_bytes });
        }
        kept
    }

    fn full(&self) -> Option<u64> {
        match self.storage.usage() {
            Ok(usage) => usage.is_full().then_some(usage.free_bytes),
            Err(error) => {
                // The next write meets the same disk and decides.
                warn!(%error, "the free space of the disk is unknown");
                None
            }
        }
    }

    fn finish(&self, callers: Callers, result: Result<Response, Error>) {
        metrics::entry_committed(callers.proposed.elapsed());
        let failure = match result {
            Ok(Response::Shard { outcomes, effects }) => {
                return self.hand_out(callers, outcomes, effects);
            }
            Ok(Response::None | Response::Meta(_)) | Err(Error::Unknown | Error::Timeout) => {
                Failure::Unknown
            }
            Err(Error::NotLeader { leader }) => Failure::NotLeader { leader },
            Err(
                Error::Stopped { .. }
                | Error::NotChanged { .. }
                | Error::Interrupted { .. }
                | Error::Refused(_)
                | Error::Storage(_),
            ) => Failure::Unknown,
        };
        for reply in callers.replies {
            reply.answer(Err(failure.clone()));
        }
    }

    fn hand_out(&self, callers: Callers, outcomes: Vec<Outcome>, effects: Vec<Effect>) {
        let connected = callers
            .connects
            .into_iter()
            .zip(&outcomes)
            .filter_map(|(connects, outcome)| connected(connects?, outcome))
            .collect();
        for effect in &effects {
            match effect {
                Effect::Appended { first, count } => {
                    let end = first.plus(*count);
                    self.growth.send_modify(|growth| growth.messages = end);
                }
                Effect::FeedbackAppended { next } => {
                    self.growth.send_modify(|growth| growth.feedback = *next);
                }
                Effect::SendCommands { commands, .. } => {
                    metrics::commands_delivered(commands.len());
                }
                Effect::MailboxMoved { queued, endings, waiting } => {
                    metrics::mailbox_moved(*queued, endings, *waiting);
                }
                Effect::EndSessions { .. }
                | Effect::SendDesired { .. }
                | Effect::CommandsDue { .. }
                | Effect::Reachable { .. }
                | Effect::Notify(_) => {}
            }
        }
        // A shard that has stopped performs nothing; its successor derives it again from the state.
        drop(self.shard.send_message(ShardMsg::Committed { connected, effects }));
        for (reply, outcome) in callers.replies.into_iter().zip(outcomes) {
            reply.answer(outcome.map(Answer::Done).map_err(Failure::Refused));
        }
    }
}

fn connected((device, node): (DeviceId, NodeId), outcome: &Outcome) -> Option<Connected> {
    match outcome {
        Ok(Done::Connected { epoch, .. }) => Some(Connected { device, node, epoch: *epoch }),
        Ok(_) | Err(_) => None,
    }
}

/// Another node leads: what was not proposed can be asked there, what was is unknown. An entry of a former leader may
/// wait for ever, so nobody waits for it.
fn give_up(
    waiting: &mut VecDeque<Proposal>,
    in_flight: &mut FuturesOrdered<InFlight>,
    now: Leadership,
) {
    for proposal in waiting.drain(..) {
        proposal.reply.fail(Failure::NotLeader { leader: now.leader });
    }
    // Dropped replies answer that the outcome is unknown.
    *in_flight = FuturesOrdered::new();
}
