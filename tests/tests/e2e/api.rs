//! The gRPC API as a back end meets it: pages, deadlines, sizes, and errors that a program can read.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use drover_proto::admin::{
    BulkCreateDevicesRequest, CreateDeviceRequest, GetDeviceRequest, GetTwinRequest,
    ListDevicesRequest, bulk_result,
};
use drover_tests::clients::Admin;
use drover_tests::nodes::Nodes;
use drover_tests::until;
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Request, Status};

/// `google.rpc.Status` as clients of any language decode it from `grpc-status-details-bin`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// What `ErrorInfo` and the others say, with their type: enough to find a text in.
fn details(status: &Status) -> Vec<(String, String)> {
    let rich = RpcStatus::decode(status.details()).expect("details are google.rpc.Status");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    rich.details.iter().map(|detail| (detail.type_url.clone(), text(&detail.value))).collect()
}

fn says(status: &Status, kind: &str, text: &str) -> bool {
    details(status).iter().any(|(url, value)| url.ends_with(kind) && value.contains(text))
}

async fn create(admin: &Admin, ids: &[String]) -> Result<Vec<Option<i32>>> {
    let device = |id: &String| CreateDeviceRequest { id: id.clone(), ..Default::default() };
    let request = BulkCreateDevicesRequest { devices: ids.iter().map(device).collect() };
    let results = admin.devices.clone().bulk_create_devices(request).await?.into_inner().results;
    let code = |result| match result {
        Some(bulk_result::Result::Error(error)) => Some(error.code),
        Some(bulk_result::Result::Device(_)) | None => None,
    };
    Ok(results.into_iter().map(|result| code(result.result)).collect())
}

#[tokio::test]
async fn pages_hold_every_device_once_and_a_bulk_fails_one_by_one() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let ids: Vec<String> = (0..25).map(|number| format!("pump-{number}")).collect();
    assert!(create(&admin, &ids).await?.iter().all(Option::is_none));
    let again = ["pump-3".to_owned(), "new".to_owned(), "no good".to_owned()];
    let codes = create(&admin, &again).await?;
    let expected = [Some(Code::AlreadyExists as i32), None, Some(Code::InvalidArgument as i32)];
    assert_eq!(codes, expected);

    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListDevicesRequest { page_size: 7, page_token };
        let page = admin.devices.clone().list_devices(request).await?.into_inner();
        assert!(page.devices.len() <= 7);
        seen.extend(page.devices.into_iter().map(|device| device.id));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    let different: BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), different.len()), (26, 26), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn errors_carry_a_reason_the_field_and_whether_to_try_again() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    let unknown = GetDeviceRequest { id: "ghost".to_owned() };
    let unknown = admin.devices.clone().get_device(unknown).await.expect_err("nobody made it");
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(says(&unknown, "google.rpc.ErrorInfo", "DEVICE_NOT_FOUND"), "{:?}", details(&unknown));
    assert!(says(&unknown, "google.rpc.ErrorInfo", "drover"));
    assert!(unknown.message().contains("ghost"));

    let page = ListDevicesRequest { page_size: 10_000, ..ListDevicesRequest::default() };
    let invalid = admin.devices.clone().list_devices(page).await.expect_err("pages have a limit");
    assert_eq!(invalid.code(), Code::InvalidArgument);
    assert!(says(&invalid, "google.rpc.BadRequest", "page_size"), "{:?}", details(&invalid));

    let stranger = nodes.stranger(0)?;
    let twin = GetTwinRequest { device_id: "ghost".to_owned(), ..GetTwinRequest::default() };
    let refused = stranger.twins.clone().get_twin(twin).await.expect_err("no credential");
    assert!(says(&refused, "google.rpc.ErrorInfo", "UNAUTHENTICATED"), "{:?}", details(&refused));
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_and_the_connection_lives() -> Result<()> {
    let nodes = Nodes::start_with(1, &[("limits.grpc_message", "64KiB")]).await?;
    let admin = nodes.admin(0)?;
    let request = CreateDeviceRequest {
        id: "pump".to_owned(),
        status_reason: "x".repeat(100_000),
        ..CreateDeviceRequest::default()
    };
    let refused = admin.devices.clone().create_device(request).await.expect_err("64 KiB at most");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    admin.create_device("pump").await.map(drop)
}

#[tokio::test]
async fn a_call_without_a_majority_ends_at_its_deadline_and_later_says_to_try_again() -> Result<()>
{
    let mut nodes = Nodes::start(3).await?;
    let admin = nodes.admin(0)?;
    admin.create_device("pump").await?;
    nodes.kill(1)?;
    nodes.kill(2)?;
    let get = async |deadline: Duration| {
        let twin = GetTwinRequest { device_id: "pump".to_owned(), ..GetTwinRequest::default() };
        let mut request = Request::new(twin);
        request.set_timeout(deadline);
        let begun = Instant::now();
        let status = admin.twins.clone().get_twin(request).await.expect_err("one of three");
        (status, begun.elapsed())
    };
    let (status, took) = get(Duration::from_millis(500)).await;
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let status = until(
        "the leader to notice that it leads nobody",
        async || get(Duration::from_secs(15)).await.0,
        |status| status.code() == Code::Unavailable,
    )
    .await;
    assert!(says(&status, "google.rpc.RetryInfo", ""), "{:?}", details(&status));
    let pushback = status.metadata().get("grpc-retry-pushback-ms").context("a wait is named")?;
    assert!(pushback.to_str()?.parse::<u64>()? > 0);
    Ok(())
}
