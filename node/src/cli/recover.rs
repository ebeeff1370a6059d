//! `drover cluster recover`: the last resort when a majority of the nodes is lost for good. One node that is left becomes the whole
//! cluster, with what it has; others join it anew.
//!
//! It works on the data folder of a node that is stopped, and changes nothing before it was told the id of the cluster. What only
//! the lost nodes had is lost: which of it was acknowledged nobody can tell, and this command says how much that can be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use drover_cluster::core::ids::{GroupId, LogTime, NodeId};
use drover_cluster::core::meta::{Member, Meta};
use drover_cluster::raft::recover::{self, Replica, Survey, Survivor};
use drover_cluster::storage::Storage;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::output::{Form, Output, Table, counted};
use super::{Failure, json as values, node};
use crate::config::Sources;
use crate::grpc::convert::timestamp;
use crate::{clock, run};

/// A node that lives accepts a connection much sooner, over any network that peers can work with.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration of the node that is left, which must be stopped (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its data folder (node.data).
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The id of the cluster, to say that what only the other nodes had may be lost. Without it nothing is changed.
    #[arg(long, value_name = "CLUSTER")]
    accept_loss: Option<String>,
    /// Let shards that have no sound replica here begin anew, empty: all of their devices and messages are lost.
    #[arg(long, requires = "accept_loss")]
    accept_empty_shards: bool,
}

pub(super) async fn call(arguments: Arguments, out: &mut Output<'_>) -> Result<(), Failure> {
    let storage = open(&arguments).await?;
    let (node, storage) = storage;
    let survey = recover::survey(&storage, node).await;
    let survey = survey.map_err(|error| Failure::Failed(error.to_string()))?;
    show(&survey, out)?;
    if survey.is_alone() {
        let text = format!("node {node} is the whole cluster already: there is nothing to recover");
        return Err(Failure::Failed(text));
    }
    check_others(&survey.meta, node).await?;
    check_accepted(&arguments, &survey)?;
    let at = LogTime::new(clock::unix_ms());
    let recovered = recover::recover(&storage, &survey, at).await;
    recovered.map_err(|error| Failure::Failed(error.to_string()))?;
    if out.form() == Form::People {
        out.line(&format!(
            "Node {node} is the whole cluster now. Start it; wipe the other nodes' folders and let them join by a token. Never \
             start one of them with the data that it had"
        ))?;
    }
    Ok(())
}

/// Which node the folder is of, and its store, which nobody else may have open.
async fn open(arguments: &Arguments) -> Result<(NodeId, Arc<dyn Storage>), Failure> {
    let data = arguments.data.as_ref().map(|data| Value::from(data.to_string_lossy()));
    let flags = data.map(|data| ("node.data".to_owned(), data)).into_iter().collect();
    let config = Sources { file: arguments.config.clone(), flags }.load()?;
    let config = node::member(config, None, None, &CancellationToken::new()).await?;
    if !config.node.data.join("store/db/CURRENT").exists() {
        let text = format!("there is no data of a node in {}", config.node.data.display());
        return Err(Failure::Usage(text));
    }
    let opened = run::open_storage(&config).await;
    let storage = opened.map_err(|error| {
        Failure::Failed(format!("{error}; the node must be stopped: does it still run?"))
    })?;
    Ok((run::node_id(&config), storage))
}

/// Whoever answers would go on with the former cluster, beside the new one.
async fn check_others(meta: &Meta, node: NodeId) -> Result<(), Failure> {
    let others = meta.members.iter().filter(|(other, _)| **other != node);
    let answers = join_all(others.map(|(other, member)| async move {
        let connected = timeout(ANSWER_TIMEOUT, TcpStream::connect(&member.peer_address)).await;
        matches!(connected, Ok(Ok(_))).then_some((*other, member))
    }));
    let alive: Vec<(NodeId, &Member)> = answers.await.into_iter().flatten().collect();
    if alive.is_empty() {
        return Ok(());
    }
    let names =
        alive.iter().map(|(other, member)| format!("node {other} ({})", member.peer_address));
    let names = names.collect::<Vec<_>>().join(", ");
    let advice = if 2 * (alive.len() + 1) > meta.members.len() {
        "with this node that is a majority: start it, and nothing is lost"
    } else {
        "see there what it has, and recover from the node that has most; the others must be stopped, and never come back with their data"
    };
    Err(Failure::Failed(format!("nothing was changed: {names} answers; {advice}")))
}

fn check_accepted(arguments: &Arguments, survey: &Survey) -> Result<(), Failure> {
    let missing = survey.groups.iter().filter(|group| group.found.is_err());
    let missing: Vec<String> = missing.map(|group| group.group.to_string()).collect();
    if survey.groups.iter().any(|group| group.group == GroupId::Meta && group.found.is_err()) {
        let text =
            "nothing was changed: the meta group cannot go on here, recover from another node";
        return Err(Failure::Failed(text.to_owned()));
    }
    let cluster = &survey.meta.cluster_id;
    if arguments.accept_loss.as_ref() != Some(cluster) {
        return Err(Failure::Failed(format!(
            "nothing was changed: what the other nodes have acknowledged after the last entries here is lost, if this node goes \
             on alone. To accept that: --accept-loss {cluster}"
        )));
    }
    if !missing.is_empty() && !arguments.accept_empty_shards {
        return Err(Failure::Failed(format!(
            "nothing was changed: all of {} is lost if this node goes on alone. Recover from a node that has it, restore a backup, \
             or accept that with --accept-empty-shards",
            missing.join(", ")
        )));
    }
    Ok(())
}

fn show(survey: &Survey, out: &mut Output<'_>) -> Result<(), Failure> {
    let Survey { node, meta, groups } = survey;
    if out.form() == Form::Json {
        return out.json(&json!({
            "cluster": meta.cluster_id, "node": node.to_string(),
            "members": meta.members.keys().map(NodeId::to_string).collect::<Vec<_>>(),
            "groups": groups.iter().map(group_json).collect::<Vec<_>>(),
        }));
    }
    let members = counted(meta.members.len() as u64, "member");
    out.line(&format!("Cluster {} of {members}, as node {node} has it:", meta.cluster_id))?;
    let mut table =
        Table::new(&["GROUP", "LAST ENTRY", "APPLIED", "AS OF", "LOST VOTERS", "PROBLEM"]);
    for group in groups {
        table.row(row(group));
    }
    out.table(&table)
}

fn row(group: &Survivor) -> [String; 6] {
    let name = group.group.to_string();
    match &group.found {
        Ok(replica) => [
            name,
            format!("{} of term {}", replica.last_index, replica.last_term),
            replica.applied_index.to_string(),
            as_of(replica).unwrap_or_default(),
            lost(replica).join(" "),
            if replica.voters.contains(&replica.id) { "" } else { "it only followed" }.to_owned(),
        ],
        Err(missing) => {
            let nothing = String::new;
            [name, nothing(), nothing(), nothing(), nothing(), missing.to_string()]
        }
    }
}

fn group_json(group: &Survivor) -> Value {
    let name = group.group.to_string();
    match &group.found {
        Ok(replica) => json!({
            "group": name, "lastIndex": replica.last_index, "lastTerm": replica.last_term,
            "appliedIndex": replica.applied_index, "asOf": as_of(replica), "lostVoters": lost(replica),
            "votes": replica.voters.contains(&replica.id),
        }),
        Err(missing) => json!({ "group": name, "problem": missing.to_string() }),
    }
}

fn as_of(replica: &Replica) -> Option<String> {
    // The stream of a shard without devices has no time yet.
    let at = replica.applied_at.filter(|at| at.get() > 0);
    at.map(|at| values::time_text(&timestamp(at)))
}

fn lost(replica: &Replica) -> Vec<String> {
    let others = replica.voters.iter().filter(|voter| **voter != replica.id);
    others.map(|voter| voter.node().to_string()).collect()
}
