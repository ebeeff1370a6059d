//! The command line against a real hub: what people see, what programs read, exit codes, streams that outlive a node.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use drover_tests::clients::{Device, HOST};
use drover_tests::nodes::{Nodes, program};
use drover_tests::{programs, until, until_ok};
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines};
use tokio::process::Command;
use tokio::time::timeout;

/// `drover` as a person uses it whose environment names the hub.
fn drover(nodes: &Nodes, arguments: &[&str]) -> Result<Command> {
    let admin = std::fs::read_to_string(nodes.folder().join("admin.key"))?;
    let (policy, key) = admin.split_once(' ').context("policy and key")?;
    let connection = format!("HostName={HOST};SharedAccessKeyName={policy};SharedAccessKey={key}");
    let mut command = Command::new(program()?);
    command
        .args(arguments)
        .env("DROVER_CONNECTION_STRING", connection)
        .env("DROVER_ENDPOINT", format!("https://{HOST}:{}", nodes.grpc(0).port()))
        .env("DROVER_CA", nodes.ca());
    Ok(command)
}

#[tokio::test]
async fn each_kind_of_failure_has_its_exit_code_and_says_what_to_do() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    programs::run(&mut drover(&nodes, &["devices", "create", "pump"])?).await?;
    let nobody =
        "HostName=localhost;SharedAccessKeyName=nobody;SharedAccessKey=AAAAAAAAAAAAAAAAAAAAAA==";
    let cases: [(&[&str], i32, &str); 8] = [
        (&["devices", "get", "ghost"], 3, "ghost"),
        (&["devices", "create", "pump"], 6, "pump"),
        (&["devices", "create", "no good id"], 1, "id"),
        (&["twins", "patch", "pump", "--desired", "{\"a\":1}", "--if-match", "999"], 6, "etag"),
        (&["devices", "list", "--connection-string", nobody], 5, "SharedAccessSignature"),
        (&["devices", "list", "--endpoint", "https://localhost:1"], 4, "is it running"),
        (&["devices", "rotate-keys", "pump"], 2, "--primary"),
        (&["twins", "patch", "pump", "--desired", "{"], 2, "JSON"),
    ];
    for (arguments, code, wanted) in cases {
        let output = programs::output(&mut drover(&nodes, arguments)?).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.to_lowercase().contains(&wanted.to_lowercase()), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    Ok(())
}

#[tokio::test]
async fn tables_are_for_people_and_json_is_for_programs() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    programs::run(&mut drover(&nodes, &["devices", "create", "pump"])?).await?;
    let status = programs::run(&mut drover(&nodes, &["cluster", "status"])?).await?;
    assert!(
        status.contains(
            ": 1 node, 4 shards (0 groups without a leader), 1 device, feature level 2\n"
        ),
        "{status}"
    );
    let shards = programs::run(&mut drover(&nodes, &["cluster", "status", "--shards"])?).await?;
    assert_eq!(shards.lines().count(), status.lines().count() + 1 + 5, "{shards}");
    let listed = programs::run(&mut drover(&nodes, &["devices", "list", "--json"])?).await?;
    let device: Value = serde_json::from_str(listed.trim()).context("one object a line")?;
    assert_eq!(device["deviceId"], "pump");
    let script = programs::run(&mut drover(&nodes, &["completion", "bash"])?).await?;
    assert!(script.contains("_drover"), "{script}");
    Ok(())
}

/// A tail that listens says within this what was sent.
const ROUND: Duration = Duration::from_millis(500);

/// What a command that follows a stream says, line by line.
struct Follower {
    _process: tokio::process::Child,
    messages: Lines<BufReader<tokio::process::ChildStdout>>,
    complaints: Lines<BufReader<tokio::process::ChildStderr>>,
}

impl Follower {
    fn start(nodes: &Nodes, arguments: &[&str]) -> Result<Self> {
        let mut command = drover(nodes, arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn()?;
        let messages = BufReader::new(process.stdout.take().context("it is piped")?).lines();
        let complaints = BufReader::new(process.stderr.take().context("it is piped")?).lines();
        Ok(Self { _process: process, messages, complaints })
    }
}

/// The next line that holds `wanted`.
async fn hears(lines: &mut Lines<impl AsyncBufRead + Unpin>, wanted: &str) -> Result<String> {
    let listen = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(wanted) {
                return Ok(line);
            }
        }
        anyhow::bail!("it ended before it said {wanted:?}")
    };
    timeout(drover_tests::PATIENCE, listen).await.with_context(|| format!("no {wanted:?}"))?
}

#[tokio::test]
async fn streams_that_are_followed_go_on_after_the_node_was_away() -> Result<()> {
    let mut nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("pump").await?;
    let send = async |nodes: &Nodes, body: &str| {
        let address = nodes.mqtt(0);
        until_ok("the device to send", async || {
            Device::connect(address, "pump", &key).await?.send(body).await
        })
        .await;
    };
    send(&nodes, "first").await;
    let mut read = Follower::start(&nodes, &["messages", "read", "--follow"])?;
    let mut tail = Follower::start(&nodes, &["messages", "tail"])?;
    hears(&mut read.messages, "first").await?;
    // A tail has no past: only what it hears shows that it listens.
    let key_of_clock = nodes.admin(0)?.create_device("clock").await?;
    let mut clock = Device::connect(nodes.mqtt(0), "clock", &key_of_clock).await?;
    until(
        "the tail to listen",
        async || {
            clock.send("tick").await?;
            timeout(ROUND, hears(&mut tail.messages, "clock")).await?
        },
        Result::is_ok,
    )
    .await?;

    nodes.kill(0)?;
    nodes.restart(0)?;
    nodes.until_ready().await;
    for follower in [&mut read, &mut tail] {
        hears(&mut follower.complaints, "broke off").await?;
        hears(&mut follower.complaints, "goes on").await?;
    }
    send(&nodes, "second").await;
    let line = hears(&mut read.messages, "pump").await?;
    assert!(line.contains("second"), "nothing twice and nothing left out: {line}");
    hears(&mut tail.messages, "second").await?;
    Ok(())
}
