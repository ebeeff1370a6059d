//! What an operator can set: one TOML file, overridden by the environment, overridden by flags, into checked types.
//!
//! A [`Config`] exists only if [`load::Sources::load`] made it, so whoever holds one need not check it again. What each key means, and
//! why its default is what it is, stands once, in [`keys`]; `drover config show` prints it from there. There is no key that
//! makes an acknowledgement weaker than "fsynced on a majority" (P8).

pub mod keys;
pub mod load;
pub mod show;
pub mod units;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use load::Sources;
pub use units::{ByteSize, Listen, Span};

/// The longest list of members: the meta group and status pages are made for this many.
const PEERS_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Config {
    pub node: Node,
    /// All members of the cluster, this node included; empty for a single node.
    pub peers: Vec<Peer>,
    pub listen: Listeners,
    pub tls: Tls,
    pub limits: Limits,
    pub commands: Commands,
    pub presence: Presence,
    pub retention: Retention,
    pub storage: Storage,
    pub raft: Raft,
    pub log: Log,
    pub stop: Stop,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub number: u32,
    pub generation: u16,
    pub data: PathBuf,
    pub zone: String,
    pub host_names: Vec<String>,
    pub peer_address: String,
    pub admin_address: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Peer {
    pub number: u32,
    pub generation: u16,
    pub peer_address: String,
    pub admin_address: String,
    pub zone: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listeners {
    pub peer: SocketAddr,
    pub mqtts: Listen,
    pub mqtt: Listen,
    pub https: Listen,
    pub grpc: SocketAddr,
    pub http: Listen,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Empty: client certificates stand for nobody.
    pub client_ca: PathBuf,
    pub peer_certificate: PathBuf,
    pub peer_key: PathBuf,
    pub peer_ca: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub connections: u32,
    pub handshakes: u32,
    pub handshake_timeout: Span,
    pub connect_timeout: Span,
    pub login_failures: u32,
    pub window_messages: u32,
    pub window: ByteSize,
    pub device_messages_per_second: u32,
    pub device_burst: u32,
    pub requests: u32,
    pub request_bytes: ByteSize,
    pub requests_per_shard: u32,
    pub requests_per_device: u32,
    pub request_timeout: Span,
    pub drained_sessions_per_second: u32,
    pub grpc_requests: u32,
    pub grpc_message: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Commands {
    pub time_to_live: Span,
    pub time_to_live_max: Span,
    pub lock: Span,
    pub deliveries: u32,
    pub per_device: u32,
    pub bytes_per_device: ByteSize,
    pub bytes: ByteSize,
    pub ended_per_device: u32,
    pub ended_age: Span,
    pub feedback_age: Span,
    pub feedback_records: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    pub gone_after: Span,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    pub age: Span,
    pub bytes: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    pub cache: ByteSize,
    pub memtables: ByteSize,
    pub reserve: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Raft {
    pub heartbeat: Span,
    pub election_min: Span,
    pub election_max: Span,
    pub log_entries_kept: u64,
    pub snapshot_rate: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Log {
    pub format: LogFormat,
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    pub deadline: Span,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            number: 1,
            generation: 0,
            data: PathBuf::from("/var/lib/drover"),
            zone: String::new(),
            host_names: Vec::new(),
            peer_address: String::new(),
            admin_address: String::new(),
        }
    }
}

impl Default for Listeners {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            peer: everywhere(7070),
            mqtts: Listen::At(everywhere(8883)),
            mqtt: Listen::Off,
            https: Listen::At(everywhere(8443)),
            grpc: everywhere(7443),
            http: Listen::At(SocketAddr::from(([127, 0, 0, 1], 9600))),
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        let file = |name: &str| PathBuf::from("/etc/drover").join(name);
        Self {
            certificate: file("server.pem"),
            key: file("server.key"),
            client_ca: PathBuf::new(),
            peer_certificate: file("peer.pem"),
            peer_key: file("peer.key"),
            peer_ca: file("peer-ca.pem"),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            handshakes: 10_000,
            handshake_timeout: Span::seconds(10),
            connect_timeout: Span::seconds(30),
            login_failures: 10,
            window_messages: 128,
            window: ByteSize::kib(1024),
            device_messages_per_second: 5_000,
            device_burst: 10_000,
            requests: 50_000,
            request_bytes: ByteSize::kib(256 * 1024),
            requests_per_shard: 16_384,
            requests_per_device: 256,
            request_timeout: Span::seconds(10),
            drained_sessions_per_second: 100,
            grpc_requests: 256,
            grpc_message: ByteSize::kib(8_192),
        }
    }
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            time_to_live: Span::seconds(3_600),
            time_to_live_max: Span::days(2),
            lock: Span::seconds(60),
            deliveries: 10,
            per_device: 50,
            bytes_per_device: ByteSize::kib(50 * 64),
            bytes: ByteSize::kib(64),
            ended_per_device: 50,
            ended_age: Span::days(2),
            feedback_age: Span::days(2),
            feedback_records: 1_000_000,
        }
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self { gone_after: Span::seconds(5) }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Span::days(7), bytes: ByteSize::gib(4) }
    }
}

impl Default for Storage {
    fn default() -> Self {
        let mib_64 = ByteSize::kib(64 * 1024);
        Self { cache: mib_64, memtables: mib_64, reserve: ByteSize::gib(1) }
    }
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat: Span::milliseconds(200),
            election_min: Span::milliseconds(500),
            election_max: Span::milliseconds(750),
            log_entries_kept: 10_000,
            snapshot_rate: ByteSize::kib(16 * 1024),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,openraft=error,rumqttd=off".to_owned() }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self { deadline: Span::seconds(20) }
    }
}

impl Config {
    /// What is wrong with the values taken together. A problem names the key and what to write instead.
    fn problems(&self) -> Vec<String> {
        let mut problems = self.limit_problems();
        problems.extend(self.command_problems());
        problems.extend(self.peer_problems());
        if self.node.number == 0 {
            problems.push("node.number is 0: number the nodes from 1".to_owned());
        }
        let raft = &self.raft;
        if raft.election_min.as_millis() < 2 * raft.heartbeat.as_millis() {
            problems.push(
                "raft.election_min is less than two heartbeats: one late packet would start an election"
                    .to_owned(),
            );
        }
        if raft.election_max.as_millis() <= raft.election_min.as_millis() {
            problems.push(
                "raft.election_max is not above raft.election_min: nodes would campaign together"
                    .to_owned(),
            );
        }
        problems
    }

    fn limit_problems(&self) -> Vec<String> {
        let limits = &self.limits;
        let counts = [
            ("connections", limits.connections),
            ("handshakes", limits.handshakes),
            ("window_messages", limits.window_messages),
            ("requests", limits.requests),
            ("requests_per_shard", limits.requests_per_shard),
            ("requests_per_device", limits.requests_per_device),
            ("drained_sessions_per_second", limits.drained_sessions_per_second),
            ("grpc_requests", limits.grpc_requests),
        ];
        let mut problems: Vec<String> = counts
            .into_iter()
            .filter(|(_, count)| *count == 0)
            .map(|(key, _)| format!("limits.{key} is 0: nothing could be served, use 1 or more"))
            .collect();
        if limits.window.bytes() == 0 || limits.request_bytes.bytes() == 0 {
            problems.push("limits.window and limits.request_bytes must be above 0".to_owned());
        }
        let spans = [
            ("limits.handshake_timeout", limits.handshake_timeout),
            ("limits.connect_timeout", limits.connect_timeout),
            ("limits.request_timeout", limits.request_timeout),
            ("presence.gone_after", self.presence.gone_after),
            ("raft.heartbeat", self.raft.heartbeat),
            ("stop.deadline", self.stop.deadline),
        ];
        problems.extend(
            spans
                .into_iter()
                .filter(|(_, span)| span.as_millis() == 0)
                .map(|(key, _)| format!("{key} is 0: use a time, such as \"10s\"")),
        );
        problems
    }

    fn command_problems(&self) -> Vec<String> {
        let commands = &self.commands;
        let mut problems = Vec::new();
        let ranges = [
            ("deliveries", u64::from(commands.deliveries), 1, 100),
            // Every change of a mailbox looks at all of it.
            ("per_device", u64::from(commands.per_device), 1, 1_000),
            ("ended_per_device", u64::from(commands.ended_per_device), 1, 1_000),
            ("bytes", commands.bytes.bytes(), 1, 256 * 1024),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                problems.push(format!("commands.{key} is {value}: use {least} to {most}"));
            }
        }
        let lock_ms = commands.lock.as_millis();
        if !(1_000..=300_000).contains(&lock_ms) {
            problems.push("commands.lock must be between 1s and 5m".to_owned());
        }
        if commands.time_to_live.as_millis() == 0
            || commands.time_to_live.as_millis() > commands.time_to_live_max.as_millis()
        {
            problems.push(
                "commands.time_to_live must be above 0 and at most commands.time_to_live_max"
                    .to_owned(),
            );
        }
        problems
    }

    fn peer_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.peers.len() > PEERS_MAX {
            problems.push(format!(
                "there are {} peers: at most {PEERS_MAX} are allowed",
                self.peers.len()
            ));
        }
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.number == 0 || peer.peer_address.is_empty() || peer.admin_address.is_empty() {
                problems.push(format!(
                    "peers[{index}] needs number (from 1), peer_address and admin_address (host:port)"
                ));
            }
            if self.peers[..index].iter().any(|other| other.number == peer.number) {
                problems.push(format!(
                    "peers[{index}] has number {}, which another has already",
                    peer.number
                ));
            }
        }
        let is_listed = self
            .peers
            .iter()
            .any(|peer| (peer.number, peer.generation) == (self.node.number, self.node.generation));
        if !self.peers.is_empty() && !is_listed {
            problems.push(format!(
                "peers does not list this node ({}, generation {}): list all members, this one too",
                self.node.number, self.node.generation
            ));
        }
        problems
    }
}
