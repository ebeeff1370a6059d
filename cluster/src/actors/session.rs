//! The cluster's side of a connection: its epoch, its way back to the device.
//!
//! A connection that ends without closing its session leaves nothing behind: the drop forgets it on this node and has
//! its end committed in the background. An end that cannot be committed there, the leader of the shard learns of by what
//! this node announces (`sessions`).

use std::sync::{Arc, Mutex};

use drover_core::access::ProvenDevice;
use drover_core::change::{DeviceChange, Done, Message, Sender};
pub use drover_core::delivery::{Delivery, EndReason, SentCommand};
use drover_core::device::{Channel, Subscriptions};
use drover_core::document::Object;
use drover_core::ids::{CallId, CommandSequence, DeviceId, Offset, SessionEpoch, ShardId, Version};
pub use drover_core::mailbox::Settlement;
pub use drover_core::method::{Call, CallReport, MethodResponse};
use drover_core::twin::Twin;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::admission::Bucket;
use super::cluster::{Cluster, unexpected};
use super::error::Error;
use super::sessions::Closed;
use crate::metrics;

/// How many deliveries may wait for a connection before it is ended as too slow.
pub const DELIVERIES_MAX: usize = 32;
/// Ends of dropped sessions that wait to be committed. Beyond it they are announced.
pub(super) const CLOSING_MAX: usize = 65_536;
/// Ends that are committed together. They share the entries of their shards.
const CLOSING_TOGETHER: usize = 256;

/// What it takes to make a connection the live one of its device.
#[derive(Debug)]
pub struct OpenSession {
    pub proven: ProvenDevice,
    pub clean_session: bool,
    /// A bounded queue of [`DELIVERIES_MAX`]. Boxed, so that an idle connection holds little. Its end without an
    /// [`Delivery::End`] means that the connection was too slow: close it all the same.
    pub deliveries: mpsc::Sender<Box<Delivery>>,
}

/// The live connection of a device, from its committed epoch until it is closed or replaced.
///
/// One request at a time: a caller that waits for each answer before the next request has its changes applied in order,
/// also across a change of leader.
#[derive(Debug)]
pub struct Session {
    cluster: Cluster,
    shard: ShardId,
    device: DeviceId,
    epoch: SessionEpoch,
    is_resumed: bool,
    subscriptions: Subscriptions,
    /// `None` where no rate is configured.
    bucket: Option<Box<Mutex<Bucket>>>,
    /// Nothing is left to be told to the cluster.
    is_closed: bool,
}

impl Session {
    pub(super) async fn open(cluster: &Cluster, request: OpenSession) -> Result<Self, Error> {
        let OpenSession { proven, clean_session, deliveries } = request;
        let ProvenDevice { device, credentials } = proven;
        let shard = cluster.shard_of(&device)?;
        let mut opened = cluster.shared.sessions.opening(shard, &device);
        let node = Some(cluster.shared.config.node);
        let connect = DeviceChange::Connect { credentials, clean_session, node };
        let answer = cluster.change_device(&device, connect).await;
        if answer.as_ref().is_err_and(|error| !error.is_unknown()) {
            opened.settle();
        }
        let done = answer?;
        let Done::Connected { epoch, session_present, subscriptions } = done else {
            return Err(unexpected(shard));
        };
        let rate = cluster.shared.config.limits.device_rate;
        let session = Self {
            cluster: cluster.clone(),
            shard,
            device,
            epoch,
            is_resumed: session_present,
            subscriptions,
            bucket: rate.map(|rate| Box::new(Mutex::new(Bucket::new(rate, Instant::now())))),
            is_closed: false,
        };
        if opened.hold(epoch, deliveries) {
            Ok(session)
        } else {
            let current = epoch.next();
            Err(drover_core::change::Refusal::StaleSession { given: epoch, current }.into())
        }
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    pub fn epoch(&self) -> SessionEpoch {
        self.epoch
    }

    /// Whether stored subscriptions were found.
    pub fn session_present(&self) -> bool {
        self.is_resumed
    }

    /// The subscriptions that were found when the session was opened.
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// Adds subscriptions; answers with all of them. Success: durable on a majority.
    pub async fn subscribe(&self, subscriptions: Subscriptions) -> Result<Subscriptions, Error> {
        let change = DeviceChange::Subscribe { epoch: self.epoch, subscriptions };
        self.subscribed(change).await
    }

    pub async fn unsubscribe(&self, channels: Vec<Channel>) -> Result<Subscriptions, Error> {
        if channels.contains(&Channel::DesiredPatches) {
            self.cluster.shared.sessions.stops_listening(self.shard, &self.device, self.epoch);
        }
        let change = DeviceChange::Unsubscribe { epoch: self.epoch, channels };
        self.subscribed(change).await
    }

    async fn subscribed(&self, change: DeviceChange) -> Result<Subscriptions, Error> {
        let answer = self.cluster.change_device(&self.device, change).await?;
        let Done::Subscribed(subscriptions) = answer else {
            return Err(unexpected(self.shard));
        };
        Ok(subscriptions)
    }

    /// Appends messages to the stream, all or none, in this order; answers with the first one's offset. Success:
    /// fsynced on a majority.
    pub async fn append(&self, messages: Vec<Message>) -> Result<Offset, Error> {
        if let Some(bucket) = &self.bucket {
            let mut bucket = bucket.lock().expect("nobody panics with the bucket in hand");
            if !bucket.take(messages.len(), Instant::now()) {
                metrics::refused("rate_limited");
                return Err(Error::RateLimited);
            }
        }
        let sender = Sender::Session(self.epoch);
        let change = DeviceChange::Telemetry { sender, messages };
        let answer = self.cluster.change_device(&self.device, change).await?;
        let Done::Appended { first, .. } = answer else {
            return Err(unexpected(self.shard));
        };
        Ok(first)
    }

    /// The device's twin, linearizable.
    pub async fn twin(&self) -> Result<Twin, Error> {
        let twin = self.cluster.twin(&self.device).await?;
        let read = twin.desired.version;
        self.cluster.shared.sessions.has_read(self.shard, &self.device, self.epoch, read);
        Ok(twin)
    }

    /// Merges a patch into the reported properties; answers with the new version. Success: durable on a majority.
    pub async fn patch_reported(
        &self,
        expected: Option<Version>,
        patch: Object,
    ) -> Result<Version, Error> {
        let sender = Sender::Session(self.epoch);
        let change = DeviceChange::PatchReported { sender, expected, patch };
        let answer = self.cluster.change_device(&self.device, change).await?;
        let Done::Reported { version } = answer else {
            return Err(unexpected(self.shard));
        };
        Ok(version)
    }

    /// What the device says about a command that it was sent over this connection. Success: durable on a majority; a
    /// command that is completed or rejected is never sent again (P3).
    pub async fn settle(
        &self,
        sequence: CommandSequence,
        settlement: Settlement,
    ) -> Result<(), Error> {
        let change = DeviceChange::SettleCommand { epoch: self.epoch, sequence, settlement };
        self.cluster.change_device(&self.device, change).await.map(drop)
    }

    /// What became of a call that was delivered to this connection: the device's answer, or that it was not sent. Nobody
    /// may be waiting for it any more.
    pub async fn report_call(&self, call: CallId, report: CallReport) -> Result<(), Error> {
        self.cluster.report_call(self.shard, &self.device, self.epoch, call, report).await
    }

    /// Ends the session. `will` is appended to the stream if the session is still the live one.
    pub async fn close(mut self, will: Option<Message>) -> Result<(), Error> {
        let closed = self.cluster.shared.sessions.close(self.shard, &self.device, self.epoch);
        // From here on the change itself is on its way; if the caller gives up, the drop ends the session once more.
        let done = record_end(&self.cluster, closed, will).await;
        self.is_closed = true;
        done
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_closed {
            return;
        }
        let shared = &self.cluster.shared;
        let closed = shared.sessions.close(self.shard, &self.device, self.epoch);
        if shared.closing.try_send(closed).is_err() {
            debug!(device = %self.device, "the end of a session is announced: too many end at once");
        }
    }
}

async fn record_end(cluster: &Cluster, closed: Closed, will: Option<Message>) -> Result<(), Error> {
    let change = DeviceChange::Disconnect { epoch: closed.epoch(), will };
    let done = cluster.change_device(closed.device(), change).await;
    if matches!(done, Ok(_) | Err(Error::Refused(_))) {
        closed.settle();
    }
    done.map(drop)
}

/// Commits the ends of dropped sessions.
pub(super) async fn close_dropped(cluster: Cluster, closing: mpsc::Receiver<Closed>) {
    let closing = tokio_stream::wrappers::ReceiverStream::new(closing);
    let cluster = Arc::new(cluster);
    closing
        .for_each_concurrent(CLOSING_TOGETHER, |closed| {
            let cluster = Arc::clone(&cluster);
            async move {
                let (device, epoch) = (closed.device().clone(), closed.epoch());
                if let Err(error) = record_end(&cluster, closed, None).await {
                    debug!(%device, %epoch, %error, "the end of a session could not be committed");
                }
            }
        })
        .await;
}
