//! How often what happened in a run: what clients did, what went wrong on purpose, what was checked.
//!
//! A run in which nothing happened proves nothing, so the counts stand beside every verdict and have lower bounds for a
//! suite (`seeds::check_not_vacuous`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Counts of one run, or of many together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub operations: Operations,
    pub sockets: Sockets,
    pub operator: Orders,
    pub faults: Faults,
    pub checks: Checks,
}

/// A group of counters: its fields, their sum with another group, what is zero, and a line for people.
macro_rules! counters {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl $name {
            fn plus(self, other: Self) -> Self {
                Self { $($field: self.$field + other.$field,)* }
            }

            /// The counters by name.
            fn named(&self) -> impl Iterator<Item = (String, u64)> + use<> {
                let all = [$((stringify!($field), self.$field),)*];
                all.into_iter().map(|(name, count)| (name.replace('_', " "), count))
            }

            /// What never happened.
            pub fn zeros(&self) -> impl Iterator<Item = String> + use<> {
                self.named().filter(|(_, count)| *count == 0).map(|(name, _)| name)
            }

            /// Every counter at the same number.
            #[cfg(test)]
            pub(super) fn all(count: u64) -> Self {
                Self { $($field: count,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let shown = self.named().map(|(name, count)| format!("{count} {name}"));
                write!(f, "{}", shown.collect::<Vec<_>>().join(", "))
            }
        }
    };
}

counters! {
    /// What clients did and were answered.
    Operations {
        appends_acknowledged,
        messages_stored,
        reported_acknowledged,
        desired_acknowledged,
        /// Accepted writes that named a version or an etag.
        conditions_met,
        conditions_refused,
        twins_read,
        pages_read,
        /// Requests without an answer: they may have been carried out or not.
        unknown,
        /// Requests of connections that had been replaced.
        fenced,
        desired_delivered,
        takeovers,
        /// Take-overs while the former connection had a publish under way.
        takeovers_in_flight,
        commands_accepted,
        /// Sent again, and recognized by their ids.
        commands_repeated,
        commands_delivered,
        /// Over another connection than before.
        commands_redelivered,
        commands_completed,
        commands_rejected,
        commands_cancelled,
        /// Before they were ever sent.
        commands_cancelled_unsent,
        commands_superseded,
        commands_expired,
        /// Snapshots that replicas installed, because the entries that they lacked were gone.
        snapshots_installed,
    }
}

counters! {
    /// What devices did that speak MQTT.
    Sockets {
        connections,
        /// Messages with a PUBACK.
        acknowledged,
        /// With the DUP flag, because a former connection had no answer to them.
        sent_again,
        /// The socket was closed in the middle of a PUBLISH.
        broken_off_in_a_packet,
        commands_delivered,
        /// With the DUP flag.
        commands_marked,
        desired_delivered,
        /// Who published to another's topic was cut off and not acknowledged (I-27).
        offenders_cut_off,
    }
}

counters! {
    /// What an operator did to the cluster meanwhile, and what came of it.
    Orders {
        nodes_joined,
        /// Under the number of one that was removed.
        nodes_replaced,
        nodes_drained,
        nodes_returned,
        nodes_removed,
        machines_lost,
        /// Removed ones that came back with their old disks.
        machines_revived,
        moves_halted,
        /// Stopped because their data had rotted, and begun anew from the others.
        replicas_rebuilt,
        /// Replicas that were given a vote in a group that existed before.
        replicas_promoted,
        replicas_demoted,
        /// New replicas whose log begins with a snapshot.
        replicas_by_snapshot,
    }
}

counters! {
    /// What went wrong on purpose.
    Faults {
        crashes,
        /// All nodes at once.
        power_cuts,
        /// Writes that a crash had to decide about, and those that it took.
        writes_unsynced,
        writes_lost,
        partitions,
        /// Devices that speak MQTT and a node did not hear each other, or one of them not the other.
        devices_cut_off,
        /// Of one node's disk, while they lay there.
        records_rotted,
        holds,
        slow_periods,
        quiet_periods,
        syncs_failed,
        leader_changes,
    }
}

counters! {
    /// What was held against what.
    Checks {
        /// An acknowledged message against the place that its acknowledgement named (I-1).
        acknowledged_messages,
        /// A message against what was read at its offset before (I-2).
        repeated_offsets,
        /// A stored message against what its device sent (I-3 to I-5).
        stored_messages,
        /// Streams without a hole, the same on all replicas (I-6).
        streams,
        /// Sections of twins whose history was searched for an order (I-10 to I-13).
        twin_histories,
        twin_operations,
        /// Delivered patches against the one before (I-14).
        deliveries,
        /// Commands whose whole story was looked at (I-16 to I-20).
        command_stories,
        /// Deliveries against the ends, places and times of their commands (I-17 to I-20).
        command_deliveries,
        /// States of replicas that had applied the same entry (I-15).
        equal_states,
        /// Devices that are connected when the faults are over, against what is shown of them.
        connections,
        /// Accepted requests against connections that had replaced theirs (I-22).
        fences,
        /// Log entries against the same entry elsewhere (I-32: log matching).
        equal_entries,
        /// Applied entries against those applied elsewhere (I-32: state machine safety).
        applied_entries,
        /// Committed entries that had to be durable on a majority (I-32: committed on a quorum).
        quorums,
        /// Committed entries that a new leader had to have (I-32: leader completeness).
        leader_entries,
        /// Votes against those of their term and of their node before (I-32: election safety, monotone votes).
        votes,
        /// Sets of voters against those before them: no two majorities without a common member (I-32, I-35).
        configurations,
        /// Placements in which no node has two replicas of a shard and nobody stands who was removed (I-35, I-38).
        placements,
        /// Nodes that were removed and still run: they serve nobody (I-35).
        outcasts,
        /// Replicas that were stopped, against how they were when that was seen (I-34).
        stopped_replicas,
    }
}

impl Counts {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            operations: self.operations.plus(other.operations),
            sockets: self.sockets.plus(other.sockets),
            operator: self.operator.plus(other.operator),
            faults: self.faults.plus(other.faults),
            checks: self.checks.plus(other.checks),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, sockets, operator, faults, checks } = self;
        writeln!(f, "  operations: {operations}")?;
        writeln!(f, "  sockets: {sockets}")?;
        writeln!(f, "  operator: {operator}")?;
        writeln!(f, "  faults: {faults}")?;
        write!(f, "  checks: {checks}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_runs_add_up() {
        let mut one = Counts::default();
        one.operations.takeovers = 2;
        one.faults.crashes = 3;
        let both = one.plus(one);
        assert_eq!((both.operations.takeovers, both.faults.crashes), (4, 6));
        assert!(both.to_string().contains("6 crashes"));
    }
}
