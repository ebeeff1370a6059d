//! A node that may hold few files open takes as many devices as fit, and serves everybody else (N-20).

use anyhow::Result;
use drover_chaos::process;
use drover_tests::clients::Device;
use drover_tests::nodes::Nodes;
use drover_tests::until_ok;
use tokio::net::TcpStream;

/// What the system lets the node hold open: room for some dozens of devices beside its store.
const FILES: u32 = 868;
/// More than that, from strangers who say nothing.
const STRANGERS: usize = 900;
/// To hold the other ends.
const OWN_FILES: u32 = 524_288;

#[tokio::test]
async fn whoever_finds_no_file_left_is_turned_away_and_everybody_else_is_served() -> Result<()> {
    process::raise_file_limit(OWN_FILES).await?;
    let nodes = Nodes::start_with_few_files(FILES).await?;
    assert!(nodes.log(0).contains("too few files"), "{}", nodes.log(0));
    let key = nodes.admin(0)?.create_device("pump").await?;
    let mut pump = Device::connect(nodes.mqtt(0), "pump", &key).await?;

    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        strangers.push(TcpStream::connect(nodes.mqtt(0)).await?);
    }
    pump.send("who is connected is served").await?;
    let meter_key = nodes.admin(0)?.create_device("meter").await?;
    nodes.get(0, "/readyz").await?;
    assert!(!nodes.log(0).contains("could not be accepted"), "{}", nodes.log(0));

    drop(strangers);
    let address = nodes.mqtt(0);
    until_ok("a place to be free again", async || {
        Device::connect(address, "meter", &meter_key).await?.send("there is room").await
    })
    .await;
    Ok(())
}
