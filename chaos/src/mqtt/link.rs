//! One connection of a device, plain or TLS: bytes out when told, packets in as they come.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::BytesMut;
use rustls::pki_types::ServerName;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::codec::{self, Connect, Packet};

/// A connection is local, so whoever has not answered after this long will not.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How to trust the hub.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts the authority in `ca_pem` and expects a certificate for `name`.
    pub fn new(ca_pem: &[u8], name: &str) -> anyhow::Result<Self> {
        let config = trusting(ca_pem)?.with_no_client_auth();
        Self::of(config, name)
    }

    /// The same, and shows the chain of certificates in `chain_pem`, whose first has the key in `key_pem`.
    pub fn with_certificate(
        ca_pem: &[u8],
        name: &str,
        chain_pem: &[u8],
        key_pem: &[u8],
    ) -> anyhow::Result<Self> {
        let chain = CertificateDer::pem_slice_iter(chain_pem).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key_pem)?;
        let config = trusting(ca_pem)?.with_client_auth_cert(chain, key)?;
        Self::of(config, name)
    }

    fn of(config: rustls::ClientConfig, name: &str) -> anyhow::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).context("the host name is not one")?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// A connection without MQTT.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), TcpStream::connect(address).await?).await
    }
}

fn trusting(
    ca_pem: &[u8],
) -> anyhow::Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.context("the CA file holds no certificate in PEM")?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(config)
}

/// One connection of a device.
pub struct Link {
    stream: Pin<Box<dyn Stream>>,
    inbound: BytesMut,
    /// Packets that came while another one was waited for.
    ahead: VecDeque<Packet>,
    /// What has been said but not yet written: see [`Link::flush`].
    pub out: Vec<u8>,
}

impl Link {
    /// Connects and waits for a CONNACK that accepts.
    pub async fn open(
        address: SocketAddr,
        source: Option<SocketAddr>,
        tls: Option<&Tls>,
        connect: &Connect<'_>,
    ) -> anyhow::Result<Self> {
        timeout(CONNECT_TIMEOUT, Self::open_unbounded(address, source, tls, connect))
            .await
            .with_context(|| format!("{address} did not answer in {CONNECT_TIMEOUT:?}"))?
            .with_context(|| format!("connecting {} to {address}", connect.client_id))
    }

    async fn open_unbounded(
        address: SocketAddr,
        source: Option<SocketAddr>,
        tls: Option<&Tls>,
        connect: &Connect<'_>,
    ) -> anyhow::Result<Self> {
        let tcp = dial(address, source).await?;
        tcp.set_nodelay(true)?;
        let stream: Pin<Box<dyn Stream>> = match tls {
            None => Box::pin(tcp),
            Some(tls) => Box::pin(tls.connector.connect(tls.name.clone(), tcp).await?),
        };
        Self::log_in(stream, connect).await
    }

    /// The same over any stream of bytes.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        connect: &Connect<'_>,
    ) -> anyhow::Result<Self> {
        timeout(CONNECT_TIMEOUT, Self::log_in(Box::pin(stream), connect)).await?
    }

    async fn log_in(stream: Pin<Box<dyn Stream>>, connect: &Connect<'_>) -> anyhow::Result<Self> {
        let mut link =
            Self { stream, inbound: BytesMut::new(), ahead: VecDeque::new(), out: Vec::new() };
        connect.encode(&mut link.out);
        link.flush().await?;
        let answer = link.next().await?;
        let Packet::ConnAck { code } = answer else { bail!("expected a CONNACK, got {answer:?}") };
        ensure!(code == 0, "refused with CONNACK {code}");
        Ok(link)
    }

    /// Writes what is in `out`.
    pub async fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await?;
            self.out.clear();
        }
        Ok(())
    }

    /// Waits for more bytes. An orderly end of the connection is an error here: nobody expects one.
    pub async fn fill(&mut self) -> io::Result<()> {
        self.inbound.reserve(4096);
        match self.stream.read_buf(&mut self.inbound).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// A packet that has already arrived. Does not wait; safe to call in a loop after [`Link::fill`].
    pub fn arrived(&mut self) -> Result<Option<Packet>, codec::Malformed> {
        match self.ahead.pop_front() {
            Some(packet) => Ok(Some(packet)),
            None => codec::take_packet(&mut self.inbound),
        }
    }

    /// Waits for the next packet. Cancel safe: bytes stay in the link.
    pub async fn next(&mut self) -> anyhow::Result<Packet> {
        loop {
            if let Some(packet) = self.arrived()? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    /// Subscribes and waits until that is granted. Other packets that come meanwhile are the next ones afterwards.
    pub async fn subscribe(&mut self, filter: &str, qos: u8) -> anyhow::Result<()> {
        codec::put_subscribe(&mut self.out, u16::MAX, filter, qos);
        self.flush().await?;
        let mut before = VecDeque::new();
        let codes = loop {
            let packet = timeout(CONNECT_TIMEOUT, self.next()).await??;
            if let Packet::SubAck { codes, .. } = packet {
                break codes;
            }
            before.push_back(packet);
        };
        self.ahead = before;
        ensure!(codes.iter().all(|code| *code <= 1), "{filter} was refused");
        Ok(())
    }

    /// Gives back the memory of the read buffer: ten thousand idle links hold none.
    pub fn shrink(&mut self) {
        self.inbound = BytesMut::new();
        self.out = Vec::new();
    }
}

async fn dial(address: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(address).await };
    let socket = TcpSocket::new_v4()?;
    socket.bind(source)?;
    socket.connect(address).await
}
