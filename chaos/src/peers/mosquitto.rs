//! mosquitto with its persistence on: one process, one disk, written every half hour by its default.

use std::fs;

use tempfile::TempDir;
use tokio::process::Command;

use super::{Peer, START_TIMEOUT, until_ok};
use crate::fleet::Fleet;
use crate::ports;
use crate::process::Process;

const PROGRAM: &str = "/usr/sbin/mosquitto";

pub async fn start() -> anyhow::Result<Peer> {
    let folder = TempDir::new()?;
    let address = ports::free()?;
    let config = folder.path().join("mosquitto.conf");
    // As root it would change to a user who may not write here.
    let text = format!(
        "user root\nlistener {} 127.0.0.1\nallow_anonymous true\npersistence true\n\
         persistence_location {}/\nlog_dest none\n",
        address.port(),
        folder.path().display()
    );
    fs::write(&config, text)?;
    let mut command = Command::new(PROGRAM);
    let process =
        Process::start("mosquitto", command.arg("-c").arg(&config), &folder.path().join("log"))?;
    let peer = Peer { addresses: vec![address], processes: vec![process], _folder: folder };
    let fleet = Fleet::broker(peer.addresses.clone());
    until_ok("mosquitto accepts a device", START_TIMEOUT, async || fleet.connect(0).await).await?;
    Ok(peer)
}
