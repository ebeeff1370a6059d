//! A stop waits for what is under way, not for clients that say nothing.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use drover_chaos::mqtt::link::Tls;
use drover_tests::clients::{Device, HOST};
use drover_tests::nodes::Nodes;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Shorter than what a silent client is given while the node runs: 10 s for its handshake.
const PROMPT: Duration = Duration::from_secs(8);

#[tokio::test]
async fn clients_that_say_nothing_do_not_hold_up_a_stop() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let tls = Tls::new(&fs::read(nodes.ca())?, HOST)?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("pump").await?;
    let device = Device::connect(nodes.mqtt(0), "pump", &key).await?;
    let mut mute = Vec::new();
    for address in [nodes.mqtts(0), nodes.https(0), nodes.grpc(0)] {
        mute.push((TcpStream::connect(address).await?, tls.connect(address).await?));
    }

    // This thread waits for the end: none of these clients answers anything meanwhile.
    let begun = Instant::now();
    assert_eq!(nodes.stop(0)?, Some(0), "{}", nodes.log(0));
    let took = begun.elapsed();
    assert!(took < PROMPT, "{took:?}");
    assert!(!nodes.log(0).contains("did not end in time"), "{}", nodes.log(0));
    drop((admin, device, mute));
    Ok(())
}
