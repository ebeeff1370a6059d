//! Every metric of this crate, in one place: name, unit and a sentence each.

use std::time::Duration;

use drover_core::mailbox::Ending;
use metrics::Unit;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::raft::lag::Lag;

const STORAGE_FSYNC_SECONDS: &str = "drover_storage_fsync_seconds";
const STORAGE_SYNC_BATCH_SIZE: &str = "drover_storage_sync_batch_size";
const STORAGE_FAILURES: &str = "drover_storage_failures_total";
const PROPOSE_SECONDS: &str = "drover_raft_propose_seconds";
const LEADER_CHANGES: &str = "drover_raft_leader_changes_total";
const GROUPS_STOPPED: &str = "drover_raft_groups_stopped_total";
const LED_GROUPS: &str = "drover_raft_led_groups";
const REPLICA_LAG: &str = "drover_raft_replica_lag_entries";
const SILENT_REPLICAS: &str = "drover_raft_silent_replicas";
const PEER_FRAMES_SENT: &str = "drover_raft_peer_frames_sent_total";
const PEER_ENVELOPES_SENT: &str = "drover_raft_peer_envelopes_sent_total";
const PEER_FRAMES_RECEIVED: &str = "drover_raft_peer_frames_received_total";
const PEER_ENVELOPES_RECEIVED: &str = "drover_raft_peer_envelopes_received_total";
const PEER_MESSAGES_DROPPED: &str = "drover_raft_peer_messages_dropped_total";
const SNAPSHOT_BYTES_SENT: &str = "drover_raft_snapshot_bytes_sent_total";
const SESSIONS: &str = "drover_actors_sessions";
const ACTIVE_DEVICES: &str = "drover_actors_active_devices";
const ENTRY_CHANGES: &str = "drover_actors_entry_changes";
const ENTRY_BYTES: &str = "drover_actors_entry_bytes";
const COMMIT_SECONDS: &str = "drover_actors_commit_seconds";
const REFUSED: &str = "drover_actors_refused_total";
const FORWARDED: &str = "drover_actors_forwarded_total";
const LIVE_MISSED: &str = "drover_actors_live_missed_total";
const CALL_REPORTS_IGNORED: &str = "drover_actors_call_reports_ignored_total";
const COMMANDS_QUEUED: &str = "drover_actors_commands_queued_total";
const COMMANDS_DELIVERED: &str = "drover_actors_commands_delivered_total";
const COMMANDS_ENDED: &str = "drover_actors_commands_ended_total";
const MAILBOX_DEPTH: &str = "drover_actors_mailbox_depth";
const RESTARTED: &str = "drover_actors_restarted_total";

/// Tells the recorder what the names mean.
pub fn describe() {
    describe_histogram!(
        PROPOSE_SECONDS,
        Unit::Seconds,
        "From proposing an entry until it is committed and applied on this node."
    );
    describe_counter!(LEADER_CHANGES, "Changes of a group's leader, as this node saw them.");
    describe_counter!(GROUPS_STOPPED, "Groups that were stopped because they failed.");
    describe_counter!(PEER_FRAMES_SENT, "Frames written to peers.");
    describe_counter!(PEER_ENVELOPES_SENT, "Messages in the frames written to peers.");
    describe_counter!(PEER_FRAMES_RECEIVED, "Frames of requests read from peers.");
    describe_counter!(
        PEER_ENVELOPES_RECEIVED,
        "Messages in the frames of requests read from peers."
    );
    describe_counter!(
        PEER_MESSAGES_DROPPED,
        "Messages without an answer that were dropped because a peer, or a queue, could not take them."
    );
    describe_counter!(
        SNAPSHOT_BYTES_SENT,
        Unit::Bytes,
        "Keys and values in snapshots that were sent, for moves, for followers that were away and for backups."
    );
    describe_lag();
    describe_storage();
    describe_actors();
}

fn describe_lag() {
    describe_gauge!(LED_GROUPS, "Groups that this node leads.");
    describe_gauge!(
        REPLICA_LAG,
        "Log entries that the replica which is furthest behind lacks, of all groups led here."
    );
    describe_gauge!(
        SILENT_REPLICAS,
        "Replicas of groups led here that have acknowledged nothing since this node leads."
    );
}

fn describe_storage() {
    describe_histogram!(
        STORAGE_FSYNC_SECONDS,
        Unit::Seconds,
        "How long one fsync of the store's log took."
    );
    describe_histogram!(
        STORAGE_SYNC_BATCH_SIZE,
        "Requests, of all groups, that one fsync has answered."
    );
    describe_counter!(STORAGE_FAILURES, "Failures after which the store answers nothing more.");
}

fn describe_actors() {
    describe_gauge!(SESSIONS, "Connections that this node holds.");
    describe_gauge!(ACTIVE_DEVICES, "Device actors of this node.");
    describe_histogram!(ENTRY_CHANGES, "Changes that were proposed in one entry.");
    describe_histogram!(ENTRY_BYTES, Unit::Bytes, "Size of a proposed entry.");
    describe_histogram!(
        COMMIT_SECONDS,
        Unit::Seconds,
        "From gathering an entry until its outcomes were there."
    );
    describe_counter!(
        REFUSED,
        "Requests that were refused before they entered the log, by reason."
    );
    describe_counter!(FORWARDED, "Requests that were sent on to the leader of their group.");
    describe_counter!(LIVE_MISSED, "Live events that were dropped because a reader was slow.");
    describe_counter!(
        CALL_REPORTS_IGNORED,
        "Answers to calls that nobody waited for: too late, repeated, or of a connection that had ended."
    );
    describe_counter!(COMMANDS_QUEUED, "Commands that mailboxes of shards led here have taken in.");
    describe_counter!(
        COMMANDS_DELIVERED,
        "Commands of shards led here that were sent to connections, repeats included."
    );
    describe_counter!(
        COMMANDS_ENDED,
        "Commands of shards led here that have ended, by ending: completed, expired, dead and others."
    );
    describe_histogram!(MAILBOX_DEPTH, "Commands that waited in a mailbox when one more had come.");
    describe_counter!(RESTARTED, "Actors that failed and were restarted, by kind.");
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(crate) fn fsynced(took: Duration, requests: usize) {
    histogram!(STORAGE_FSYNC_SECONDS).record(took);
    histogram!(STORAGE_SYNC_BATCH_SIZE).record(requests as f64);
}

/// A mailbox has taken a command in, or commands of it have ended; so many wait now.
pub(crate) fn mailbox_moved(queued: bool, endings: &[Ending], waiting: u32) {
    if queued {
        counter!(COMMANDS_QUEUED).increment(1);
        histogram!(MAILBOX_DEPTH).record(waiting);
    }
    for ending in endings {
        counter!(COMMANDS_ENDED, "ending" => name_of(*ending)).increment(1);
    }
}

fn name_of(ending: Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed",
        Ending::Rejected => "rejected",
        Ending::Expired => "expired",
        Ending::DeliveryCountExceeded => "dead",
        Ending::Purged => "purged",
        Ending::Cancelled => "cancelled",
        Ending::Superseded => "superseded",
    }
}

pub(crate) fn commands_delivered(count: usize) {
    counter!(COMMANDS_DELIVERED).increment(count as u64);
}

pub(crate) fn storage_failed() {
    counter!(STORAGE_FAILURES).increment(1);
}

pub(crate) fn proposed(after: Duration) {
    histogram!(PROPOSE_SECONDS).record(after);
}

pub(crate) fn leader_changed() {
    counter!(LEADER_CHANGES).increment(1);
}

pub(crate) fn group_stopped() {
    counter!(GROUPS_STOPPED).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(crate) fn raft_lag(lag: Lag) {
    gauge!(LED_GROUPS).set(lag.led_groups as f64);
    gauge!(REPLICA_LAG).set(lag.entries_max as f64);
    gauge!(SILENT_REPLICAS).set(lag.silent_replicas as f64);
}

pub(crate) fn peer_frame_sent(envelopes: usize) {
    counter!(PEER_FRAMES_SENT).increment(1);
    counter!(PEER_ENVELOPES_SENT).increment(envelopes as u64);
}

pub(crate) fn peer_frame_received(envelopes: usize) {
    counter!(PEER_FRAMES_RECEIVED).increment(1);
    counter!(PEER_ENVELOPES_RECEIVED).increment(envelopes as u64);
}

pub(crate) fn peer_message_dropped() {
    counter!(PEER_MESSAGES_DROPPED).increment(1);
}

pub(crate) fn snapshot_sent(bytes: usize) {
    counter!(SNAPSHOT_BYTES_SENT).increment(bytes as u64);
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(crate) fn sessions(count: usize) {
    gauge!(SESSIONS).set(count as f64);
}

/// Counts a device actor for as long as it lives.
#[derive(Debug)]
pub(crate) struct ActiveDevice(());

impl ActiveDevice {
    pub(crate) fn enter() -> Self {
        gauge!(ACTIVE_DEVICES).increment(1.0);
        Self(())
    }
}

impl Drop for ActiveDevice {
    fn drop(&mut self) {
        gauge!(ACTIVE_DEVICES).decrement(1.0);
    }
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(crate) fn entry_proposed(changes: usize, bytes: usize) {
    histogram!(ENTRY_CHANGES).record(changes as f64);
    histogram!(ENTRY_BYTES).record(bytes as f64);
}

pub(crate) fn entry_committed(after: Duration) {
    histogram!(COMMIT_SECONDS).record(after);
}

/// `reason` is one of few: `busy`, `rate_limited`, `disk_full`.
pub(crate) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn forwarded() {
    counter!(FORWARDED).increment(1);
}

pub(crate) fn live_missed(count: u64) {
    counter!(LIVE_MISSED).increment(count);
}

pub(crate) fn call_report_ignored() {
    counter!(CALL_REPORTS_IGNORED).increment(1);
}

pub(crate) fn device_restarted() {
    counter!(RESTARTED, "kind" => "device").increment(1);
}

pub(crate) fn shard_restarted() {
    counter!(RESTARTED, "kind" => "shard").increment(1);
}
