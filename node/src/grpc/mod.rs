//! The gRPC API `drover.admin.v1`: services, limits, deadlines, reflection, health.
//!
//! A call passes [`listener`] (TLS), [`calls`] (a stop waits for it), [`auth`] (may this caller call this method?), then one
//! method of a service, which parses ([`convert`]), calls the [`Cluster`] and answers ([`status`]). Deadlines: `grpc-timeout` is
//! obeyed, and calls without one end after [`Limits::request_timeout`]; a stream may go on for as long as its caller's right.

mod auth;
mod authorities;
mod backups;
mod calls;
mod cluster;
mod commands;
pub(crate) mod convert;
mod cursors;
mod devices;
mod guard;
mod listener;
mod members;
mod messages;
mod methods;
mod modules;
mod permissions;
mod reader;
pub mod status;
mod twins;

use std::sync::Arc;
use std::time::Duration;

use drover_cluster::core::ids::ShardCount;
use drover_cluster::{Cluster, Error};
use drover_proto::admin;
use drover_proto::admin::authorities_server::AuthoritiesServer;
use drover_proto::admin::backups_server::BackupsServer;
use drover_proto::admin::cluster_server::ClusterServer;
use drover_proto::admin::commands_server::CommandsServer;
use drover_proto::admin::devices_server::DevicesServer;
use drover_proto::admin::members_server::MembersServer;
use drover_proto::admin::messages_server::MessagesServer;
use drover_proto::admin::methods_server::MethodsServer;
use drover_proto::admin::modules_server::ModulesServer;
use drover_proto::admin::twins_server::TwinsServer;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::Builder as Reflection;

pub use auth::BootstrapToken;
pub use listener::Tls;

use crate::bus::Bus;

/// How often health looks whether the node can serve.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// A connection whose other end is gone without a word is found out after this long, and its streams with it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the API serves, and to whom.
#[derive(Debug, Clone)]
pub struct Api {
    pub cluster: Cluster,
    pub bus: Bus,
    /// The names that tokens may be made for.
    pub host_names: Vec<String>,
    /// Lets the owner of this node's data folder initialize the cluster. `None`: nobody can at this node.
    pub bootstrap: Option<BootstrapToken>,
    /// Whose certificates this node accepts from peers by its configuration: a node that joins is told.
    pub peer_authorities: Vec<CertificateDer<'static>>,
}

/// How much callers may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls of one connection at one time; more wait in the client, as HTTP/2 provides.
    pub requests_per_connection: u32,
    /// The largest request. Answers are bounded by their own rules.
    pub request_bytes_max: usize,
    /// The longest that a call may take which names no deadline of its own.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_connection: 256,
            // A bulk of 100 devices with twins at their limit, and a little.
            request_bytes_max: 8 << 20,
            // A direct method may wait for five minutes twice. All others end with the cluster's own deadlines.
            request_timeout: Duration::from_secs(630),
        }
    }
}

/// Serves until `stop`; calls under way are answered, streams end, and no connection is waited for that has none.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    api: Api,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = health();
    let watch = tokio::spawn(watch_health(api.cluster.clone(), reporter));
    let connections = listener::connections(listener, tls, stop.clone());
    let calls = calls::UnderWay::default();
    let serving = Server::builder()
        .max_concurrent_streams(limits.requests_per_connection)
        .timeout(limits.request_timeout)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(calls::CountLayer(calls.clone()))
        .layer(auth::AuthorizeLayer(authority(&api)))
        .add_routes(routes(api, limits, health, stop.clone()))
        .serve_with_incoming_shutdown(connections, stop.cancelled());
    let served = tokio::select! {
        served = serving => served,
        () = calls.answered_after(&stop) => Ok(()),
    };
    watch.abort();
    served
}

fn authority(api: &Api) -> Arc<auth::Authority> {
    Arc::new(auth::Authority {
        cluster: api.cluster.clone(),
        rules: auth::Rules { host_names: api.host_names.clone(), bootstrap: api.bootstrap.clone() },
    })
}

fn routes(
    api: Api,
    limits: Limits,
    health: HealthServer<HealthService>,
    stop: CancellationToken,
) -> Routes {
    let Api { cluster, bus, peer_authorities, .. } = api;
    let readers = guard::Readers::new(cluster.clone(), stop);
    let bytes_max = limits.request_bytes_max;
    let devices = devices::DevicesService { cluster: cluster.clone(), readers: readers.clone() };
    let modules = modules::ModulesService { cluster: cluster.clone() };
    let twins = twins::TwinsService { cluster: cluster.clone() };
    let commands = commands::CommandsService { cluster: cluster.clone(), readers: readers.clone() };
    let methods = methods::MethodsService { cluster: cluster.clone() };
    let backups = backups::BackupsService { cluster: cluster.clone(), readers: readers.clone() };
    let messages = messages::MessagesService { cluster: cluster.clone(), bus, readers };
    let authorities = authorities::AuthoritiesService { cluster: cluster.clone() };
    let members =
        members::MembersService { cluster: cluster.clone(), authorities: peer_authorities };
    let cluster = cluster::ClusterService { cluster };
    Routes::new(health)
        .add_service(reflection().build_v1().expect("the descriptors are our own"))
        .add_service(reflection().build_v1alpha().expect("the descriptors are our own"))
        .add_service(DevicesServer::new(devices).max_decoding_message_size(bytes_max))
        .add_service(ModulesServer::new(modules).max_decoding_message_size(bytes_max))
        .add_service(TwinsServer::new(twins).max_decoding_message_size(bytes_max))
        .add_service(MessagesServer::new(messages).max_decoding_message_size(bytes_max))
        .add_service(CommandsServer::new(commands).max_decoding_message_size(bytes_max))
        .add_service(AuthoritiesServer::new(authorities).max_decoding_message_size(bytes_max))
        .add_service(MethodsServer::new(methods).max_decoding_message_size(bytes_max))
        .add_service(MembersServer::new(members).max_decoding_message_size(bytes_max))
        .add_service(BackupsServer::new(backups).max_decoding_message_size(bytes_max))
        .add_service(ClusterServer::new(cluster).max_decoding_message_size(bytes_max))
}

fn reflection() -> Reflection<'static> {
    Reflection::configure()
        .register_encoded_file_descriptor_set(admin::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn health() -> (HealthReporter, HealthServer<HealthService>) {
    let reporter = HealthReporter::new();
    let service = HealthService::from_health_reporter(reporter.clone());
    (reporter, HealthServer::new(service))
}

/// The services, and the server as a whole under the empty name, are healthy while this node can serve.
async fn watch_health(cluster: Cluster, reporter: HealthReporter) {
    let services = [
        "",
        "drover.admin.v1.Devices",
        "drover.admin.v1.Modules",
        "drover.admin.v1.Twins",
        "drover.admin.v1.Messages",
        "drover.admin.v1.Commands",
        "drover.admin.v1.Authorities",
        "drover.admin.v1.Methods",
        "drover.admin.v1.Cluster",
        "drover.admin.v1.Members",
        "drover.admin.v1.Backups",
    ];
    loop {
        let status = match cluster.ready() {
            Ok(()) => tonic_health::ServingStatus::Serving,
            Err(_) => tonic_health::ServingStatus::NotServing,
        };
        for service in services {
            reporter.set_service_status(service, status).await;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

/// How many shards there are, or what to do if there is no cluster yet.
fn shard_count(cluster: &Cluster) -> Result<ShardCount, Status> {
    cluster.meta().map(|meta| meta.shard_count).ok_or_else(|| status::of(Error::NotInitialized))
}
