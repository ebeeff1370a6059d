//! The cluster's side of a connection: its epoch, its way back to the device.

use drover_core::access::ProvenDevice;
use drover_core::change::Message;
use drover_core::device::{Channel, Subscriptions};
use drover_core::document::Object;
use drover_core::ids::{DeviceId, Offset, SessionEpoch, Version};
use drover_core::twin::Twin;
use tokio::sync::mpsc;

use super::error::Error;

/// How many deliveries may wait for a connection before it is ended as too slow.
pub const DELIVERIES_MAX: usize = 32;

/// What the cluster tells a connection between its own requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// Close without a notice; what is sent from now on has no effect. It is the last delivery.
    End(EndReason),
    /// The desired properties were changed: the merge patch and the version that it led to.
    Desired { version: Version, patch: Object },
}

/// Why the cluster ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// A newer connection of the device.
    Replaced,
    /// The device was disabled or deleted, or its keys were changed.
    Revoked,
    /// The node is stopping.
    Stopping,
    /// A desired patch may have been missed: the device must read its twin again.
    Gap,
}

/// What it takes to make a connection the live one of its device.
#[derive(Debug)]
pub struct OpenSession {
    pub proven: ProvenDevice,
    pub clean_session: bool,
    /// A bounded queue of [`DELIVERIES_MAX`]. Boxed, so that an idle connection holds little.
    pub deliveries: mpsc::Sender<Box<Delivery>>,
}

/// The live connection of a device, from its committed epoch until it is closed or replaced.
///
/// One request at a time: a caller that waits for each answer before the next request has its changes applied in order,
/// also across a change of leader.
#[derive(Debug)]
pub struct Session {
    device: DeviceId,
    epoch: SessionEpoch,
    session_present: bool,
    subscriptions: Subscriptions,
}

impl Session {
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    pub fn epoch(&self) -> SessionEpoch {
        self.epoch
    }

    /// Whether stored subscriptions were found.
    pub fn session_present(&self) -> bool {
        self.session_present
    }

    /// The subscriptions that were found when the session was opened.
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// Adds subscriptions; answers with all of them. Success: durable on a majority.
    pub async fn subscribe(&self, subscriptions: Subscriptions) -> Result<Subscriptions, Error> {
        let _ = subscriptions;
        todo!()
    }

    pub async fn unsubscribe(&self, channels: Vec<Channel>) -> Result<Subscriptions, Error> {
        let _ = channels;
        todo!()
    }

    /// Appends messages to the stream, all or none, in this order; answers with the first one's offset. Success:
    /// fsynced on a majority.
    pub async fn append(&self, messages: Vec<Message>) -> Result<Offset, Error> {
        let _ = messages;
        todo!()
    }

    /// The device's twin, linearizable.
    pub async fn twin(&self) -> Result<Twin, Error> {
        todo!()
    }

    /// Merges a patch into the reported properties; answers with the new version. Success: durable on a majority.
    pub async fn patch_reported(
        &self,
        expected: Option<Version>,
        patch: Object,
    ) -> Result<Version, Error> {
        let _ = (expected, patch);
        todo!()
    }

    /// Ends the session. `will` is appended to the stream if the session is still the live one.
    pub async fn close(self, will: Option<Message>) -> Result<(), Error> {
        let _ = will;
        todo!()
    }
}
