//! etcd, three nodes, and puts against it: the yardstick for "fsynced on a majority".
//!
//! Two messages of its gRPC API are declared here by hand; prost ignores what they leave out.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use http::uri::PathAndQuery;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{Peer, START_TIMEOUT, until_ok};
use crate::load::Report;
use crate::load::report::Tally;
use crate::ports;
use crate::process::Process;

const PROGRAM: &str = "/usr/bin/etcd";
const NODES: usize = 3;
/// Connections that the clients share, as etcd's own benchmark does (`--conns`).
const CONNECTIONS_MAX: usize = 12;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

pub async fn start() -> anyhow::Result<Peer> {
    let folder = TempDir::new()?;
    let addresses = ports::several(2 * NODES)?;
    let (clients, peers) = addresses.split_at(NODES);
    let member = |node: usize| format!("n{node}=http://{}", peers[node]);
    let members = (0..NODES).map(member).collect::<Vec<_>>().join(",");
    let mut processes = Vec::new();
    for node in 0..NODES {
        let (client, peer) =
            (format!("http://{}", clients[node]), format!("http://{}", peers[node]));
        let mut command = Command::new(PROGRAM);
        command
            .args(["--name", &format!("n{node}"), "--initial-cluster", &members])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--quota-backend-bytes", "8589934592", "--log-level", "error"])
            .arg("--data-dir")
            .arg(folder.path().join(format!("data-{node}")));
        let log = folder.path().join(format!("etcd-{node}.log"));
        processes.push(Process::start(&format!("etcd-{node}"), &mut command, &log)?);
    }
    let peer = Peer { addresses: clients.to_vec(), processes, _folder: folder };
    until_ok("etcd stores a value", START_TIMEOUT, async || {
        put(&mut connect(peer.addresses[0])?, b"ready".to_vec(), vec![0]).await
    })
    .await?;
    Ok(peer)
}

/// `clients` that put 200-byte values, each as soon as its last was answered, over keys of their own.
pub async fn puts(peer: &Peer, clients: usize, duration: Duration) -> anyhow::Result<Report> {
    let connections = clients.min(CONNECTIONS_MAX);
    let channels = (0..connections)
        .map(|index| connect(peer.addresses[index % peer.addresses.len()]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let measure_from = Instant::now() + Duration::from_secs(1);
    let end = measure_from + duration;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let mut grpc = channels[client % connections].clone();
        tasks.spawn(async move {
            let mut tally = Tally::new();
            let mut number = 0_u64;
            loop {
                let begin = Instant::now();
                if begin >= end {
                    return Ok::<_, anyhow::Error>(tally);
                }
                let key = format!("bench/{client}/{}", number % 1000);
                put(&mut grpc, key.into_bytes(), value(number)).await?;
                number += 1;
                if begin >= measure_from {
                    tally.record(begin.elapsed());
                }
            }
        });
    }
    let mut total = Tally::new();
    while let Some(joined) = tasks.join_next().await {
        total.merge(&joined.context("a client's task panicked")??);
    }
    Ok(total.report(duration, Vec::new()))
}

fn connect(address: SocketAddr) -> anyhow::Result<Grpc<Channel>> {
    Ok(Grpc::new(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy()))
}

async fn put(grpc: &mut Grpc<Channel>, key: Vec<u8>, value: Vec<u8>) -> anyhow::Result<()> {
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    grpc.unary(tonic::Request::new(PutRequest { key, value }), path, codec).await?;
    Ok(())
}

fn value(number: u64) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(200).collect()
}
