//! The fan-out bus of a node: live messages from the cluster to many readers, best effort.
//!
//! A node has one live feed of the cluster and any number of live readers (gRPC tails, the console). The feed goes
//! through an embedded rumqttd router ([`engine`]) to one thread that hands each message to the readers whose filter it
//! passes. Nothing waits for a reader: every queue is bounded, what does not fit is dropped and counted, and whoever must
//! not miss anything reads the shards' streams instead. Nothing here is on the way of an acknowledgement.
//!
//! Each batch carries the number of messages before it, counted at the feed. Wherever something was lost on the way (a
//! full queue, the router's log, a router that died), the next batch shows how much.

mod engine;
mod filter;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_cluster::actors::cluster::{Live, StoredMessage};
use drover_proto::admin::{Message, TailResponse};
use tokio::sync::mpsc;
use tracing::error;

pub use filter::{Filter, Senders};

use crate::metrics;

/// Batches between the feed and the router. A batch is what one log entry or one read has brought.
const QUEUE_BATCHES_MAX: usize = 256;
/// Responses that wait for one reader.
const READER_RESPONSES_MAX: usize = 64;

/// The handle that live readers are made from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    readers: Mutex<BTreeMap<u64, Reader>>,
    reader_count: AtomicUsize,
    next_reader: AtomicU64,
    /// Messages that the feed has seen so far.
    fed: AtomicU64,
    rebuilds: AtomicU64,
    #[cfg(test)]
    poison: std::sync::atomic::AtomicBool,
}

/// A reader as the bus sees it.
#[derive(Debug)]
struct Reader {
    filter: Filter,
    responses: mpsc::Sender<Vec<Message>>,
    missed: Arc<AtomicU64>,
    /// What the feed had seen when it joined: what was lost before that it has not missed.
    joined: u64,
}

/// Messages on their way to the router.
#[derive(Debug)]
struct Batch {
    before: u64,
    messages: Vec<StoredMessage>,
}

impl Bus {
    /// Starts the bus on the live feed of this node's cluster handle; it ends when the feed ends. Must be called within
    /// a tokio runtime.
    pub fn start(live: mpsc::Receiver<Live>) -> Self {
        let shared = Arc::new(Shared::default());
        let (queue, batches) = sync_channel(QUEUE_BATCHES_MAX);
        tokio::spawn(feed(live, queue, Arc::clone(&shared)));
        let supervised = Arc::clone(&shared);
        let supervisor = std::thread::Builder::new()
            .name("drover-bus".to_owned())
            .spawn(move || engine::supervise(&supervised, batches));
        if let Err(error) = supervisor {
            // Live readers will see nothing; all else works.
            error!(%error, "the bus for live readers did not start");
        }
        Self { shared }
    }

    /// A reader of what comes from now on.
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let (responses, received) = mpsc::channel(READER_RESPONSES_MAX);
        let missed = Arc::new(AtomicU64::new(0));
        let id = self.shared.next_reader.fetch_add(1, Ordering::Relaxed);
        let mut readers = self.shared.readers();
        let joined = self.shared.fed.load(Ordering::Acquire);
        readers.insert(id, Reader { filter, responses, missed: Arc::clone(&missed), joined });
        self.shared.count_readers(&readers);
        drop(readers);
        Subscription { id, received, missed, shared: Arc::clone(&self.shared) }
    }

    /// How often the router died and was replaced.
    pub fn rebuilds(&self) -> u64 {
        self.shared.rebuilds.load(Ordering::Relaxed)
    }
}

/// One live reader. It leaves the bus when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    id: u64,
    received: mpsc::Receiver<Vec<Message>>,
    missed: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl Subscription {
    /// The next messages, and how many were missed before them. `None` when the bus has ended.
    pub async fn next(&mut self) -> Option<TailResponse> {
        let messages = self.received.recv().await?;
        Some(TailResponse { messages, missed: self.missed.swap(0, Ordering::AcqRel) })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut readers = self.shared.readers();
        readers.remove(&self.id);
        self.shared.count_readers(&readers);
    }
}

impl Shared {
    fn readers(&self) -> MutexGuard<'_, BTreeMap<u64, Reader>> {
        // No code that can panic runs under this lock, and the map would be whole if it did.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_readers(&self, readers: &BTreeMap<u64, Reader>) {
        self.reader_count.store(readers.len(), Ordering::Release);
        let count = u32::try_from(readers.len()).unwrap_or(u32::MAX);
        ::metrics::gauge!(metrics::BUS_READERS).set(count);
    }

    /// Hands messages to the readers. `before`: the number of messages that the feed had seen before these; `seen`: how
    /// many this side has.
    fn deliver(&self, before: u64, messages: &[Message], seen: &mut u64) {
        let expected = std::mem::replace(seen, before + messages.len() as u64);
        for reader in self.readers().values() {
            let gap = before.saturating_sub(expected.max(reader.joined));
            reader.deliver(gap, messages);
        }
    }

    /// Readers learn that there will be nothing more.
    fn end(&self) {
        self.readers().clear();
    }
}

impl Reader {
    fn deliver(&self, gap: u64, messages: &[Message]) {
        if gap > 0 {
            self.miss(gap);
        }
        let wanted: Vec<_> =
            messages.iter().filter(|message| self.filter.passes(message)).cloned().collect();
        if wanted.is_empty() {
            return;
        }
        let count = wanted.len() as u64;
        match self.responses.try_send(wanted) {
            Err(mpsc::error::TrySendError::Full(_)) => self.miss(count),
            // A closed one is being dropped.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }

    fn miss(&self, count: u64) {
        self.missed.fetch_add(count, Ordering::AcqRel);
        ::metrics::counter!(metrics::BUS_MISSED_MESSAGES).increment(count);
    }
}

/// Counts what comes, and passes it on if anybody reads.
async fn feed(mut live: mpsc::Receiver<Live>, queue: SyncSender<Batch>, shared: Arc<Shared>) {
    while let Some(news) = live.recv().await {
        let (count, messages) = match news {
            Live::Messages(messages) => (messages.len() as u64, messages),
            Live::Missed(count) => (count, Vec::new()),
            // Live readers are shown messages only.
            Live::Event(_) => continue,
        };
        let before = shared.fed.fetch_add(count, Ordering::AcqRel);
        if messages.is_empty() || shared.reader_count.load(Ordering::Acquire) == 0 {
            continue;
        }
        match queue.try_send(Batch { before, messages }) {
            // The next batch that gets through shows what is missing.
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use drover_cluster::core::change;
    use drover_cluster::core::ids::{GenerationId, LogTime, Offset, ShardCount, ShardId};
    use drover_proto::{admin, record};
    use prost::Message as _;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn stored(offset: u64, device: &str) -> StoredMessage {
        let shards = ShardCount::new(2).expect("2 is a legal count");
        let content = record::Message { body: offset.to_string().into(), ..Default::default() };
        StoredMessage {
            shard: ShardId::new((offset % 2) as u32, shards).expect("below 2"),
            offset: Offset::new(offset),
            at: LogTime::new(0),
            device: device.parse().expect("a legal id"),
            generation: GenerationId::new(1),
            epoch: None,
            authentication: "sas",
            message: change::Message(Bytes::from(content.encode_to_vec())),
        }
    }

    fn filter(device: &str) -> Filter {
        let request = admin::TailRequest { device_id: device.to_owned(), ..Default::default() };
        Filter::try_from(request).expect("it is valid")
    }

    async fn next(subscription: &mut Subscription) -> TailResponse {
        timeout(LONG, subscription.next()).await.expect("in time").expect("the bus runs")
    }

    /// Sends single messages until one arrives, so that no test depends on when the router is up.
    async fn until_it_flows(live: &mpsc::Sender<Live>, subscription: &mut Subscription) {
        let flows = async {
            loop {
                live.send(Live::Messages(vec![stored(0, "warm-up")])).await.expect("the feed runs");
                let pause = Duration::from_millis(20);
                if timeout(pause, subscription.next()).await.is_ok() {
                    return;
                }
            }
        };
        timeout(LONG, flows).await.expect("the bus comes up");
    }

    #[tokio::test]
    async fn every_message_reaches_a_reader_that_keeps_up_in_order() {
        let (live, feed) = mpsc::channel(8);
        let bus = Bus::start(feed);
        let mut reader = bus.subscribe(filter(""));
        until_it_flows(&live, &mut reader).await;
        let mut expected = 1;
        for batch in 0..50 {
            let first = 1 + batch * 10;
            let messages = (first..first + 10).map(|offset| stored(offset, "pump")).collect();
            live.send(Live::Messages(messages)).await.expect("the feed runs");
            while expected < first + 10 {
                let response = next(&mut reader).await;
                for message in response.messages.iter().filter(|m| m.device_id == "pump") {
                    assert_eq!(message.offset, expected);
                    assert_eq!(message.body, expected.to_string().into_bytes());
                    expected += 1;
                }
                assert_eq!(response.missed, 0);
            }
        }
    }

    #[tokio::test]
    async fn a_reader_sees_only_what_its_filter_passes() {
        let (live, feed) = mpsc::channel(8);
        let bus = Bus::start(feed);
        let mut all = bus.subscribe(filter(""));
        let mut one = bus.subscribe(filter("pump"));
        until_it_flows(&live, &mut all).await;
        let messages = vec![stored(1, "fan"), stored(2, "pump"), stored(3, "pump-2")];
        live.send(Live::Messages(messages)).await.expect("the feed runs");
        let response = next(&mut one).await;
        let offsets: Vec<_> = response.messages.iter().map(|message| message.offset).collect();
        assert_eq!((offsets, response.missed), (vec![2], 0));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_how_many_it_missed_and_holds_up_nobody() {
        let (live, feed) = mpsc::channel(8);
        let bus = Bus::start(feed);
        let mut slow = bus.subscribe(filter("pump"));
        let mut quick = bus.subscribe(filter(""));
        until_it_flows(&live, &mut quick).await;
        let count = READER_RESPONSES_MAX as u64 + 100;
        for offset in 0..count {
            live.send(Live::Messages(vec![stored(offset, "pump")])).await.expect("the feed runs");
            while next(&mut quick).await.messages.iter().all(|m| m.device_id != "pump") {}
        }
        let mut received = 0;
        let mut missed = 0;
        while received < READER_RESPONSES_MAX {
            let response = next(&mut slow).await;
            received += response.messages.len();
            missed += response.missed;
        }
        assert_eq!(received as u64 + missed, count);
        assert_eq!(missed, 100);
    }

    #[tokio::test]
    async fn what_the_feed_missed_is_counted_for_readers() {
        let (live, feed) = mpsc::channel(8);
        let bus = Bus::start(feed);
        let mut reader = bus.subscribe(filter(""));
        until_it_flows(&live, &mut reader).await;
        live.send(Live::Missed(7)).await.expect("the feed runs");
        live.send(Live::Messages(vec![stored(1, "pump")])).await.expect("the feed runs");
        let mut missed = 0;
        loop {
            let response = next(&mut reader).await;
            missed += response.missed;
            if response.messages.iter().any(|message| message.device_id == "pump") {
                break;
            }
        }
        assert_eq!(missed, 7);
    }

    #[tokio::test]
    async fn a_router_that_died_is_replaced_and_readers_go_on() {
        let (live, feed) = mpsc::channel(8);
        let bus = Bus::start(feed);
        let mut reader = bus.subscribe(filter(""));
        until_it_flows(&live, &mut reader).await;
        bus.shared.poison.store(true, Ordering::Release);
        let replaced = async {
            while bus.rebuilds() == 0 {
                live.send(Live::Messages(vec![stored(1, "pump")])).await.expect("the feed runs");
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, replaced).await.expect("the death is noticed");
        while timeout(Duration::from_millis(1), reader.next()).await.is_ok() {}
        until_it_flows(&live, &mut reader).await;
    }

    #[tokio::test]
    async fn readers_end_with_the_feed() {
        let (live, feed) = mpsc::channel(8);
        let bus = Bus::start(feed);
        let mut reader = bus.subscribe(filter(""));
        until_it_flows(&live, &mut reader).await;
        drop(live);
        let ended = async { while reader.next().await.is_some() {} };
        timeout(LONG, ended).await.expect("the reader learns of the end");
    }
}
