//! Direct methods: from a back end at any node to a device at any node, and each way in which a call can fail.

use anyhow::Result;
use drover_tests::clients::Device;
use drover_tests::nodes::{Nodes, program};
use drover_tests::programs;
use tokio::process::Command;
use tonic::{Code, Status};

fn reason(failed: &Status) -> String {
    String::from_utf8_lossy(failed.details()).into_owned()
}

/// A text of so many bytes, which is JSON.
fn json_of(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

#[tokio::test]
async fn a_call_reaches_its_device_from_every_node_and_brings_its_answer() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(2), "valve", &key).await?;
    device.subscribe_methods().await?;
    for (index, status) in [200, -1, 65_536].into_iter().enumerate() {
        let admin = nodes.admin(index)?;
        let device_side = async {
            let (name, rid, payload) = device.call().await?;
            assert_eq!((name.as_str(), &payload["at"]), ("open", &index.into()));
            device.answer(&rid, status, r#"{"done":12345678901234567890}"#).await
        };
        let payload = format!("{{\"at\":{index}}}");
        let (answer, told) = tokio::join!(admin.invoke("valve", "open", &payload), device_side);
        told?;
        let answer = answer?;
        assert_eq!(answer.status, status);
        assert_eq!(answer.payload, r#"{"done":12345678901234567890}"#, "as the device wrote it");
    }
    Ok(())
}

#[tokio::test]
async fn each_way_to_fail_has_a_status_of_its_own() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let key = admin.create_device("valve").await?;
    let fails = async |payload: &str, code: Code, why: &str| {
        let failed = admin.invoke("valve", "open", payload).await.expect_err("nobody answers");
        assert_eq!(failed.code(), code, "{failed}");
        assert!(reason(&failed).contains(why), "{failed}");
    };
    fails("1", Code::NotFound, "DEVICE_NOT_CONNECTED").await;
    fails("{", Code::InvalidArgument, "payload").await;
    fails(&json_of(128 * 1024 + 1), Code::InvalidArgument, "payload").await;
    let nobody = admin.invoke("nobody", "open", "1").await.expect_err("there is no such device");
    assert!(reason(&nobody).contains("DEVICE_NOT_FOUND"));
    for name in ["o/pen", "", &"n".repeat(101)] {
        let bad = admin.invoke("valve", name, "1").await.expect_err("it is no name");
        assert_eq!(
            (bad.code(), reason(&bad).contains("method_name")),
            (Code::InvalidArgument, true)
        );
    }

    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    fails("1", Code::FailedPrecondition, "DEVICE_NOT_SUBSCRIBED").await;
    device.subscribe_methods().await?;
    fails("1", Code::DeadlineExceeded, "NO_DEVICE_RESPONSE").await;
    let (_, late, _) = device.call().await?;
    device.answer(&late, 200, "1").await?;
    for nonsense in ["{", &json_of(128 * 1024 + 1)] {
        let answering = async {
            let (_, rid, _) = device.call().await?;
            device.answer(&rid, 200, nonsense).await
        };
        tokio::join!(fails("1", Code::Internal, "BAD_DEVICE_RESPONSE"), answering).1?;
    }
    let gone = async {
        device.call().await?;
        drop(device);
        anyhow::Ok(())
    };
    tokio::join!(fails("1", Code::Unknown, "DEVICE_CONNECTION_LOST"), gone).1
}

#[tokio::test]
async fn the_command_line_waits_for_a_device_and_prints_its_answer() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    let mut command = Command::new(program()?);
    command.args(["methods", "invoke", "valve", "open", "{\"by\":2}", "--connect-timeout", "20s"]);
    command.arg("--json").args(nodes.cli_arguments(0)?);
    let device_side = async {
        let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
        device.subscribe_methods().await?;
        let (_, rid, payload) = device.call().await?;
        assert_eq!(payload["by"], 2);
        device.answer(&rid, 3, "").await
    };
    let (printed, told) = tokio::join!(programs::run(&mut command), device_side);
    told?;
    assert_eq!(printed?.trim(), r#"{"payload":null,"status":3}"#);
    Ok(())
}
