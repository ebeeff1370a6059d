//! What a node's actors are told: every limit with its reason.

use std::sync::Arc;
use std::time::Duration;

use drover_core::ids::NodeId;
use drover_core::mailbox;
use drover_core::stream::Retention;

use super::clock::{Clock, SystemClock};
use crate::raft::groups::Timing;

/// What a node needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeId,
    /// The program's version, shown to operators.
    pub version: String,
    pub timing: Timing,
    /// Entries of the log that are kept after they were applied, for followers that lag.
    pub log_entries_kept: u64,
    pub limits: Limits,
    /// What streams keep. The leader of a shard plans by its own configuration.
    pub retention: Retention,
    pub commands: Commands,
    /// Seeds whatever is drawn at random. `None`: from the system.
    pub seed: Option<u64>,
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// Defaults for everything but the node.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            timing: Timing { heartbeat_ms: 200, election_min_ms: 500, election_max_ms: 750 },
            // A follower that missed this many entries, some minutes of a busy shard, gets a snapshot.
            log_entries_kept: 10_000,
            limits: Limits::default(),
            retention: Retention { age_ms_max: Some(7 * 24 * 3_600_000), bytes_max: None },
            commands: Commands::default(),
            seed: None,
            clock: Arc::new(SystemClock),
        }
    }
}

/// How much may wait, and for how long.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a request may take, elections and retries included.
    pub deadline: Duration,
    /// Requests that a node has taken in and not answered. Each costs a task's worth of memory.
    pub node_requests_max: usize,
    /// Bytes of those requests: what bounds the memory of a flood of large messages.
    pub node_bytes_max: usize,
    /// Requests that wait for one shard: about a second of what a shard can do.
    pub shard_requests_max: usize,
    /// Requests that wait for one device: one that floods is refused before it slows down its shard.
    pub device_requests_max: usize,
    /// Calls of one shard's devices that wait for their answers, which may take minutes.
    pub shard_calls_max: usize,
    /// Calls of one device that wait. Fewer than a connection's queue holds, so that they leave room in it.
    pub device_calls_max: u32,
    /// Changes of one log entry. More only make the wait for its answer longer.
    pub entry_changes_max: usize,
    /// Bytes of one log entry: an append to a follower must fit into a heartbeat.
    pub entry_bytes_max: usize,
    /// Entries of one shard that are under way together. One is enough when many shards share each fsync, and gives
    /// the largest batches.
    pub entries_in_flight_max: usize,
    /// How long a device actor without work stays. Its session's address stays in its shard's table.
    pub idle: Duration,
    /// How often a node tells the leaders which sessions it holds, once they know.
    pub announce_interval: Duration,
    /// A node that is silent for so long is gone, and the connections that it held have ended.
    pub gone_after: Duration,
    /// How often a leader looks for messages that may go.
    pub retention_interval: Duration,
    /// How often it is asked what shards have to do, so that leaders are spread.
    pub balance_interval: Duration,
    /// Live messages that wait for one reader.
    pub live_queue: usize,
    /// Sessions that a drained node ends in a second.
    pub drained_sessions_per_second: usize,
    /// Reads of a peer that wait at this node for a first message. Each is a task.
    pub waiting_reads_max: usize,
    /// How fast a device may send messages. `None`: as fast as it can.
    pub device_rate: Option<Rate>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            node_requests_max: 50_000,
            node_bytes_max: 256 * 1024 * 1024,
            shard_requests_max: 16_384,
            device_requests_max: 256,
            shard_calls_max: 4096,
            device_calls_max: 16,
            entry_changes_max: 4096,
            entry_bytes_max: 1024 * 1024,
            entries_in_flight_max: 1,
            idle: Duration::from_secs(30),
            announce_interval: Duration::from_mins(1),
            gone_after: Duration::from_secs(5),
            retention_interval: Duration::from_secs(10),
            balance_interval: Duration::from_secs(10),
            live_queue: 1024,
            drained_sessions_per_second: 100,
            waiting_reads_max: 4096,
            device_rate: None,
        }
    }
}

/// What holds for commands that are sent at this node. Each command carries it.
#[derive(Debug, Clone, Copy)]
pub struct Commands {
    pub limits: mailbox::Limits,
    /// For a command whose sender says nothing.
    pub ttl_ms: u64,
    /// How long a shard keeps feedback, and how many records of it.
    pub feedback_ms_max: u64,
    pub feedback_records_max: u64,
}

impl Default for Commands {
    /// Azure IoT Hub's, where it has any (`spec/twin-semantics.md` section 6).
    fn default() -> Self {
        const HOUR_MS: u64 = 3_600_000;
        Self {
            limits: mailbox::Limits {
                depth_max: 50,
                // What a full mailbox of the largest commands needs.
                mailbox_bytes_max: 50 * 64 * 1024,
                command_bytes_max: 64 * 1024,
                ttl_ms_max: 48 * HOUR_MS,
                lock_ms: 60_000,
                deliveries_max: 10,
                ended_max: 50,
                ended_ms: 48 * HOUR_MS,
            },
            ttl_ms: HOUR_MS,
            feedback_ms_max: 48 * HOUR_MS,
            // About 100 MB of disk.
            feedback_records_max: 1_000_000,
        }
    }
}

/// So many messages a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub messages_per_second: f64,
    pub burst: f64,
}
