//! `drover cluster upgrade` and what a status says about it: the feature level of the cluster and of its nodes' builds.

use clap::{Args, Subcommand};
use drover_proto::admin::{
    ClusterStatus, FinishUpgradeRequest, HoldUpgradeRequest, RenameClusterRequest,
};
use serde_json::json;

use super::Failure;
use super::client::HubArguments;
use super::members::said;
use super::output::{Form, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Stay at the feature level that is active, so that every node can go back to its former build.
    Hold,
    /// Rise to what all nodes support, now and from now on. From then on no node can go back.
    Finish,
}

#[derive(Debug, Args)]
pub(super) struct Rename {
    /// 64 characters at most; "" takes the name away.
    name: String,
}

pub(super) async fn call(
    command: Command,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    match command {
        Command::Hold => {
            client.members().hold_upgrade(client.request(HoldUpgradeRequest {})).await?;
            said(out, "The feature level is held: drover cluster upgrade finish lets it rise")
        }
        Command::Finish => {
            let request = client.request(FinishUpgradeRequest {});
            let finished = client.members().finish_upgrade(request).await?.into_inner();
            let (active, waiting) = (finished.active_level, finished.waiting_for);
            if out.form() == Form::Json {
                return out.json(&json!({ "activeLevel": active, "waitingFor": waiting }));
            }
            out.line(&match waiting.as_slice() {
                [] => format!("The cluster is at feature level {active}"),
                nodes => format!(
                    "The cluster is at feature level {active} and rises when these nodes are upgraded: {}",
                    numbers(nodes)
                ),
            })
        }
    }
}

pub(super) async fn rename(
    rename: Rename,
    connection: &HubArguments,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let client = connection.client()?;
    let request = client.request(RenameClusterRequest { name: rename.name });
    client.members().rename_cluster(request).await?;
    said(out, "Renamed")
}

/// What stands between the cluster and a higher feature level, if anything does.
pub(super) fn outlook(status: &ClusterStatus) -> Option<String> {
    let active = status.active_level;
    let levels = status.nodes.iter().map(|node| node.feature_level);
    let highest = levels.max().filter(|highest| *highest > active);
    let behind = status.nodes.iter().filter(|node| node.feature_level <= active);
    let behind = behind.filter_map(|node| Some(node.member.as_ref()?.number));
    let behind: Vec<u32> = behind.collect();
    match (highest, behind.as_slice(), status.upgrade_held) {
        (Some(highest), [], true) => {
            Some(format!("Feature level {highest} is held: drover cluster upgrade finish"))
        }
        (Some(highest), [], false) => {
            Some(format!("All nodes support feature level {highest}: it comes in a moment"))
        }
        (Some(highest), nodes, held) => {
            let held = if held { ", and is held" } else { "" };
            let nodes = numbers(nodes);
            Some(format!(
                "Feature level {highest} waits for the upgrade of these nodes: {nodes}{held}"
            ))
        }
        (None, _, true) => Some("The feature level is held".to_owned()),
        (None, _, false) => None,
    }
}

fn numbers(nodes: &[u32]) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use drover_proto::admin::{Member, NodeStatus};

    use super::*;

    fn of(active_level: u32, levels: [u32; 3], upgrade_held: bool) -> Option<String> {
        let node = |(number, feature_level)| {
            let member = Some(Member { number, ..Member::default() });
            NodeStatus { member, feature_level, ..NodeStatus::default() }
        };
        let nodes = (1..).zip(levels).map(node).collect();
        outlook(&ClusterStatus { active_level, nodes, upgrade_held, ..ClusterStatus::default() })
    }

    #[test]
    fn a_status_says_what_an_upgrade_waits_for() {
        assert_eq!(of(1, [1, 1, 1], false), None);
        let waits = "Feature level 2 waits for the upgrade of these nodes: 1, 3".to_owned();
        assert_eq!(of(1, [1, 2, 1], false), Some(waits.clone()));
        assert_eq!(of(1, [1, 2, 1], true), Some(waits + ", and is held"));
        let held = "Feature level 2 is held: drover cluster upgrade finish";
        assert_eq!(of(1, [2, 2, 2], true).as_deref(), Some(held));
        assert_eq!(of(2, [2, 2, 2], true).as_deref(), Some("The feature level is held"));
        assert_eq!(of(2, [2, 2, 2], false), None);
    }
}
