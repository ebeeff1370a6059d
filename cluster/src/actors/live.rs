//! Live events of the whole cluster, best effort: what a reader or a peer cannot take is dropped and counted.
//!
//! Shards put references into a bounded queue after commit; one task reads the messages from the applied state and hands
//! them out. While nobody listens, nothing is read.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use drover_core::change::Event;
use drover_core::ids::{GroupId, NodeId, Offset, ShardId};
use drover_core::message::{Live, StreamPage};
use tokio::sync::mpsc;
use tracing::warn;

use super::serve;
use crate::metrics;
use crate::raft::groups::Groups;
use crate::raft::peers::Peers;
use crate::storage::Storage;
use crate::storage::stream::{self, PageLimit};
use crate::wire::events::encode_events;

/// Commits that wait to be handed out.
const QUEUE_MAX: usize = 4096;
/// How often peers are told what this node wants: a reconnected peer has forgotten it.
const WANT_EVERY: Duration = Duration::from_secs(5);
/// What one read of the applied state brings.
const PAGE: PageLimit = PageLimit { messages: 1024, bytes: 1024 * 1024 };

/// Where shards report. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LiveHub {
    shared: Arc<Hub>,
}

#[derive(Debug)]
struct Hub {
    queue: mpsc::Sender<Committed>,
    /// Somebody listens, here or on a peer.
    wanted: AtomicBool,
    missed: AtomicU64,
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    readers: Vec<Reader>,
    peers: BTreeSet<NodeId>,
}

/// What a reader is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    Everything,
    /// What happens to devices, and no messages.
    Events,
}

#[derive(Debug)]
struct Reader {
    wants: Wants,
    queue: mpsc::Sender<Live>,
    missed: u64,
}

#[derive(Debug)]
enum Committed {
    Appended { shard: ShardId, first: Offset, count: u64 },
    Event(Event),
}

/// What takes commits out of the hub's queue.
pub(super) struct Publisher {
    hub: LiveHub,
    queue: mpsc::Receiver<Committed>,
    storage: Arc<dyn Storage>,
    groups: Groups,
    peers: Peers,
}

impl LiveHub {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        groups: Groups,
        peers: Peers,
    ) -> (Self, Publisher) {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Hub {
            queue: sender,
            wanted: AtomicBool::new(false),
            missed: AtomicU64::new(0),
            listeners: Mutex::default(),
        });
        let hub = Self { shared };
        (hub.clone(), Publisher { hub, queue, storage, groups, peers })
    }

    /// From the shard that this node leads.
    pub(super) fn appended(&self, shard: ShardId, first: Offset, count: u64) {
        self.report(Committed::Appended { shard, first, count }, count);
    }

    pub(super) fn happened(&self, event: Event) {
        self.report(Committed::Event(event), 1);
    }

    fn report(&self, committed: Committed, count: u64) {
        if self.shared.wanted.load(Ordering::Relaxed)
            && self.shared.queue.try_send(committed).is_err()
        {
            self.shared.missed.fetch_add(count, Ordering::Relaxed);
            metrics::live_missed(count);
        }
    }

    /// A reader on this node, of everything from now on.
    pub(super) fn subscribe(&self, wants: Wants, queue_max: usize) -> mpsc::Receiver<Live> {
        let (queue, receiver) = mpsc::channel(queue_max);
        self.listeners().readers.push(Reader { wants, queue, missed: 0 });
        self.shared.wanted.store(true, Ordering::Relaxed);
        receiver
    }

    pub(super) fn peer_wants(&self, peer: NodeId, wanted: bool) {
        let mut listeners = self.listeners();
        if wanted {
            listeners.peers.insert(peer);
        } else {
            listeners.peers.remove(&peer);
        }
        self.shared.wanted.store(!listeners.is_empty(), Ordering::Relaxed);
    }

    /// To the readers of this node, whoever led.
    pub(super) fn hand_out(&self, live: &[Live]) {
        self.listeners().readers.retain_mut(|reader| reader.takes(live));
    }

    /// Whether there are readers on this node. Forgets those that have gone.
    fn has_readers(&self) -> bool {
        let mut listeners = self.listeners();
        listeners.readers.retain(|reader| !reader.queue.is_closed());
        self.shared.wanted.store(!listeners.is_empty(), Ordering::Relaxed);
        !listeners.readers.is_empty()
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.shared.listeners.lock().expect("nobody panics with the listeners in hand")
    }
}

impl Listeners {
    fn is_empty(&self) -> bool {
        self.readers.is_empty() && self.peers.is_empty()
    }
}

impl Reader {
    /// Whether the reader is still there.
    fn takes(&mut self, live: &[Live]) -> bool {
        let wants = self.wants;
        let is_wanted =
            |live: &&Live| wants == Wants::Everything || !matches!(live, Live::Messages(_));
        for live in live.iter().filter(is_wanted) {
            if self.missed > 0 && self.queue.try_send(Live::Missed(self.missed)).is_ok() {
                self.missed = 0;
            }
            if self.missed > 0 || self.queue.try_send(live.clone()).is_err() {
                let count = count(live);
                self.missed += count;
                metrics::live_missed(count);
            }
        }
        !self.queue.is_closed()
    }
}

fn count(live: &Live) -> u64 {
    match live {
        Live::Messages(messages) => messages.len() as u64,
        Live::Event(_) => 1,
        Live::Missed(count) => *count,
    }
}

impl Publisher {
    /// Hands out until it is dropped.
    pub(super) async fn run(mut self) {
        let mut want = tokio::time::interval(WANT_EVERY / 5);
        let mut wanted = false;
        let mut ticks: u32 = 0;
        let mut committed = Vec::new();
        loop {
            tokio::select! {
                count = self.queue.recv_many(&mut committed, 256) => {
                    if count == 0 {
                        return;
                    }
                    let live = self.read(committed.drain(..));
                    self.publish(&live);
                }
                _ = want.tick() => {
                    let now = self.hub.has_readers();
                    ticks += 1;
                    // A change is told at once, and what is wanted again from time to time.
                    if now != wanted || (now && ticks.is_multiple_of(5)) {
                        self.peers.want_events(now);
                    }
                    wanted = now;
                }
            }
        }
    }

    fn read(&self, committed: impl Iterator<Item = Committed>) -> Vec<Live> {
        let missed = self.hub.shared.missed.swap(0, Ordering::Relaxed);
        let mut live: Vec<_> = (missed > 0).then_some(Live::Missed(missed)).into_iter().collect();
        for committed in committed {
            match committed {
                Committed::Event(event) => live.push(Live::Event(event)),
                Committed::Appended { shard, first, count } => {
                    self.read_messages(shard, first, count, &mut live);
                }
            }
        }
        live
    }

    fn read_messages(&self, shard: ShardId, first: Offset, count: u64, live: &mut Vec<Live>) {
        let end = first.plus(count);
        let mut next = first;
        while next < end {
            let messages = usize::try_from(end.get() - next.get()).unwrap_or(PAGE.messages);
            let limit = PageLimit { messages: messages.min(PAGE.messages), ..PAGE };
            match stream::read(&*self.storage, shard, next, limit) {
                Ok(StreamPage { messages, next: after, .. }) if after > next => {
                    next = after;
                    live.push(Live::Messages(messages));
                }
                // Retention took them.
                Ok(_) => return live.push(Live::Missed(end.get() - next.get())),
                Err(error) => {
                    warn!(%shard, %error, "committed messages cannot be read for live readers");
                    if let Some(group) = self.groups.get(GroupId::Shard(shard)) {
                        serve::unreadable(&group, error);
                    }
                    return live.push(Live::Missed(end.get() - next.get()));
                }
            }
        }
    }

    fn publish(&self, live: &[Live]) {
        let peers: Vec<_> = self.hub.listeners().peers.iter().copied().collect();
        if !peers.is_empty() {
            let encoded = encode_events(live);
            for peer in peers {
                self.peers.send_events(peer, encoded.clone());
            }
        }
        self.hub.hand_out(live);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_reader_is_told_how_much_it_missed() {
        let (queue, mut receiver) = mpsc::channel(1);
        let mut reader = Reader { wants: Wants::Everything, queue, missed: 0 };
        assert!(reader.takes(&[Live::Missed(1), Live::Missed(2), Live::Missed(3)]));
        assert_eq!(receiver.try_recv(), Ok(Live::Missed(1)));
        assert!(reader.takes(&[Live::Missed(4)]));
        assert_eq!(receiver.try_recv(), Ok(Live::Missed(5)));
        drop(receiver);
        assert!(!reader.takes(&[]), "a reader that has gone is forgotten");
    }
}
