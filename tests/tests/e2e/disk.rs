//! A full disk refuses writes and recovers; a damaged one is noticed and never served (P7, P8).

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drover_chaos::disk::{self, Behaviour, Disk, Writes};
use drover_proto::admin::GetStatusRequest;
use drover_tests::clients::{Admin, Device};
use drover_tests::nodes::Nodes;
use drover_tests::{until, until_ok};
use serde_json::json;
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
async fn on_a_file_system_that_is_really_full_nothing_acknowledged_is_lost() -> Result<()> {
    let settings = [("storage.reserve", "32MiB"), ("storage.memtables", "8MiB")];
    let Some(nodes) = Nodes::start_on_a_small_disk("192m", &settings).await? else {
        eprintln!("NOT CHECKED: this user may not mount a file system, not even in a namespace");
        return Ok(());
    };
    let admin = nodes.admin(0)?;
    let key = admin.create_device("logger").await?;
    Device::connect(nodes.mqtt(0), "logger", &key).await?.send("before").await?;

    let filler = nodes.store(0)?.join("filler");
    fill_up(&filler)?;
    let refused = until(
        "a write to be refused for want of room",
        async || admin.patch_desired("logger", &json!({ "level": 1 })).await.err(),
        |refused| refused.as_ref().is_some_and(|status| status.code() == Code::ResourceExhausted),
    );
    let refused = refused.await.context("it was refused")?;
    assert!(refused.message().contains("make room"), "{refused:?}");
    assert_eq!(admin.messages_of("logger").await?.len(), 1, "reads go on");

    fs::remove_file(&filler)?;
    let address = nodes.mqtt(0);
    until_ok("writes to go on", async || {
        Device::connect(address, "logger", &key).await?.send("after").await
    })
    .await;
    let bodies = bodies(&admin.messages_of("logger").await?);
    assert_eq!(bodies.first().map(Vec::as_slice), Some(b"before".as_slice()));
    assert_eq!(bodies.last().map(Vec::as_slice), Some(b"after".as_slice()));
    Ok(())
}

/// Takes all room of a file system but the last two megabytes.
fn fill_up(filler: &Path) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let mut file = fs::File::create(filler)?;
    let block = vec![0; BLOCK];
    let mut length: u64 = 0;
    while file.write_all(&block).is_ok() {
        length += BLOCK as u64;
    }
    Ok(file.set_len(length.saturating_sub(2 * BLOCK as u64))?)
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
async fn a_flipped_bit_in_a_table_stops_that_replica_reports_it_and_is_never_served() -> Result<()>
{
    let mut nodes = Nodes::start(3).await?;
    let admin = nodes.admin(1)?;
    let key = admin.create_device("logger").await?;
    let mut device = Device::connect(nodes.mqtt(1), "logger", &key).await?;
    // What compression cannot shorten stands in the files as it was sent.
    let sent: Vec<Vec<u8>> = (0..200).map(|_| rand::random::<[u8; 200]>().to_vec()).collect();
    let topic = device.events();
    for body in &sent {
        device.publish(&topic, body).await?;
    }
    let shard = admin.messages_of("logger").await?[0].shard;
    // An orderly stop and start moves what is in the log into tables. They rot while the node runs: where a start or a
    // compaction finds the damage first, all of the node ends, as with a damaged log.
    nodes.stop(0)?;
    nodes.restart(0)?;
    nodes.until_ready().await;
    let damaged = flip_a_bit_of(&sent[100], &nodes.data(0), "sst")?;
    assert!(damaged > 0, "the message is in a table");

    // Whoever reads the stream at that node finds the damage out, and is answered by the others.
    let reader = nodes.admin(0)?;
    until(
        "that replica of node 1, and no other, to be reported as stopped",
        async || {
            let served = reader.messages_of("logger").await.unwrap_or_default();
            assert!(sent.starts_with(&bodies(&served)), "what is served is what was sent");
            stopped_replicas(&admin).await
        },
        |stopped| stopped.as_ref().is_ok_and(|stopped| *stopped == [(Some(shard), 1)]),
    )
    .await?;
    until(
        "the others to answer for it",
        async || reader.messages_of("logger").await.map(|served| served.len()),
        |served| matches!(served, Ok(count) if *count == sent.len()),
    )
    .await?;
    let metrics = nodes.get(0, "/metrics").await?;
    assert!(metrics.contains("drover_raft_groups_stopped_total 1"), "{metrics}");
    let not_ready = nodes.get(0, "/readyz").await.expect_err("it cannot serve all that it should");
    assert!(not_ready.to_string().contains(&format!("shard {shard} is stopped")), "{not_ready}");

    for number in 0..8 {
        let id = format!("neighbour-{number}");
        let key = reader.create_device(&id).await?;
        Device::connect(nodes.mqtt(0), &id, &key).await?.send("the other shards go on").await?;
    }
    device.send("so does this one, on two of three replicas").await?;
    Ok(())
}

#[tokio::test]
async fn a_node_whose_file_system_turns_read_only_ends_the_others_serve_and_it_comes_back()
-> Result<()> {
    if let Some(reason) = disk::obstacle() {
        eprintln!("NOT CHECKED: no disk can be mounted: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let [mountpoint, backing] = ["disk", "backing"].map(|name| folder.path().join(name));
    fs::create_dir(&mountpoint)?;
    fs::create_dir(&backing)?;
    // Before the nodes, so that it is unmounted after they have ended.
    let disk = Disk::mount(&mountpoint, &backing)?;
    let mut nodes = Nodes::start_with_last_data(3, &mountpoint.join("data")).await?;
    let key = nodes.admin(0)?.create_device("logger").await?;
    let mut device = Device::connect(nodes.mqtt(0), "logger", &key).await?;
    device.send("before").await?;

    disk.behave(Behaviour { writes: Writes::ReadOnly, ..Behaviour::default() });
    let address = nodes.mqtt(1);
    until_ok("the others to serve", async || {
        Device::connect(address, "logger", &key).await?.send("meanwhile").await
    })
    .await;
    assert_eq!(nodes.wait_for_end(2)?, Some(STORAGE_FAILED), "{}", nodes.log(2));
    assert!(nodes.log(2).contains("Read-only file system"), "{}", nodes.log(2));

    disk.behave(Behaviour::default());
    nodes.restart(2)?;
    nodes.until_ready().await;
    let sent = bodies(&nodes.admin(2)?.messages_of("logger").await?);
    assert_eq!(sent.first().map(Vec::as_slice), Some(b"before".as_slice()));
    assert_eq!(sent.last().map(Vec::as_slice), Some(b"meanwhile".as_slice()));
    Ok(())
}

/// Shard and node of each replica that its node has stopped.
async fn stopped_replicas(admin: &Admin) -> Result<Vec<(Option<u32>, u32)>, tonic::Status> {
    let status = admin.cluster.clone().get_status(GetStatusRequest {}).await?.into_inner();
    let replicas = status.shards.iter().flat_map(|shard| {
        shard.replicas.iter().map(|replica| (shard.shard, replica.node, replica.problem.as_str()))
    });
    Ok(replicas
        .filter(|(_, _, problem)| *problem == "stopped")
        .map(|(shard, node, _)| (shard, node))
        .collect())
}

fn bodies(messages: &[drover_proto::admin::Message]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| message.body.clone()).collect()
}

/// Flips a bit wherever `content` stands in the files with this ending; says in how many.
fn flip_a_bit_of(content: &[u8], folder: &Path, ending: &str) -> Result<usize> {
    let mut damaged = 0;
    for file in files(folder, ending)? {
        let bytes = fs::read(&file)?;
        let Some(place) = bytes.windows(content.len()).position(|window| window == content) else {
            continue;
        };
        // In place: the node has the file open.
        let flipped = [bytes[place] ^ 0b0001_0000];
        fs::OpenOptions::new().write(true).open(file)?.write_all_at(&flipped, place as u64)?;
        damaged += 1;
    }
    Ok(damaged)
}

/// The largest file below a folder with this ending: the one that holds the data.
fn largest(folder: &Path, ending: &str) -> Result<PathBuf> {
    let files = files(folder, ending)?;
    let length = |path: &PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
    let largest = files.into_iter().max_by_key(length);
    largest.with_context(|| format!("no .{ending} file below {}", folder.display()))
}

/// All files below a folder with this ending.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn flip_a_bit_in_the_middle(file: &Path) -> Result<()> {
    let mut bytes = fs::read(file)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("the file is empty")? ^= 0b0001_0000;
    Ok(fs::write(file, bytes)?)
}
