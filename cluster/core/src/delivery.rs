//! What the cluster tells a connection between the connection's own requests.

use crate::change::Message;
use crate::document::Object;
use crate::ids::{DeliveryNumber, Version};
use crate::mailbox::Command;
use crate::method::Call;

/// What the cluster tells a connection between its own requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// Close without a notice; what is sent from now on has no effect. It is the last delivery.
    End(EndReason),
    /// The desired properties were changed: the merge patch and the version that it led to.
    Desired { version: Version, patch: Object },
    /// A command that is locked for this connection. The same one may come again: the device is to have it once.
    Command(Box<SentCommand>),
    /// A direct method, if the device listens. It comes once at the most.
    Call(Call),
}

/// A command on its way to a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct SentCommand {
    /// The number of this delivery over the connection.
    pub number: DeliveryNumber,
    /// The number of the delivery that comes before it, so that a lost one is noticed.
    pub follows: DeliveryNumber,
    pub command: Command,
    pub message: Message,
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
