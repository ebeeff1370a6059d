//! Every metric of this crate, in one place: name, unit and a sentence each.

use std::time::Duration;

use metrics::Unit;
use metrics::{counter, describe_counter, describe_histogram, histogram};

const PROPOSE_SECONDS: &str = "drover_raft_propose_seconds";
const LEADER_CHANGES: &str = "drover_raft_leader_changes_total";
const GROUPS_STOPPED: &str = "drover_raft_groups_stopped_total";
const PEER_FRAMES_SENT: &str = "drover_raft_peer_frames_sent_total";
const PEER_ENVELOPES_SENT: &str = "drover_raft_peer_envelopes_sent_total";
const PEER_FRAMES_RECEIVED: &str = "drover_raft_peer_frames_received_total";
const PEER_ENVELOPES_RECEIVED: &str = "drover_raft_peer_envelopes_received_total";
const PEER_MESSAGES_DROPPED: &str = "drover_raft_peer_messages_dropped_total";

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
