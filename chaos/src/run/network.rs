//! The links between the nodes of a run, and what can be done to them: with namespaces, or with proxies where nobody may make
//! any.
//!
//! A proxy stands before the listener of each node and tells by the sockets of the others' processes who has connected. It
//! carries bytes, not packets: a link that is silent keeps its connections, as one does on which packets vanish, but a
//! single packet cannot get lost. Clients do not come by it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::net::lab::Lab;
use crate::net::owner;
use crate::net::proxy::Proxy;
use crate::net::rules::{Rate, Rule};
use crate::nodes::{Front, Place};
use crate::ports;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// What waits longer than this for a slow link's queue is dropped, where packets can be.
const QUEUE_MS: u32 = 400;

pub(super) enum Network {
    Namespaces(Lab),
    Proxies(Proxies),
}

/// What happens to whatever comes from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Silence,
    Reset,
}

impl Network {
    /// `node` hears nothing from `sources` and everything from the others. The answer is how much its former cut has hit.
    pub(super) async fn cut(
        &self,
        node: usize,
        sources: &[usize],
        cut: Cut,
    ) -> anyhow::Result<u64> {
        match self {
            Self::Namespaces(lab) => {
                let rule = match cut {
                    Cut::Silence => Rule::Drop,
                    Cut::Reset => Rule::Reset,
                };
                let rules: Vec<Rule> =
                    sources.iter().map(|source| rule(lab.address(*source))).collect();
                lab.suffer(node, &rules).await
            }
            Self::Proxies(proxies) => Ok(proxies.cut(node, sources, cut)),
        }
    }

    /// Whatever clients send to `node` is answered with a reset, or taken again. A proxy does not stand between them.
    pub(super) async fn cut_clients(&self, node: usize, is_cut: bool) -> anyhow::Result<()> {
        match self {
            Self::Namespaces(lab) => {
                let rule = is_cut.then(|| Rule::Reset(Lab::client_address()));
                lab.suffer(node, rule.as_slice()).await.map(drop)
            }
            Self::Proxies(_) => Ok(()),
        }
    }

    /// So many of a hundred packets to `node` vanish.
    pub(super) async fn lose(&self, node: usize, percent: u8) -> anyhow::Result<()> {
        match self {
            Self::Namespaces(lab) => lab.suffer(node, &[Rule::Lose(percent)]).await.map(drop),
            Self::Proxies(_) => bail!("a proxy cannot lose packets"),
        }
    }

    /// What `node` sends is slow, or at full speed again; the answer is how much has had to wait until now.
    pub(super) async fn throttle(
        &self,
        node: usize,
        kilobits_per_second: Option<u32>,
    ) -> anyhow::Result<u64> {
        match self {
            Self::Namespaces(lab) => {
                let rate = |kilobits_per_second| Rate { kilobits_per_second, latency_ms: QUEUE_MS };
                lab.throttle(node, kilobits_per_second.map(rate)).await
            }
            Self::Proxies(proxies) => Ok(proxies.throttle(node, kilobits_per_second)),
        }
    }
}

/// One before each node.
pub(super) struct Proxies(Vec<Proxy>);

impl Proxies {
    /// Puts a proxy before each of `places`, and a mark on each by which it is known.
    pub(super) async fn start(places: &mut [Place]) -> anyhow::Result<Self> {
        let (run, count) = (std::process::id(), places.len());
        let mut proxies = Vec::with_capacity(count);
        for (node, place) in places.iter_mut().enumerate() {
            let listener = ports::free()?;
            let who = Arc::new(move |client| owner::node_at(run, client));
            let proxy = Proxy::start(ANY, listener, count, who)
                .await
                .with_context(|| format!("a proxy before node {}", node + 1))?;
            place.front = Some(Front { listener, shown: proxy.address() });
            place.environment.push((owner::MARK.to_owned(), owner::mark(run, node)));
            proxies.push(proxy);
        }
        Ok(Self(proxies))
    }

    fn others(&self, node: usize) -> impl Iterator<Item = usize> {
        (0..self.0.len()).filter(move |other| *other != node)
    }

    /// Bytes to a node go in through its own proxy, and back through those of the nodes to which it has connected.
    fn cut(&self, node: usize, sources: &[usize], cut: Cut) -> u64 {
        let mut met = 0;
        for other in self.others(node) {
            let is_hit = sources.contains(&other);
            let (is_frozen, is_cut) = (is_hit && cut == Cut::Silence, is_hit && cut == Cut::Reset);
            self.0[node].alter(other, |passage| {
                passage.to_listener.is_frozen = is_frozen;
                passage.is_cut = is_cut;
            });
            self.0[other].alter(node, |passage| {
                passage.from_listener.is_frozen = is_frozen;
                passage.is_cut = is_cut;
            });
            met += self.take_met(node, other);
        }
        met
    }

    fn throttle(&self, node: usize, kilobits_per_second: Option<u32>) -> u64 {
        let bytes_per_second = kilobits_per_second.map(|rate| rate * 1_000 / 8);
        let mut met = 0;
        for other in self.others(node) {
            self.0[other].alter(node, |passage| {
                passage.to_listener.bytes_per_second = bytes_per_second;
            });
            self.0[node].alter(other, |passage| {
                passage.from_listener.bytes_per_second = bytes_per_second;
            });
            met += self.take_met(node, other);
        }
        met
    }

    /// How often anything was held up between the two, either way.
    fn take_met(&self, one: usize, other: usize) -> u64 {
        let (there, back) = self.0[one].take_met(other);
        let (to_other, from_other) = self.0[other].take_met(one);
        there + back + to_other + from_other
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    /// Two nodes, and a connection that the second has opened to the first: its own end and the listener's.
    async fn linked() -> (Network, TcpStream, TcpStream) {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let to_first = Proxy::start(ANY, listener.local_addr().unwrap(), 2, Arc::new(|_| Some(1)));
        let to_second = Proxy::start(ANY, ANY, 2, Arc::new(|_| Some(0)));
        let proxies = vec![to_first.await.unwrap(), to_second.await.unwrap()];
        let own = TcpStream::connect(proxies[0].address()).await.unwrap();
        let (theirs, _) = listener.accept().await.unwrap();
        (Network::Proxies(Proxies(proxies)), own, theirs)
    }

    const BYTES: usize = 64;

    /// Whether some bytes get from one end to the other.
    async fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(&[7; BYTES]).await.unwrap();
        let mut bytes = [0; BYTES];
        let read = timeout(Duration::from_millis(150), to.read_exact(&mut bytes)).await;
        matches!(read, Ok(Ok(_)))
    }

    #[tokio::test]
    async fn each_direction_of_a_link_is_cut_for_itself_and_says_what_it_hit() {
        let (network, mut second, mut first) = linked().await;
        assert!(passes(&mut second, &mut first).await);
        network.cut(0, &[1], Cut::Silence).await.unwrap();
        assert!(!passes(&mut second, &mut first).await, "the first hears nothing");
        assert!(passes(&mut first, &mut second).await, "the second hears the first");
        assert!(network.cut(0, &[], Cut::Silence).await.unwrap() > 0);

        let mut late = [0; BYTES];
        first.read_exact(&mut late).await.expect("what was held back comes when it is over");
        network.cut(1, &[0], Cut::Silence).await.unwrap();
        assert!(!passes(&mut first, &mut second).await);
        assert!(passes(&mut second, &mut first).await);
        assert!(network.cut(1, &[], Cut::Silence).await.unwrap() > 0);
        assert_eq!(network.cut(1, &[], Cut::Silence).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reset_ends_the_connections_of_the_link() {
        let (network, mut second, _first) = linked().await;
        network.cut(0, &[1], Cut::Reset).await.unwrap();
        assert!(matches!(second.read(&mut [0]).await, Ok(0) | Err(_)));
        assert!(network.cut(0, &[], Cut::Reset).await.unwrap() > 0);
    }

    #[tokio::test]
    async fn a_slow_node_sends_slowly_and_the_others_do_not() {
        let (network, mut second, mut first) = linked().await;
        network.throttle(1, Some(1)).await.unwrap();
        assert!(!passes(&mut second, &mut first).await, "they take half a second");
        assert!(passes(&mut first, &mut second).await);
        assert!(network.throttle(1, None).await.unwrap() > 0);
    }
}
