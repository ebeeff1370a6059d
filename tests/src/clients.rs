//! A device over MQTT, and a back end over gRPC. The wire is `drover_chaos::mqtt`'s; what is sent and expected is here.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use drover_chaos::mqtt::codec::{self, Connect, Packet};
use drover_chaos::mqtt::link::{Link, Tls};
use drover_chaos::sas;
use drover_proto::admin::authentication::Kind;
use drover_proto::admin::authorities_client::AuthoritiesClient;
use drover_proto::admin::cluster_client::ClusterClient;
use drover_proto::admin::commands_client::CommandsClient;
use drover_proto::admin::devices_client::DevicesClient;
use drover_proto::admin::messages_client::MessagesClient;
use drover_proto::admin::methods_client::MethodsClient;
use drover_proto::admin::read_stream_request::From as ReadFrom;
use drover_proto::admin::twins_client::TwinsClient;
use drover_proto::admin::{
    Acknowledgement, Command, CreateDeviceRequest, Feedback, GetCommandRequest, GetStatusRequest,
    GetTwinRequest, InitializeRequest, InvokeMethodRequest, InvokeMethodResponse, Member, Message,
    Permission, ReadFeedbackRequest, ReadStreamRequest, SendCommandRequest, SendCommandResponse,
    Twin, UpdateTwinRequest,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// The name that the nodes' certificate carries.
pub const HOST: &str = "localhost";
/// How long a hub has to answer anything.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const TWIN_RESPONSES: &str = "$iothub/twin/res/#";

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
    pub twins: TwinsClient<Service>,
    pub messages: MessagesClient<Service>,
    pub commands: CommandsClient<Service>,
    pub authorities: AuthoritiesClient<Service>,
    pub methods: MethodsClient<Service>,
    pub cluster: ClusterClient<Service>,
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
            twins: TwinsClient::new(service.clone()),
            messages: MessagesClient::new(service.clone()),
            commands: CommandsClient::new(service.clone()),
            authorities: AuthoritiesClient::new(service.clone()),
            methods: MethodsClient::new(service.clone()),
            cluster: ClusterClient::new(service),
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

    pub async fn twin(&self, device: &str) -> Result<Twin, Status> {
        let request = GetTwinRequest { device_id: device.to_owned() };
        Ok(self.twins.clone().get_twin(request).await?.into_inner())
    }

    /// Merges desired properties.
    pub async fn patch_desired(&self, device: &str, desired: &Value) -> Result<Twin, Status> {
        let request = UpdateTwinRequest {
            device_id: device.to_owned(),
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
        messages.retain(|message| message.device_id == device);
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
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let request = InvokeMethodRequest {
            device_id: device.to_owned(),
            method_name: method.to_owned(),
            payload: payload.to_owned(),
            connect_timeout: seconds(1),
            response_timeout: seconds(2),
        };
        Ok(self.methods.clone().invoke_method(request).await?.into_inner())
    }

    /// Sends a command that asks for full feedback; its body is its id.
    pub async fn send_command(
        &self,
        device: &str,
        id: &str,
    ) -> Result<SendCommandResponse, Status> {
        let request = SendCommandRequest {
            device_id: device.to_owned(),
            message_id: id.to_owned(),
            body: id.as_bytes().to_vec(),
            acknowledgement: Acknowledgement::Full.into(),
            ..SendCommandRequest::default()
        };
        Ok(self.commands.clone().send_command(request).await?.into_inner())
    }

    pub async fn command(&self, device: &str, id: &str) -> Result<Command, Status> {
        let request = GetCommandRequest { device_id: device.to_owned(), message_id: id.to_owned() };
        Ok(self.commands.clone().get_command(request).await?.into_inner())
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
        feedback.retain(|feedback| feedback.device_id == device);
        Ok(feedback)
    }
}

fn trusting(ca: &Path) -> Result<ClientTlsConfig> {
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?)))
}

/// JSON as protobuf says it.
pub fn json_struct(value: &Value) -> prost_types::Struct {
    let entries = value.as_object().expect("an object");
    let fields = entries.iter().map(|(key, value)| (key.clone(), json_value(value))).collect();
    prost_types::Struct { fields }
}

fn json_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().expect("a finite number")),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.iter().map(json_value).collect(),
        }),
        Value::Object(_) => Kind::StructValue(json_struct(value)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A number among the properties of a twin's section.
pub fn number(section: Option<&drover_proto::admin::TwinSection>, key: &str) -> Option<f64> {
    use prost_types::value::Kind;
    match section?.properties.as_ref()?.fields.get(key)?.kind {
        Some(Kind::NumberValue(number)) => Some(number),
        _ => None,
    }
}

/// A device over MQTT.
pub struct Device {
    id: String,
    pub link: Link,
    last_packet_id: u16,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.id)
    }
}

/// What a device proves itself with.
pub struct Login<'a> {
    pub id: &'a str,
    pub user: String,
    pub password: String,
    pub clean_session: bool,
}

impl<'a> Login<'a> {
    /// As a device with this key should.
    pub fn new(id: &'a str, key: &str) -> Result<Self> {
        Ok(Self {
            id,
            user: format!("{HOST}/{id}/?api-version=2021-04-12"),
            password: sas::token(&format!("{HOST}/devices/{id}"), key, None)?,
            clean_session: false,
        })
    }

    /// With a certificate instead of a password.
    pub fn without_password(id: &'a str) -> Self {
        let user = format!("{HOST}/{id}/?api-version=2021-04-12");
        Self { id, user, password: String::new(), clean_session: false }
    }

    /// The CONNECT as bytes.
    pub fn packet(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        self.connect().encode(&mut packet);
        packet
    }

    /// An empty password is not sent.
    fn connect(&self) -> Connect<'_> {
        Connect {
            client_id: self.id,
            username: Some(&self.user),
            password: Some(self.password.as_str()).filter(|password| !password.is_empty()),
            clean_session: self.clean_session,
            keep_alive_s: 60,
        }
    }
}

impl Device {
    /// Connects without TLS. Fails with the return code in the message if the hub refuses.
    pub async fn connect(address: SocketAddr, id: &str, key: &str) -> Result<Self> {
        Self::log_in(address, None, Login::new(id, key)?).await
    }

    /// Connects with a certificate and no password.
    pub async fn with_certificate(address: SocketAddr, tls: &Tls, id: &str) -> Result<Self> {
        Self::log_in(address, Some(tls), Login::without_password(id)).await
    }

    /// Over a stream that is something else than a socket.
    pub async fn log_in_over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        login: Login<'_>,
    ) -> Result<Self> {
        let link = Link::over(stream, &login.connect()).await?;
        Ok(Self { id: login.id.to_owned(), link, last_packet_id: 0 })
    }

    pub async fn log_in(address: SocketAddr, tls: Option<&Tls>, login: Login<'_>) -> Result<Self> {
        let link = Link::open(address, None, tls, &login.connect()).await?;
        Ok(Self { id: login.id.to_owned(), link, last_packet_id: 0 })
    }

    /// The topic of the device's own telemetry.
    pub fn events(&self) -> String {
        format!("devices/{}/messages/events/", self.id)
    }

    /// Sends telemetry and waits for its PUBACK.
    pub async fn send(&mut self, body: &str) -> Result<()> {
        let topic = self.events();
        self.publish(&topic, body.as_bytes()).await
    }

    /// Publishes at quality 1 and waits for the PUBACK; other packets that come meanwhile are dropped.
    pub async fn publish(&mut self, topic: &str, body: &[u8]) -> Result<()> {
        self.last_packet_id += 1;
        let id = self.last_packet_id;
        codec::put_publish(&mut self.link.out, topic, Some(id), body);
        self.link.flush().await?;
        self.hear("a PUBACK", |packet| (*packet == Packet::PubAck { id }).then_some(())).await
    }

    /// Waits for the packet that `choose` takes; drops those before it.
    pub async fn hear<T>(
        &mut self,
        what: &str,
        choose: impl Fn(&Packet) -> Option<T>,
    ) -> Result<T> {
        let listen = async {
            loop {
                if let Some(chosen) = choose(&self.link.next().await?) {
                    return Ok(chosen);
                }
            }
        };
        timeout(ANSWER_TIMEOUT, listen).await.with_context(|| format!("{what} did not come"))?
    }

    pub async fn subscribe_twin(&mut self) -> Result<()> {
        self.link.subscribe(TWIN_RESPONSES, 1).await?;
        self.link.subscribe(DESIRED, 1).await
    }

    /// Reads the twin; needs [`Device::subscribe_twin`].
    pub async fn twin(&mut self) -> Result<Value> {
        let (status, body) = self.twin_request("$iothub/twin/GET/?$rid=", b"").await?;
        if status != 200 {
            bail!("the twin was answered with {status}");
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// Patches reported properties; answers with the status. Needs [`Device::subscribe_twin`].
    pub async fn report(&mut self, patch: &str) -> Result<u16> {
        let topic = "$iothub/twin/PATCH/properties/reported/?$rid=";
        Ok(self.twin_request(topic, patch.as_bytes()).await?.0)
    }

    async fn twin_request(&mut self, topic: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.last_packet_id += 1;
        let rid = self.last_packet_id;
        codec::put_publish(&mut self.link.out, &format!("{topic}{rid}"), None, body);
        self.link.flush().await?;
        let answer = |packet: &Packet| {
            let (topic, body) = published(packet)?;
            Some((twin_status(topic, rid)?, body.to_vec()))
        };
        self.hear("an answer about the twin", answer).await
    }

    /// Waits for a desired patch; answers with its version and body.
    pub async fn desired(&mut self) -> Result<(u64, Value)> {
        let patch = |packet: &Packet| {
            let (topic, body) = published(packet)?;
            let version = topic.strip_prefix("$iothub/twin/PATCH/properties/desired/?$version=")?;
            Some((version.parse().ok()?, serde_json::from_slice(body).ok()?))
        };
        self.hear("a desired patch", patch).await
    }

    pub async fn subscribe_commands(&mut self, qos: u8) -> Result<()> {
        let filter = format!("devices/{}/messages/devicebound/#", self.id);
        self.link.subscribe(&filter, qos).await
    }

    /// Waits for a command. It is not acknowledged.
    pub async fn command(&mut self) -> Result<Received> {
        let prefix = format!("devices/{}/messages/devicebound/", self.id);
        let command = |packet: &Packet| {
            let Packet::Publish { topic, id, dup, payload } = packet else { return None };
            let bag = std::str::from_utf8(topic).ok()?.strip_prefix(&prefix)?.to_owned();
            Some(Received { bag, packet_id: *id, dup: *dup, body: payload.to_vec() })
        };
        self.hear("a command", command).await
    }

    pub async fn subscribe_methods(&mut self) -> Result<()> {
        self.link.subscribe("$iothub/methods/POST/#", 1).await
    }

    /// Waits for a call; answers with its name, its request id and its payload.
    pub async fn call(&mut self) -> Result<(String, String, Value)> {
        let call = |packet: &Packet| {
            let (topic, body) = published(packet)?;
            let (name, rid) = topic.strip_prefix("$iothub/methods/POST/")?.split_once("/?$rid=")?;
            Some((name.to_owned(), rid.to_owned(), serde_json::from_slice(body).ok()?))
        };
        self.hear("a call", call).await
    }

    /// Answers a call and waits for the PUBACK.
    pub async fn answer(&mut self, rid: &str, status: i32, body: &str) -> Result<()> {
        let topic = format!("$iothub/methods/res/{status}/?$rid={rid}");
        self.publish(&topic, body.as_bytes()).await
    }

    /// Sends the PUBACK of a command.
    pub async fn complete(&mut self, received: &Received) -> Result<()> {
        let id = received.packet_id.context("nothing to acknowledge at quality 0")?;
        codec::put_puback(&mut self.link.out, id);
        Ok(self.link.flush().await?)
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.link.out.extend_from_slice(bytes);
        Ok(self.link.flush().await?)
    }

    /// Waits until the hub closes the connection; what it says before is dropped.
    pub async fn until_closed(&mut self) -> Result<()> {
        let listen = async { while self.link.next().await.is_ok() {} };
        timeout(ANSWER_TIMEOUT, listen).await.context("the hub does not close the connection")
    }
}

/// A command as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub bag: String,
    pub packet_id: Option<u16>,
    pub dup: bool,
    pub body: Vec<u8>,
}

impl Received {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Topic and payload of what a hub publishes.
fn published(packet: &Packet) -> Option<(&str, &[u8])> {
    let Packet::Publish { topic, payload, .. } = packet else { return None };
    Some((std::str::from_utf8(topic).ok()?, payload))
}

/// The status in the topic of a twin response, if it is the one to `rid`.
fn twin_status(topic: &str, rid: u16) -> Option<u16> {
    let (status, query) = topic.strip_prefix("$iothub/twin/res/")?.split_once("/?")?;
    let is_ours = query.split('&').any(|item| item == format!("$rid={rid}"));
    is_ours.then(|| status.parse().ok()).flatten()
}

/// Says `begun` and nothing more, and waits until the hub closes the connection.
pub async fn until_closed(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    begun: &[u8],
) -> Result<()> {
    stream.write_all(begun).await?;
    stream.flush().await?;
    // However it ends, it has ended.
    let ended = timeout(ANSWER_TIMEOUT, stream.read_to_end(&mut Vec::new())).await;
    ended.map(drop).context("the hub does not close the connection")
}

/// A page; an error if the status is not 200.
pub async fn http_get(address: SocketAddr, path: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        anyhow::Ok(response)
    };
    let response = timeout(ANSWER_TIMEOUT, exchange).await.context("no answer")??;
    let (head, body) = response.split_once("\r\n\r\n").context("not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{} {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
