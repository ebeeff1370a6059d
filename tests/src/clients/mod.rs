//! A device over MQTT, a back end over gRPC, and what they share.

mod admin;
mod device;
mod json;

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

pub use admin::Admin;
pub use device::{Device, Login, Received};
pub use json::{json_struct, number};

/// The name that the nodes' certificate carries.
pub const HOST: &str = "localhost";
/// How long a hub has to answer anything.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The device and, of `device/module`, the module; empty for a device itself.
fn names(id: &str) -> (String, String) {
    let (device, module) = id.split_once('/').unwrap_or((id, ""));
    (device.to_owned(), module.to_owned())
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
