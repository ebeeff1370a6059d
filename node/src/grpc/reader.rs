//! One reader of a shard's stream: from a place on, page by page, with the pace of whoever pulls.
//!
//! It keeps nothing but its place, so it costs nothing while it waits and a reader that falls behind costs no memory.

use drover_cluster::actors::cluster::{ReadLimits, StreamPage, StreamState};
use drover_cluster::core::ids::{Offset, ShardId};
use drover_cluster::{Cluster, Error};
use drover_proto::admin::ReadStreamResponse;
use tonic::Status;

use super::convert::RECHECK;
use super::convert::messages::{From, ReadStream};
use super::{messages, status};

/// A page fits into the 4 MB that gRPC clients take by default, beside the largest message.
const PAGE_BYTES_MAX: u32 = 1 << 20;
const PAGE_MESSAGES_MAX: u32 = 1_000;

pub(crate) struct StreamReader {
    cluster: Cluster,
    shard: ShardId,
    next: Offset,
    until: Until,
    left: Option<u64>,
    /// Whether an answer has been given: an empty stream gets one, too, so that the reader learns its place.
    answered: bool,
}

/// Where reading ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The end of the stream as it was when reading began.
    Offset(Offset),
    Never,
}

impl StreamReader {
    pub(crate) async fn open(cluster: Cluster, read: ReadStream) -> Result<Self, Error> {
        let state = cluster.stream_state(read.shard).await?;
        let next = match read.from {
            From::Beginning => state.first,
            From::End => state.next,
            From::Offset(offset) => offset,
            From::Time(time) => cluster.offset_at(read.shard, time).await?,
            From::Cursor(group) => cursor(&group, &state),
        };
        let until = if read.follow { Until::Never } else { Until::Offset(state.next) };
        Ok(Self { cluster, shard: read.shard, next, until, left: read.limit, answered: false })
    }

    /// The next messages; `None` at the end. While it waits for some it asks `may_go_on` from time to time.
    pub(crate) async fn next(
        &mut self,
        may_go_on: impl Fn() -> Result<(), Status>,
    ) -> Result<Option<ReadStreamResponse>, Status> {
        if self.left == Some(0) {
            return Ok(None);
        }
        loop {
            if self.is_at_end() {
                return Ok(self.last_word());
            }
            let page = self.cluster.read_stream(self.shard, self.next, self.limits()).await;
            let page = page.map_err(status::of)?;
            if !page.messages.is_empty() || page.next > self.next {
                return self.take(page).map(Some);
            }
            if matches!(self.until, Until::Offset(_)) {
                return Ok(self.last_word());
            }
            may_go_on()?;
        }
    }

    fn is_at_end(&self) -> bool {
        matches!(self.until, Until::Offset(end) if self.next >= end)
    }

    fn last_word(&mut self) -> Option<ReadStreamResponse> {
        let next_offset = self.next.get();
        let silent = !std::mem::replace(&mut self.answered, true);
        silent.then(|| ReadStreamResponse { messages: Vec::new(), next_offset, skipped: 0 })
    }

    fn limits(&self) -> ReadLimits {
        let left = self.left.map_or(u32::MAX, |left| u32::try_from(left).unwrap_or(u32::MAX));
        let wait_ms = match self.until {
            Until::Never => RECHECK.as_millis() as u32,
            Until::Offset(_) => 0,
        };
        ReadLimits { messages_max: left.min(PAGE_MESSAGES_MAX), bytes_max: PAGE_BYTES_MAX, wait_ms }
    }

    fn take(&mut self, page: StreamPage) -> Result<ReadStreamResponse, Status> {
        let skipped = page.first.get().saturating_sub(self.next.get());
        let messages: Vec<_> =
            page.messages.into_iter().map(messages::message).collect::<Result<_, _>>()?;
        self.next = page.next;
        self.left = self.left.map(|left| left.saturating_sub(messages.len() as u64));
        self.answered = true;
        Ok(ReadStreamResponse { messages, next_offset: page.next.get(), skipped })
    }
}

/// Where a group goes on: at its cursor, or at the beginning if it has none.
fn cursor(group: &str, state: &StreamState) -> Offset {
    let cursor = state.cursors.iter().find(|(name, _)| name == group);
    cursor.map_or(state.first, |(_, next)| *next)
}

#[cfg(test)]
mod tests {
    use drover_cluster::core::ids::ShardCount;

    use super::*;

    #[test]
    fn a_group_begins_at_its_cursor_and_without_one_at_the_beginning() {
        let shards = ShardCount::new(1).expect("1 is a legal count");
        let state = StreamState {
            shard: ShardId::new(0, shards).expect("0 is below 1"),
            first: Offset::new(10),
            next: Offset::new(20),
            cursors: vec![("known".to_owned(), Offset::new(15))],
            device_count: 0,
            first_feedback: Offset::new(0),
            next_feedback: Offset::new(0),
            feedback_cursors: Vec::new(),
        };
        assert_eq!(cursor("known", &state), Offset::new(15));
        assert_eq!(cursor("new", &state), Offset::new(10));
    }
}
