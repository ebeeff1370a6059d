//! A node that is no founder: it joins with an empty folder, and when it was removed it may join again, as another member.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use drover_proto::admin::members_client::MembersClient;
use drover_proto::admin::{
    CreateJoinTokenRequest, DrainNodeRequest, RebuildReplicaRequest, RemoveNodeRequest,
    UndrainNodeRequest,
};
use tokio::process::Command;

use super::admin::Admin;
use super::files::Layout;
use super::{Place, program};
use crate::process::Process;

/// Longer than any attempt to join takes.
const TOKEN_TTL_S: u32 = 300;

/// The place where such nodes live, one after the other. Its process ends when this is dropped.
pub struct Spare {
    program: PathBuf,
    home: PathBuf,
    http: SocketAddr,
    place: Place,
    lives: u32,
    process: Option<Process>,
}

impl Spare {
    pub(super) fn new(layout: &Layout, place: Place) -> anyhow::Result<Self> {
        let (home, http) = layout.write_spare(&place)?;
        Ok(Self { program: program::find()?, home, http, place, lives: 0, process: None })
    }

    /// Begins another life with an empty folder, in which it joins by `token`. Whoever lived here before must be gone.
    pub fn join(&mut self, token: &str) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the last one still lives here");
        self.lives += 1;
        let words = self.place.wrapper.iter().map(AsRef::as_ref);
        let mut words = words.chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("the program itself is a word"));
        command.args(words).envs(self.place.environment.iter().cloned());
        command.args(["node", "--stop-at-end-of-input", "--config"]);
        command.arg(self.home.join("node.toml")).arg("--data").arg(self.data());
        command.env("DROVER_JOIN_TOKEN", token);
        let process = Process::start("the node that joins", &mut command, &self.home.join("log"));
        self.process = Some(process?);
        Ok(())
    }

    /// The number that it has as a member; `None` before it is one.
    pub fn number(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data().join("identity/node")).ok()?;
        text.split('.').next()?.parse().ok()
    }

    /// Where it shows its metrics.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Whether somebody lives here. Whoever has ended by itself does not.
    pub fn is_up(&mut self) -> anyhow::Result<bool> {
        match &mut self.process {
            Some(process) => Ok(!process.has_ended()?),
            None => Ok(false),
        }
    }

    /// Ends it, and takes away what it stored.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        let data = self.data();
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.home.join(format!("data-{}", self.lives))
    }
}

impl Admin {
    pub async fn join_token(&self) -> anyhow::Result<String> {
        let made = self
            .anywhere(async |node| {
                let request = self.request(CreateJoinTokenRequest { ttl_seconds: TOKEN_TTL_S });
                MembersClient::new(node).create_join_token(request).await
            })
            .await?;
        Ok(made.into_inner().token)
    }

    pub async fn drain(&self, number: u32) -> anyhow::Result<()> {
        self.anywhere(async |node| {
            let request = self.request(DrainNodeRequest { number, keep_replicas: false });
            MembersClient::new(node).drain_node(request).await.map(drop)
        })
        .await
    }

    /// Lets a node give away what it leads, and its sessions, and nothing else.
    pub async fn drain_for_restart(&self, number: u32) -> anyhow::Result<()> {
        self.anywhere(async |node| {
            let request = self.request(DrainNodeRequest { number, keep_replicas: true });
            MembersClient::new(node).drain_node(request).await.map(drop)
        })
        .await
    }

    pub async fn undrain(&self, number: u32) -> anyhow::Result<()> {
        self.anywhere(async |node| {
            let request = self.request(UndrainNodeRequest { number });
            MembersClient::new(node).undrain_node(request).await.map(drop)
        })
        .await
    }

    pub async fn remove(&self, number: u32) -> anyhow::Result<()> {
        self.anywhere(async |node| {
            let request = self.request(RemoveNodeRequest { number });
            MembersClient::new(node).remove_node(request).await.map(drop)
        })
        .await
    }

    /// Lets a replica that its node has stopped begin anew from the others.
    pub async fn rebuild(&self, number: u32, shard: u32) -> anyhow::Result<()> {
        self.anywhere(async |node| {
            let request = self.request(RebuildReplicaRequest { number, shard });
            MembersClient::new(node).rebuild_replica(request).await.map(drop)
        })
        .await
    }
}
