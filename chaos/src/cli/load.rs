//! `chaos load`: drive a broker that is already running.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use drover_chaos::fleet::{Credentials, Fleet};
use drover_chaos::load::{Kind, closed, idle, open};
use drover_chaos::mqtt::link::Tls;
use tokio::time::sleep;

#[derive(Args)]
pub(super) struct Load {
    /// What the devices do.
    #[arg(value_enum, default_value = "telemetry")]
    what: What,
    /// Where they connect; several are taken in turn.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:1883")]
    addresses: Vec<SocketAddr>,
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Requests in flight on each connection (closed loop).
    #[arg(long, default_value_t = 16)]
    window: u16,
    /// Requests a second over all connections: makes it an open loop.
    #[arg(long)]
    rate: Option<u32>,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds of load before measuring begins.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// End earlier once each connection has sent so many (closed loop).
    #[arg(long)]
    requests: Option<u64>,
    #[arg(long, default_value_t = 200)]
    payload_bytes: usize,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    devices: Devices,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// QoS 1 messages.
    Telemetry,
    /// Patches of reported properties.
    Reported,
    /// Connect and hold, silent.
    Idle,
    /// Connect and go.
    Storm,
}

/// How the devices present themselves. `{n}` is a device's number, `{id}` its client id.
#[derive(Args)]
struct Devices {
    #[arg(long, default_value = "load-{n}")]
    client_id: String,
    /// Default with --sas-key: what the hub expects.
    #[arg(long)]
    username: Option<String>,
    #[arg(long)]
    password: Option<String>,
    /// Default with --sas-key: the device's telemetry topic.
    #[arg(long)]
    topic: Option<String>,
    /// The key that all devices of the run have, base64: makes them devices of a hub.
    #[arg(long, conflicts_with = "password")]
    sas_key: Option<String>,
    /// The name that the hub answers to.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// Connect by TLS and trust this authority (PEM).
    #[arg(long)]
    ca_file: Option<PathBuf>,
}

impl Devices {
    fn fleet(self, addresses: Vec<SocketAddr>) -> anyhow::Result<Fleet> {
        let mut fleet = match &self.sas_key {
            Some(key) => Fleet::hub(addresses, &self.host, &self.client_id, key),
            None => Fleet { client_id: self.client_id, ..Fleet::broker(addresses) },
        };
        fleet.username = self.username.or(fleet.username);
        fleet.topic = self.topic.unwrap_or(fleet.topic);
        if let Some(password) = self.password {
            fleet.credentials = Credentials::Password(password);
        }
        if let Some(path) = self.ca_file {
            let pem =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            fleet = fleet.with_tls(Tls::new(&pem, &self.host)?);
        }
        Ok(fleet)
    }
}

impl Load {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let duration = Duration::from_secs_f64(self.seconds);
        let fleet = self.devices.fleet(self.addresses)?;
        let kind = match self.what {
            What::Telemetry => Kind::Telemetry,
            What::Reported => Kind::Reported,
            What::Idle | What::Storm => {
                let (links, report) = idle::connect(&fleet, 0..self.connections).await?;
                super::print(&report, &report, self.json)?;
                if self.what == What::Idle {
                    sleep(duration).await;
                }
                drop(links);
                return Ok(());
            }
        };
        let warm_up = Duration::from_secs_f64(self.warm_up);
        let report = if let Some(rate) = self.rate {
            let plan = open::Plan::new(kind, self.connections, rate, duration);
            let payload_bytes = self.payload_bytes;
            open::run(&fleet, &open::Plan { warm_up, payload_bytes, ..plan }).await?
        } else {
            let plan = closed::Plan {
                kind,
                connections: self.connections,
                window: self.window,
                payload_bytes: self.payload_bytes,
                warm_up,
                duration,
                requests_max: self.requests,
            };
            closed::run(&fleet, &plan).await?
        };
        super::print(&report, &report, self.json)
    }
}
