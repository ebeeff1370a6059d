//! The thermometer's connection: MQTT 3.1.1 over TLS, as much of it as a small device needs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::{Buf, BytesMut};
use mqtt_protocol_core::mqtt::packet::Qos;
use mqtt_protocol_core::mqtt::packet::{SubEntry, SubOpts, v3_1_1};
use mqtt_protocol_core::mqtt::result_code::{ConnectReturnCode, MqttError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long the hub has to answer a CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE_SECONDS: u16 = 60;
/// No twin is larger, so a longer packet is not the hub speaking.
const PACKET_BYTES_MAX: usize = 512 * 1024;

/// What the hub says.
#[derive(Debug)]
pub(super) enum Heard {
    Message { topic: String, body: Vec<u8> },
    Acknowledgement,
}

pub(super) struct Link {
    stream: TlsStream<TcpStream>,
    inbound: BytesMut,
    packet_id: u16,
}

impl Link {
    pub(super) async fn open(
        address: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
        host_name: &str,
    ) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host_name.to_owned())?;
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        Ok(Self { stream, inbound: BytesMut::new(), packet_id: 0 })
    }

    /// Ends with an error unless the hub accepts.
    pub(super) async fn connect(&mut self, client_id: &str, user: &str, token: &str) -> Result<()> {
        let packet = v3_1_1::Connect::builder()
            .client_id(client_id)
            .and_then(|packet| packet.user_name(user))
            .and_then(|packet| packet.password(token))
            .and_then(|packet| packet.clean_session(false).keep_alive(KEEP_ALIVE_SECONDS).build())
            .map_err(unbuildable)?;
        self.write(packet.to_continuous_buffer()).await?;
        let (first, body) =
            timeout(CONNECT_TIMEOUT, self.frame()).await.context("no CONNACK")??;
        ensure!(first >> 4 == 2, "the first packet from the hub is not CONNACK");
        let (connack, _) = v3_1_1::Connack::parse(&body).map_err(unbuildable)?;
        let code = connack.return_code();
        ensure!(code == ConnectReturnCode::Accepted, "the hub refuses the connection: {code:?}");
        Ok(())
    }

    pub(super) async fn subscribe(&mut self, filters: &[&str]) -> Result<()> {
        let entry =
            |filter: &&str| SubEntry::new(*filter, SubOpts::new().set_qos(Qos::AtLeastOnce));
        let entries =
            filters.iter().map(entry).collect::<Result<Vec<_>, _>>().map_err(unbuildable)?;
        let packet = v3_1_1::Subscribe::builder().entries(entries).packet_id(self.next_id());
        self.write(packet.build().map_err(unbuildable)?.to_continuous_buffer()).await
    }

    /// At quality 1; the acknowledgement is heard later.
    pub(super) async fn publish(&mut self, topic: &str, body: String) -> Result<()> {
        let packet = v3_1_1::Publish::builder()
            .topic_name(topic)
            .map_err(unbuildable)?
            .qos(Qos::AtLeastOnce)
            .packet_id(self.next_id())
            .payload(body.into_bytes())
            .build()
            .map_err(unbuildable)?;
        self.write(packet.to_continuous_buffer()).await
    }

    pub(super) async fn ping(&mut self) -> Result<()> {
        self.write(v3_1_1::Pingreq::new().to_continuous_buffer()).await
    }

    /// The next packet. Can be dropped while it waits: what has been read stays.
    pub(super) async fn hear(&mut self, silence_max: Duration) -> Result<Heard> {
        let (first, body) =
            timeout(silence_max, self.frame()).await.context("the hub has fallen silent")??;
        if first >> 4 != 3 {
            return Ok(Heard::Acknowledgement);
        }
        let (packet, _) = v3_1_1::Publish::parse(first & 0x0f, body.into()).map_err(unbuildable)?;
        if let Some(id) = packet.packet_id() {
            let puback = v3_1_1::Puback::builder().packet_id(id).build().map_err(unbuildable)?;
            self.write(puback.to_continuous_buffer()).await?;
        }
        let (topic, body) = (packet.topic_name().to_owned(), packet.payload().as_slice().to_vec());
        Ok(Heard::Message { topic, body })
    }

    /// Reads until a whole packet is there: its first byte and its body.
    async fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some((header, end)) = frame_ends(&self.inbound)? {
                let mut frame = self.inbound.split_to(end);
                let first = frame[0];
                frame.advance(header);
                return Ok((first, frame.to_vec()));
            }
            ensure!(self.stream.read_buf(&mut self.inbound).await? > 0, "the hub has closed");
        }
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.stream.write_all(&bytes).await?;
        Ok(self.stream.flush().await?)
    }

    fn next_id(&mut self) -> u16 {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        self.packet_id
    }
}

/// Where the header and the body of the first packet end, if it is there as a whole.
fn frame_ends(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut length = 0;
    for (index, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            ensure!(length <= PACKET_BYTES_MAX, "the hub announces a packet of {length} bytes");
            let end = index + 2 + length;
            return Ok((bytes.len() >= end).then_some((index + 2, end)));
        }
    }
    ensure!(bytes.len() < 5, "the hub announces a length of five bytes");
    Ok(None)
}

fn unbuildable(error: MqttError) -> anyhow::Error {
    anyhow!("not a legal packet: {error:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_taken_only_when_it_is_whole() {
        assert_eq!(frame_ends(&[]).expect("nothing yet"), None);
        assert_eq!(frame_ends(&[0x40, 2, 0]).expect("a part"), None);
        assert_eq!(frame_ends(&[0x40, 2, 0, 1, 0xd0]).expect("a packet"), Some((2, 4)));
        assert!(frame_ends(&[0x30, 0xff, 0xff, 0xff, 0x7f]).is_err(), "256 MB");
        assert!(frame_ends(&[0x30, 0xff, 0xff, 0xff, 0xff]).is_err(), "five bytes of length");
    }
}
