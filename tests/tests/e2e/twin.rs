//! Twins: what the device reports, what is desired of it, and what an ETag guards (P2).

use anyhow::Result;
use drover_proto::admin::UpdateTwinRequest;
use drover_tests::clients::{Device, json_struct, number};
use drover_tests::nodes::Nodes;
use serde_json::json;
use tonic::Code;

#[tokio::test]
async fn a_reported_patch_is_seen_at_every_node_once_it_is_acknowledged() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(1), "valve", &key).await?;
    device.subscribe_twin().await?;
    for position in 1..=5 {
        let patch = json!({ "position": position }).to_string();
        assert_eq!(device.report(&patch).await?, 204);
        for index in 0..3 {
            let twin = nodes.admin(index)?.twin("valve").await?;
            let seen = number(twin.reported.as_ref(), "position");
            assert_eq!(seen, Some(f64::from(position)), "asked at node {}", index + 1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_connected_device_is_sent_desired_patches_with_rising_versions() -> Result<()> {
    let nodes = Nodes::start(3).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    device.subscribe_twin().await?;
    let mut last = 0;
    for (index, position) in [10, 20, 30].into_iter().enumerate() {
        nodes.admin(index)?.patch_desired("valve", &json!({ "position": position })).await?;
        let (version, patch) = device.desired().await?;
        assert_eq!(patch["position"], position);
        assert!(version > last, "version {version} after {last}");
        last = version;
    }
    let twin = device.twin().await?;
    assert_eq!(
        (&twin["desired"]["position"], &twin["desired"]["$version"]),
        (&json!(30), &json!(last))
    );
    Ok(())
}

#[tokio::test]
async fn a_stale_etag_changes_nothing() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let admin = nodes.admin(0)?;
    admin.create_device("valve").await?;
    let stale = admin.twin("valve").await?.etag;
    let current = admin.patch_desired("valve", &json!({ "position": 1 })).await?;
    let request = UpdateTwinRequest {
        device_id: "valve".to_owned(),
        if_match: stale,
        desired: Some(json_struct(&json!({ "position": 2 }))),
        ..UpdateTwinRequest::default()
    };
    let refused = admin.twins.clone().patch_twin(request).await.expect_err("a stale etag");
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    assert_eq!(admin.twin("valve").await?, current);
    Ok(())
}

#[tokio::test]
async fn a_twin_over_its_limits_is_refused_and_stays_as_it_was() -> Result<()> {
    let nodes = Nodes::start(1).await?;
    let key = nodes.admin(0)?.create_device("valve").await?;
    let mut device = Device::connect(nodes.mqtt(0), "valve", &key).await?;
    device.subscribe_twin().await?;
    let before = device.twin().await?;
    let nested = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
    let too_large = json!({ "text": "x".repeat(33 * 1024) }).to_string();
    for (what, patch) in [
        ("11 levels below the root", nested(12)),
        ("10,000 levels", nested(10_000)),
        ("33 KB", too_large),
        ("a key with a dot", r#"{"a.b":1}"#.to_owned()),
        ("no object", "[1]".to_owned()),
        ("no JSON", "{".to_owned()),
    ] {
        assert_eq!(device.report(&patch).await?, 400, "{what}");
    }
    assert_eq!(device.twin().await?, before);
    Ok(())
}
