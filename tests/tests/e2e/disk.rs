//! A full disk refuses writes and recovers; a damaged one is noticed and never served (P7, P8).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drover_tests::clients::Device;
use drover_tests::nodes::Nodes;
use drover_tests::{until, until_ok};
use tonic::Code;

/// What a node ends with when its store cannot be trusted (`docs/operations.md`).
const STORAGE_FAILED: i32 = 11;
/// More than any disk has free.
const WHOLE_WORLD: &str = "1000TiB";

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_reads_and_recovers_when_there_is_room() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("logger").await?;
    Device::connect(nodes.mqtt(0), "logger", &key).await?.send("before").await?;

    nodes.stop(0)?;
    nodes.set(0, "storage.reserve", WHOLE_WORLD);
    nodes.restart(0)?;
    let admin = nodes.admin(0)?;
    let refused = until(
        "a write to be refused for want of room",
        async || {
            admin
                .create_device("one-more")
                .await
                .err()
                .and_then(|error| error.downcast::<tonic::Status>().ok())
        },
        |refused| refused.as_ref().is_some_and(|status| status.code() == Code::ResourceExhausted),
    )
    .await
    .context("it was refused")?;
    assert!(refused.message().contains("make room"), "{refused:?}");
    assert_eq!(admin.messages_of("logger").await?.len(), 1, "reads go on");

    nodes.stop(0)?;
    nodes.set(0, "storage.reserve", "1MiB");
    nodes.restart(0)?;
    let address = nodes.mqtt(0);
    until_ok("writes to go on", async || {
        Device::connect(address, "logger", &key).await?.send("after").await
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_noticed_and_the_others_serve() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("logger").await?;
    let mut device = Device::connect(nodes.mqtt(1), "logger", &key).await?;
    for number in 0..200 {
        device.send(&format!("{number} {}", "x".repeat(200))).await?;
    }
    nodes.kill(0)?;
    let log = largest(&nodes.data(0), "log")?;
    flip_a_bit_in_the_middle(&log)?;
    nodes.restart(0)?;
    assert_eq!(nodes.wait_for_end(0)?, Some(STORAGE_FAILED), "{}", nodes.log(0));
    assert!(nodes.log(0).to_lowercase().contains("corrupt"), "{}", nodes.log(0));
    assert_eq!(nodes.admin(1)?.messages_of("logger").await?.len(), 200, "two of three serve");
    Ok(())
}

#[tokio::test]
async fn a_flipped_bit_in_a_table_is_never_served() -> Result<()> {
    let mut nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("logger").await?;
    let mut device = Device::connect(nodes.mqtt(1), "logger", &key).await?;
    let sent: Vec<String> =
        (0..200).map(|number| format!("{number} {}", "x".repeat(200))).collect();
    for body in &sent {
        device.send(body).await?;
    }
    // An orderly stop and start moves what is in the log into tables.
    nodes.stop(0)?;
    nodes.restart(0)?;
    nodes.until_ready().await;
    nodes.kill(0)?;
    flip_a_bit_in_the_middle(&largest(&nodes.data(0), "sst")?)?;
    nodes.restart(0)?;
    // Whichever node is asked: the whole truth or an error, and the others have the whole truth.
    if let Ok(served) = nodes.admin(0)?.messages_of("logger").await {
        assert_eq!(bodies(&served), sent);
    }
    let admin = nodes.admin(1)?;
    let served = until_ok("the others to serve", async || admin.messages_of("logger").await).await;
    assert_eq!(bodies(&served), sent);
    Ok(())
}

fn bodies(messages: &[drover_proto::admin::Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

/// The largest file below a folder with this ending: the one that holds the data.
fn largest(folder: &Path, ending: &str) -> Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let mut found: Option<(u64, PathBuf)> = None;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, length) = (entry.path(), entry.metadata()?.len());
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending)
                && found.as_ref().is_none_or(|(longest, _)| length > *longest)
            {
                found = Some((length, path));
            }
        }
    }
    found
        .map(|(_, path)| path)
        .with_context(|| format!("no .{ending} file below {}", folder.display()))
}

fn flip_a_bit_in_the_middle(file: &Path) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("the file is empty")? ^= 0b0001_0000;
    Ok(fs::write(file, bytes)?)
}
