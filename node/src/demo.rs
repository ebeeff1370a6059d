//! A simulated thermometer: a real MQTT client over TLS that replays a year of recorded temperatures.
//!
//! It does what a device at a desk would: connect with a token, subscribe to its desired properties, report its twin, send
//! readings at quality 1, and connect again (to the next node) when the connection is lost. Time is compressed: one
//! hourly reading a second, or as often as the desired property `intervalSeconds` says.

mod link;
mod readings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_core::device::Key;
use drover_core::ids::DeviceId;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::link::{Heard, Link};
use self::readings::Reading;
use crate::{clock, identity};

const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// A device that hears nothing for so long takes its connection for dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const PING_EVERY: Duration = Duration::from_secs(20);
const TOKEN_SECONDS: u64 = 24 * 60 * 60;
const SECONDS_BETWEEN_READINGS: u64 = 1;
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/";
const TWIN_RESPONSES: &str = "$iothub/twin/res/";

/// Who the thermometer is, and where its hub listens.
#[derive(Debug, Clone)]
pub struct Thermometer {
    pub device: DeviceId,
    pub key: Key,
    pub host_name: String,
    /// One a node.
    pub addresses: Vec<SocketAddr>,
    pub tls: Arc<rustls::ClientConfig>,
}

/// Sends readings until `stop`, from the first on again after the last.
pub async fn replay(thermometer: Thermometer, stop: CancellationToken) {
    let mut readings = readings::all().into_iter().cycle().enumerate();
    let nodes = thermometer.addresses.iter().cycle();
    for address in nodes {
        let session = thermometer.session(*address, &mut readings);
        match stop.run_until_cancelled(session).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => warn!(%address, "the thermometer lost its connection: {error:#}"),
        }
        if stop.run_until_cancelled(sleep(RECONNECT_PAUSE)).await.is_none() {
            return;
        }
    }
}

impl Thermometer {
    /// One connection, until it ends.
    async fn session(
        &self,
        address: SocketAddr,
        readings: &mut impl Iterator<Item = (usize, Reading)>,
    ) -> Result<()> {
        let expires_s = clock::unix_ms() / 1_000 + TOKEN_SECONDS;
        let token = identity::device_token(&self.host_name, &self.device, &self.key, expires_s);
        let user = format!("{}/{}/?api-version=2021-04-12", self.host_name, self.device);
        let mut link = Link::open(address, Arc::clone(&self.tls), &self.host_name).await?;
        link.connect(self.device.as_str(), &user, &token).await?;
        link.subscribe(&[&format!("{DESIRED}#"), &format!("{TWIN_RESPONSES}#")]).await?;
        report(&mut link, SECONDS_BETWEEN_READINGS).await?;
        let mut readings_due = every(SECONDS_BETWEEN_READINGS);
        let mut ping_due = interval(PING_EVERY);
        ping_due.reset();
        loop {
            tokio::select! {
                _ = readings_due.tick() => {
                    let (number, reading) = readings.next().context("the readings never end")?;
                    self.send(&mut link, number, reading).await?;
                }
                _ = ping_due.tick() => link.ping().await?,
                heard = link.hear(SILENCE_MAX) => {
                    if let Some(seconds) = wanted_interval(&heard?) {
                        readings_due = every(seconds);
                        report(&mut link, seconds).await?;
                    }
                }
            }
        }
    }

    async fn send(&self, link: &mut Link, number: usize, reading: Reading) -> Result<()> {
        let topic = format!(
            "devices/{}/messages/events/$.ct=application%2Fjson&$.ce=utf-8&$.mid=reading-{number}",
            self.device
        );
        let body =
            json!({ "temperature": reading.fahrenheit, "unit": "F", "recorded": reading.recorded });
        debug!(number, "the thermometer sends a reading");
        link.publish(&topic, body.to_string()).await
    }
}

/// A reading a tick, and never a burst after a pause.
fn every(seconds: u64) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_secs(seconds));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn report(link: &mut Link, seconds: u64) -> Result<()> {
    let twin = json!({
        "model": "replayed thermometer",
        "source": "NOAA, Seattle, hourly temperatures of 2010",
        "intervalSeconds": seconds,
    });
    link.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", twin.to_string()).await
}

/// What a desired patch asks for, if it is one and asks for something sensible.
fn wanted_interval(heard: &Heard) -> Option<u64> {
    let Heard::Message { topic, body } = heard else { return None };
    if !topic.starts_with(DESIRED) {
        return None;
    }
    let patch: Value = serde_json::from_slice(body).ok()?;
    patch["intervalSeconds"].as_u64().filter(|seconds| (1..=3_600).contains(seconds))
}

/// TLS that trusts one CA.
pub fn tls(ca_pem: &[u8]) -> Result<Arc<rustls::ClientConfig>> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.context("the CA file is not PEM")?)?;
    }
    ensure!(!roots.is_empty(), "the CA file holds no certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(body: &str) -> Heard {
        Heard::Message { topic: format!("{DESIRED}?$version=2"), body: body.as_bytes().to_vec() }
    }

    #[test]
    fn only_a_sensible_interval_is_obeyed() {
        assert_eq!(wanted_interval(&desired(r#"{"intervalSeconds":5}"#)), Some(5));
        for patch in [r#"{"intervalSeconds":0}"#, r#"{"intervalSeconds":"5"}"#, "{}", "not json"] {
            assert_eq!(wanted_interval(&desired(patch)), None, "{patch}");
        }
        let elsewhere = Heard::Message {
            topic: "$iothub/twin/res/200/".to_owned(),
            body: b"{\"intervalSeconds\":5}".to_vec(),
        };
        assert_eq!(wanted_interval(&elsewhere), None);
    }
}
