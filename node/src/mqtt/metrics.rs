//! The meters of the MQTT listeners, looked up once: a lookup for each message would cost more than the message.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::close::CloseReason;
use crate::metrics as names;

#[derive(Clone)]
pub(super) struct Meters {
    pub(super) connections: Gauge,
    pub(super) accepted: Counter,
    pub(super) turned_away: Counter,
    pub(super) unheard: Counter,
    pub(super) messages: Counter,
    pub(super) ack_seconds: Histogram,
}

impl Meters {
    /// To be made after the recorder is installed.
    pub(super) fn new() -> Self {
        Self {
            connections: gauge!(names::MQTT_CONNECTIONS),
            accepted: counter!(names::MQTT_ACCEPTED),
            turned_away: counter!(names::MQTT_TURNED_AWAY),
            unheard: counter!(names::MQTT_UNHEARD_LOGINS),
            messages: counter!(names::MQTT_MESSAGES),
            ack_seconds: histogram!(names::MQTT_ACK_SECONDS),
        }
    }

    pub(super) fn closed(reason: CloseReason) {
        counter!(names::MQTT_CLOSES, "reason" => reason.label()).increment(1);
    }
}
