//! `drover node`: one node of a cluster, until it is told to stop.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::Failure;
use crate::config::{LogFormat, Sources};
use crate::{observe, run};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration (TOML). Without it: defaults, environment and flags.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of this node (node.number).
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
    run::block_on(|stop| async move {
        if arguments.stop_at_end_of_input {
            run::stop_at_end_of_input(stop.clone());
        }
        let reload = run::notify_on_hangup()?;
        Ok(run::until(config, stop, &reload).await?)
    })
}
