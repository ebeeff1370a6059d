//! A device or module over MQTT. The wire is `drover_chaos::mqtt`'s; what is sent and expected is here.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use drover_chaos::mqtt::codec::{self, Connect, Packet};
use drover_chaos::mqtt::link::{Link, Tls};
use drover_chaos::sas;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::{ANSWER_TIMEOUT, HOST};

const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const TWIN_RESPONSES: &str = "$iothub/twin/res/#";

/// A device over MQTT.
pub struct Device {
    id: String,
    pub link: Link,
    last_packet_id: u16,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.id)
    }
}

/// The path of a device, or of a module whose id is `device/module`, in topics and tokens.
fn path(id: &str) -> String {
    format!("devices/{}", id.replace('/', "/modules/"))
}

/// What a device proves itself with.
pub struct Login<'a> {
    pub id: &'a str,
    pub user: String,
    pub password: String,
    pub clean_session: bool,
}

impl<'a> Login<'a> {
    /// As a device with this key should.
    pub fn new(id: &'a str, key: &str) -> Result<Self> {
        Ok(Self {
            id,
            user: format!("{HOST}/{id}/?api-version=2021-04-12"),
            password: sas::token(&format!("{HOST}/{}", path(id)), key, None)?,
            clean_session: false,
        })
    }

    /// With a certificate instead of a password.
    pub fn without_password(id: &'a str) -> Self {
        let user = format!("{HOST}/{id}/?api-version=2021-04-12");
        Self { id, user, password: String::new(), clean_session: false }
    }

    /// The CONNECT as bytes.
    pub fn packet(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        self.connect().encode(&mut packet);
        packet
    }

    /// An empty password is not sent.
    fn connect(&self) -> Connect<'_> {
        Connect {
            client_id: self.id,
            username: Some(&self.user),
            password: Some(self.password.as_str()).filter(|password| !password.is_empty()),
            clean_session: self.clean_session,
            keep_alive_s: 60,
        }
    }
}

impl Device {
    /// Connects without TLS. Fails with the return code in the message if the hub refuses.
    pub async fn connect(address: SocketAddr, id: &str, key: &str) -> Result<Self> {
        Self::log_in(address, None, Login::new(id, key)?).await
    }

    /// Connects with a certificate and no password.
    pub async fn with_certificate(address: SocketAddr, tls: &Tls, id: &str) -> Result<Self> {
        Self::log_in(address, Some(tls), Login::without_password(id)).await
    }

    /// Over a stream that is something else than a socket.
    pub async fn log_in_over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        login: Login<'_>,
    ) -> Result<Self> {
        let link = Link::over(stream, &login.connect()).await?;
        Ok(Self { id: login.id.to_owned(), link, last_packet_id: 0 })
    }

    pub async fn log_in(address: SocketAddr, tls: Option<&Tls>, login: Login<'_>) -> Result<Self> {
        let link = Link::open(address, None, tls, &login.connect()).await?;
        Ok(Self { id: login.id.to_owned(), link, last_packet_id: 0 })
    }

    /// The topic of the device's own telemetry.
    pub fn events(&self) -> String {
        format!("{}/messages/events/", path(&self.id))
    }

    /// Sends telemetry and waits for its PUBACK.
    pub async fn send(&mut self, body: &str) -> Result<()> {
        let topic = self.events();
        self.publish(&topic, body.as_bytes()).await
    }

    /// Publishes at quality 1 and waits for the PUBACK; other packets that come meanwhile are dropped.
    pub async fn publish(&mut self, topic: &str, body: &[u8]) -> Result<()> {
        self.last_packet_id += 1;
        let id = self.last_packet_id;
        codec::put_publish(&mut self.link.out, topic, Some(id), body);
        self.link.flush().await?;
        self.hear("a PUBACK", |packet| (*packet == Packet::PubAck { id }).then_some(())).await
    }

    /// Waits for the packet that `choose` takes; drops those before it.
    pub async fn hear<T>(
        &mut self,
        what: &str,
        choose: impl Fn(&Packet) -> Option<T>,
    ) -> Result<T> {
        let listen = async {
            loop {
                if let Some(chosen) = choose(&self.link.next().await?) {
                    return Ok(chosen);
                }
            }
        };
        timeout(ANSWER_TIMEOUT, listen).await.with_context(|| format!("{what} did not come"))?
    }

    pub async fn subscribe_twin(&mut self) -> Result<()> {
        self.link.subscribe(TWIN_RESPONSES, 1).await?;
        self.link.subscribe(DESIRED, 1).await
    }

    /// Reads the twin; needs [`Device::subscribe_twin`].
    pub async fn twin(&mut self) -> Result<Value> {
        let (status, body) = self.twin_request("$iothub/twin/GET/?$rid=", b"").await?;
        if status != 200 {
            bail!("the twin was answered with {status}");
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// Patches reported properties; answers with the status. Needs [`Device::subscribe_twin`].
    pub async fn report(&mut self, patch: &str) -> Result<u16> {
        let topic = "$iothub/twin/PATCH/properties/reported/?$rid=";
        Ok(self.twin_request(topic, patch.as_bytes()).await?.0)
    }

    async fn twin_request(&mut self, topic: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.last_packet_id += 1;
        let rid = self.last_packet_id;
        codec::put_publish(&mut self.link.out, &format!("{topic}{rid}"), None, body);
        self.link.flush().await?;
        let answer = |packet: &Packet| {
            let (topic, body) = published(packet)?;
            Some((twin_status(topic, rid)?, body.to_vec()))
        };
        self.hear("an answer about the twin", answer).await
    }

    /// Waits for a desired patch; answers with its version and body.
    pub async fn desired(&mut self) -> Result<(u64, Value)> {
        let patch = |packet: &Packet| {
            let (topic, body) = published(packet)?;
            let version = topic.strip_prefix("$iothub/twin/PATCH/properties/desired/?$version=")?;
            Some((version.parse().ok()?, serde_json::from_slice(body).ok()?))
        };
        self.hear("a desired patch", patch).await
    }

    pub async fn subscribe_commands(&mut self, qos: u8) -> Result<()> {
        let filter = format!("{}/messages/devicebound/#", path(&self.id));
        self.link.subscribe(&filter, qos).await
    }

    /// Waits for a command. It is not acknowledged.
    pub async fn command(&mut self) -> Result<Received> {
        let prefix = format!("{}/messages/devicebound/", path(&self.id));
        let command = |packet: &Packet| {
            let Packet::Publish { topic, id, dup, payload } = packet else { return None };
            let bag = std::str::from_utf8(topic).ok()?.strip_prefix(&prefix)?.to_owned();
            Some(Received { bag, packet_id: *id, dup: *dup, body: payload.to_vec() })
        };
        self.hear("a command", command).await
    }

    pub async fn subscribe_methods(&mut self) -> Result<()> {
        self.link.subscribe("$iothub/methods/POST/#", 1).await
    }

    /// Waits for a call; answers with its name, its request id and its payload.
    pub async fn call(&mut self) -> Result<(String, String, Value)> {
        let call = |packet: &Packet| {
            let (topic, body) = published(packet)?;
            let (name, rid) = topic.strip_prefix("$iothub/methods/POST/")?.split_once("/?$rid=")?;
            Some((name.to_owned(), rid.to_owned(), serde_json::from_slice(body).ok()?))
        };
        self.hear("a call", call).await
    }

    /// Answers a call and waits for the PUBACK.
    pub async fn answer(&mut self, rid: &str, status: i32, body: &str) -> Result<()> {
        let topic = format!("$iothub/methods/res/{status}/?$rid={rid}");
        self.publish(&topic, body.as_bytes()).await
    }

    /// Sends the PUBACK of a command.
    pub async fn complete(&mut self, received: &Received) -> Result<()> {
        let id = received.packet_id.context("nothing to acknowledge at quality 0")?;
        codec::put_puback(&mut self.link.out, id);
        Ok(self.link.flush().await?)
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.link.out.extend_from_slice(bytes);
        Ok(self.link.flush().await?)
    }

    /// Waits until the hub closes the connection; what it says before is dropped.
    pub async fn until_closed(&mut self) -> Result<()> {
        let listen = async { while self.link.next().await.is_ok() {} };
        timeout(ANSWER_TIMEOUT, listen).await.context("the hub does not close the connection")
    }
}

/// A command as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub bag: String,
    pub packet_id: Option<u16>,
    pub dup: bool,
    pub body: Vec<u8>,
}

impl Received {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Topic and payload of what a hub publishes.
fn published(packet: &Packet) -> Option<(&str, &[u8])> {
    let Packet::Publish { topic, payload, .. } = packet else { return None };
    Some((std::str::from_utf8(topic).ok()?, payload))
}

/// The status in the topic of a twin response, if it is the one to `rid`.
fn twin_status(topic: &str, rid: u16) -> Option<u16> {
    let (status, query) = topic.strip_prefix("$iothub/twin/res/")?.split_once("/?")?;
    let is_ours = query.split('&').any(|item| item == format!("$rid={rid}"));
    is_ours.then(|| status.parse().ok()).flatten()
}
