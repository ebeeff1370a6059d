//! A copy of a running cluster becomes a cluster of another size, and a copy that is not whole becomes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use drover_proto::admin::{
    ClusterStatus, CommitCursorRequest, GetAuthorityRequest, GetDeviceRequest, GetStatusRequest,
    ListCursorsRequest, Message, Twin,
};
use drover_tests::certificates::Authority;
use drover_tests::clients::{Admin, Device};
use drover_tests::nodes::{Nodes, mounting, program};
use drover_tests::programs::{self, Beside};
use drover_tests::{until, until_ok};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;

/// The exit code of a command that finds things otherwise than it expects.
const NOT_AS_EXPECTED: i32 = 6;

/// What has to be the same after the restore.
struct Before {
    admin_key: String,
    pump_key: String,
    meter_key: String,
    messages: Vec<Message>,
    twin: Twin,
}

/// A device that sends without a pause, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<Result<()>>,
}

impl Load {
    async fn start(nodes: &Nodes, key: &str) -> Result<Self> {
        let mut device = Device::connect(nodes.mqtt(2), "meter", key).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sending = tokio::spawn(async move {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                device.send(&format!("reading {number}")).await?;
            }
            Ok(())
        });
        Ok(Self { stop, sending })
    }

    async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await?
    }
}

/// Fills a cluster with one of each kind.
async fn fill(nodes: &Nodes) -> Result<(String, String)> {
    let admin = nodes.admin(0)?;
    let (pump_key, meter_key) =
        (admin.create_device("pump").await?, admin.create_device("meter").await?);
    admin.patch_desired("pump", &json!({ "speed": 7, "mode": { "night": true } })).await?;
    let mut pump = Device::connect(nodes.mqtt(0), "pump", &pump_key).await?;
    pump.subscribe_twin().await?;
    ensure!(pump.report(r#"{"speed":6}"#).await? == 204, "it was not taken");
    for number in 0..50 {
        pump.send(&format!("before {number}")).await?;
    }
    drop(pump);
    for id in ["first", "second"] {
        admin.send_command("pump", id).await?;
    }
    admin.register_authority("factory", &Authority::new("factory")?).await?;
    let shard = shard_of(&admin, "pump").await?;
    let request =
        CommitCursorRequest { shard, consumer_group: "billing".to_owned(), next_offset: 9 };
    admin.messages.clone().commit_cursor(request).await?;
    Ok((pump_key, meter_key))
}

async fn shard_of(admin: &Admin, device: &str) -> Result<u32> {
    Ok(admin.messages_of(device).await?.first().context("it has sent something")?.shard)
}

/// A cluster of three under load, backed up into a folder.
async fn backed_up(nodes: &Nodes, folder: &Path) -> Result<Before> {
    let (pump_key, meter_key) = fill(nodes).await?;
    let load = Load::start(nodes, &meter_key).await?;
    let admin = nodes.admin(0)?;
    let sent = async || admin.messages_of("meter").await.map_or(0, |sent| sent.len());
    until("the load to have begun", sent, |sent| *sent > 20).await;
    let before = Before {
        admin_key: nodes.admin_key()?,
        pump_key,
        meter_key,
        messages: admin.all_messages().await?,
        twin: admin.twin("pump").await?,
    };
    let made = backup(nodes, &["create"], folder).await?;
    ensure!(made.status.success(), "{made:?}");
    let after = sent().await;
    load.end().await?;
    let with_meter = before.messages.iter().filter(|sent| sent.device_id == "meter").count();
    ensure!(after > with_meter, "the load went on meanwhile");
    Ok(before)
}

/// Starts `drover cluster backup restore` at the first of some nodes, once that answers.
async fn restoring(nodes: &Nodes, members: &[String], folder: &Path) -> Result<Command> {
    let token = nodes.data(0).join("admin.token");
    until_ok("the first node's token", async || fs::read_to_string(&token)).await;
    let admin = nodes.stranger(0)?;
    let status = async || {
        admin.cluster.clone().get_status(GetStatusRequest {}).await.map_err(|status| status.code())
    };
    let answers = |answer: &Result<_, _>| !matches!(answer, Err(tonic::Code::Unavailable));
    until("the first node to answer", status, answers).await.ok();
    let mut drover = Command::new(program()?);
    drover.args(["cluster", "backup", "restore"]).arg(folder).arg("--token-file").arg(token);
    for member in members {
        drover.args(["--member", member]);
    }
    drover.args(nodes.endpoint_arguments(0));
    Ok(drover)
}

fn backing_up(nodes: &Nodes, command: &[&str], folder: &Path) -> Result<Command> {
    let mut drover = Command::new(program()?);
    drover.args(["cluster", "backup"]).args(command).arg(folder).args(nodes.cli_arguments(0)?);
    Ok(drover)
}

async fn backup(nodes: &Nodes, command: &[&str], folder: &Path) -> Result<Output> {
    programs::output(&mut backing_up(nodes, command, folder)?).await
}

/// `drover cluster backup restore` to its end, with the nodes as they are.
async fn restore(nodes: &Nodes, count: usize, folder: &Path) -> Result<Output> {
    let mut restoring = restoring(nodes, &nodes.member_arguments(count), folder).await?;
    programs::output(&mut restoring).await
}

async fn is_as_before(nodes: &Nodes, before: &Before) -> Result<()> {
    let admin = nodes.admin(0)?;
    let restored = admin.all_messages().await?;
    for message in &before.messages {
        ensure!(restored.contains(message), "lost, or elsewhere: {message:?}");
    }
    ensure!(admin.twin("pump").await? == before.twin, "the twin is another one");
    let name = "factory".to_owned();
    admin.authorities.clone().get_authority(GetAuthorityRequest { name }).await?;
    let request = ListCursorsRequest { consumer_group: "billing".to_owned() };
    let cursors = admin.messages.clone().list_cursors(request).await?.into_inner().cursors;
    ensure!(cursors.iter().any(|cursor| cursor.next_offset == 9), "{cursors:?}");

    // The record says that it is connected, to a node of the former cluster.
    let presence = async || {
        let request = GetDeviceRequest { id: "meter".to_owned() };
        let device = admin.devices.clone().get_device(request).await?.into_inner();
        Ok::<_, tonic::Status>(device.connected)
    };
    let is_away = |seen: &Result<_, _>| matches!(seen, Ok(false));
    until("a connection of the former cluster to be over", presence, is_away).await?;

    let mut pump = Device::connect(nodes.mqtt(0), "pump", &before.pump_key).await?;
    pump.subscribe_commands(1).await?;
    for id in ["first", "second"] {
        let command = pump.command().await?;
        ensure!(command.text() == id, "{command:?}");
        pump.complete(&command).await?;
    }
    Device::connect(nodes.mqtt(0), "meter", &before.meter_key).await?.send("goes on").await?;
    let last = admin.messages_of("meter").await?.pop().context("it was sent")?;
    ensure!(last.body == b"goes on", "what comes now comes after what was restored");
    Ok(())
}

#[tokio::test]
async fn a_cluster_of_three_under_load_is_restored_into_one_node_and_into_five() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let backup_folder = folder.path().join("monday");
    let before = {
        let nodes = Nodes::start(3).await?;
        backed_up(&nodes, &backup_folder).await?
        // The cluster is gone: only its backup is left.
    };
    for count in [1, 5] {
        let nodes = Nodes::start_without_cluster(count)?;
        let made = restore(&nodes, count, &backup_folder).await?;
        assert!(made.status.success(), "into {count}: {made:?}");
        nodes.until_ready().await;
        nodes.keep_admin_key(&before.admin_key)?;
        is_as_before(&nodes, &before).await.with_context(|| format!("into {count} nodes"))?;

        let again = restore(&nodes, count, &backup_folder).await?;
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert_eq!(again.status.code(), Some(NOT_AS_EXPECTED), "{said}");
        assert!(said.contains("exists already"), "{said}");
        assert_eq!(nodes.admin(0)?.twin("pump").await?, before.twin, "it is as it was");
    }
    Ok(())
}

/// Waits until some shards are restored, and others cannot be: their first replica is on a node that is down.
async fn until_half_restored(nodes: &Nodes) -> Result<ClusterStatus> {
    let admin = nodes.admin(0)?;
    let status =
        async || Ok(admin.cluster.clone().get_status(GetStatusRequest {}).await?.into_inner());
    let is_half = |seen: &Result<ClusterStatus>| {
        seen.as_ref().is_ok_and(|status| {
            let shards = || status.shards.iter().filter(|group| group.shard.is_some());
            !status.restoring.is_empty()
                && shards().any(|shard| shard.leader.is_some())
                && shards().any(|shard| shard.leader.is_none())
        })
    };
    until("a part of the shards to be restored", status, is_half).await
}

/// What is half restored is nothing: not for devices, not for back ends, not for another backup.
async fn serves_nobody(nodes: &Nodes, before: &Before, folder: &Path) -> Result<()> {
    let ready = nodes.get(0, "/readyz").await;
    ensure!(ready.is_err(), "{ready:?}");
    let device = Device::connect(nodes.mqtt(0), "pump", &before.pump_key).await;
    ensure!(device.is_err(), "a device is connected");
    let admin = nodes.admin(0)?;
    let reads = [admin.twin("pump").await.map(drop), admin.all_messages().await.map(drop)];
    for (read, what) in reads.into_iter().zip(["a twin", "a stream"]) {
        let refused = read.err().with_context(|| format!("{what} was read"))?;
        ensure!(refused.message().contains("is being restored"), "{what}: {refused:?}");
    }
    let made = backup(nodes, &["create"], &folder.join("of-a-half")).await?;
    ensure!(!made.status.success() && said(&made).contains("is being restored"), "{made:?}");
    Ok(())
}

#[tokio::test]
async fn a_restore_that_was_broken_off_serves_nobody_and_the_same_command_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("monday");
    let before = {
        let nodes = Nodes::start(3).await?;
        backed_up(&nodes, &place).await?
    };
    let mut nodes = Nodes::start_without_cluster(3)?;
    nodes.kill(2)?;
    nodes.keep_admin_key(&before.admin_key)?;
    let members = nodes.member_arguments(3);
    // Ctrl-C: the command says what has become of it.
    let mut running = Beside::start(&mut restoring(&nodes, &members, &place).await?)?;
    until_half_restored(&nodes).await?;
    running.until_it_says("is being filled").await?;
    running.interrupt()?;
    let (succeeded, text) = running.end().await?;
    assert!(!succeeded && text.contains("it was interrupted; cluster"), "{text}");
    assert!(text.contains("give the same command again"), "{text}");
    serves_nobody(&nodes, &before, folder.path()).await?;

    // The node that it talks to is killed: the command notices.
    let mut running = Beside::start(&mut restoring(&nodes, &members, &place).await?)?;
    running.until_it_says("is being filled").await?;
    nodes.kill(0)?;
    let (succeeded, text) = running.end().await?;
    assert!(!succeeded && text.contains("give the same command again"), "{text}");
    nodes.restart(0)?;
    until_half_restored(&nodes).await?;
    serves_nobody(&nodes, &before, folder.path()).await?;

    // The command is killed, and says nothing.
    let mut running = Beside::start(&mut restoring(&nodes, &members, &place).await?)?;
    running.until_it_says("is being filled").await?;
    drop(running);

    let mut fewer = restoring(&nodes, &members[..2], &place).await?;
    let refused = programs::output(&mut fewer).await?;
    assert!(said(&refused).contains("began with other nodes"), "{refused:?}");
    nodes.restart(2)?;
    let made = restore(&nodes, 3, &place).await?;
    assert!(made.status.success(), "{made:?}");
    nodes.until_ready().await;
    is_as_before(&nodes, &before).await
}

#[tokio::test]
async fn a_backup_that_is_interrupted_says_how_far_it_was_and_is_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("monday");
    let mut nodes = Nodes::start(3).await?;
    for lost in [1, 2] {
        nodes.kill(lost)?;
    }
    // Nobody leads: it waits for the leaders.
    let mut running = Beside::start(&mut backing_up(&nodes, &["create"], &place)?)?;
    running.until_it_says("0 of 5 groups").await?;
    running.interrupt()?;
    let (succeeded, text) = running.end().await?;
    assert!(!succeeded && text.contains("it was interrupted; what was written"), "{text}");
    assert!(text.contains("is no backup: remove it"), "{text}");
    let verified = backup(&nodes, &["verify"], &place).await?;
    assert!(!verified.status.success() && said(&verified).contains("not finished"), "{verified:?}");
    Ok(())
}

#[tokio::test]
async fn a_backup_that_is_not_whole_is_refused_with_the_reason_and_makes_no_cluster() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("monday");
    let nodes = Nodes::start(1).await?;
    fill(&nodes).await?;
    let made = backup(&nodes, &["create"], &place).await?;
    assert!(made.status.success(), "{made:?}");
    let whole = backup(&nodes, &["verify", "--json"], &place).await?;
    let whole: Value = serde_json::from_slice(&whole.stdout)?;
    assert!(whole["records"].as_u64() > Some(50), "{whole}");
    let again = backup(&nodes, &["create"], &place).await?;
    assert!(!again.status.success());
    assert!(said(&again).contains("already"), "a backup is never written over: {again:?}");

    let object = place.join("shard-0001/000000");
    let empty = Nodes::start_without_cluster(1)?;
    let manifest = place.join("manifest.json");
    let break_it: [(&Path, Damage, &str); 3] = [
        (&object, |bytes| bytes[5] ^= 1, "shard-0001/000000 is not what was written"),
        (&object, |bytes| bytes.truncate(5), "shard-0001/000000 is not what was written"),
        (&manifest, |bytes| bytes.truncate(90), "manifest.json is not what"),
    ];
    for (file, breaks, reason) in break_it {
        let sound = fs::read(file)?;
        let mut broken = sound.clone();
        breaks(&mut broken);
        fs::write(file, broken)?;
        let verified = backup(&nodes, &["verify"], &place).await?;
        assert!(!verified.status.success() && said(&verified).contains(reason), "{verified:?}");
        let restored = restore(&empty, 1, &place).await?;
        assert!(!restored.status.success() && said(&restored).contains(reason), "{restored:?}");
        fs::write(file, sound)?;
    }
    let answer = empty.stranger(0)?.cluster.clone().get_status(GetStatusRequest {}).await;
    let refused = answer.expect_err("nobody has a policy yet");
    assert!(refused.message().contains("there is no cluster yet"), "{refused:?}");

    fs::remove_file(place.join("manifest.json"))?;
    let verified = backup(&nodes, &["verify"], &place).await?;
    assert!(said(&verified).contains("not finished"), "{verified:?}");
    Ok(())
}

/// What befalls the bytes of a file.
type Damage = fn(&mut Vec<u8>);

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_backup_into_a_full_disk_fails_with_the_reason_and_is_no_backup() -> Result<()> {
    let folder = tempfile::tempdir()?;
    if !mounting("1m", folder.path()).arg("true").output()?.status.success() {
        eprintln!("NOT CHECKED: this user may not mount a file system, not even in a namespace");
        return Ok(());
    }
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("camera").await?;
    let mut camera = Device::connect(nodes.mqtt(0), "camera", &key).await?;
    let topic = camera.events();
    for _ in 0..20 {
        camera.publish(&topic, &vec![7; 200_000]).await?;
    }
    // The file system goes with the last process that sees it.
    let script = r#"drover=$0; place=$1; shift
        "$drover" cluster backup create "$place" "$@"; echo "create $?"
        "$drover" cluster backup verify "$place"; echo "verify $?"
        ls "$place""#;
    let place: PathBuf = folder.path().join("monday");
    let mut both = mounting("1m", folder.path());
    both.args(["sh", "-c", script]).arg(program()?).arg(place).args(nodes.cli_arguments(0)?);
    let output = both.output()?;
    let results = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(results.contains("create 1\nverify 1\n"), "{results} {}", said(&output));
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    assert!(said(&output).contains("there is no manifest.json"), "{}", said(&output));
    assert!(results.contains("meta") && !results.contains("manifest"), "{results}");
    Ok(())
}
