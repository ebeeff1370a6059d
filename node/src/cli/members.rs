//! `drover cluster`: nodes that join and leave, and what moves because of it.

use std::time::Duration;

use clap::{Args, Subcommand};
use drover_proto::admin::{
    CancelMovesRequest, ClusterStatus, CreateJoinTokenRequest, DrainNodeRequest, MoveStatus,
    PauseMovesRequest, RebuildReplicaRequest, RemoveNodeRequest, ResumeMovesRequest,
    UndrainNodeRequest,
};
use serde_json::{Value, json};

use super::client::HubArguments;
use super::output::{Form, Output, Table, counted};
use super::{Failure, cluster, json as values};

#[derive(Debug, Args)]
pub(super) struct JoinToken {
    /// How long it may wait for its node: a second to seven days.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Node {
    /// Its number.
    number: u32,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// Its number.
    number: u32,
    /// It is to be restarted and will be back soon: leave its replicas where they are.
    #[arg(long)]
    keep_replicas: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The number of its node.
    #[arg(long, value_name = "NUMBER")]
    node: u32,
    /// Which shard's replica.
    #[arg(long, value_name = "NUMBER")]
    shard: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum Moves {
    /// Show which replicas are on their way, and how far they are.
    Show,
    /// Begin no further move, and let those under way wait.
    Pause,
    /// Go on.
    Resume,
    /// Take back what is not done yet, and pause.
    Cancel,
}

pub(super) async fn join_token(
    arguments: JoinToken,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let ttl_seconds = u32::try_from(arguments.ttl.as_secs()).unwrap_or(u32::MAX);
    let client = connection.client()?;
    let request = client.request(CreateJoinTokenRequest { ttl_seconds });
    let made = client.members().create_join_token(request).await?.into_inner();
    if out.form() == Form::Json {
        let expires = values::time(made.expires.as_ref());
        return out.json(&json!({ "token": made.token, "expires": expires }));
    }
    out.line(&made.token)
}

pub(super) async fn drain(
    arguments: Drain,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let Drain { number, keep_replicas } = arguments;
    let client = connection.client()?;
    let request = client.request(DrainNodeRequest { number, keep_replicas });
    client.members().drain_node(request).await?;
    said(out, &format!("Node {number} is being drained: drover cluster status --watch"))
}

pub(super) async fn undrain(
    node: Node,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let request = client.request(UndrainNodeRequest { number: node.number });
    client.members().undrain_node(request).await?;
    said(out, &format!("Node {} gets its share again", node.number))
}

pub(super) async fn remove(
    node: Node,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let request = client.request(RemoveNodeRequest { number: node.number });
    client.members().remove_node(request).await?;
    said(out, &format!("Node {} leaves the cluster: drover cluster status --watch", node.number))
}

pub(super) async fn rebuild(
    arguments: Rebuild,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let Rebuild { node, shard } = arguments;
    let client = connection.client()?;
    let request = client.request(RebuildReplicaRequest { number: node, shard });
    client.members().rebuild_replica(request).await?;
    said(out, &format!("The replica of shard {shard} on node {node} begins anew"))
}

pub(super) async fn moves(
    command: Moves,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    match command {
        Moves::Show => return show(&cluster::status(&client).await?, out),
        Moves::Pause => {
            client.members().pause_moves(client.request(PauseMovesRequest {})).await?;
            said(out, "Moves are paused")
        }
        Moves::Resume => {
            client.members().resume_moves(client.request(ResumeMovesRequest {})).await?;
            said(out, "Moves go on")
        }
        Moves::Cancel => {
            client.members().cancel_moves(client.request(CancelMovesRequest {})).await?;
            said(out, "Moves are taken back and paused: drover cluster moves resume begins anew")
        }
    }
}

/// What a person likes to read, and a program does not need.
pub(super) fn said(out: &mut Output<'_>, text: &str) -> Result<(), Failure> {
    if out.form() == Form::Json { Ok(()) } else { out.line(text) }
}

pub(super) fn show(status: &ClusterStatus, out: &mut Output<'_>) -> Result<(), Failure> {
    if out.form() == Form::Json {
        let moves: Vec<Value> = status.moves.iter().map(move_json).collect();
        return out.json(&json!({ "paused": status.moves_paused, "moves": moves }));
    }
    let begun = status.moves.iter().filter(|m| m.began.is_some()).count();
    let paused = if status.moves_paused { ", paused" } else { "" };
    let planned = counted(status.moves.len() as u64, "move");
    out.line(&format!("{planned} planned, {begun} under way{paused}"))?;
    if status.moves.is_empty() { Ok(()) } else { out.table(&table(&status.moves)) }
}

fn table(moves: &[MoveStatus]) -> Table {
    let mut table = Table::new(&["SHARD", "FROM", "TO", "STATE", "COPIED"]);
    for m in moves {
        let state = match (m.began.is_some(), m.cancelled) {
            (_, true) => "taken back",
            (true, false) => "under way",
            (false, false) => "waits",
        };
        table.row([
            m.shard.to_string(),
            m.from.map_or_else(String::new, |from| from.to_string()),
            m.to.to_string(),
            state.to_owned(),
            copied(m),
        ]);
    }
    table
}

/// Of a snapshot, whose size nobody knows before its end, the bytes that are there; else the share of the log.
fn copied(m: &MoveStatus) -> String {
    match (m.received_bytes, m.matched_index, m.last_index) {
        (Some(bytes), ..) => format!("{} MiB of a snapshot", bytes >> 20),
        (None, Some(matched), Some(last)) if last > 0 => {
            format!("{}%", matched.min(last) * 100 / last)
        }
        (None, Some(_) | None, _) => String::new(),
    }
}

pub(super) fn move_json(m: &MoveStatus) -> Value {
    json!({
        "shard": m.shard,
        "from": m.from,
        "to": m.to,
        "began": m.began.as_ref().map(|began| values::time(Some(began))),
        "cancelled": m.cancelled,
        "matchedIndex": m.matched_index,
        "lastIndex": m.last_index,
        "receivedBytes": m.received_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_shows_what_is_copied_of_a_snapshot_or_of_the_log() {
        let log =
            MoveStatus { matched_index: Some(30), last_index: Some(40), ..MoveStatus::default() };
        assert_eq!(copied(&log), "75%");
        assert_eq!(
            copied(&MoveStatus { received_bytes: Some(3 << 20), ..log }),
            "3 MiB of a snapshot"
        );
        assert_eq!(copied(&MoveStatus::default()), "");
    }
}
