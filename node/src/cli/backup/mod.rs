//! `drover cluster backup`: copy a running cluster into a folder or a bucket, check a copy, make a new cluster of one.
//!
//! A backup is objects with the records of each group, and a manifest that names all of them with their sums. The manifest is
//! written last, so that what was not finished is recognised: it has none. Records travel through this program, which alone
//! needs the right to the bucket, and never more than a few objects of them at a time.

mod create;
mod manifest;
mod objects;
mod progress;
mod restore;
mod target;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Failure;
use super::client::HubArguments;
use super::cluster::MemberArgument;
use super::files;
use super::output::{Form, Output, counted};
use manifest::Manifest;
use progress::Progress;
use target::Target;

/// Where a backup is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// A folder, or a URL: `file:///folder`, `s3://bucket/folder`, `az://container/folder`, `gs://bucket/folder`. Credentials come
    /// from the environment: `AWS_ACCESS_KEY_ID`, `AZURE_STORAGE_ACCOUNT_NAME`, `GOOGLE_SERVICE_ACCOUNT` and their like.
    #[arg(value_name = "URL")]
    url: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy the running cluster to a place where nothing is yet. The copy has all keys: keep it as secret as them.
    Create(Place),
    /// Read all of a backup and say whether it is whole.
    Verify(Place),
    /// Make a cluster of nodes without data that has what a backup holds, in place of `init`.
    Restore(Restore),
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    place: Place,
    /// A node, such as 1=10.0.0.1:7070,hub-1.example:7443. Repeat it for each; there may be more or fewer than there were.
    #[arg(
        long = "member",
        value_name = "NUMBER=PEER_ADDRESS,ADMIN_ADDRESS[,ZONE]",
        required = true
    )]
    members: Vec<MemberArgument>,
    /// Copies of each shard: 1, 3 or 5 [default: as before; they come as nodes join].
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    replicas: u32,
    /// File with the bootstrap token of the node that --endpoint names: admin.token in its data folder.
    #[arg(long, env = "DROVER_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let progress = Progress::default();
    match command {
        Command::Create(place) => {
            let target = Target::open(&place.url)?;
            let client = connection.client()?;
            let made = create::create(&client, &target, &progress).await?;
            show(&made, "written", out)
        }
        Command::Verify(place) => {
            let target = Target::open(&place.url)?;
            let found = progress.show(verify(&target, &progress)).await?;
            show(&found, "whole", out)
        }
        Command::Restore(arguments) => {
            let target = Target::open(&arguments.place.url)?;
            let token = files::read_text(&arguments.token_file.to_string_lossy())?;
            let client = connection.bootstrap_client(token.trim())?;
            let found = progress.show(verify(&target, &progress)).await?;
            let plan = restore::Plan {
                members: arguments.members.into_iter().map(MemberArgument::member).collect(),
                replicas: arguments.replicas,
            };
            let progress = Progress::default();
            let cluster = restore::restore(&client, &target, &found, plan, &progress).await?;
            restored(&found, &cluster, out)
        }
    }
}

/// Reads all objects; answers with what they are. Anything that is missing or not as it was written is a failure.
async fn verify(target: &Target, progress: &Progress) -> Result<Manifest, Failure> {
    let manifest = manifest::read(target).await?;
    progress.expect(manifest.groups.len());
    for group in &manifest.groups {
        let mut objects = objects::Reader::new(target, group, progress);
        while objects.next().await?.is_some() {}
        progress.group_done();
    }
    Ok(manifest)
}

fn show(manifest: &Manifest, state: &str, out: &mut Output<'_>) -> Result<(), Failure> {
    let Manifest { backup, cluster, shards, began, .. } = manifest;
    let (records, bytes) = (manifest.records(), manifest.bytes());
    if out.form() == Form::Json {
        return out.json(&json!({
            "backup": backup, "cluster": cluster, "began": began, "shards": shards,
            "records": records, "bytes": bytes,
        }));
    }
    let (shards, records) = (counted(u64::from(*shards), "shard"), counted(records, "record"));
    let mib = bytes.div_ceil(1 << 20);
    out.line(&format!(
        "Backup {backup} of cluster {cluster} is {state}: {shards}, {records}, {mib} MiB"
    ))?;
    out.line(&format!("It has everything that was acknowledged before {began}"))
}

fn restored(manifest: &Manifest, cluster: &str, out: &mut Output<'_>) -> Result<(), Failure> {
    let Manifest { backup, began, .. } = manifest;
    if out.form() == Form::Json {
        return out.json(&json!({ "clusterId": cluster, "backup": backup, "began": began }));
    }
    out.line(&format!("Cluster {cluster} is made from backup {backup}, as of {began}"))?;
    out.line("Policies, authorities and devices have the keys that they had")
}
