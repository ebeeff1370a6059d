//! What clients did and saw.
//!
//! An operation begins when it is put on the wire and ends as acknowledged, refused, or not at all: whoever got no answer
//! does not know, and neither does this record. Times are milliseconds since the run began, by one clock.

pub mod commands;
pub mod methods;

use serde::Serialize;

/// A point in a run. Only the order of two means something: one run counts microseconds, another one events.
pub type Moment = u64;

/// Devices of this name are in a run for what they do to the others. Nobody keeps their histories.
pub const GUEST: &str = "guest-";

/// Everything that one device did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DeviceHistory {
    pub device: String,
    pub shard: u32,
    pub transmissions: Vec<Transmission>,
    pub patches: Vec<PatchAttempt>,
    pub twin_reads: Vec<TwinRead>,
    /// Connections that were accepted.
    pub connections: u32,
    /// Where they were, in order. Only devices that do nothing but send put it down.
    pub homes: Vec<Home>,
    /// Where it tried to connect, and when, whatever came of it; likewise.
    pub dials: Vec<Home>,
    /// What the device itself saw to be wrong.
    pub complaints: Vec<String>,
}

/// A connection, or an attempt at one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Home {
    /// Counted from 1.
    pub node: u32,
    pub from_ms: u64,
}

/// One PUBLISH on the wire. A message that is sent again is another transmission of the same sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Transmission {
    /// Names the message; a device counts them from 0.
    pub sequence: u64,
    /// The device's connections, counted from 1.
    pub connection: u32,
    /// The place among the transmissions of that connection, from 0.
    pub position: u32,
    pub sent_ms: u64,
    pub acked_ms: Option<u64>,
}

/// One patch of the reported properties. Patch `n` sets `last` to `n`, and the slot of `n` to `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PatchAttempt {
    /// Counted from 1; a patch is never sent twice.
    pub number: u64,
    pub sent_ms: u64,
    /// The version that the hub named; `None` if the outcome is unknown.
    pub acked_version: Option<u64>,
}

/// The device read its twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TwinRead {
    /// The newest acknowledged version when the read began.
    pub acked_version: u64,
    pub version: u64,
}

/// A copy of a message as a stream holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredCopy {
    pub offset: u64,
    pub device: String,
    pub sequence: u64,
    pub connection: u32,
    pub position: u32,
}

/// How many places a device keeps its patch numbers in: the twin stays small however long the run.
pub const PATCH_SLOTS: u64 = 64;

/// A device's reported properties after the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FinalTwin {
    pub version: u64,
    /// 0 if it was never written.
    pub last: u64,
    /// By slot; 0 where nothing was written.
    pub slots: Vec<u64>,
}
