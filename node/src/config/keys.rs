//! Every key that can be set, and what it means: the one place that `drover config show` and the operators' page speak from.

/// `section.key`, and a sentence: what it does, and for a limit the reason for its default.
pub const KEYS: &[(&str, &str)] = &[
    (
        "node.number",
        "which member this is; it must be one of peers. Who joins by a token gets it then",
    ),
    (
        "node.generation",
        "raise it by one when the node comes back with an empty disk: it is then another member",
    ),
    ("node.data", "folder of everything this node stores; one process at a time may use it"),
    (
        "node.zone",
        "what fails together with this node (a rack, a site): replicas are spread over zones",
    ),
    (
        "node.host_names",
        "names that devices and tokens may call this hub by, besides those in tls.certificate",
    ),
    (
        "node.peer_address",
        "host:port where other nodes reach a node that joins by a token; empty: listen.peer, if that is one address",
    ),
    (
        "node.admin_address",
        "host:port of its admin API, likewise; empty: the host of node.peer_address and the port of listen.grpc",
    ),
    (
        "peers",
        "all founding members of the cluster, this one too: number, generation, peer_address, admin_address, zone; empty for a single node, and for one that joins by a token",
    ),
    ("listen.peer", "where other nodes connect (mutual TLS)"),
    ("listen.mqtts", "MQTT over TLS for devices, or off"),
    (
        "listen.mqtt",
        "MQTT without TLS, or off: tokens and telemetry can be read on the way, so it is off",
    ),
    (
        "listen.https",
        "MQTT over WebSocket for devices, under TLS, or off; Azure's SDKs dial 443, which only root may bind",
    ),
    ("listen.grpc", "the admin API (gRPC over TLS)"),
    ("listen.http", "metrics and health, without TLS or login, so on loopback; or off"),
    ("tls.certificate", "certificate chain (PEM) shown to devices and API clients"),
    ("tls.key", "private key (PEM) of tls.certificate"),
    (
        "tls.client_ca",
        "CA (PEM) whose certificates open the admin API as the access policy that their common name names; empty: none do",
    ),
    (
        "tls.peer_certificate",
        "certificate (PEM) shown to other nodes; its name is node-NUMBER-GENERATION.drover",
    ),
    ("tls.peer_key", "private key (PEM) of tls.peer_certificate"),
    ("tls.peer_ca", "CA (PEM) that signs the certificates of all nodes, and of no one else"),
    (
        "limits.connections",
        "device connections of this node at once; at 40 KB each the default needs 2 GB",
    ),
    (
        "limits.handshakes",
        "connections that have not finished TLS and CONNECT, and as many again of the HTTPS port; fewer than limits.connections, so that strangers cannot take all places",
    ),
    (
        "limits.handshake_timeout",
        "a TLS handshake that takes longer is cut off; a slow mobile link needs two or three seconds",
    ),
    ("limits.connect_timeout", "a connection that has sent no CONNECT by then is closed"),
    (
        "limits.login_failures",
        "failed logins of a device at one address in a minute; then it is refused unheard there, and after ten times as many of all devices an address waits for its refusals; 0 is no limit",
    ),
    (
        "limits.window_messages",
        "messages of one connection that may wait for their acknowledgement; then its socket is not read",
    ),
    (
        "limits.window",
        "bytes of one connection that may wait for their acknowledgement; one message more may come on top",
    ),
    (
        "limits.device_messages_per_second",
        "telemetry rate of one device; beyond it its socket is read more slowly; 0 is no limit",
    ),
    (
        "limits.device_burst",
        "messages that a device may send at once after a pause, before its rate counts",
    ),
    ("limits.requests", "requests of this node under way; each costs a task"),
    (
        "limits.request_bytes",
        "bytes of those requests: what bounds the memory that a flood of large messages takes",
    ),
    (
        "limits.requests_per_shard",
        "requests of one shard under way: about a second of what a shard can do",
    ),
    (
        "limits.requests_per_device",
        "requests of one device under way, so that one device leaves room for the others of its shard",
    ),
    (
        "limits.request_timeout",
        "a request that has no answer by then is answered with unknown; ten elections fit in",
    ),
    (
        "limits.drained_sessions_per_second",
        "sessions that a drained node ends in a second; the others can take some hundred logins each",
    ),
    ("limits.grpc_requests", "gRPC calls of one connection at once; more wait at the client"),
    (
        "limits.grpc_message",
        "largest gRPC request; a bulk of 100 devices with twins at their limit fits",
    ),
    ("commands.time_to_live", "how long a command waits whose sender does not say it"),
    ("commands.time_to_live_max", "the longest that a sender may ask for"),
    (
        "commands.lock",
        "a delivery without an acknowledgement by then is taken to be lost; 1s to 5m",
    ),
    (
        "commands.deliveries",
        "a command that was delivered so often and never acknowledged is dead; 1 to 100",
    ),
    (
        "commands.per_device",
        "commands that may wait for one device; 1 to 1000, because an acknowledgement may look at all of them",
    ),
    (
        "commands.bytes_per_device",
        "bytes that may wait for one device: as many of the largest commands as may wait by default",
    ),
    ("commands.bytes", "largest command, with its properties; at most 256KiB"),
    (
        "commands.ended_per_device",
        "commands of one device that are remembered after their end, for their history and so that a repeated send adds nothing",
    ),
    ("commands.ended_age", "and for how long"),
    ("commands.feedback_age", "feedback older than this is deleted, read or not"),
    (
        "commands.feedback_records",
        "feedback of one shard beyond this is deleted, oldest first; the default takes about 100 MB",
    ),
    (
        "presence.gone_after",
        "a node that is silent for so long is gone: its devices are shown as disconnected from then on",
    ),
    ("retention.age", "telemetry older than this is deleted"),
    ("retention.bytes", "telemetry of one shard beyond this is deleted, oldest first"),
    (
        "storage.cache",
        "memory for blocks read from disk, shared by all shards; the system caches files besides",
    ),
    (
        "storage.memtables",
        "memory for what was written and is not in a table yet, shared by all shards",
    ),
    (
        "storage.reserve",
        "writes are refused when less is free, so that compaction and votes still have room",
    ),
    ("raft.heartbeat", "how often a leader shows that it lives"),
    (
        "raft.election_min",
        "followers wait at least this long for a leader; below 500ms a busy machine starts needless elections",
    ),
    (
        "raft.election_max",
        "and at most this long, which is also the lease of a leader; with both, failover stays within a second or so",
    ),
    (
        "raft.log_entries_kept",
        "applied log entries kept for followers that lag; beyond them they get a snapshot",
    ),
    (
        "raft.snapshot_rate",
        "what a node sends of snapshots in a second, all of them together: moves, followers that were away, backups; 0: no limit",
    ),
    ("log.format", "text or json"),
    ("log.filter", "what is logged: a level, or target=level pairs as in RUST_LOG"),
    (
        "stop.deadline",
        "a stop that takes longer is cut short; nothing acknowledged can be lost by that",
    ),
];

/// What a key means.
pub fn meaning(path: &str) -> Option<&'static str> {
    KEYS.iter().find(|(key, _)| *key == path).map(|(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_key_of_the_configuration_is_explained_and_none_else() {
        let config =
            serde_json::to_value(Config::default()).expect("a configuration is plain data");
        let mut keys = Vec::new();
        for (section, value) in config.as_object().expect("sections") {
            match value.as_object() {
                Some(entries) => keys.extend(entries.keys().map(|key| format!("{section}.{key}"))),
                None => keys.push(section.clone()),
            }
        }
        keys.sort();
        let mut explained: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        explained.sort_unstable();
        assert_eq!(keys, explained);
    }
}
