//! The parts of a running node: made from the configuration in the order of the layers, stopped in the reverse.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use drover_cluster::Cluster;
use drover_cluster::actors::config as cluster_config;
use drover_cluster::raft::groups::Timing;
use drover_cluster::raft::peers::{IncomingQueue, Peers, PeersConfig};
use drover_cluster::raft::tls::TlsNetwork;
use drover_cluster::storage::{self, RocksStorage, Storage};
use drover_core::ids::NodeId;
use drover_core::mailbox;
use drover_core::stream::Retention;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use x509_parser::extensions::GeneralName;

use super::certificates::Certificates;
use super::sockets::Sockets;
use super::{Error, bootstrap};
use crate::bus::Bus;
use crate::config::{self, Config};
use crate::tls::ServerTls;
use crate::{grpc, http, mqtt, tls};

/// Everything that was started.
pub(super) struct RunningNode {
    cluster: Cluster,
    certificates: Arc<Certificates>,
    mqtt: mqtt::Server,
    https: JoinHandle<()>,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    /// Ends both.
    stop: CancellationToken,
}

impl RunningNode {
    pub(super) async fn start(config: &Config, sockets: Sockets) -> Result<Self, Error> {
        let failed = |error: tls::Error| Error::Failed(error.to_string());
        let host_names = host_names(config)?;
        let bootstrap = bootstrap::open(&config.node.data)?;
        let storage = open_storage(config).await?;
        let (certificates, peer_network) =
            Certificates::load(&config.tls, sockets.peer).map_err(failed)?;
        let certificates = Arc::new(certificates);
        let (peers, incoming) = start_peers(config, peer_network);
        let cluster = Cluster::start(cluster_config(config), storage, peers, incoming)
            .await
            .map_err(not_started)?;

        let mqtt = mqtt::Server::new(cluster.clone(), mqtt_config(config, host_names.clone()));
        let listeners = [
            (sockets.mqtts, mqtt::Transport::Tls(certificates.server.clone())),
            (sockets.mqtt, mqtt::Transport::Plain),
        ];
        for (listener, transport) in listeners {
            if let Some(listener) = listener {
                let server = mqtt.clone();
                tokio::spawn(async move { server.serve(listener, transport).await });
            }
        }
        let stop = CancellationToken::new();
        let https =
            serve_https(sockets.https, certificates.server.clone(), &mqtt, config, stop.clone());
        let api = grpc::Api {
            cluster: cluster.clone(),
            bus: Bus::start(cluster.live()),
            host_names,
            bootstrap: Some(bootstrap),
            peer_authorities: certificates.peer_authorities.clone(),
        };
        tokio::spawn(trust_signer(cluster.clone(), Arc::clone(&certificates)));
        let name = tls::authority::node_name(node_id(config));
        let tls = grpc::Tls {
            config: certificates.server.config_beside(name, &certificates.own),
            clients: certificates.clients.clone(),
        };
        let limits = grpc_limits(&config.limits);
        let serving = grpc::serve(sockets.grpc, Some(tls), api, limits, stop.clone());
        let grpc = tokio::spawn(serving);
        Ok(Self { cluster, certificates, mqtt, https, grpc, stop })
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Those that are not in order stay as they are; the first problem is told.
    pub(super) fn reload_certificates(&self) -> Result<(), tls::Error> {
        self.certificates.reload()
    }

    /// Completes when the node cannot go on.
    pub(super) async fn failure(&self) -> Error {
        tokio::select! {
            problem = self.cluster.fatal() => Error::Storage(problem),
            refusal = self.cluster.outdated() => Error::Outdated(refusal.to_string()),
        }
    }

    /// Protocols first, so that nobody is served by half a node.
    pub(super) async fn stop(self, within: Duration) {
        let deadline = Instant::now() + within;
        self.stop.cancel();
        self.mqtt.stop(within / 2).await;
        if timeout_at(deadline - within / 4, self.https).await.is_err() {
            warn!("some requests to the HTTPS port did not end in time");
        }
        if timeout_at(deadline - within / 4, self.grpc).await.is_err() {
            warn!("some calls of the admin API did not end in time");
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.cluster.stop(left.as_millis() as u64).await;
    }
}

fn not_started(error: drover_cluster::Error) -> Error {
    if let drover_cluster::Error::RefusedByMeta(refusal) = error {
        return Error::Outdated(refusal.to_string());
    }
    Error::Storage(error.to_string())
}

/// Believes the cluster's own authority as soon as there is one, until the cluster is gone.
async fn trust_signer(cluster: Cluster, certificates: Arc<Certificates>) {
    let mut meta = cluster.watch_meta();
    drop(cluster);
    loop {
        let signer = meta.borrow_and_update().as_ref().and_then(|meta| {
            let signer = meta.membership.signer.as_ref()?;
            Some(CertificateDer::from(signer.certificate.to_vec()))
        });
        if let Some(Err(problem)) = signer.map(|signer| certificates.trust(signer)) {
            error!(%problem, "nodes that joined by a token are not believed yet");
        }
        if meta.changed().await.is_err() {
            return;
        }
    }
}

fn serve_https(
    listener: Option<TcpListener>,
    tls: ServerTls,
    mqtt: &mqtt::Server,
    config: &Config,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let routes = mqtt::routes(mqtt.clone());
    let limits = http::Limits {
        connections_max: config.limits.handshakes as usize,
        handshake_timeout: config.limits.handshake_timeout.as_duration(),
        head_timeout: config.limits.connect_timeout.as_duration(),
    };
    tokio::spawn(async move {
        if let Some(listener) = listener {
            http::serve(listener, &tls, routes, limits, stop).await;
        }
    })
}

/// The names that were configured and those in the certificate.
fn host_names(config: &Config) -> Result<Vec<String>, Error> {
    let mut names = config.node.host_names.clone();
    let chain = tls::read_certificates(&config.tls.certificate)
        .map_err(|error| Error::Failed(error.to_string()))?;
    if let Some((_, certificate)) =
        chain.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
        && let Ok(Some(alternatives)) = certificate.subject_alternative_name()
    {
        let general = &alternatives.value.general_names;
        // Addresses stand there as bytes: a hub that is called by its address names it in node.host_names.
        names.extend(general.iter().filter_map(|name| {
            let GeneralName::DNSName(name) = name else { return None };
            Some((*name).to_owned())
        }));
    }
    Ok(names)
}

/// Opening replays the log: it takes its time, on a thread that may wait.
pub(crate) async fn open_storage(config: &Config) -> Result<Arc<dyn Storage>, Error> {
    let settings = storage::Settings {
        block_cache_bytes: config.storage.cache.bytes() as usize,
        memtable_bytes: config.storage.memtables.bytes() as usize,
        reserve_bytes: Some(config.storage.reserve.bytes()),
        ..storage::Settings::new(config.node.data.join("store"))
    };
    let opened = spawn_blocking(|| RocksStorage::open(settings)).await;
    match opened {
        Ok(Ok(storage)) => Ok(Arc::new(storage)),
        Ok(Err(error)) => Err(Error::Storage(error.to_string())),
        Err(error) => Err(Error::Storage(format!("opening it broke off: {error}"))),
    }
}

fn start_peers(config: &Config, network: Arc<TlsNetwork>) -> (Peers, IncomingQueue) {
    let members: BTreeMap<_, _> = config
        .peers
        .iter()
        .map(|peer| (NodeId::new(peer.number, peer.generation), peer.peer_address.clone()))
        .collect();
    Peers::start(PeersConfig {
        node: node_id(config),
        members,
        cluster_id: None,
        network,
        snapshot_rate: NonZeroU64::new(config.raft.snapshot_rate.bytes()),
        seed: None,
    })
}

pub(crate) fn node_id(config: &Config) -> NodeId {
    NodeId::new(config.node.number, config.node.generation)
}

fn cluster_config(config: &Config) -> cluster_config::Config {
    let limits = &config.limits;
    let rate = cluster_config::Rate {
        messages_per_second: limits.device_messages_per_second.into(),
        burst: limits.device_burst.into(),
    };
    cluster_config::Config {
        timing: Timing {
            heartbeat_ms: config.raft.heartbeat.as_millis(),
            election_min_ms: config.raft.election_min.as_millis(),
            election_max_ms: config.raft.election_max.as_millis(),
        },
        log_entries_kept: config.raft.log_entries_kept,
        limits: cluster_config::Limits {
            deadline: limits.request_timeout.as_duration(),
            node_requests_max: limits.requests as usize,
            node_bytes_max: limits.request_bytes.bytes() as usize,
            shard_requests_max: limits.requests_per_shard as usize,
            device_requests_max: limits.requests_per_device as usize,
            drained_sessions_per_second: limits.drained_sessions_per_second as usize,
            device_rate: (limits.device_messages_per_second > 0).then_some(rate),
            gone_after: config.presence.gone_after.as_duration(),
            ..cluster_config::Limits::default()
        },
        commands: command_config(&config.commands),
        retention: Retention {
            age_ms_max: Some(config.retention.age.as_millis()),
            bytes_max: Some(config.retention.bytes.bytes()),
        },
        ..cluster_config::Config::new(node_id(config))
    }
}

fn command_config(commands: &config::Commands) -> cluster_config::Commands {
    cluster_config::Commands {
        limits: mailbox::Limits {
            depth_max: commands.per_device,
            mailbox_bytes_max: commands.bytes_per_device.bytes(),
            command_bytes_max: commands.bytes.bytes(),
            ttl_ms_max: commands.time_to_live_max.as_millis(),
            lock_ms: commands.lock.as_millis(),
            deliveries_max: commands.deliveries,
            ended_max: commands.ended_per_device,
            ended_ms: commands.ended_age.as_millis(),
        },
        ttl_ms: commands.time_to_live.as_millis(),
        feedback_ms_max: commands.feedback_age.as_millis(),
        feedback_records_max: commands.feedback_records,
    }
}

fn mqtt_config(config: &Config, host_names: Vec<String>) -> mqtt::Config {
    let limits = &config.limits;
    mqtt::Config {
        host_names,
        connections_max: limits.connections as usize,
        handshakes_max: limits.handshakes as usize,
        handshake_timeout: limits.handshake_timeout.as_duration(),
        connect_timeout: limits.connect_timeout.as_duration(),
        login_failures_max: limits.login_failures,
        window_messages: limits.window_messages as usize,
        window_bytes: limits.window.bytes() as usize,
        ..mqtt::Config::default()
    }
}

fn grpc_limits(limits: &config::Limits) -> grpc::Limits {
    grpc::Limits {
        requests_per_connection: limits.grpc_requests,
        request_bytes_max: limits.grpc_message.bytes() as usize,
        ..grpc::Limits::default()
    }
}
