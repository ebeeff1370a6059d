//! Everything that must be right: storage, Raft, shards, device actors. It knows no MQTT and no HTTP.
//!
//! | layer | knows | never knows |
//! |---|---|---|
//! | `drover_core` | ids, rules, state machines | clocks, async, bytes, disks, sockets, chance |
//! | [`wire`] | how core values become bytes and back | when or where they travel |
//! | [`storage`] | RocksDB, key layout, atomic batches | leaders, a device's rules |
//! | [`raft`] | openraft, snapshots, peer transport | what a change means |
//! | [`actors`] | ractor, routing, timers, back-pressure | packets, sockets, protobuf |
//!
//! A layer uses only those above it in this table. The one way in is [`Cluster`].

pub mod actors;
pub mod metrics;
pub mod raft;
mod recent;
pub mod storage;
pub mod wire;

pub use actors::cluster::Cluster;
pub use actors::error::Error;
pub use drover_core as core;
/// The version of what nodes say to each other.
pub use raft::PEER_FORMAT;
