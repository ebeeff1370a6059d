//! Every metric that this crate records, with what it says. A label has a small, known set of values: never a device, a
//! client or a topic.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub const BUS_MISSED_MESSAGES: &str = "drover_bus_missed_messages_total";
pub const BUS_READERS: &str = "drover_bus_readers";
pub const BUS_REBUILDS: &str = "drover_bus_rebuilds_total";
pub const MQTT_ACCEPTED: &str = "drover_mqtt_accepted_total";
pub const MQTT_ACK_SECONDS: &str = "drover_mqtt_ack_seconds";
pub const MQTT_CLOSES: &str = "drover_mqtt_closes_total";
pub const MQTT_CONNECTIONS: &str = "drover_mqtt_connections";
pub const MQTT_MESSAGES: &str = "drover_mqtt_messages_total";
pub const MQTT_TURNED_AWAY: &str = "drover_mqtt_turned_away_total";
pub const MQTT_UNHEARD_LOGINS: &str = "drover_mqtt_unheard_logins_total";
pub const PROCESS_ALLOCATED_BYTES: &str = "drover_process_allocated_bytes";
pub const PROCESS_RESIDENT_BYTES: &str = "drover_process_resident_bytes";
pub const PROCESS_RETAINED_BYTES: &str = "drover_process_retained_bytes";

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Name, kind, unit, and what it says.
const ALL: &[(&str, Kind, Unit, &str)] = &[
    (
        BUS_MISSED_MESSAGES,
        Kind::Counter,
        Unit::Count,
        "Messages that live readers did not get because they, or the bus, were too slow.",
    ),
    (BUS_READERS, Kind::Gauge, Unit::Count, "Live readers at this node."),
    (
        BUS_REBUILDS,
        Kind::Counter,
        Unit::Count,
        "How often the router of the bus died and was replaced.",
    ),
    (
        MQTT_ACCEPTED,
        Kind::Counter,
        Unit::Count,
        "Sockets that were accepted, whatever became of them.",
    ),
    (
        MQTT_ACK_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "From a PUBLISH at the socket to its PUBACK on the way out.",
    ),
    (MQTT_CLOSES, Kind::Counter, Unit::Count, "Connections that ended, by reason."),
    (MQTT_CONNECTIONS, Kind::Gauge, Unit::Count, "Open sockets, half-open ones included."),
    (
        MQTT_MESSAGES,
        Kind::Counter,
        Unit::Count,
        "Telemetry messages that are durable on a majority.",
    ),
    (
        MQTT_TURNED_AWAY,
        Kind::Counter,
        Unit::Count,
        "Sockets that were closed at once because no place was free.",
    ),
    (
        MQTT_UNHEARD_LOGINS,
        Kind::Counter,
        Unit::Count,
        "Logins that were refused unheard, because their device had failed too often at that address.",
    ),
    (
        PROCESS_ALLOCATED_BYTES,
        Kind::Gauge,
        Unit::Bytes,
        "Memory that the program has asked for (RocksDB's included).",
    ),
    (
        PROCESS_RESIDENT_BYTES,
        Kind::Gauge,
        Unit::Bytes,
        "Memory that the allocator holds in RAM; what it has above the allocated is not given back yet.",
    ),
    (
        PROCESS_RETAINED_BYTES,
        Kind::Gauge,
        Unit::Bytes,
        "Address space that was given back and is kept for later; it costs no RAM.",
    ),
];

/// Tells the recorder what each metric means. Once a process, after the recorder is installed.
pub fn describe() {
    for (name, kind, unit, meaning) in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *meaning),
            Kind::Gauge => describe_gauge!(*name, *unit, *meaning),
            Kind::Histogram => describe_histogram!(*name, *unit, *meaning),
        }
    }
}
