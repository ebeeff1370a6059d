//! The embedded rumqttd router, behind a guard. Nothing else in the program touches rumqttd.
//!
//! Some ordinary inputs kill the router's thread for good, and it loses what a slow link does not fetch. So it is given
//! only what cannot hurt it: fixed ASCII topics (one a shard), one fixed filter, two links that live as long as it does,
//! `QoS` 0, no retained messages, no shared or persistent sessions. It is published to from a thread of its own, which
//! may block. `ready()` is called once for each `Unschedule`, and a link is closed only after a fence: a PINGREQ whose
//! answer has come back, because a `ready()` that overtakes a DISCONNECT kills the router. If a link fails or nothing
//! arrives for [`SILENCE_MAX`], heartbeats included, the router is given up and a new one is made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use drover_cluster::actors::cluster::StoredMessage;
use drover_proto::admin::Message;
use futures::FutureExt as _;
use prost::Message as _;
use rumqttd::local::{LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet, PingReq};
use rumqttd::{Broker, Config, Notification, RouterConfig};
use tracing::{error, warn};

use super::{Batch, Shared};
use crate::{grpc, metrics};

/// What the router's log for our one filter may hold: segments of a mebibyte.
const SEGMENT_BYTES: usize = 1 << 20;
const SEGMENTS: usize = 16;
/// Two are used; a link that was not closed in order keeps its place.
const LINKS_MAX: usize = 8;
/// How many notifications the router queues for a link before it waits for `ready()`.
const NOTIFICATIONS_MAX: u64 = 200;

const FILTER: &str = "drover/live/+";
const HEARTBEAT: &str = "drover/live/heartbeat";
const END: &str = "drover/live/end";

/// While nothing else is published, this shows that the router lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// After this long without a heartbeat the router is dead. Long enough for a machine that swaps.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Making a router takes a millisecond, or for ever.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Between the death of a router and the next one, so that a cause that stays cannot eat a core.
const REBUILD_PAUSE: Duration = Duration::from_millis(250);

/// What a payload of the router is: messages of one shard, and how many the feed had seen before them.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(uint64, tag = "1")]
    before: u64,
    #[prost(message, repeated, tag = "2")]
    messages: Vec<Message>,
}

/// Why a router is given up.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no thread for it: {0}")]
    Thread(#[from] std::io::Error),
    #[error("it did not start in time")]
    Start,
    #[error("a link failed: {0}")]
    Link(Box<LinkError>),
    #[error("it did not take a packet at once")]
    Stuck,
    #[error("it closed a link")]
    Closed,
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Link(Box::new(error))
    }
}

/// Runs a router, and another one whenever it dies, until the feed ends.
pub(super) fn supervise(shared: &Arc<Shared>, batches: Receiver<Batch>) {
    let publishing = Arc::new(Publishing {
        batches: Mutex::new(batches),
        is_over: AtomicBool::new(false),
        #[cfg(test)]
        shared: Arc::clone(shared),
    });
    let mut seen = 0;
    while !publishing.is_over.load(Ordering::Acquire) {
        match Router::start().and_then(|router| router.run(shared, &publishing, &mut seen)) {
            Ok(()) => break,
            Err(failure) => {
                warn!(%failure, "the router for live readers is replaced");
                shared.rebuilds.fetch_add(1, Ordering::Relaxed);
                ::metrics::counter!(metrics::BUS_REBUILDS).increment(1);
                thread::sleep(REBUILD_PAUSE);
            }
        }
    }
    shared.end();
}

struct Router {
    sender: Link,
    receiver: Link,
}

struct Link {
    tx: LinkTx,
    rx: LinkRx,
}

impl Router {
    /// On a thread that may be lost: making a link to a dead router can wait for ever, or panic.
    fn start() -> Result<Self, Failure> {
        let (answer, started) = sync_channel(1);
        thread::Builder::new().name("drover-bus-start".to_owned()).spawn(move || {
            // Nobody waits any more if it took too long.
            drop(answer.send(Self::build()));
        })?;
        started.recv_timeout(START_TIMEOUT).map_err(|_| Failure::Start)?
    }

    fn build() -> Result<Self, Failure> {
        let router = RouterConfig {
            max_connections: LINKS_MAX,
            max_outgoing_packet_count: NOTIFICATIONS_MAX,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        };
        let broker = Broker::new(Config { id: 0, router, ..Config::default() });
        let link = |name| -> Result<Link, Failure> {
            let (tx, rx) = broker.link(name)?;
            Ok(Link { tx, rx })
        };
        let (sender, mut receiver) = (link("sender")?, link("receiver")?);
        receiver.tx.subscribe(FILTER)?;
        Ok(Self { sender, receiver })
    }

    /// Until the feed ends, or the router dies.
    fn run(
        self,
        shared: &Shared,
        publishing: &Arc<Publishing>,
        seen: &mut u64,
    ) -> Result<(), Failure> {
        let Self { sender, mut receiver } = self;
        let is_alive = Arc::new(AtomicBool::new(true));
        let (publishing, alive) = (Arc::clone(publishing), Arc::clone(&is_alive));
        thread::Builder::new()
            .name("drover-bus-publish".to_owned())
            .spawn(move || publishing.run(sender, &alive))?;
        let ended = receiver.deliver_all(shared, seen);
        is_alive.store(false, Ordering::Release);
        ended?;
        receiver.close()
    }
}

/// The publisher's side. It outlives routers: a message that waits when one dies is published to the next.
struct Publishing {
    /// Held by one publisher at a time, and never while it publishes, which can block for ever.
    batches: Mutex<Receiver<Batch>>,
    /// The feed has ended.
    is_over: AtomicBool,
    #[cfg(test)]
    shared: Arc<Shared>,
}

impl Publishing {
    fn run(&self, mut link: Link, is_alive: &AtomicBool) {
        match self.publish_all(&mut link.tx, is_alive) {
            Ok(()) if self.is_over.load(Ordering::Acquire) => {
                if let Err(failure) = link.close() {
                    warn!(%failure, "a link to the router for live readers was not closed in order");
                }
            }
            // The other side sees it, too, and does what must be done.
            Ok(()) | Err(_) => {}
        }
    }

    fn publish_all(&self, link: &mut LinkTx, is_alive: &AtomicBool) -> Result<(), Failure> {
        while is_alive.load(Ordering::Acquire) {
            let batch = {
                let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
                batches.recv_timeout(HEARTBEAT_INTERVAL)
            };
            match batch {
                Ok(batch) => {
                    #[cfg(test)]
                    self.poison(link)?;
                    Self::publish(link, &batch)?;
                }
                Err(RecvTimeoutError::Timeout) => drop(link.publish(HEARTBEAT, Bytes::new())?),
                Err(RecvTimeoutError::Disconnected) => {
                    self.is_over.store(true, Ordering::Release);
                    link.publish(END, Bytes::new())?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn publish(link: &mut LinkTx, batch: &Batch) -> Result<(), Failure> {
        let mut before = batch.before;
        for run in batch.messages.chunk_by(|a, b| a.shard == b.shard) {
            let topic = format!("drover/live/{}", run[0].shard);
            let envelope = Envelope { before, messages: run.iter().filter_map(public).collect() };
            link.publish(topic, envelope.encode_to_vec())?;
            before += run.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Publishing {
    /// A first letter that is not ASCII kills the router.
    fn poison(&self, link: &mut LinkTx) -> Result<(), Failure> {
        if self.shared.poison.swap(false, Ordering::AcqRel) {
            link.publish("é", Bytes::new())?;
        }
        Ok(())
    }
}

/// What is stored and is no message of ours is left out here; whoever reads the stream is told.
fn public(stored: &StoredMessage) -> Option<Message> {
    grpc::convert::messages::message(stored.clone())
        .inspect_err(|error| {
            error!(shard = %stored.shard, offset = %stored.offset, %error, "a stored message cannot be read");
        })
        .ok()
}

impl Link {
    /// Until the publisher's last word.
    fn deliver_all(&mut self, shared: &Shared, seen: &mut u64) -> Result<(), Failure> {
        loop {
            match self.next()? {
                Notification::Forward(forward) if forward.publish.topic == END => return Ok(()),
                Notification::Forward(forward) if forward.publish.topic == HEARTBEAT => {}
                Notification::Forward(forward) => match Envelope::decode(forward.publish.payload) {
                    Ok(envelope) => shared.deliver(envelope.before, &envelope.messages, seen),
                    Err(error) => error!(%error, "the router for live readers changed a payload"),
                },
                Notification::DeviceAck(_)
                | Notification::ReplicaData { .. }
                | Notification::ReplicaAcks { .. }
                | Notification::Shadow(_)
                | Notification::Unschedule
                | Notification::Disconnect(..) => {}
            }
        }
    }

    /// Behind the fence: whatever the router had for this link has been answered.
    fn close(mut self) -> Result<(), Failure> {
        self.send(Packet::PingReq(PingReq))?;
        loop {
            if let Notification::DeviceAck(ack) = self.next()?
                && matches!(Packet::from(ack), Packet::PingResp(_))
            {
                break;
            }
        }
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        self.send(Packet::Disconnect(Disconnect { reason_code }, None))
    }

    fn next(&mut self) -> Result<Notification, Failure> {
        loop {
            match self.rx.recv_deadline(deadline()) {
                Ok(Some(Notification::Unschedule)) => self.rx.ready()?,
                Ok(Some(Notification::Disconnect(..))) => return Err(Failure::Closed),
                Ok(Some(notification)) => return Ok(notification),
                Ok(None) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `LinkTx::send` is async in name only: it blocks while the router's queue is full, and answers at once.
    fn send(&mut self, packet: Packet) -> Result<(), Failure> {
        match self.tx.send(packet).now_or_never() {
            Some(sent) => Ok(sent.map(drop)?),
            None => Err(Failure::Stuck),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "rumqttd takes no other clock, and this is a thread of its own"
)]
fn deadline() -> Instant {
    Instant::now() + SILENCE_MAX
}
