//! A TCP proxy that delays, slows, freezes and cuts, for machines on which nobody may touch the network.
//!
//! It stands before one listener. Each direction has a task of its own that reads only what it may pass on, so the sender
//! feels the pressure that a slow network would put on it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// One read; also the grain of a limited rate.
const CHUNK_BYTES: usize = 16 * 1024;
/// At a limited rate, so much may pass at once.
const BURST: Duration = Duration::from_millis(20);
/// Connections at once; later ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;

/// What happens to bytes in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    pub delay: Duration,
    pub bytes_per_second: Option<u32>,
    /// Nothing passes until this ends. Connections stay.
    pub is_frozen: bool,
}

/// What happens to connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passage {
    pub to_listener: Way,
    pub from_listener: Way,
    /// Those that stand are closed, and so is each new one.
    pub is_cut: bool,
}

/// A running proxy; it ends when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    passage: watch::Sender<Passage>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens at `at` (port 0: a free one) for those who want to reach `listener`.
    pub async fn start(at: SocketAddr, listener: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(at).await.with_context(|| format!("listening at {at}"))?;
        let address = socket.local_addr()?;
        let (passage, seen) = watch::channel(Passage::default());
        let accepting = tokio::spawn(accept(socket, listener, seen));
        Ok(Self { address, passage, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on; for connections that stand, too.
    pub fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(socket: TcpListener, listener: SocketAddr, passage: watch::Receiver<Passage>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((inbound, _)) => {
                    connections.spawn(connect(inbound, listener, passage.clone()));
                }
                Err(error) => tracing::debug!(%error, "accepting"),
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connect(inbound: TcpStream, listener: SocketAddr, passage: watch::Receiver<Passage>) {
    let mut cut = passage.clone();
    if cut.borrow().is_cut {
        return;
    }
    let Ok(outbound) = TcpStream::connect(listener).await else { return };
    if inbound.set_nodelay(true).and_then(|()| outbound.set_nodelay(true)).is_err() {
        return;
    }
    let ((from, to), (back_from, back_to)) = (inbound.into_split(), outbound.into_split());
    let there = carry(from, back_to, passage.clone(), |passage| passage.to_listener);
    let back = carry(back_from, to, passage, |passage| passage.from_listener);
    tokio::select! {
        _ = cut.wait_for(|passage| passage.is_cut) => {}
        _ = async { tokio::join!(there, back) } => {}
    }
}

/// Carries bytes one way until either end closes.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut passage: watch::Receiver<Passage>,
    way: fn(&Passage) -> Way,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        if passage.wait_for(|passage| !way(passage).is_frozen).await.is_err() {
            return;
        }
        let size = way(&passage.borrow()).bytes_per_second.map_or(CHUNK_BYTES, burst);
        let Ok(read @ 1..) = from.read(&mut chunk[..size]).await else { break };
        let now = way(&passage.borrow());
        let transmission = now.bytes_per_second.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(read as f64 / f64::from(rate.max(1)))
        });
        sleep(now.delay + transmission).await;
        // It may have frozen while these bytes were on their way.
        if passage.wait_for(|passage| !way(passage).is_frozen).await.is_err()
            || to.write_all(&chunk[..read]).await.is_err()
        {
            return;
        }
    }
    // The other end learns that nothing more comes; its own bytes may go on.
    drop(to.shutdown().await);
}

/// The bytes that pass in one [`BURST`].
fn burst(bytes_per_second: u32) -> usize {
    let bytes = f64::from(bytes_per_second) * BURST.as_secs_f64();
    (bytes as usize).clamp(1, CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::{Instant, timeout};

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// Sends back what it gets.
    async fn echo() -> SocketAddr {
        let socket = TcpListener::bind(ANY).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn proxied() -> (Proxy, TcpStream) {
        let proxy = Proxy::start(ANY, echo().await).await.unwrap();
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, stream)
    }

    async fn round_trip(stream: &mut TcpStream, bytes: usize) -> Duration {
        let begin = Instant::now();
        let mut back = vec![0; bytes];
        let (mut from, mut to) = stream.split();
        let sent = vec![7; bytes];
        let (written, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut back));
        written.and(read).unwrap();
        assert_eq!(back, sent);
        begin.elapsed()
    }

    #[tokio::test]
    async fn each_direction_has_its_own_delay() {
        let (proxy, mut stream) = proxied().await;
        round_trip(&mut stream, 100).await;
        let delayed = |ms| Way { delay: Duration::from_millis(ms), ..Way::default() };
        let passage =
            Passage { to_listener: delayed(60), from_listener: delayed(90), is_cut: false };
        proxy.set(passage);
        assert!(round_trip(&mut stream, 100).await >= Duration::from_millis(150));
    }

    #[tokio::test]
    async fn a_rate_holds_over_many_chunks() {
        let (proxy, mut stream) = proxied().await;
        let slow = Way { bytes_per_second: Some(200_000), ..Way::default() };
        proxy.set(Passage { to_listener: slow, ..Passage::default() });
        assert!(round_trip(&mut stream, 60_000).await >= Duration::from_millis(250));
    }

    #[tokio::test]
    async fn a_frozen_way_lets_nothing_pass_until_it_thaws() {
        let (proxy, mut stream) = proxied().await;
        round_trip(&mut stream, 1).await;
        let frozen = Way { is_frozen: true, ..Way::default() };
        proxy.set(Passage { from_listener: frozen, ..Passage::default() });
        let waiting = timeout(Duration::from_millis(150), round_trip(&mut stream, 5)).await;
        assert!(waiting.is_err(), "it must wait");
        proxy.set(Passage::default());
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, [7; 5]);
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_refuses_new_ones_until_it_heals() {
        let (proxy, mut stream) = proxied().await;
        round_trip(&mut stream, 1).await;
        proxy.set(Passage { is_cut: true, ..Passage::default() });
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)));
        proxy.set(Passage::default());
        let mut healed = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut healed, 1).await;
    }
}
