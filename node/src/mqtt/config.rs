//! The limits of the MQTT listeners, each with its reason. The program fills them from its configuration.

use std::time::Duration;

/// What the listeners accept and what one connection may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The names that the hub answers to, without ports. A device that writes another one is refused.
    pub host_names: Vec<String>,
    /// Open sockets of all listeners together; more are closed at once, so that those that are served keep their memory.
    pub connections_max: usize,
    /// Sockets that have not finished the TLS handshake and CONNECT. They cost little and prove nothing, so there may be
    /// many, but fewer than connections: strangers cannot take all places (S-20).
    pub handshakes_max: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the open socket to CONNECT (`SlowITe`, S-20).
    pub connect_timeout: Duration,
    /// Failed logins of one device at one address, within a minute; beyond it the device is refused unheard there. 0 is no
    /// limit (S-15).
    pub login_failures_max: u32,
    /// Publishes of a connection that are not answered yet. Beyond it its socket is not read, so that TCP slows the
    /// device down (P6).
    pub window_messages: usize,
    /// Bytes of those publishes. One more of the largest may come on top.
    pub window_bytes: usize,
    /// Messages of one request to the cluster: enough to share its cost, few enough not to hold up other devices.
    pub batch_messages: usize,
    pub batch_bytes: usize,
    /// How long a throttled message is tried again before the connection is given up (`spec/mqtt.md` section 10).
    pub backlog_max: Duration,
    /// How long a device that has hung up is still spoken for, until what it sent before is stored.
    pub drain_max: Duration,
    /// How long a device may leave unread what it is sent.
    pub unread_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host_names: Vec::new(),
            connections_max: 50_000,
            handshakes_max: 10_000,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(30),
            login_failures_max: 10,
            window_messages: 128,
            window_bytes: 1024 * 1024,
            batch_messages: 128,
            batch_bytes: 256 * 1024,
            backlog_max: Duration::from_secs(30),
            drain_max: Duration::from_secs(10),
            unread_max: Duration::from_secs(30),
        }
    }
}
