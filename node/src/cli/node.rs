//! `drover node`: one node of a cluster, until it is told to stop.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Failure, files};
use crate::config::{Config, LogFormat, Sources};
use crate::join::ask;
use crate::join::identity::Identity;
use crate::{observe, run};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration (TOML). Without it: defaults, environment and flags.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of this node (node.number). With --join: the number that it wants, instead of the next free one.
    #[arg(long, value_name = "NUMBER")]
    number: Option<u32>,
    /// Folder of everything that the node stores (node.data).
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Where devices connect by MQTT over TLS (listen.mqtts).
    #[arg(long, value_name = "ADDRESS")]
    listen_mqtts: Option<String>,
    /// Where devices connect by MQTT without TLS, or off (listen.mqtt).
    #[arg(long, value_name = "ADDRESS")]
    listen_mqtt: Option<String>,
    /// Where the admin API listens (listen.grpc).
    #[arg(long, value_name = "ADDRESS")]
    listen_grpc: Option<String>,
    /// Where metrics and health are served, or off (listen.http).
    #[arg(long, value_name = "ADDRESS")]
    listen_http: Option<String>,
    /// Where other nodes connect (listen.peer).
    #[arg(long, value_name = "ADDRESS")]
    listen_peer: Option<String>,
    /// CA whose client certificates open the admin API (`tls.client_ca`).
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// How the log is written (log.format).
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged (log.filter).
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Join a running cluster with this token, made by drover cluster join-token; - reads it from standard input. A node
    /// that has joined does not use it again.
    #[arg(long, value_name = "TOKEN", env = "DROVER_JOIN_TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// Where other nodes reach this one, when it joins (`node.peer_address`).
    #[arg(long, value_name = "ADDRESS")]
    peer_address: Option<String>,
    /// Where its admin API is reached, when it joins (`node.admin_address`).
    #[arg(long, value_name = "ADDRESS")]
    admin_address: Option<String>,
    /// What fails together with this node (node.zone).
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Stop when the standard input ends, so that a node ends with the program that started it.
    #[arg(long)]
    stop_at_end_of_input: bool,
}

impl Arguments {
    fn sources(&self) -> Sources {
        let format = self.log_format.map(|format| match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        });
        let path = |path: &Option<PathBuf>| Some(Value::from(path.as_ref()?.to_string_lossy()));
        let flags = [
            ("node.number", self.number.map(Value::from)),
            ("node.data", path(&self.data)),
            ("node.zone", self.zone.clone().map(Value::from)),
            ("node.peer_address", self.peer_address.clone().map(Value::from)),
            ("node.admin_address", self.admin_address.clone().map(Value::from)),
            ("listen.mqtts", self.listen_mqtts.clone().map(Value::from)),
            ("listen.mqtt", self.listen_mqtt.clone().map(Value::from)),
            ("listen.grpc", self.listen_grpc.clone().map(Value::from)),
            ("listen.http", self.listen_http.clone().map(Value::from)),
            ("listen.peer", self.listen_peer.clone().map(Value::from)),
            ("tls.client_ca", path(&self.client_ca)),
            ("log.format", format.map(Value::from)),
            ("log.filter", self.log_filter.clone().map(Value::from)),
        ];
        let given = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Sources { file: self.config.clone(), flags: given.collect() }
    }
}

pub(super) fn call(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.sources().load()?;
    observe::start_logging(&config.log).map_err(Failure::Usage)?;
    let token = arguments.join.as_deref().map(token).transpose()?;
    run::block_on(|stop| async move {
        let config = member(config, token, arguments.number, &stop).await?;
        if arguments.stop_at_end_of_input {
            run::stop_at_end_of_input(stop.clone());
        }
        let reload = run::notify_on_hangup()?;
        Ok(run::until(config, stop, &reload).await?)
    })
}

fn token(given: &str) -> Result<String, Failure> {
    if given == "-" { files::read_text(given) } else { Ok(given.to_owned()) }
}

/// The configuration of the member that this node is, after it has become one if it is asked to.
pub(super) async fn member(
    config: Config,
    token: Option<String>,
    number: Option<u32>,
    stop: &CancellationToken,
) -> Result<Config, Failure> {
    let identity = Identity::of(&config);
    match token {
        Some(token) => tokio::select! {
            () = stop.cancelled() => Err(Failure::Failed("stopped before it had joined".to_owned())),
            joined = ask::join(config, &token, number) => Ok(joined?),
        },
        None if identity.is_complete() => Ok(identity.apply(config)?),
        None => Ok(config),
    }
}
