//! A herd: many devices at one node, by TLS, all of whose connections are cut at the same moment, and who are all back at the
//! same moment, without a pause, at the other nodes.
//!
//! Where there are namespaces, the node resets whatever comes from clients for as long as the fault lasts, the workload's
//! own devices among them. A proxy does not stand between clients and nodes: there only the herd breaks off.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::fault::Seen;
use crate::fleet::Fleet;
use crate::kill::failover::quantile;
use crate::load::herd;
use crate::mqtt::link::Link;
use crate::nodes::Nodes;

/// More would be the generator's own queue: it has one thread for its half of each handshake.
const DEVICES: usize = 300;
const NAME: &str = "guest-herd-{n}";
/// To connect them before the cut. Whoever is not by then is not cut.
const GATHER_MAX: Duration = Duration::from_secs(10);
/// After the other faults are over, everybody is back by then.
const BACK_MAX: Duration = Duration::from_secs(30);

/// Registers the devices: to be done while all is well.
pub(super) async fn register(nodes: &Nodes) -> anyhow::Result<()> {
    nodes.admin().create_devices(&nodes.fleet(NAME), 0..DEVICES).await
}

/// Devices that are connected to one node.
pub(super) struct Herd {
    fleet: Fleet,
    node: usize,
    links: Vec<(usize, Link)>,
}

impl Herd {
    /// As many as get connected to `node` in time.
    pub(super) async fn gather(nodes: &Nodes, node: usize) -> anyhow::Result<Self> {
        let fleet = nodes.fleet_tls(NAME)?;
        let (address, deadline) = (fleet.addresses[node], Instant::now() + GATHER_MAX);
        let mut connecting = JoinSet::new();
        for number in 0..DEVICES {
            let fleet = fleet.clone();
            connecting.spawn(async move {
                let link = timeout_at(deadline, fleet.connect_to(number, address)).await;
                Some((number, link.ok()?.ok()?))
            });
        }
        let links = connecting.join_all().await.into_iter().flatten().collect();
        Ok(Self { fleet, node, links })
    }

    /// Ends all connections at once, and waits until everybody is back, at the longest until some time after `over` says that
    /// the other faults are over.
    pub(super) async fn stampede(self, over: watch::Receiver<bool>) -> anyhow::Result<Seen> {
        let Self { mut fleet, node, links } = self;
        let numbers: Vec<usize> = links.iter().map(|(number, _)| *number).collect();
        drop(links);
        fleet.addresses.remove(node);
        let fleet = Arc::new(fleet);
        let mut coming = JoinSet::new();
        for number in &numbers {
            coming.spawn(come_back(*number, Arc::clone(&fleet), over.clone()));
        }
        let mut times_ms = Vec::new();
        let mut back = Vec::new();
        while let Some(joined) = coming.join_next().await {
            if let Some((time, link)) = joined.context("a device's task panicked")? {
                times_ms.push(time.as_millis() as u64);
                // They stay until the last is there.
                back.push(link);
            }
        }
        Ok(judged(numbers.len(), times_ms))
    }
}

/// `times_ms`: of those who are back.
fn judged(cut: usize, mut times_ms: Vec<u64>) -> Seen {
    times_ms.sort_unstable();
    let missing = cut.saturating_sub(times_ms.len());
    let detail = format!(
        "{cut} connections; back after p50 {} ms, p99 {} ms, all after {} ms",
        quantile(&times_ms, 50),
        quantile(&times_ms, 99),
        quantile(&times_ms, 100)
    );
    let complaint = format!("{missing} of {cut} devices of the herd did not come back");
    Seen::of(cut as u64, detail).complaining((missing > 0).then_some(complaint))
}

/// How long that took, from now on; `None` if it took too long.
async fn come_back(
    number: usize,
    fleet: Arc<Fleet>,
    mut over: watch::Receiver<bool>,
) -> Option<(Duration, Link)> {
    let begin = Instant::now();
    let given_up = async {
        // Nobody is there to say so when the run has failed: then it is over, too.
        over.wait_for(|is_over| *is_over).await.ok();
        sleep(BACK_MAX).await;
    };
    tokio::select! {
        (_, link) = herd::come_back(&fleet, number) => Some((begin.elapsed(), link)),
        () = given_up => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A hub that accepts everybody but device 1.
    async fn hub() -> anyhow::Result<(SocketAddr, JoinSet<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut devices = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                devices.spawn(accept(socket));
            }
        });
        Ok((address, serving))
    }

    async fn accept(mut socket: TcpStream) -> std::io::Result<()> {
        let mut connect = [0; 256];
        let length = socket.read(&mut connect).await?;
        if !connect[..length].ends_with(b"-1") {
            socket.write_all(&[0x20, 2, 0, 0]).await?;
            // Until the device goes.
            socket.read_to_end(&mut Vec::new()).await?;
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_does_not_come_back_is_a_complaint() -> anyhow::Result<()> {
        let (address, _serving) = hub().await?;
        let stampede = async |numbers: &[usize]| {
            let fleet = Fleet::broker(vec![address, address]);
            let (over, is_over) = watch::channel(true);
            let mut links = Vec::new();
            for number in numbers {
                // Before the cut nobody was turned away.
                links.push((*number, fleet.connect_to(0, address).await?));
            }
            let seen = Herd { fleet, node: 0, links }.stampede(is_over).await;
            drop(over);
            seen
        };
        let all = stampede(&[0, 2, 3]).await?;
        assert_eq!((all.evidence, all.complaint()), (3, None));
        let but_one = stampede(&[0, 1, 2]).await?;
        let complaint = "1 of 3 devices of the herd did not come back";
        assert_eq!((but_one.evidence, but_one.complaint()), (3, Some(complaint)));
        Ok(())
    }
}
