//! Streams through the cluster: messages by offset, by time and by device, cursors, and what happens live.

use drover_core::change::{Change, Done, StreamChange};
use drover_core::ids::{DeviceId, LogTime, Offset, ShardId};
use drover_core::message::{Live, StoredMessage, StreamPage};
use tokio::sync::mpsc;

use super::cluster::{Cluster, check_limit, unexpected};
use super::error::Error;
use super::live::Wants;
use super::serve;
use crate::storage::stream::PageLimit;
use crate::wire::request::{Answer, Request};

/// Limits of one read of a stream.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    pub messages_max: u32,
    pub bytes_max: u32,
    /// How long to wait for a first message, in milliseconds.
    pub wait_ms: u32,
}

/// A shard's stream.
#[derive(Debug, Clone)]
pub struct StreamState {
    pub shard: ShardId,
    pub first: Offset,
    pub next: Offset,
    pub cursors: Vec<(String, Offset)>,
    pub device_count: u64,
    /// The shard's feedback.
    pub first_feedback: Offset,
    pub next_feedback: Offset,
    pub feedback_cursors: Vec<(String, Offset)>,
}

impl Cluster {
    /// Messages from an offset on, in order, without holes. This node answers from its own replica what it has there;
    /// that the stream has ended is the leader's word.
    pub async fn read_stream(
        &self,
        shard: ShardId,
        from: Offset,
        limits: ReadLimits,
    ) -> Result<StreamPage, Error> {
        self.check_restored()?;
        let ReadLimits { messages_max, bytes_max, wait_ms } = limits;
        let limit = PageLimit { messages: messages_max as usize, bytes: bytes_max as usize };
        if let Some(page) = serve::local_page(&self.shared, shard, from, limit) {
            return Ok(page);
        }
        let wait_ms = self.bounded_wait(wait_ms);
        let answer =
            self.read(shard, Request::Stream { from, messages_max, bytes_max, wait_ms }).await?;
        let Answer::Page(page) = answer else {
            return Err(unexpected(shard));
        };
        Ok(page)
    }

    /// The first offset whose message was appended at `at` or later; the end of the stream if there is none.
    pub async fn offset_at(&self, shard: ShardId, at: LogTime) -> Result<Offset, Error> {
        let answer = self.read(shard, Request::OffsetAt(at)).await?;
        let Answer::Offset(offset) = answer else {
            return Err(unexpected(shard));
        };
        Ok(offset)
    }

    pub async fn stream_state(&self, shard: ShardId) -> Result<StreamState, Error> {
        let answer = self.read(shard, Request::StreamState).await?;
        let Answer::Stream(stream) = answer else {
            return Err(unexpected(shard));
        };
        Ok(StreamState {
            shard,
            first: stream.first,
            next: stream.next,
            cursors: stream.cursors,
            device_count: stream.device_count,
            first_feedback: stream.first_feedback,
            next_feedback: stream.next_feedback,
            feedback_cursors: stream.feedback_cursors,
        })
    }

    pub async fn commit_cursor(
        &self,
        shard: ShardId,
        group: String,
        next: Offset,
    ) -> Result<Offset, Error> {
        self.move_cursor(shard, StreamChange::CommitCursor { group, next }).await
    }

    pub async fn seek_cursor(
        &self,
        shard: ShardId,
        group: String,
        next: Offset,
    ) -> Result<Offset, Error> {
        self.move_cursor(shard, StreamChange::SeekCursor { group, next }).await
    }

    pub(super) async fn move_cursor(
        &self,
        shard: ShardId,
        change: StreamChange,
    ) -> Result<Offset, Error> {
        let answer = self.change(shard, Change::Stream(change)).await?;
        let Done::Cursor { next } = answer else {
            return Err(unexpected(shard));
        };
        Ok(next)
    }

    pub async fn delete_cursor(&self, shard: ShardId, group: String) -> Result<(), Error> {
        let delete = StreamChange::DeleteCursor { group };
        self.change(shard, Change::Stream(delete)).await.map(drop)
    }

    /// The messages of one device between two times, oldest first, after `after` if given. `limit`: 1 to 1000.
    pub async fn history(
        &self,
        device: &DeviceId,
        from: LogTime,
        until: LogTime,
        after: Option<Offset>,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, Error> {
        let shard = self.shard_of(device)?;
        let limit = check_limit(limit)?;
        let device = device.clone();
        let answer =
            self.read(shard, Request::History { device, from, until, after, limit }).await?;
        let Answer::Page(page) = answer else {
            return Err(unexpected(shard));
        };
        Ok(page.messages)
    }

    /// What is committed from now on anywhere in the cluster, best effort: a slow reader misses some and is told how
    /// many. A node holds one of these and fans it out through its bus.
    pub fn live(&self) -> mpsc::Receiver<Live> {
        self.shared.live.subscribe(Wants::Everything, self.shared.config.limits.live_queue)
    }

    /// As [`Cluster::live`], of what happens to devices alone. Events at other nodes come from about a second on.
    pub fn live_events(&self) -> mpsc::Receiver<Live> {
        self.shared.live.subscribe(Wants::Events, self.shared.config.limits.live_queue)
    }
}
