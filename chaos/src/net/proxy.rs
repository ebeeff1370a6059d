//! A TCP proxy that delays, slows, freezes and cuts, for machines on which nobody may touch the network.
//!
//! It stands before one listener and treats those who come from different places differently, as a network would. Each direction has a task of its own that reads only what it may pass on, so the sender
//! feels the pressure that a slow network would put on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Says which source has connected from an address; connections of nobody are not let in.
pub type Who = Arc<dyn Fn(SocketAddr) -> Option<usize> + Send + Sync>;

/// A running proxy; it ends when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    sources: Vec<Source>,
    accepting: JoinHandle<()>,
}

/// What those who come from one place meet.
#[derive(Clone)]
struct Source {
    passage: watch::Sender<Passage>,
    met: Arc<Met>,
}

/// How often connections, and bytes that were there, were held up.
#[derive(Default)]
struct Met {
    to_listener: AtomicU64,
    from_listener: AtomicU64,
}

impl Proxy {
    /// Listens at `at` (port 0: a free one) for those who want to reach `listener`, which come from `sources` places.
    pub async fn start(
        at: SocketAddr,
        listener: SocketAddr,
        sources: usize,
        who: Who,
    ) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(at).await.with_context(|| format!("listening at {at}"))?;
        let address = socket.local_addr()?;
        let source = || Source { passage: watch::Sender::default(), met: Arc::default() };
        let sources: Vec<Source> = std::iter::repeat_with(source).take(sources).collect();
        let accepting = tokio::spawn(accept(socket, listener, sources.clone(), who));
        Ok(Self { address, sources, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to those from `source`, from now on; for connections that stand, too.
    pub fn alter(&self, source: usize, change: impl FnOnce(&mut Passage)) {
        self.sources[source].passage.send_modify(change);
    }

    /// How often those from `source` were held up on their way in, and on the way back, since this was asked last.
    pub fn take_met(&self, source: usize) -> (u64, u64) {
        let met = &self.sources[source].met;
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        (take(&met.to_listener), take(&met.from_listener))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(socket: TcpListener, listener: SocketAddr, sources: Vec<Source>, who: Who) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((inbound, client)) => {
                    if let Some(source) = who(client).and_then(|source| sources.get(source)) {
                        connections.spawn(connect(inbound, listener, source.clone()));
                    } else {
                        tracing::debug!(%client, "nobody whom the proxy knows");
                    }
                }
                Err(error) => tracing::debug!(%error, "accepting"),
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connect(inbound: TcpStream, listener: SocketAddr, source: Source) {
    let mut cut = source.passage.subscribe();
    if cut.borrow().is_cut {
        source.met.to_listener.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let Ok(outbound) = TcpStream::connect(listener).await else { return };
    if inbound.set_nodelay(true).and_then(|()| outbound.set_nodelay(true)).is_err() {
        return;
    }
    let ((from, to), (back_from, back_to)) = (inbound.into_split(), outbound.into_split());
    let (in_met, out_met) = (&source.met.to_listener, &source.met.from_listener);
    let there =
        carry(from, back_to, source.passage.subscribe(), |passage| passage.to_listener, in_met);
    let back =
        carry(back_from, to, source.passage.subscribe(), |passage| passage.from_listener, out_met);
    tokio::select! {
        _ = cut.wait_for(|passage| passage.is_cut) => {
            source.met.to_listener.fetch_add(1, Ordering::Relaxed);
        }
        _ = async { tokio::join!(there, back) } => {}
    }
}

/// Carries bytes one way until either end closes.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut passage: watch::Receiver<Passage>,
    way: fn(&Passage) -> Way,
    met: &AtomicU64,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        if from.readable().await.is_err() {
            return;
        }
        if way(&passage.borrow()).is_frozen {
            met.fetch_add(1, Ordering::Relaxed);
        }
        if passage.wait_for(|passage| !way(passage).is_frozen).await.is_err() {
            return;
        }
        let size = way(&passage.borrow()).bytes_per_second.map_or(CHUNK_BYTES, burst);
        let Ok(read @ 1..) = from.read(&mut chunk[..size]).await else { break };
        let now = way(&passage.borrow());
        let transmission = now.bytes_per_second.map_or(Duration::ZERO, |rate| {
            met.fetch_add(1, Ordering::Relaxed);
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
        let proxy = Proxy::start(ANY, echo().await, 2, Arc::new(|_| Some(0))).await.unwrap();
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
        proxy.alter(0, |now| *now = passage);
        assert!(round_trip(&mut stream, 100).await >= Duration::from_millis(150));
    }

    #[tokio::test]
    async fn a_rate_holds_over_many_chunks() {
        let (proxy, mut stream) = proxied().await;
        let slow = Way { bytes_per_second: Some(200_000), ..Way::default() };
        proxy.alter(0, |now| now.to_listener = slow);
        assert!(round_trip(&mut stream, 60_000).await >= Duration::from_millis(250));
    }

    #[tokio::test]
    async fn a_frozen_way_lets_nothing_pass_until_it_thaws() {
        let (proxy, mut stream) = proxied().await;
        round_trip(&mut stream, 1).await;
        let frozen = Way { is_frozen: true, ..Way::default() };
        proxy.alter(0, |now| now.from_listener = frozen);
        let waiting = timeout(Duration::from_millis(150), round_trip(&mut stream, 5)).await;
        assert!(waiting.is_err(), "it must wait");
        assert_eq!(proxy.take_met(0), (0, 1));
        proxy.alter(0, |now| *now = Passage::default());
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, [7; 5]);
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_refuses_new_ones_until_it_heals() {
        let (proxy, mut stream) = proxied().await;
        round_trip(&mut stream, 1).await;
        proxy.alter(0, |now| now.is_cut = true);
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)));
        proxy.alter(0, |now| now.is_cut = false);
        let mut healed = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut healed, 1).await;
    }

    #[tokio::test]
    async fn what_befalls_one_source_does_not_befall_another() {
        let (proxy, mut stream) = proxied().await;
        proxy.alter(1, |now| now.is_cut = true);
        round_trip(&mut stream, 1).await;
        assert_eq!(proxy.take_met(1), (0, 0));
    }

    #[tokio::test]
    async fn whoever_is_not_known_is_not_let_in() {
        let proxy = Proxy::start(ANY, echo().await, 1, Arc::new(|_| None)).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}
