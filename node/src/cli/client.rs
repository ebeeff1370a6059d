//! How commands reach the API: where it is, whom to trust, which key to sign with.
//!
//! Everything is in three options, which also come from the environment. Without them a command uses the folder of
//! `drover dev`, where the connection string of an administrator and the CA lie, so that on a developer's machine
//! nothing needs to be said.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use drover_core::device::Key;
use drover_proto::admin::authorities_client::AuthoritiesClient;
use drover_proto::admin::backups_client::BackupsClient;
use drover_proto::admin::cluster_client::ClusterClient;
use drover_proto::admin::commands_client::CommandsClient;
use drover_proto::admin::devices_client::DevicesClient;
use drover_proto::admin::members_client::MembersClient;
use drover_proto::admin::messages_client::MessagesClient;
use drover_proto::admin::methods_client::MethodsClient;
use drover_proto::admin::modules_client::ModulesClient;
use drover_proto::admin::twins_client::TwinsClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::Failure;
use super::output::Form;
use crate::clock;
use crate::identity::connection_string::{ConnectionString, Subject};
use crate::identity::policy_token;

/// Where the API listens unless something else is said.
const PORT_DEFAULT: u16 = 7443;
/// Tokens are made for one call, which may follow a stream for long.
const TOKEN_LIFE_S: u64 = 24 * 60 * 60;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages of messages with bodies can be large.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Options of every command that asks a hub.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct HubArguments {
    /// Connection string of an access policy: HostName=…;SharedAccessKeyName=…;SharedAccessKey=…
    #[arg(
        long,
        env = "DROVER_CONNECTION_STRING",
        hide_env_values = true,
        value_name = "TEXT",
        global = true
    )]
    connection_string: Option<String>,
    /// Where the API is, if not at the host name of the connection string, such as <https://hub.example:7443>
    #[arg(long, env = "DROVER_ENDPOINT", value_name = "URL", global = true)]
    endpoint: Option<String>,
    /// Certificate authority of the hub, as a PEM file.
    #[arg(long, env = "DROVER_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// Folder with admin.connection and ca.pem, as `drover dev` makes it; the default is where it makes it.
    #[arg(long, env = "DROVER_PROFILE", value_name = "FOLDER", global = true)]
    profile: Option<PathBuf>,
    /// Give up when there is no answer after this time.
    #[arg(long, env = "DROVER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration, global = true)]
    timeout: Duration,
    /// Print JSON, one object a line, instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

/// Adds what proves who is calling to each call.
#[derive(Clone)]
pub(crate) enum Credential {
    /// A token of a policy, made anew for each call.
    Policy {
        host: String,
        policy: String,
        key: Key,
    },
    Bootstrap {
        token: String,
    },
}

impl Credential {
    fn authorization(&self) -> String {
        match self {
            Self::Policy { host, policy, key } => {
                let expires_s = clock::unix_ms() / 1_000 + TOKEN_LIFE_S;
                policy_token(host, policy, key, expires_s)
            }
            Self::Bootstrap { token } => format!("Bearer {token}"),
        }
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let mut authorization: MetadataValue<Ascii> = self
            .authorization()
            .parse()
            .map_err(|_| Status::invalid_argument("the credential is not plain ASCII text"))?;
        authorization.set_sensitive(true);
        request.metadata_mut().insert("authorization", authorization);
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Credential>;

/// A connection to the API of a hub; it is made when the first call is.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    credential: Credential,
    timeout: Duration,
}

impl Client {
    pub(crate) fn devices(&self) -> DevicesClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        DevicesClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn modules(&self) -> ModulesClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        ModulesClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn twins(&self) -> TwinsClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        TwinsClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn messages(&self) -> MessagesClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        MessagesClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn commands(&self) -> CommandsClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        CommandsClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn authorities(&self) -> AuthoritiesClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        AuthoritiesClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn methods(&self) -> MethodsClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        MethodsClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn members(&self) -> MembersClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        MembersClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn backups(&self) -> BackupsClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        BackupsClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Authorized> {
        let (channel, credential) = (self.channel.clone(), self.credential.clone());
        ClusterClient::with_interceptor(channel, credential)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A request with a deadline. Streams have none, because they may be followed for ever.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

impl HubArguments {
    pub(crate) fn form(&self) -> Form {
        if self.json { Form::Json } else { Form::People }
    }

    /// The client of an access policy. Must be called within a tokio runtime.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let connection = self.connection_string()?;
        let Subject::Policy(policy) = &connection.subject else {
            return Err(Failure::Usage(
                "this is a device's connection string: use one with SharedAccessKeyName".to_owned(),
            ));
        };
        let host = connection.host_name.clone();
        let endpoint = self.endpoint.clone().unwrap_or_else(|| endpoint_of(&host));
        let (policy, key) = (policy.clone(), connection.key.clone());
        self.connect(&endpoint, Credential::Policy { host, policy, key })
    }

    /// The client of a node's owner, for a hub that has no policies yet.
    pub(crate) fn bootstrap_client(&self, token: &str) -> Result<Client, Failure> {
        let endpoint = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://localhost:{PORT_DEFAULT}"),
        };
        self.connect(&endpoint, Credential::Bootstrap { token: token.to_owned() })
    }

    /// The name that devices know the hub by.
    pub(crate) fn host_name(&self) -> Result<String, Failure> {
        let host = self.connection_string()?.host_name;
        Ok(host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).to_owned())
    }

    fn connection_string(&self) -> Result<ConnectionString, Failure> {
        let text = match &self.connection_string {
            Some(text) => text.clone(),
            None => self.saved_connection_string()?,
        };
        let parsed = text.trim().parse();
        parsed.map_err(|problem| {
            Failure::Usage(format!("the connection string is not valid: {problem}"))
        })
    }

    fn saved_connection_string(&self) -> Result<String, Failure> {
        let file = self.profile().map(|folder| folder.join("admin.connection"));
        file.and_then(|file| std::fs::read_to_string(file).ok()).ok_or_else(|| {
            Failure::Usage(
                "which hub? Start one with `drover dev`, or give --connection-string or \
                 DROVER_CONNECTION_STRING (HostName=…;SharedAccessKeyName=…;SharedAccessKey=…)"
                    .to_owned(),
            )
        })
    }

    fn profile(&self) -> Option<PathBuf> {
        self.profile.clone().or_else(usual_profile)
    }

    /// The CA that was named; the profile's, if the connection string is the profile's, too; else none.
    fn ca_file(&self) -> Option<PathBuf> {
        let saved =
            || self.profile().map(|folder| folder.join("ca.pem")).filter(|file| file.exists());
        self.ca.clone().or_else(saved)
    }

    fn connect(&self, endpoint: &str, credential: Credential) -> Result<Client, Failure> {
        let usage = |problem: &dyn std::fmt::Display| {
            Failure::Usage(format!("cannot use the endpoint {endpoint}: {problem}"))
        };
        let mut to = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| usage(&error))?;
        to = to.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        if endpoint.starts_with("https://") {
            let mut tls = ClientTlsConfig::new();
            if let Some(file) = self.ca_file() {
                let pem = std::fs::read(&file).map_err(|error| {
                    Failure::Usage(format!("cannot read the CA {}: {error}", file.display()))
                })?;
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
            to = to.tls_config(tls).map_err(|error| usage(&error))?;
        }
        Ok(Client { channel: to.connect_lazy(), credential, timeout: self.timeout })
    }
}

/// The name of a hub as the address of its API.
fn endpoint_of(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => format!("https://{host}"),
        _ => format!("https://{host}:{PORT_DEFAULT}"),
    }
}

/// Where `drover dev` keeps its hub.
fn usual_profile() -> Option<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share"));
    Some(data.or_else(home)?.join("drover-dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_an_endpoint_at_the_usual_port_unless_it_has_one() {
        assert_eq!(endpoint_of("hub.example"), "https://hub.example:7443");
        assert_eq!(endpoint_of("localhost:7453"), "https://localhost:7453");
    }
}
