//! Devices that a run drives, and how each presents itself to a hub or to any other broker.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::ensure;

use crate::mqtt::codec::Connect;
use crate::mqtt::link::{Link, Tls};
use crate::sas;

/// Longest keep-alive that a hub honours, so that idle devices stay silent for the length of a run.
const KEEP_ALIVE_S: u16 = 1177;
/// One source address has 28,000 ports by Linux's default. Stay well below: ports linger after a connection.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

/// A set of devices, numbered from 0. In the templates `{n}` is the number and `{id}` is the client id.
#[derive(Clone)]
pub struct Fleet {
    /// Where they connect: device `n` tries the address `n` modulo their number first.
    pub addresses: Vec<SocketAddr>,
    pub tls: Option<Tls>,
    pub client_id: String,
    pub username: Option<String>,
    /// Telemetry goes here.
    pub topic: String,
    pub credentials: Credentials,
    pub clean_session: bool,
}

/// What stands in the password field.
#[derive(Clone)]
pub enum Credentials {
    None,
    Password(String),
    /// A token for the device, signed with the one key that the devices of a run share.
    Sas {
        host: String,
        key: String,
    },
}

impl Fleet {
    /// Devices of a hub that answers to `host`.
    pub fn hub(addresses: Vec<SocketAddr>, host: &str, client_id: &str, key: &str) -> Self {
        Self {
            addresses,
            tls: None,
            client_id: client_id.to_owned(),
            username: Some(format!("{host}/{{id}}/?api-version=2021-04-12")),
            topic: "devices/{id}/messages/events/".to_owned(),
            credentials: Credentials::Sas { host: host.to_owned(), key: key.to_owned() },
            clean_session: true,
        }
    }

    /// Clients of a broker that asks for nothing.
    pub fn broker(addresses: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            tls: None,
            client_id: "load-{n}".to_owned(),
            username: None,
            topic: "load/{id}".to_owned(),
            credentials: Credentials::None,
            clean_session: true,
        }
    }

    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    pub fn id(&self, number: usize) -> String {
        self.client_id.replace("{n}", &number.to_string())
    }

    pub fn topic(&self, number: usize) -> String {
        self.fill(&self.topic, number)
    }

    fn fill(&self, template: &str, number: usize) -> String {
        template.replace("{id}", &self.id(number)).replace("{n}", &number.to_string())
    }

    /// Connects device `number` to the address that is its own.
    pub async fn connect(&self, number: usize) -> anyhow::Result<Link> {
        ensure!(!self.addresses.is_empty(), "there is no address to connect to");
        let address = self.addresses[number % self.addresses.len()];
        self.connect_to(number, address).await
    }

    /// Connects device `number` to `address`.
    pub async fn connect_to(&self, number: usize, address: SocketAddr) -> anyhow::Result<Link> {
        let id = self.id(number);
        let username = self.username.as_ref().map(|template| self.fill(template, number));
        let password = match &self.credentials {
            Credentials::None => None,
            Credentials::Password(text) => Some(text.clone()),
            Credentials::Sas { host, key } => {
                Some(sas::token(&format!("{host}/devices/{id}"), key, None)?)
            }
        };
        let connect = Connect {
            client_id: &id,
            username: username.as_deref(),
            password: password.as_deref(),
            clean_session: self.clean_session,
            keep_alive_s: KEEP_ALIVE_S,
        };
        Link::open(address, self.source(number, address), self.tls.as_ref(), &connect).await
    }

    /// The address to connect from, once one loopback address would run out of ports.
    fn source(&self, number: usize, target: SocketAddr) -> Option<SocketAddr> {
        let block = number / (CONNECTIONS_PER_SOURCE * self.addresses.len());
        let last = u8::try_from(1 + block).expect("a run has fewer than five million connections");
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        (block > 0 && target.ip().is_loopback()).then(|| SocketAddr::new(source, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_the_device() {
        let mut fleet = Fleet::broker(vec![]);
        fleet.client_id = "d-{n}".to_owned();
        fleet.topic = "t/{id}/{n}".to_owned();
        assert_eq!(fleet.topic(7), "t/d-7/7");
    }
}
