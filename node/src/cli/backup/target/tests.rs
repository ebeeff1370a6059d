//! Places: how they are named, a folder for real, and a bucket as far as one can be had on this machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

use super::*;

fn open(place: &str, environment: &[(&str, &str)]) -> Result<Target, String> {
    let environment = environment.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    Target::open_with(place, environment).map_err(|failure| failure.to_string())
}

#[test]
fn buckets_are_named_by_url_and_opened_with_what_the_environment_says() {
    let aws = [
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("TOKEN", "not ours"),
    ];
    let store = open("s3://bucket/hub/monday", &aws).expect("a bucket");
    assert_eq!(store.folder.as_ref(), "hub/monday");
    assert!(format!("{:?}", store.store).contains("eu-west-1"), "{store:?}");
    let azure = [("AZURE_STORAGE_ACCOUNT_NAME", "account")];
    open("az://container/hub", &azure).expect("a container");
    open("gs://bucket/hub", &[]).expect("a bucket");
}

#[test]
fn a_place_that_cannot_be_is_refused_with_what_can() {
    for bad in ["ftp://host/x", "s3:", "https://host/x", "file://host/x"] {
        let refused = open(bad, &[]).expect_err(bad);
        assert!(refused.contains("s3://bucket/folder"), "{refused}");
    }
    let secret = open("ftp://host/x?sig=secret", &[]).expect_err("no such scheme");
    assert!(!secret.contains("secret"), "{secret}");
}

/// The same of every place.
async fn keeps_what_is_put_into_it(target: &Target) {
    assert!(target.is_empty().await.expect("it can be asked"));
    target.put("shard-0/1", vec![7; 3]).await.expect("room");
    assert!(!target.is_empty().await.expect("it can be asked"));
    let got = target.get("shard-0/1", 3).await.expect("readable").expect("it is there");
    assert_eq!(got.as_ref(), [7; 3]);
    assert!(target.get("shard-0/2", 3).await.expect("it can be asked").is_none());
    target.get("shard-0/1", 2).await.expect_err("it is larger");
}

#[tokio::test]
async fn a_folder_keeps_what_is_put_into_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = folder.path().join("new/place");
    let target = open(place.to_str().expect("text"), &[]).expect("a folder");
    keeps_what_is_put_into_it(&target).await;
    assert!(place.join("shard-0/1").exists());
}

#[tokio::test]
async fn a_bucket_keeps_what_is_put_into_it_and_is_asked_with_a_signature() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it listens"));
    let objects = Objects::default();
    let app = axum::Router::new().fallback(async move |method, uri, headers, body| {
        answer(&objects, &method, &uri, &headers, body)
    });
    let bucket = tokio::spawn(async move { axum::serve(listener, app).await });
    let environment = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "operator"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let target = open("s3://bucket/hub", &environment).expect("a bucket");
    keeps_what_is_put_into_it(&target).await;
    bucket.abort();
}

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// As much of S3 as a backup asks for.
fn answer(
    objects: &Objects,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    let signed = headers.get("authorization").is_some_and(|value| {
        value.to_str().is_ok_and(|text| text.contains("Credential=operator/"))
    });
    if !signed {
        return StatusCode::FORBIDDEN.into_response();
    }
    let mut objects = objects.lock().expect("nobody panics with it in hand");
    let path = uri.path().to_owned();
    if *method == Method::PUT {
        objects.insert(path, body);
        return [("etag", "\"e\"")].into_response();
    }
    if uri.query().is_some_and(|query| query.contains("list-type=2")) {
        return list(&objects).into_response();
    }
    let headers = [("etag", "\"e\""), ("last-modified", "Mon, 23 Nov 2026 00:00:00 GMT")];
    match objects.get(&path) {
        Some(found) => (headers, found.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn list(objects: &BTreeMap<String, Bytes>) -> String {
    let item = |(path, bytes): (&String, &Bytes)| {
        let key = path.trim_start_matches("/bucket/");
        let size = bytes.len();
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-23T00:00:00.000Z</LastModified>\
             <ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
        )
    };
    let items: String = objects.iter().map(item).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>")
}
