//! Kills nodes one at a time and starts them again.

use std::time::Duration;

use anyhow::Context as _;
use drover_proto::admin::ClusterStatus;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::plan::{Plan, Target};
use crate::nodes::Nodes;

/// A killed node has this long to come back and serve.
const RETURN_TIMEOUT: Duration = Duration::from_mins(1);

/// One kill and what it hit.
#[derive(Debug, Clone, Serialize)]
pub struct Kill {
    pub at_ms: u64,
    /// Counted from 1.
    pub node: u32,
    /// The shards that the node led.
    pub shards: Vec<u32>,
    pub down_ms: u64,
    /// From its start until it answers.
    pub return_ms: u64,
}

pub(super) async fn run(
    plan: &Plan,
    nodes: &mut Nodes,
    begin: Instant,
) -> anyhow::Result<Vec<Kill>> {
    let mut kills = Vec::new();
    for fault in plan.faults() {
        sleep(fault.calm).await;
        if begin.elapsed() + fault.down >= plan.duration {
            break;
        }
        let status = nodes.admin().status().await.context("before a kill")?;
        let node = match fault.target {
            Target::Node(node) => node,
            Target::LeaderOf(shard) => {
                let leader = leader_of(&status, shard).with_context(|| format!("shard {shard}"))?;
                usize::try_from(leader)? - 1
            }
        };
        let number = node as u32 + 1;
        nodes.check_alive()?;
        let at_ms = begin.elapsed().as_millis() as u64;
        nodes.kill(node).await?;
        tracing::info!(node = number, at_ms, "killed");
        sleep(fault.down).await;
        nodes.restart(node)?;
        let returned = nodes.until_answers(node, RETURN_TIMEOUT).await?;
        nodes.until_led(RETURN_TIMEOUT).await?;
        kills.push(Kill {
            at_ms,
            node: number,
            shards: led_by(&status, number),
            down_ms: fault.down.as_millis() as u64,
            return_ms: returned.as_millis() as u64,
        });
    }
    sleep(plan.duration.saturating_sub(begin.elapsed())).await;
    Ok(kills)
}

fn leader_of(status: &ClusterStatus, shard: u32) -> Option<u32> {
    status.shards.iter().find(|group| group.shard == Some(shard))?.leader
}

fn led_by(status: &ClusterStatus, node: u32) -> Vec<u32> {
    let led = status.shards.iter().filter(|group| group.leader == Some(node));
    led.filter_map(|group| group.shard).collect()
}

/// The sum of the groups' terms: it grows with each election.
pub(super) fn terms(status: &ClusterStatus) -> u64 {
    status.shards.iter().map(|group| group.term).sum()
}
