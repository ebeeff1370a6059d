//! `drover dev`: a hub on this machine that needs nothing else.
//!
//! The first start makes a CA, certificates, keys and a first device; the next ones find them. One node runs in this
//! process; three or five run as child processes, so that a node can be killed and the others seen to go on.

mod children;
mod files;
mod first_device;
mod layout;
mod welcome;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::first_device::{DEVICE, NewHub};
use self::layout::Layout;
use super::Failure;
use crate::config::{Listen, Log, LogFormat};
use crate::demo::{self, Thermometer};
use crate::identity::connection_string::{ConnectionString, Subject};
use crate::{observe, run};

/// The demo is a device of its own: a person who pastes the lines of the first device does not end its connection.
const THERMOMETER: &str = "thermometer-1";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How many nodes: 1 in this process, 3 or 5 as processes of their own.
    #[arg(long, value_name = "1|3|5", default_value_t = 1, value_parser = count)]
    nodes: u16,
    /// Connect a simulated thermometer that replays recorded temperatures.
    #[arg(long)]
    demo: bool,
    /// Where everything is kept [default: drover-dev in the user's data folder].
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Delete what an earlier start has left there, data included.
    #[arg(long)]
    fresh: bool,
    /// Use consecutive ports from this one on (five a node) instead of the usual ones.
    #[arg(long, value_name = "PORT")]
    ports: Option<u16>,
    /// Write certificates and configurations, and start nothing.
    #[arg(long)]
    prepare: bool,
    /// How many shards a new hub gets.
    #[arg(long, default_value_t = 16)]
    shards: u32,
    /// What the nodes log.
    #[arg(long, default_value = "warn,openraft=error,rumqttd=off", value_name = "FILTER")]
    log_filter: String,
}

pub(super) fn call(arguments: Arguments) -> Result<(), Failure> {
    let log = Log { format: LogFormat::Text, filter: arguments.log_filter.clone() };
    observe::start_logging(&log).map_err(Failure::Usage)?;
    let folder = match &arguments.data {
        Some(folder) => folder.clone(),
        None => usual_folder()?,
    };
    if arguments.fresh {
        delete(&folder)?;
    }
    let layout = Layout::open(&folder, arguments.nodes, arguments.ports, &log)?;
    if arguments.prepare {
        return Ok(());
    }
    run::block_on(|stop| serve(layout, arguments, stop))
}

/// A node more than these would be one more that can fail, and no more failures would be survived.
fn count(text: &str) -> Result<u16, String> {
    let count = text.parse().ok().filter(|count| [1, 3, 5].contains(count));
    count.ok_or_else(|| "1, 3 or 5 nodes are possible".to_owned())
}

/// `$XDG_DATA_HOME/drover-dev`, or what the standard says if that is not set.
fn usual_folder() -> Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share"));
    let data = data.or_else(home).context("there is no HOME: name a folder with --data")?;
    Ok(data.join("drover-dev"))
}

/// Only a folder that `drover dev` has made is deleted.
fn delete(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.join("ca.pem").exists() {
        bail!("{} was not made by drover dev: it is not deleted", folder.display());
    }
    std::fs::remove_dir_all(folder).with_context(|| format!("cannot delete {}", folder.display()))
}

/// Runs the nodes and, once they serve, the demo. Whatever ends first ends the others.
async fn serve(
    layout: Layout,
    arguments: Arguments,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
    if let [only] = layout.nodes.as_slice() {
        parts.spawn(run_here(only.config.clone(), stop.clone()));
    } else {
        for node in layout.nodes.clone() {
            let stop = stop.clone();
            parts.spawn(async move { Ok(children::keep_running(node, stop).await?) });
        }
    }
    let greeting = async {
        let greeted = greet(layout, arguments, stop.clone()).await;
        if greeted.is_err() {
            stop.cancel();
        }
        greeted
    };
    let (ended, greeted) = tokio::join!(all(parts, stop.clone()), greeting);
    ended.and(greeted)
}

/// Waits for all parts; the first that fails stops the others.
async fn all(
    mut parts: JoinSet<Result<(), Failure>>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let mut ended = Ok(());
    while let Some(part) = parts.join_next().await {
        let part =
            part.map_err(|error| Failure::Failed(format!("a part of the hub broke: {error}")));
        if let Err(failure) = part.and_then(|part| part) {
            stop.cancel();
            ended = ended.and(Err(failure));
        }
    }
    ended
}

async fn run_here(config: crate::config::Config, stop: CancellationToken) -> Result<(), Failure> {
    // A hang-up of the terminal ends a development hub, as it ends any program: nothing asks for a reload.
    Ok(run::until(config, stop, &Notify::new()).await?)
}

async fn greet(
    layout: Layout,
    arguments: Arguments,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let set_up = async {
        let hub = NewHub::set_up(&layout, arguments.shards).await?;
        let device = hub.device(&layout, DEVICE).await?;
        let thermometer = if arguments.demo {
            Some(thermometer(&layout, hub.device(&layout, THERMOMETER).await?)?)
        } else {
            None
        };
        anyhow::Ok((device, thermometer))
    };
    let Some(set_up) = stop.run_until_cancelled(set_up).await else { return Ok(()) };
    let (device, thermometer) = set_up?;
    welcome::print(&layout, &device)?;
    if let Some(thermometer) = thermometer {
        demo::replay(thermometer, stop).await;
    }
    Ok(())
}

fn thermometer(layout: &Layout, connection: ConnectionString) -> Result<Thermometer> {
    let Subject::Device(device) = connection.subject else {
        bail!("the thermometer needs a device's connection string");
    };
    let addresses = layout.nodes.iter().filter_map(|node| match node.config.listen.mqtts {
        Listen::At(address) => Some(address),
        Listen::Off => None,
    });
    Ok(Thermometer {
        device,
        key: connection.key,
        host_name: connection.host_name,
        addresses: addresses.collect(),
        tls: demo::tls(files::read(&layout.ca())?.as_bytes())?,
    })
}
