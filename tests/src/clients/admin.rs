//! A back end over gRPC: what the tests ask of a cluster. Where a device is named, `device/module` names one of its modules.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use drover_chaos::sas;
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::authorities_client::AuthoritiesClient;
use drover_proto::admin::cluster_client::ClusterClient;
use drover_proto::admin::commands_client::CommandsClient;
use drover_proto::admin::devices_client::DevicesClient;
use drover_proto::admin::members_client::MembersClient;
use drover_proto::admin::messages_client::MessagesClient;
use drover_proto::admin::methods_client::MethodsClient;
use drover_proto::admin::modules_client::ModulesClient;
use drover_proto::admin::read_stream_request::From as ReadFrom;
use drover_proto::admin::twins_client::TwinsClient;
use drover_proto::admin::{
    Acknowledgement, Authentication, Command, CreateAuthorityRequest, CreateDeviceRequest,
    CreateModuleRequest, Feedback, GetCommandRequest, GetStatusRequest, GetTwinRequest,
    InitializeRequest, InvokeMethodRequest, InvokeMethodResponse, ListCommandsRequest, Member,
    Message, Permission, ReadFeedbackRequest, ReadStreamRequest, SendCommandRequest,
    SendCommandResponse, Twin, UpdateTwinRequest, VerifyAuthorityRequest,
};
use serde_json::Value;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::json::json_struct;
use super::{ANSWER_TIMEOUT, HOST, names};
use crate::certificates::Authority;

/// Puts a credential, or nothing, into each call.
#[derive(Clone)]
pub struct Credential(Option<MetadataValue<tonic::metadata::Ascii>>);

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Credential>;

/// A back end at one node.
#[derive(Clone)]
pub struct Admin {
    pub devices: DevicesClient<Service>,
    pub modules: ModulesClient<Service>,
    pub twins: TwinsClient<Service>,
    pub messages: MessagesClient<Service>,
    pub commands: CommandsClient<Service>,
    pub authorities: AuthoritiesClient<Service>,
    pub methods: MethodsClient<Service>,
    pub cluster: ClusterClient<Service>,
    pub members: MembersClient<Service>,
    token: Option<String>,
}

impl Admin {
    /// `key` as [`Admin::initialize`] answers; `None` presents nothing.
    pub fn connect(ca: &Path, address: SocketAddr, key: Option<&str>) -> Result<Self> {
        let credential = match key.map(|key| key.split_once(' ').context("policy and key")) {
            None => None,
            Some(policy_and_key) => {
                let (policy, key) = policy_and_key?;
                Some(sas::token(HOST, key, Some(policy))?)
            }
        };
        Self::with_credential(ca, address, credential.as_deref())
    }

    /// With any text in the `authorization` header.
    pub fn with_credential(
        ca: &Path,
        address: SocketAddr,
        credential: Option<&str>,
    ) -> Result<Self> {
        Self::open(trusting(ca)?, address, credential)
    }

    /// With a client certificate and nothing else: `NAME.pem` and `NAME.key` of a folder.
    pub fn with_certificate(
        ca: &Path,
        address: SocketAddr,
        folder: &Path,
        name: &str,
    ) -> Result<Self> {
        let read = |ending| std::fs::read(folder.join(format!("{name}.{ending}")));
        let identity = Identity::from_pem(read("pem")?, read("key")?);
        Self::open(trusting(ca)?.identity(identity), address, None)
    }

    fn open(tls: ClientTlsConfig, address: SocketAddr, credential: Option<&str>) -> Result<Self> {
        let token = credential.map(str::to_owned);
        let credential = Credential(credential.map(str::parse).transpose()?);
        let channel = Endpoint::from_shared(format!("https://{HOST}:{}", address.port()))?
            .tls_config(tls)?
            .timeout(ANSWER_TIMEOUT)
            .connect_lazy();
        let service = InterceptedService::new(channel, credential);
        Ok(Self {
            devices: DevicesClient::new(service.clone()),
            modules: ModulesClient::new(service.clone()),
            twins: TwinsClient::new(service.clone()),
            messages: MessagesClient::new(service.clone()),
            commands: CommandsClient::new(service.clone()),
            authorities: AuthoritiesClient::new(service.clone()),
            methods: MethodsClient::new(service.clone()),
            cluster: ClusterClient::new(service.clone()),
            members: MembersClient::new(service),
            token,
        })
    }

    /// What it presents.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Makes a cluster; answers with the name and the key of a policy that may do everything.
    pub async fn initialize(
        ca: &Path,
        address: SocketAddr,
        token: &str,
        members: Vec<(u32, String, String)>,
        shard_count: u32,
    ) -> Result<String> {
        let admin = Self::with_credential(ca, address, Some(&format!("Bearer {token}")))?;
        let member = |(number, peer_address, admin_address)| Member {
            number,
            peer_address,
            admin_address,
            ..Member::default()
        };
        let members = members.into_iter().map(member).collect();
        let request = InitializeRequest { members, shard_count, replication_factor: 0 };
        let initialize = async || admin.cluster.clone().initialize(request.clone()).await;
        let policies = crate::until_ok("the cluster", initialize).await.into_inner().policies;
        let may_administer = Permission::ClusterAdmin as i32;
        let policy = policies.iter().find(|policy| policy.permissions.contains(&may_administer));
        let policy = policy.context("no policy may administer")?;
        Ok(format!("{} {}", policy.name, policy.primary_key))
    }

    /// Creates a device; answers with its primary key.
    pub async fn create_device(&self, id: &str) -> Result<String> {
        let request = CreateDeviceRequest { id: id.to_owned(), ..CreateDeviceRequest::default() };
        let device = self.devices.clone().create_device(request).await?.into_inner();
        match device.authentication.and_then(|authentication| authentication.kind) {
            Some(Kind::Sas(keys)) => Ok(keys.primary_key),
            other => bail!("a new device has keys, not {other:?}"),
        }
    }

    /// Creates a device that proves itself in another way than with keys.
    pub async fn create_device_with(&self, id: &str, kind: Kind) -> Result<()> {
        let (id, authentication) = (id.to_owned(), Some(Authentication { kind: Some(kind) }));
        let request = CreateDeviceRequest { id, authentication, ..CreateDeviceRequest::default() };
        self.devices.clone().create_device(request).await?;
        Ok(())
    }

    /// Registers an authority and proves that its key is here.
    pub async fn register_authority(&self, name: &str, authority: &Authority) -> Result<()> {
        let mut authorities = self.authorities.clone();
        let (name, certificate_pem) = (name.to_owned(), authority.certificate.clone());
        let request = CreateAuthorityRequest { name: name.clone(), certificate_pem };
        let code = authorities.create_authority(request).await?.into_inner().verification_code;
        let certificate_pem = authority.sign(&code)?.certificate;
        authorities.verify_authority(VerifyAuthorityRequest { name, certificate_pem }).await?;
        Ok(())
    }

    /// Creates a module; answers with its primary key.
    pub async fn create_module(&self, id: &str) -> Result<String, Status> {
        let (device_id, module_id) = names(id);
        let request =
            CreateModuleRequest { device_id, module_id, ..CreateModuleRequest::default() };
        let module = self.modules.clone().create_module(request).await?.into_inner();
        match module.authentication.and_then(|authentication| authentication.kind) {
            Some(Kind::Sas(keys)) => Ok(keys.primary_key),
            other => Err(Status::internal(format!("a new module has keys, not {other:?}"))),
        }
    }

    pub async fn twin(&self, device: &str) -> Result<Twin, Status> {
        let (device_id, module_id) = names(device);
        let request = GetTwinRequest { device_id, module_id };
        Ok(self.twins.clone().get_twin(request).await?.into_inner())
    }

    /// Merges desired properties.
    pub async fn patch_desired(&self, device: &str, desired: &Value) -> Result<Twin, Status> {
        let (device_id, module_id) = names(device);
        let request = UpdateTwinRequest {
            device_id,
            module_id,
            desired: Some(json_struct(desired)),
            ..UpdateTwinRequest::default()
        };
        Ok(self.twins.clone().patch_twin(request).await?.into_inner())
    }

    /// Every message of every stream, from its beginning, in the order of shards and offsets.
    pub async fn all_messages(&self) -> Result<Vec<Message>, Status> {
        let status = self.cluster.clone().get_status(GetStatusRequest {}).await?.into_inner();
        let mut messages = Vec::new();
        for shard in status.shards.iter().filter_map(|shard| shard.shard) {
            messages.extend(self.read(shard, 0, 0).await?);
        }
        Ok(messages)
    }

    /// `limit` messages of a shard's stream; 0 means all that there are now.
    pub async fn read(&self, shard: u32, offset: u64, limit: u64) -> Result<Vec<Message>, Status> {
        let from = Some(ReadFrom::Offset(offset));
        let request = ReadStreamRequest { shard, from, follow: false, limit };
        let mut stream = self.messages.clone().read_stream(request).await?.into_inner();
        let mut messages = Vec::new();
        while let Some(response) = stream.message().await? {
            messages.extend(response.messages);
        }
        Ok(messages)
    }

    /// The messages of one device, by its shard's offsets.
    pub async fn messages_of(&self, device: &str) -> Result<Vec<Message>, Status> {
        let mut messages = self.all_messages().await?;
        let (device, module) = names(device);
        messages.retain(|message| message.device_id == device && message.module_id == module);
        Ok(messages)
    }
}

impl Admin {
    /// Calls a method, with a second's wait for the device and two for its answer.
    pub async fn invoke(
        &self,
        device: &str,
        method: &str,
        payload: &str,
    ) -> Result<InvokeMethodResponse, Status> {
        self.invoke_within(device, method, payload, Duration::from_secs(2)).await
    }

    /// The same with a device that may take longer.
    pub async fn invoke_within(
        &self,
        device: &str,
        method: &str,
        payload: &str,
        patience: Duration,
    ) -> Result<InvokeMethodResponse, Status> {
        let wait = |time: Duration| time.try_into().ok();
        let (device_id, module_id) = names(device);
        let request = InvokeMethodRequest {
            device_id,
            module_id,
            method_name: method.to_owned(),
            payload: payload.to_owned(),
            connect_timeout: wait(Duration::from_secs(1)),
            response_timeout: wait(patience),
        };
        Ok(self.methods.clone().invoke_method(request).await?.into_inner())
    }

    /// Sends a command that asks for full feedback; its body is its id.
    pub async fn send_command(
        &self,
        device: &str,
        id: &str,
    ) -> Result<SendCommandResponse, Status> {
        let (device_id, module_id) = names(device);
        let request = SendCommandRequest {
            device_id,
            module_id,
            message_id: id.to_owned(),
            body: id.as_bytes().to_vec(),
            acknowledgement: Acknowledgement::Full.into(),
            ..SendCommandRequest::default()
        };
        Ok(self.commands.clone().send_command(request).await?.into_inner())
    }

    pub async fn command(&self, device: &str, id: &str) -> Result<Command, Status> {
        let (device_id, module_id) = names(device);
        let request = GetCommandRequest { device_id, module_id, message_id: id.to_owned() };
        Ok(self.commands.clone().get_command(request).await?.into_inner())
    }

    /// The first page of a mailbox, without bodies.
    pub async fn mailbox(&self, device: &str) -> Result<Vec<Command>, Status> {
        let (device_id, module_id) = names(device);
        let request = ListCommandsRequest { device_id, module_id, ..Default::default() };
        Ok(self.commands.clone().list_commands(request).await?.into_inner().commands)
    }

    /// All feedback about a device, by its shard's offsets.
    pub async fn feedback_of(&self, device: &str) -> Result<Vec<Feedback>, Status> {
        let status = self.cluster.clone().get_status(GetStatusRequest {}).await?.into_inner();
        let mut feedback = Vec::new();
        for shard in status.shards.iter().filter_map(|shard| shard.shard) {
            let request = ReadFeedbackRequest { shard, ..ReadFeedbackRequest::default() };
            let mut stream = self.commands.clone().read_feedback(request).await?.into_inner();
            while let Some(response) = stream.message().await? {
                feedback.extend(response.feedback);
            }
        }
        let (device, module) = names(device);
        feedback.retain(|feedback| feedback.device_id == device && feedback.module_id == module);
        Ok(feedback)
    }
}

fn trusting(ca: &Path) -> Result<ClientTlsConfig> {
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?)))
}
