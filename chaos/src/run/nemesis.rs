//! What can be done to a cluster, by name.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// A kind of fault. The numbers are those of the programme in `docs/testing.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nemesis {
    /// SIGKILL (N-1).
    Kill,
    /// SIGKILL, and what was not synced is gone, or a part of it (N-2).
    Power,
    /// The same to all nodes at once (N-3).
    PowerAll,
    /// SIGSTOP, SIGCONT (N-4).
    Pause,
    /// Syncs do not end (N-13).
    HungDisk,
    /// Syncs fail with EIO (N-16).
    FailingDisk,
    /// One node and the others do not hear each other (N-5).
    Partition,
    /// One node hears nobody, or nobody hears it (N-6).
    OneWay,
    /// Two nodes do not hear each other; a third hears both (N-7).
    Bridge,
    /// Like a partition, but each packet is answered with a reset (N-8).
    Reset,
    /// Packets to one node vanish at random (N-9).
    Loss,
    /// What one node sends is slow (N-11).
    SlowNet,
    /// Each sync takes long (N-12).
    SlowDisk,
    /// There is no room (N-14).
    FullDisk,
    /// Some of what a node reads from its disk comes back with a bit flipped (N-17).
    FlippedBits,
    /// The wall clock of one node jumps (N-18).
    Clock,
    /// A node joins, another is drained, the first is removed (N-22).
    Member,
    /// Hundreds of connections of one node are cut at once, and are back at once at the others (N-24).
    Herd,
    /// What is malformed or at a limit is sent all the time (N-27, N-28).
    Poison,
    /// The cluster is backed up, again and again; after the run the last backup is restored (I-42).
    Backup,
}

/// Nemeses of one family do not go together; of each family a period has one or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Process,
    Network,
    Disk,
    Clock,
    Clients,
    /// What whoever runs the cluster does with it.
    Operator,
    /// The last: what is begun in a period for its members may take longer than the period.
    Members,
}

/// What a nemesis needs from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    Disk,
    /// A network that can lose a packet.
    Packets,
    Clock,
}

impl Family {
    pub const ALL: [Self; 7] = [
        Self::Process,
        Self::Network,
        Self::Disk,
        Self::Clock,
        Self::Clients,
        Self::Operator,
        Self::Members,
    ];
}

impl Nemesis {
    pub fn family(self) -> Family {
        match self {
            Self::Kill
            | Self::Power
            | Self::PowerAll
            | Self::Pause
            | Self::HungDisk
            | Self::FailingDisk => Family::Process,
            Self::Partition
            | Self::OneWay
            | Self::Bridge
            | Self::Reset
            | Self::Loss
            | Self::SlowNet
            | Self::Herd => Family::Network,
            Self::SlowDisk | Self::FullDisk | Self::FlippedBits => Family::Disk,
            Self::Clock => Family::Clock,
            Self::Poison => Family::Clients,
            Self::Backup => Family::Operator,
            Self::Member => Family::Members,
        }
    }

    pub(super) fn need(self) -> Need {
        match self {
            Self::Kill
            | Self::Pause
            | Self::Partition
            | Self::OneWay
            | Self::Bridge
            | Self::Reset
            | Self::SlowNet
            | Self::Member
            | Self::Herd
            | Self::Poison
            | Self::Backup => Need::Nothing,
            Self::Power
            | Self::PowerAll
            | Self::HungDisk
            | Self::FailingDisk
            | Self::SlowDisk
            | Self::FullDisk
            | Self::FlippedBits => Need::Disk,
            Self::Loss => Need::Packets,
            Self::Clock => Need::Clock,
        }
    }

    /// Whether the node's process ends, or stands still, in its course.
    pub(super) fn takes_down(self) -> bool {
        self.family() == Family::Process || self == Self::FlippedBits
    }

    /// Whether a leader that suffers it must be replaced, so that its shards are served again while it lasts.
    pub(super) fn deposes(self) -> bool {
        match self {
            Self::Kill | Self::Power | Self::Pause | Self::Partition | Self::Reset => true,
            // With all down nobody serves, and what is merely slow or half cut need not be replaced.
            Self::PowerAll
            | Self::HungDisk
            | Self::FailingDisk
            | Self::OneWay
            | Self::Bridge
            | Self::Loss
            | Self::SlowNet
            | Self::SlowDisk
            | Self::FullDisk
            | Self::FlippedBits
            | Self::Clock
            | Self::Member
            | Self::Herd
            | Self::Poison
            | Self::Backup => false,
        }
    }
}

impl fmt::Display for Nemesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no nemesis is hidden");
        f.write_str(value.get_name())
    }
}
