//! The sockets of a node, bound and not yet accepting.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::Error;
use crate::config::{Config, Listen};

pub(super) struct Sockets {
    pub(super) peer: TcpListener,
    pub(super) mqtts: Option<TcpListener>,
    pub(super) mqtt: Option<TcpListener>,
    pub(super) https: Option<TcpListener>,
    pub(super) grpc: TcpListener,
    pub(super) http: Option<TcpListener>,
}

impl Sockets {
    pub(super) async fn bind(config: &Config) -> Result<Self, Error> {
        let listen = &config.listen;
        Ok(Self {
            peer: bind("peer", listen.peer).await?,
            mqtts: bind_if_on("mqtts", listen.mqtts).await?,
            mqtt: bind_if_on("mqtt", listen.mqtt).await?,
            https: bind_if_on("https", listen.https).await?,
            grpc: bind("grpc", listen.grpc).await?,
            http: bind_if_on("http", listen.http).await?,
        })
    }
}

async fn bind_if_on(what: &'static str, listen: Listen) -> Result<Option<TcpListener>, Error> {
    match listen {
        Listen::Off => Ok(None),
        Listen::At(address) => bind(what, address).await.map(Some),
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|problem| Error::Listen { what, address, problem })
}
