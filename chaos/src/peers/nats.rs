//! NATS with MQTT over `JetStream`, three replicas.
//!
//! A QoS 1 message is acknowledged once a majority has it, in memory or page cache: its default syncs every two minutes.
//! [`Sync::Always`] asks for an fsync before the acknowledgement, which NATS knows from 2.10 on.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::ensure;
use tempfile::TempDir;
use tokio::process::Command;

use super::{Peer, START_TIMEOUT, until_ok};
use crate::fleet::Fleet;
use crate::mqtt::codec::{Packet, put_publish};
use crate::ports;
use crate::process::Process;

const PROGRAM: &str = "/usr/sbin/nats-server";
const NODES: usize = 3;

/// When NATS puts what it has acknowledged on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    Default,
    Always,
}

pub async fn start(sync: Sync) -> anyhow::Result<Peer> {
    let folder = TempDir::new()?;
    let clients = ports::several(3 * NODES)?;
    let (mqtt, rest) = clients.split_at(NODES);
    let (client, route) = rest.split_at(NODES);
    check(&text(folder.path(), 0, mqtt[0], client[0], route, sync), folder.path()).await?;
    let mut processes = Vec::new();
    for node in 0..NODES {
        let config = folder.path().join(format!("nats-{node}.conf"));
        fs::write(&config, text(folder.path(), node, mqtt[node], client[node], route, sync))?;
        let log = folder.path().join(format!("nats-{node}.log"));
        let mut command = Command::new(PROGRAM);
        processes.push(Process::start(
            &format!("nats-{node}"),
            command.arg("-c").arg(&config),
            &log,
        )?);
    }
    let mut peer = Peer { addresses: mqtt.to_vec(), processes, _folder: folder };
    // It accepts devices some seconds before it can store what they say.
    let fleet = Fleet::broker(peer.addresses.clone());
    until_ok("NATS acknowledges a message at each node", START_TIMEOUT, async || {
        for process in &mut peer.processes {
            ensure!(
                !process.has_ended()?,
                "{} ended: it may not know its configuration",
                process.name
            );
        }
        for number in 0..NODES {
            acknowledged(&fleet, number).await?;
        }
        Ok(())
    })
    .await?;
    Ok(peer)
}

/// Debian's NATS is of one version, the next machine's of another: a setting that it does not know is said at once.
async fn check(text: &str, folder: &Path) -> anyhow::Result<()> {
    let config = folder.join("check.conf");
    fs::write(&config, text)?;
    let output = Command::new(PROGRAM).arg("-t").arg("-c").arg(&config).output().await?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "NATS does not take its configuration: {}", problem.trim());
    Ok(())
}

fn text(
    folder: &Path,
    node: usize,
    mqtt: SocketAddr,
    client: SocketAddr,
    routes: &[SocketAddr],
    sync: Sync,
) -> String {
    let folder = folder.display();
    let list: Vec<String> = routes.iter().map(|route| format!("\"nats://{route}\"")).collect();
    let sync = match sync {
        Sync::Default => "",
        Sync::Always => "sync_interval: always",
    };
    format!(
        "server_name: n{node}\nlisten: \"{client}\"\n\
         jetstream {{ store_dir: \"{folder}/store-{node}\"\n {sync} }}\n\
         cluster {{ name: bench, listen: \"{}\", routes: [{}] }}\n\
         mqtt {{ listen: \"{mqtt}\", stream_replicas: {NODES}, max_ack_pending: 65535 }}\n",
        routes[node],
        list.join(", ")
    )
}

async fn acknowledged(fleet: &Fleet, number: usize) -> anyhow::Result<()> {
    let mut link = fleet.connect(number).await?;
    put_publish(&mut link.out, &fleet.topic(number), Some(1), b"ready?");
    link.flush().await?;
    let answer = tokio::time::timeout(super::PAUSE * 20, link.next()).await??;
    ensure!(answer == Packet::PubAck { id: 1 }, "expected a PUBACK, got {answer:?}");
    Ok(())
}
