//! A WebSocket client that can also do what no client should: frames are written by hand.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use drover_chaos::mqtt::link::Tls;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex,
    split,
};
use tokio::time::timeout;

use crate::clients::{ANSWER_TIMEOUT, HOST};

pub const PATH: &str = "/$iothub/websocket";
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Any will do: the server must undo it.
const MASK: [u8; 4] = [7, 0, 99, 250];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An upgraded connection.
pub struct WebSocket {
    reader: Reader,
    writer: WriteHalf<Box<dyn Stream>>,
}

struct Reader(ReadHalf<Box<dyn Stream>>);

impl WebSocket {
    /// As a device's SDK does it.
    pub async fn open(address: SocketAddr, tls: &Tls) -> Result<Self> {
        let (head, socket) =
            Self::ask(address, tls, PATH, "Sec-WebSocket-Protocol: mqtt\r\n").await?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        Ok(socket)
    }

    /// Asks for an upgrade with further headers; answers with the head of the response, whatever it is.
    pub async fn ask(
        address: SocketAddr,
        tls: &Tls,
        path: &str,
        headers: &str,
    ) -> Result<(String, Self)> {
        let mut stream: Box<dyn Stream> = Box::new(tls.connect(address).await?);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}:{}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n{headers}\r\n",
            address.port()
        );
        stream.write_all(request.as_bytes()).await?;
        let head = timeout(ANSWER_TIMEOUT, read_head(&mut stream)).await.context("no answer")??;
        let (reader, writer) = split(stream);
        Ok((head, Self { reader: Reader(reader), writer }))
    }

    /// One frame, masked.
    pub async fn send(&mut self, opcode: Opcode, is_final: bool, payload: &[u8]) -> Result<()> {
        send(&mut self.writer, opcode, is_final, payload).await
    }

    /// Bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }

    pub async fn next(&mut self) -> Result<(Opcode, Vec<u8>)> {
        timeout(ANSWER_TIMEOUT, self.reader.next()).await.context("no frame came")?
    }

    /// Waits for the close frame; answers with its code.
    pub async fn close_code(&mut self) -> Result<Option<u16>> {
        loop {
            if let (Opcode::Close, payload) = self.next().await? {
                return Ok(payload.first_chunk().map(|code| u16::from_be_bytes(*code)));
            }
        }
    }

    /// Waits until the hub has closed the connection, with or without a close frame.
    pub async fn until_closed(&mut self) -> Result<()> {
        let listen = async { while self.reader.next().await.is_ok() {} };
        timeout(ANSWER_TIMEOUT, listen).await.context("the hub does not close the connection")
    }

    /// The payloads as a stream of bytes. Frames hold `frame_bytes` at the most.
    pub fn into_stream(self, frame_bytes: usize) -> DuplexStream {
        // Large enough that the largest packet is read at once, and so sent in one frame if it may be.
        let (near, far) = duplex(512 * 1024);
        let (mut said, mut heard) = split(far);
        let Self { mut reader, mut writer } = self;
        tokio::spawn(async move {
            let mut buffer = vec![0; frame_bytes];
            while let Ok(count @ 1..) = said.read(&mut buffer).await {
                if send(&mut writer, Opcode::Binary, true, &buffer[..count]).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((Opcode::Binary, payload)) = reader.next().await {
                if heard.write_all(&payload).await.is_err() {
                    return;
                }
            }
            // The other half of the pair lives on in the task above.
            heard.shutdown().await.ok();
        });
        near
    }
}

async fn send(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    opcode: Opcode,
    is_final: bool,
    payload: &[u8],
) -> Result<()> {
    let mut frame = vec![u8::from(is_final) << 7 | opcode as u8];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65_536 => {
            frame.push(0x80 | 0x7e);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 0x7f);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    writer.write_all(&frame).await?;
    Ok(writer.flush().await?)
}

async fn read_head(stream: &mut Box<dyn Stream>) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

impl Reader {
    async fn next(&mut self) -> Result<(Opcode, Vec<u8>)> {
        let [first, second] = [self.0.read_u8().await?, self.0.read_u8().await?];
        ensure!(second & 0x80 == 0, "a server does not mask");
        let length = match second {
            126 => u64::from(self.0.read_u16().await?),
            127 => self.0.read_u64().await?,
            length => u64::from(length),
        };
        let mut payload = vec![0; usize::try_from(length)?];
        self.0.read_exact(&mut payload).await?;
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            other => bail!("there is no opcode {other}"),
        };
        Ok((opcode, payload))
    }
}
