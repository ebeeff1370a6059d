//! What a person runs first: `drover dev`, `drover config`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use drover_chaos::disk::{self, Disk, Kept};
use drover_tests::nodes::program;
use drover_tests::programs;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A hub by `drover dev`, and what it said until a device could connect.
struct Hub {
    process: Child,
    said: String,
}

/// `first_port` keeps this test's hubs apart from those of the others.
async fn dev(folder: &Path, first_port: u16, more: &[&str]) -> Result<Hub> {
    let mut command = Command::new(program()?);
    command
        .args(["dev", "--ports", &first_port.to_string(), "--data"])
        .arg(folder)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut process = command.spawn()?;
    let mut lines = BufReader::new(process.stdout.take().context("it is piped")?).lines();
    let mut said = String::new();
    let listen = async {
        while let Some(line) = lines.next_line().await? {
            said.push_str(&line);
            said.push('\n');
            if line.contains("Ctrl-C") {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("drover dev ended before it was ready")
    };
    let ready = timeout(drover_tests::PATIENCE, listen).await.context("drover dev is not ready")?;
    if ready.is_err() {
        let mut complaint = String::new();
        process.stderr.take().context("it is piped")?.read_to_string(&mut complaint).await?;
        anyhow::bail!("{complaint}");
    }
    Ok(Hub { process, said })
}

/// Runs a line that `drover dev` printed, as a person would paste it.
async fn paste(said: &str, wanted: &str, edit: impl Fn(&str) -> String) -> Result<String> {
    let export = said.lines().find(|line| line.contains("export")).context("no export line")?;
    let mut lines = said.lines().skip_while(|line| !line.contains(wanted));
    let mut pasted =
        lines.next().with_context(|| format!("no line with {wanted}"))?.trim().to_owned();
    while let Some(begun) = pasted.strip_suffix('\\') {
        pasted =
            format!("{begun} {}", lines.next().context("a line goes on after a backslash")?.trim());
    }
    programs::run(
        Command::new("bash").args(["-c", &format!("{}\n{}", export.trim(), edit(&pasted))]),
    )
    .await
}

#[tokio::test]
async fn the_lines_that_dev_prints_work_as_they_are() -> Result<()> {
    let folder = TempDir::new()?;
    let mut hub = dev(&folder.path().join("hub"), 32_100, &[]).await?;
    paste(&hub.said, "mosquitto_pub", str::to_owned).await?;
    let twin = paste(&hub.said, "twins get", str::to_owned).await?;
    assert!(twin.contains("device-1"), "{twin}");
    hub.process.kill().await?;
    Ok(())
}

#[tokio::test]
async fn the_demo_reports_its_twin_on_three_nodes_and_data_survives_a_restart() -> Result<()> {
    let folder = TempDir::new()?;
    let data = folder.path().join("hub");
    let mut hub = dev(&data, 32_200, &["--nodes", "3", "--demo"]).await?;
    let said = hub.said.clone();
    drover_tests::until(
        "the thermometer to report",
        async || paste(&said, "twins get", |line| line.replace("device-1", "thermometer-1")).await,
        |twin| twin.as_ref().is_ok_and(|twin| twin.contains("replayed thermometer")),
    )
    .await?;
    hub.process.kill().await?;
    let device = fs::read_to_string(data.join("device-1.connection"))?;
    // The nodes notice that their parent was killed and stop; only then are their ports free.
    let again = drover_tests::until_ok("the hub to start again", async || {
        dev(&data, 32_200, &["--nodes", "3"]).await.map(|hub| hub.said)
    });
    let said = again.await;
    assert!(said.contains(device.trim()), "the same device: {said}");
    Ok(())
}

#[tokio::test]
async fn a_hub_that_loses_power_after_its_first_start_starts_again_with_the_same_device()
-> Result<()> {
    if let Some(obstacle) = disk::obstacle() {
        eprintln!("left out: {obstacle}");
        return Ok(());
    }
    let folder = TempDir::new()?;
    let (mountpoint, backing) = (folder.path().join("disk"), folder.path().join("backing"));
    fs::create_dir(&mountpoint)?;
    fs::create_dir(&backing)?;
    let disk = Disk::mount(&mountpoint, &backing)?;
    let data = mountpoint.join("hub");
    let mut hub = dev(&data, 32_400, &[]).await?;
    let device = fs::read_to_string(data.join("device-1.connection"))?;
    hub.process.kill().await?;
    let loss = disk.lose_power(Kept::Nothing)?;
    assert!(loss.writes > 0, "there was nothing to lose: {loss:?}");
    let mut hub = dev(&data, 32_400, &[]).await?;
    assert!(hub.said.contains(device.trim()), "the same device: {}", hub.said);
    hub.process.kill().await?;
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() -> Result<()> {
    let folder = TempDir::new()?;
    let taken = TcpListener::bind(("127.0.0.1", 32_301))?;
    let output = programs::output(
        Command::new(program()?)
            .args(["dev", "--ports", "32300", "--data"])
            .arg(folder.path().join("hub")),
    )
    .await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(complaint.contains("32301") && complaint.contains("--ports"), "{complaint}");
    drop(taken);
    Ok(())
}

#[tokio::test]
async fn a_mistyped_key_is_named_with_the_nearest_one_and_code_2() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("node.toml");
    fs::write(&file, "[retention]\nagee = \"1day\"\n")?;
    let output =
        programs::output(Command::new(program()?).args(["config", "check"]).arg(&file)).await?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean retention.age?"));
    let shown = programs::run(Command::new(program()?).args(["config", "show"])).await?;
    fs::write(&file, shown)?;
    programs::run(Command::new(program()?).args(["config", "check"]).arg(&file)).await?;
    Ok(())
}
