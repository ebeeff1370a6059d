//! Devices that speak MQTT over simulated sockets to the product's own sessions.
//!
//! They live on a host of their own, which no fault touches: their connections break because nodes die, or because they
//! break them. Each device has two bodies that connect at any node and so take over from each other. One body logs in at a
//! time, so the numbers of a device's connections are in the order of their epochs, which no device is told.

mod session;

use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use drover_cluster::core::ids::DeviceId;
use futures::future::join_all;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use self::session::{Body, Session};
use super::history::{History, Phase};
use super::network::mqtt_address;
use super::node::DEVICE_KEY;
use super::plan::{Plan, stream};
use crate::history::commands::Opened;
use crate::mqtt::codec::Connect;
use crate::mqtt::link::Link;
use crate::sas;

/// The name that all nodes answer to.
pub(super) const HUB: &str = "hub";
/// The host that the devices live on.
pub(super) const HOST: &str = "devices";
const BODIES: u64 = 2;
const POLL: Duration = Duration::from_millis(50);
/// Longer than a hub takes over a request.
const LOGIN_MAX: Duration = Duration::from_secs(6);
/// The hub hears of a broken connection after one and a half times as long.
const KEEP_ALIVE_S: u16 = 5;
/// In 2096: no clock of a run comes near.
const TOKEN_EXPIRES_S: u64 = 4_000_000_000;

/// All of them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fleet {
    plan: Rc<Plan>,
    history: History,
    devices: Rc<Vec<Device>>,
}

struct Device {
    id: DeviceId,
    token: String,
    login: Mutex<()>,
}

impl Fleet {
    pub(super) fn new(plan: Rc<Plan>, history: History, devices: &[DeviceId]) -> Self {
        let key = STANDARD.encode(DEVICE_KEY);
        let device = |id: &DeviceId| {
            let resource = format!("{HUB}/devices/{id}");
            let token = sas::token_until(&resource, &key, None, TOKEN_EXPIRES_S);
            let token = token.expect("the key is base64");
            Device { id: id.clone(), token, login: Mutex::new(()) }
        };
        let devices = Rc::new(devices.iter().map(device).collect());
        Self { plan, history, devices }
    }

    /// Until the simulation ends.
    pub(super) async fn live(self) -> turmoil::Result {
        while self.history.phase() < Phase::Load {
            sleep(POLL).await;
        }
        let bodies = (0..).zip(self.devices.iter()).flat_map(|(number, device)| {
            (0..BODIES).map(move |body| (number * BODIES + body, device))
        });
        join_all(bodies.map(|(number, device)| self.connect_often(number, device))).await;
        std::future::pending().await
    }

    async fn connect_often(&self, number: u64, device: &Device) {
        let mut draw = stream(self.plan.seed, "body", number);
        let mut body = Body::default();
        while self.history.phase() == Phase::Load {
            sleep(Duration::from_millis(draw.random_range(0..=self.plan.pause_ms_max * 8))).await;
            if let Some((link, connection)) = self.log_in(device, &mut draw).await {
                let session = Session::new(self, &device.id, connection, link, &mut body);
                session.run(&mut draw).await;
            }
        }
    }

    async fn log_in(&self, device: &Device, draw: &mut StdRng) -> Option<(Link, u64)> {
        let _turn = device.login.lock().await;
        let machine = draw.random_range(1..=self.plan.machines);
        let id = &device.id;
        let begun = self.history.note(format_args!("{id} dials node {machine}"));
        let username = format!("{HUB}/{id}/?api-version=2021-04-12");
        let connect = Connect {
            client_id: id.as_str(),
            username: Some(&username),
            password: Some(&device.token),
            clean_session: draw.random_bool(0.1),
            keep_alive_s: KEEP_ALIVE_S,
        };
        let dialled = async {
            let stream = TcpStream::connect(mqtt_address(machine)).await?;
            Link::over(stream, &connect).await
        };
        let link = match timeout(LOGIN_MAX, dialled).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                self.history.note(format_args!("{id} is not accepted: {error:#}"));
                return None;
            }
            Err(_) => {
                self.history.note(format_args!("{id} hears nothing of node {machine}"));
                return None;
            }
        };
        Some((link, self.accepted(id, machine, begun)))
    }

    /// The number of a new connection.
    fn accepted(&self, device: &DeviceId, machine: u32, begun: u64) -> u64 {
        let mut history = self.history.lock();
        let number = history.mailboxes.of(device).connections.len() as u64 + 1;
        let at = history.note(format_args!("{device} is accepted by node {machine} as {number}"));
        history.opened(device.as_str(), number, at);
        history.mailboxes.of(device).connections.push(Opened { number, begun });
        history.counts.sockets.connections += 1;
        number
    }
}

/// Ids of devices that speak MQTT. Each begins with the one before it: whoever compares only beginnings takes one for the
/// other.
pub(super) fn ids(count: usize) -> impl Iterator<Item = DeviceId> {
    let id = |zeros| format!("sensor-1{}", "0".repeat(zeros)).parse().expect("a legal id");
    (0..count).map(id)
}

/// Whether a device is one of them.
pub(super) fn speaks_mqtt(device: &str) -> bool {
    device.starts_with("sensor-")
}
