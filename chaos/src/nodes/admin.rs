//! The admin API of a cluster, as a back end uses it: any node, the next one if that does not answer.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::backups_client::BackupsClient;
use drover_proto::admin::bulk_result;
use drover_proto::admin::cluster_client::ClusterClient;
use drover_proto::admin::copy_group_response;
use drover_proto::admin::devices_client::DevicesClient;
use drover_proto::admin::messages_client::MessagesClient;
use drover_proto::admin::read_stream_request::From as ReadFrom;
use drover_proto::admin::twins_client::TwinsClient;
use drover_proto::admin::{
    Authentication, BulkCreateDevicesRequest, ClusterStatus, CopyGroupRequest, CreateDeviceRequest,
    GetStatusRequest, GetTwinRequest, InitializeRequest, Member, Message, Permission,
    ReadStreamRequest, SymmetricKeys, Twin,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

use super::backend::Backend;
use super::backup::connection_string;
use super::files::Layout;
use super::{DEVICE_KEY, HOST};
use crate::fleet::Fleet;
use crate::peers::until_ok;
use crate::sas;

/// The API takes at most so many devices in one call.
const BULK: usize = 100;
/// Calls at once while devices are made.
const BULK_CALLS: usize = 8;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole stream is read in one call.
const STREAM_TIMEOUT: Duration = Duration::from_mins(2);

/// A client of all nodes. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    nodes: Vec<Channel>,
    credential: MetadataValue<Ascii>,
    connection_string: String,
}

impl Admin {
    /// Makes one cluster of the nodes of `layout`.
    pub(super) async fn initialize(
        layout: &Layout,
        bootstrap_token: &str,
        shard_count: u32,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let nodes = channels(layout)?;
        let credential = format!("Bearer {bootstrap_token}").parse()?;
        let bootstrap = Self { nodes, credential, connection_string: String::new() };
        let addresses = layout.admin_addresses().into_iter().zip(layout.peer_addresses());
        let member = |(index, (admin, peer)): (usize, (_, _))| Member {
            number: index as u32 + 1,
            generation: 0,
            peer_address: format!("{peer}"),
            admin_address: format!("{admin}"),
            zone: String::new(),
        };
        let request = InitializeRequest {
            members: addresses.enumerate().map(member).collect(),
            shard_count,
            replication_factor: 0,
        };
        let answer = until_ok("the cluster is initialized", patience, async || {
            let request = bootstrap.request(request.clone());
            Ok(ClusterClient::new(bootstrap.nodes[0].clone())
                .initialize(request)
                .await?
                .into_inner())
        })
        .await?;
        let administers = Permission::ClusterAdmin as i32;
        let policy =
            answer.policies.iter().find(|policy| policy.permissions.contains(&administers));
        let policy = policy.context("no policy may administer the cluster")?;
        let token = sas::token(HOST, &policy.primary_key, Some(&policy.name))?;
        let connection_string = connection_string(&policy.name, &policy.primary_key);
        Ok(Self { credential: token.parse()?, connection_string, ..bootstrap })
    }

    /// A client of other nodes, by the same policy.
    pub(super) fn at(&self, layout: &Layout) -> anyhow::Result<Self> {
        Ok(Self { nodes: channels(layout)?, ..self.clone() })
    }

    /// For the command line.
    pub(super) fn connection_string(&self) -> &str {
        &self.connection_string
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.credential.clone());
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// Asks each node in turn until one answers.
    pub(super) async fn anywhere<T>(
        &self,
        mut call: impl AsyncFnMut(Channel) -> Result<T, tonic::Status>,
    ) -> anyhow::Result<T> {
        let mut last = None;
        for node in &self.nodes {
            match timeout(CALL_TIMEOUT, call(node.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => last = Some(anyhow::Error::from(status)),
                Err(elapsed) => last = Some(elapsed.into()),
            }
        }
        Err(last.context("the cluster has no node")?)
    }

    pub async fn status(&self) -> anyhow::Result<ClusterStatus> {
        self.anywhere(async |node| {
            let answer =
                ClusterClient::new(node).get_status(self.request(GetStatusRequest {})).await;
            Ok(answer?.into_inner())
        })
        .await
    }

    /// Bytes of keys and values in the snapshot of a shard.
    pub async fn snapshot_bytes(&self, shard: u32) -> anyhow::Result<u64> {
        let mut parts = self
            .anywhere(async |node| {
                let request = self.request(CopyGroupRequest { shard: Some(shard) });
                BackupsClient::new(node).copy_group(request).await
            })
            .await?
            .into_inner();
        let mut bytes = 0;
        while let Some(part) = timeout(STREAM_TIMEOUT, parts.try_next()).await?? {
            let Some(copy_group_response::Part::Records(records)) = part.part else { continue };
            bytes += records.keys.iter().chain(&records.values).map(Vec::len).sum::<usize>();
        }
        Ok(bytes as u64)
    }

    /// What one node says, and no other.
    pub async fn status_at(&self, node: usize) -> anyhow::Result<ClusterStatus> {
        let mut client = ClusterClient::new(self.nodes[node].clone());
        let call = client.get_status(self.request(GetStatusRequest {}));
        Ok(timeout(CALL_TIMEOUT, call).await??.into_inner())
    }

    pub async fn twin(&self, device_id: &str) -> anyhow::Result<Twin> {
        self.anywhere(async |node| {
            let request = self.request(GetTwinRequest {
                device_id: device_id.to_owned(),
                ..GetTwinRequest::default()
            });
            Ok(TwinsClient::new(node).get_twin(request).await?.into_inner())
        })
        .await
    }

    /// Registers the devices `numbers` of `fleet`, all with the same key.
    pub async fn create_devices(&self, fleet: &Fleet, numbers: Range<usize>) -> anyhow::Result<()> {
        let end = numbers.end;
        let batches = numbers.step_by(BULK).map(|first| first..(first + BULK).min(end));
        let calls = batches.map(|batch| {
            let ids = batch.map(|number| fleet.id(number)).collect();
            self.create_batch(ids)
        });
        stream::iter(calls).buffer_unordered(BULK_CALLS).try_collect().await
    }

    /// A device that is there already is as good as a new one: an attempt whose answer was lost is repeated.
    async fn create_batch(&self, ids: Vec<String>) -> anyhow::Result<()> {
        let request =
            BulkCreateDevicesRequest { devices: ids.iter().map(|id| with_key(id)).collect() };
        let results = until_ok("devices are created", CALL_TIMEOUT * 3, async || {
            self.anywhere(async |node| {
                let request = self.request(request.clone());
                Ok(DevicesClient::new(node)
                    .bulk_create_devices(request)
                    .await?
                    .into_inner()
                    .results)
            })
            .await
        })
        .await?;
        ensure!(results.len() == ids.len(), "{} results for {} devices", results.len(), ids.len());
        for result in results {
            match result.result {
                Some(bulk_result::Result::Device(_)) => {}
                Some(bulk_result::Result::Error(error))
                    if error.code == Code::AlreadyExists as i32 => {}
                Some(bulk_result::Result::Error(error)) => {
                    bail!("{}: {}", result.id, error.message)
                }
                None => bail!("{}: no result", result.id),
            }
        }
        Ok(())
    }

    /// The whole stream of a shard, read at `node`, from its first message to `until`.
    pub async fn stream(
        &self,
        node: usize,
        shard: u32,
        until: u64,
    ) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::new();
        self.each_message(node, shard, until, |message| messages.push(message)).await?;
        Ok(messages)
    }

    /// The same, one by one: also those that come before the node breaks off.
    pub async fn each_message(
        &self,
        node: usize,
        shard: u32,
        until: u64,
        mut take: impl FnMut(Message),
    ) -> anyhow::Result<()> {
        let mut client =
            MessagesClient::new(self.nodes[node].clone()).max_decoding_message_size(64 << 20);
        let mut request = self.request(ReadStreamRequest {
            shard,
            from: Some(ReadFrom::Offset(0)),
            follow: false,
            limit: 0,
        });
        request.set_timeout(STREAM_TIMEOUT);
        let mut stream = client.read_stream(request).await?.into_inner();
        while let Some(part) = stream.message().await? {
            part.messages.into_iter().for_each(&mut take);
            if part.next_offset >= until {
                break;
            }
        }
        Ok(())
    }

    /// A back end at each node.
    pub fn backends(&self) -> Vec<Backend> {
        let nodes = self.nodes.iter().cloned();
        nodes.map(|node| Backend::new(node, self.credential.clone())).collect()
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, node: usize) -> Channel {
        self.nodes[node].clone()
    }
}

fn channels(layout: &Layout) -> anyhow::Result<Vec<Channel>> {
    let ca = Certificate::from_pem(&layout.ca_pem);
    let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name(HOST);
    let channel = |address| {
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls.clone())?
            .connect_timeout(CALL_TIMEOUT);
        Ok(endpoint.connect_lazy())
    };
    layout.admin_addresses().into_iter().map(channel).collect()
}

fn with_key(id: &str) -> CreateDeviceRequest {
    let keys =
        SymmetricKeys { primary_key: DEVICE_KEY.to_owned(), secondary_key: DEVICE_KEY.to_owned() };
    CreateDeviceRequest {
        id: id.to_owned(),
        authentication: Some(Authentication { kind: Some(Kind::Sas(keys)) }),
        ..CreateDeviceRequest::default()
    }
}
