//! What leaves the streams: the leader of a shard plans by its own configuration and commits the plan, so that every
//! replica drops the same prefix (I-8).

use std::sync::Arc;

use drover_core::change::{Change, StreamChange};
use drover_core::feedback::StoredFeedback;
use drover_core::ids::{GroupId, Offset, ShardId};
use tracing::{debug, warn};

use super::config::Commands;
use super::node::Shared;
use super::serve::{Entry, change_here, unreadable};
use crate::raft::group::Group;
use crate::storage::{self, mailbox, state, stream};
use crate::wire::request::encode_change;

/// Steps of one round for one shard: a step drops some chunks, and other shards wait for their turn.
const STEPS_MAX: usize = 64;

/// Records of feedback that are looked at in one round.
const FEEDBACK_TOGETHER: usize = 4096;

/// Retains until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(shared.config.limits.retention_interval).await;
        for (shard, replica) in &*shared.router.replicas() {
            if replica.leadership.borrow().serving {
                retain(&shared, *shard, &replica.group).await;
            }
        }
    }
}

async fn retain(shared: &Shared, shard: ShardId, group: &Group) {
    retain_feedback(shared, shard, group).await;
    for _ in 0..STEPS_MAX {
        match plan(shared, shard) {
            Ok(Some(change)) => {
                let entry = Entry::new(encode_change(&change), &change);
                if let Err(failure) = change_here(shared, shard, entry).await {
                    debug!(%shard, ?failure, "old messages stay for now");
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                warn!(%shard, %error, "retention cannot read the stream");
                unreadable(group, error);
                return;
            }
        }
    }
}

/// Feedback that is too old, or too much, goes. One step a round drops as much as some rounds of commands leave.
async fn retain_feedback(shared: &Shared, shard: ShardId, group: &Group) {
    match plan_feedback(shared, shard) {
        Ok(Some(change)) => {
            let entry = Entry::new(encode_change(&change), &change);
            if let Err(failure) = change_here(shared, shard, entry).await {
                debug!(%shard, ?failure, "old feedback stays for now");
            }
        }
        Ok(None) => {}
        Err(error) => {
            warn!(%shard, %error, "retention cannot read the feedback");
            unreadable(group, error);
        }
    }
}

fn plan_feedback(shared: &Shared, shard: ShardId) -> Result<Option<Change>, storage::Error> {
    let Commands { feedback_ms_max, feedback_records_max, .. } = shared.config.commands;
    let log = state::stream(&*shared.storage, GroupId::Shard(shard))?.feedback;
    if log.first == log.next {
        return Ok(None);
    }
    let oldest = mailbox::feedback(&*shared.storage, shard, log.first, FEEDBACK_TOGETHER)?;
    let now = shared.config.clock.now();
    let is_old = |stored: &&StoredFeedback| stored.feedback.at.plus_ms(feedback_ms_max) < now;
    let old = oldest.records.iter().take_while(is_old).last().map(|last| last.offset.next());
    let excess = log.next.get().saturating_sub(feedback_records_max);
    let before = old.unwrap_or(log.first).max(Offset::new(excess));
    let retain = StreamChange::RetainFeedback { before };
    Ok((before > log.first).then_some(Change::Stream(retain)))
}

fn plan(shared: &Shared, shard: ShardId) -> Result<Option<Change>, storage::Error> {
    let group = GroupId::Shard(shard);
    let stream = state::stream(&*shared.storage, group)?;
    let chunks = stream::oldest_chunks(&*shared.storage, group)?;
    let now = shared.config.clock.now();
    Ok(shared.config.retention.plan(&stream, chunks, now).map(Change::Stream))
}
