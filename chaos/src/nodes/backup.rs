//! Backups through the program's own command, as an operator makes them, and a new cluster of one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::files::Layout;
use super::{HOST, Nodes, Place, READY_TIMEOUT, bootstrap_token, logs, spawn};
use crate::peers::until_ok;

/// A copy waits for leaders and is begun again when it loses one: this is longer than all of that.
const TIMEOUT: Duration = Duration::from_mins(3);

/// `drover cluster backup` at one node.
#[derive(Debug, Clone)]
pub struct Operator {
    program: PathBuf,
    connection: Vec<String>,
}

impl Nodes {
    /// Asks `node`, and no other.
    pub fn operator(&self, node: usize) -> anyhow::Result<Operator> {
        let mut operator = Operator::at(&self.program, &self.layout, node)?;
        let credential = self.admin.connection_string();
        operator.connection.extend(["--connection-string".to_owned(), credential.to_owned()]);
        Ok(operator)
    }

    /// A cluster of one node with a folder of its own, made of a backup of this one.
    pub async fn restored(&self, backup: &Path) -> anyhow::Result<Self> {
        let places = vec![Place::default()];
        let folder = TempDir::with_prefix("drover-chaos-restored-")?;
        let layout = Layout::create(folder.path(), &places)?;
        let mut processes = vec![Some(spawn(&self.program, &layout, 0, &places[0])?)];
        bootstrap_token(&layout, &mut processes).await.with_context(|| logs(&layout))?;
        let operator = Operator::at(&self.program, &layout, 0)?;
        let (peer, admin) = (layout.peer_addresses(), layout.admin_addresses());
        let member = format!("1={},{}", peer[0], admin[0]);
        let token = layout.data(0).join(super::files::BOOTSTRAP_TOKEN);
        let arguments = ["--member", &member, "--token-file", &token.to_string_lossy()];
        // The node may not listen yet; what was broken off goes on.
        until_ok("a backup is restored", READY_TIMEOUT, async || {
            let said = operator.backup("restore", backup, &arguments).await?;
            said.map_err(anyhow::Error::msg)
        })
        .await
        .with_context(|| logs(&layout))?;
        let admin = self.admin.at(&layout)?;
        let program = self.program.clone();
        let nodes = Self { program, layout, places, processes, admin, folder };
        nodes.until_led(READY_TIMEOUT).await?;
        Ok(nodes)
    }
}

impl Operator {
    fn at(program: &Path, layout: &Layout, node: usize) -> anyhow::Result<Self> {
        let address = layout.admin_addresses().get(node).copied();
        let endpoint = format!("https://{}", address.context("there is no such node")?);
        let ca = layout.write_ca()?.to_string_lossy().into_owned();
        let connection = ["--endpoint", &endpoint, "--ca", &ca].map(str::to_owned).into();
        Ok(Self { program: program.to_owned(), connection })
    }

    /// `create`, `verify` or `restore`. `Err` is what it said when it failed.
    pub async fn backup(
        &self,
        command: &str,
        place: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<Result<(), String>> {
        let mut drover = Command::new(&self.program);
        drover.args(["cluster", "backup", command]).arg(place).args(arguments);
        drover.args(&self.connection).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(TIMEOUT, drover.output()).await;
        let output = output.with_context(|| format!("{command} of a backup does not end"))??;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(!said.is_empty(), "{command} of a backup failed and said nothing");
        Ok(Err(said))
    }
}

/// A connection string for the command line.
pub(super) fn connection_string(policy: &str, key: &str) -> String {
    format!("HostName={HOST};SharedAccessKeyName={policy};SharedAccessKey={key}")
}
