//! What a new hub needs before a device can connect: the cluster itself, a policy's key, a first device.
//!
//! Each step can be repeated, so a start that was interrupted goes on where it was. It speaks to the hub as any client
//! does, by gRPC.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use drover_core::device::Key;
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::cluster_client::ClusterClient;
use drover_proto::admin::devices_client::DevicesClient;
use drover_proto::admin::{
    CreateDeviceRequest, Device, GetDeviceRequest, InitializeRequest, ListPoliciesRequest, Member,
    Permission, Policy,
};
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::files::{read, write_secret};
use super::layout::Layout;
use crate::config::Config;
use crate::identity::connection_string::{ConnectionString, Subject};
use crate::{clock, identity, run};

pub(super) const DEVICE: &str = "device-1";
/// Starting three nodes and electing their leaders takes a few seconds; a busy machine gets ten times that.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(200);
const TOKEN_SECONDS: u64 = 600;

/// A hub with a cluster and an administrator.
pub(super) struct NewHub {
    channel: Channel,
    admin: ConnectionString,
}

impl NewHub {
    /// Makes what is missing.
    pub(super) async fn set_up(layout: &Layout, shard_count: u32) -> Result<Self> {
        let first = layout.nodes.first().context("a hub has at least one node")?;
        let host = format!("localhost:{}", first.ports.grpc);
        let channel = channel(&host, &layout.ca())?;
        let admin = match saved(&layout.connection_file("admin"))? {
            Some(admin) => ConnectionString { host_name: host, ..admin },
            None => initialize(layout, &channel, host, shard_count).await?,
        };
        save(&layout.connection_file("admin"), &admin)?;
        Ok(Self { channel, admin })
    }

    /// The connection string of a device, which is created if there is none; it is also written into the folder.
    pub(super) async fn device(&self, layout: &Layout, id: &str) -> Result<ConnectionString> {
        let device = find_or_create(&self.channel, &self.admin, id).await?;
        let connection = ConnectionString {
            host_name: "localhost".to_owned(),
            key: primary_key(&device)?,
            subject: Subject::Device(device.id.parse().context("the hub sent an id that is none")?),
        };
        save(&layout.connection_file(id), &connection)?;
        Ok(connection)
    }
}

fn channel(host: &str, ca: &Path) -> Result<Channel> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    Ok(Endpoint::from_shared(format!("https://{host}"))?.tls_config(tls)?.connect_lazy())
}

fn saved(file: &Path) -> Result<Option<ConnectionString>> {
    if !file.exists() {
        return Ok(None);
    }
    let text = read(file)?;
    let saved = text.trim().parse();
    saved
        .map(Some)
        .with_context(|| format!("{} is damaged: start over with --fresh", file.display()))
}

fn save(file: &Path, connection: &ConnectionString) -> Result<()> {
    write_secret(file, &format!("{connection}\n"))
}

async fn initialize(
    layout: &Layout,
    channel: &Channel,
    host_name: String,
    shard_count: u32,
) -> Result<ConnectionString> {
    let first = &layout.nodes.first().context("a hub has at least one node")?.config;
    let token = format!("Bearer {}", bootstrap_token(first).await?);
    let request = InitializeRequest { members: members(first), shard_count, replication_factor: 0 };
    let mut client = ClusterClient::new(channel.clone());
    let answer =
        patiently(async || client.initialize(authorized(request.clone(), &token)?).await).await;
    let policies = match answer {
        Ok(response) => response.into_inner().policies,
        // An earlier start has done it and could not write down the answer.
        Err(status) if status.code() == Code::FailedPrecondition => {
            let list = authorized(ListPoliciesRequest {}, &token)?;
            client.list_policies(list).await?.into_inner().policies
        }
        Err(status) => bail!("the cluster could not be initialized: {}", status.message()),
    };
    let may_administer =
        |policy: &Policy| policy.permissions.contains(&(Permission::ClusterAdmin as i32));
    let policy = policies.into_iter().find(may_administer).context("no policy may administer")?;
    Ok(ConnectionString {
        host_name,
        key: decode_key(&policy.primary_key)?,
        subject: Subject::Policy(policy.name),
    })
}

/// The node makes it when it starts.
async fn bootstrap_token(config: &Config) -> Result<String> {
    let file = config.node.data.join(run::BOOTSTRAP_TOKEN);
    let deadline = Instant::now() + PATIENCE;
    while !file.exists() {
        if Instant::now() > deadline {
            bail!("node {} does not start: its output above says why", config.node.number);
        }
        sleep(PAUSE).await;
    }
    Ok(read(&file)?.trim().to_owned())
}

fn members(config: &Config) -> Vec<Member> {
    let member = |peer: &crate::config::Peer| Member {
        number: peer.number,
        generation: peer.generation.into(),
        peer_address: peer.peer_address.clone(),
        admin_address: peer.admin_address.clone(),
        zone: peer.zone.clone(),
    };
    config.peers.iter().map(member).collect()
}

async fn find_or_create(channel: &Channel, admin: &ConnectionString, id: &str) -> Result<Device> {
    let Subject::Policy(policy) = &admin.subject else {
        bail!("admin.connection is not a policy's: start over with --fresh");
    };
    let expires_s = clock::unix_ms() / 1_000 + TOKEN_SECONDS;
    let token = identity::policy_token(&admin.host_name, policy, &admin.key, expires_s);
    let mut client = DevicesClient::new(channel.clone());
    let request = CreateDeviceRequest { id: id.to_owned(), ..CreateDeviceRequest::default() };
    let created =
        patiently(async || client.create_device(authorized(request.clone(), &token)?).await).await;
    let device = match created {
        Err(status) if status.code() == Code::AlreadyExists => {
            let get = GetDeviceRequest { id: id.to_owned() };
            patiently(async || client.get_device(authorized(get.clone(), &token)?).await).await
        }
        other => other,
    };
    let device =
        device.map_err(|status| anyhow::anyhow!("no device {id}: {}", status.message()))?;
    Ok(device.into_inner())
}

fn primary_key(device: &Device) -> Result<Key> {
    match device.authentication.as_ref().and_then(|authentication| authentication.kind.as_ref()) {
        Some(Kind::Sas(keys)) => decode_key(&keys.primary_key),
        Some(Kind::SelfSigned(_) | Kind::CertificateAuthority(_) | Kind::None(_)) | None => {
            bail!("{} has no key any more: delete it, or start over with --fresh", device.id)
        }
    }
}

fn decode_key(text: &str) -> Result<Key> {
    let bytes = STANDARD.decode(text).context("the hub sent a key that is not base64")?;
    Key::new(bytes).context("the hub sent a key of the wrong length")
}

fn authorized<T>(message: T, credential: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> =
        credential.parse().map_err(|_| Status::internal("the credential is no header value"))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// Repeats a call while the hub is starting.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(status) if is_starting(&status) && Instant::now() < deadline => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

fn is_starting(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
}
