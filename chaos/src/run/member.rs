//! The members of the cluster change while other faults happen: a node joins with an empty folder and gets its share, one of
//! the founders is drained and gets its share again, and the new one gives everything back and is removed.
//!
//! All of it goes through the API as an operator would do it, and whatever fails is asked for again: a leader that dies in
//! the middle of a move must be nothing special.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_proto::admin::{ClusterStatus, MemberState, NodeStatus};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::fault::Seen;
use crate::nodes::admin::Admin;
use crate::nodes::spare::Spare;
use crate::peers::until_ok;

/// For each step. Moves wait for nodes that are down, which they are for a period at the most.
const PATIENCE: Duration = Duration::from_mins(1);

/// What one node that comes and goes needs.
pub(super) struct Churn {
    pub(super) admin: Admin,
    pub(super) spare: Arc<Mutex<Spare>>,
    /// Members 1 to this stay.
    pub(super) founders: u32,
    /// The founder that is drained meanwhile.
    pub(super) drained: u32,
}

impl Churn {
    /// From the first token to the last removal.
    pub(super) async fn run(self) -> anyhow::Result<Seen> {
        let begin = Instant::now();
        let spare = Arc::clone(&self.spare);
        let mut spare = spare.lock().await;
        let number =
            until_ok("a node joins", PATIENCE, async || self.joined(&mut spare).await).await?;
        let share = until_ok("the new node has its share", PATIENCE, async || {
            share_in(&self.admin.status().await?, number)
        })
        .await?;
        let joined = begin.elapsed();
        self.drain_founder().await?;
        until_ok("only the founders are left, with everything", PATIENCE * 2, async || {
            self.remove_others().await?;
            founders_have_all(&self.admin.status().await?, self.founders)
        })
        .await?;
        spare.end().await?;
        let text = format!(
            "node {number} joined and held {share} replicas after {:.1} s; node {} was drained; all over after {:.1} s",
            joined.as_secs_f64(),
            self.drained,
            begin.elapsed().as_secs_f64()
        );
        Ok(Seen::of(share.into(), text))
    }

    /// Starts a node unless one is up: it ends if it is refused, for instance by a member whose clock is wrong.
    async fn joined(&self, spare: &mut Spare) -> anyhow::Result<u32> {
        if !spare.is_up()? {
            spare.end().await?;
            spare.join(&self.admin.join_token().await?)?;
        }
        spare.number().context("it is no member yet")
    }

    async fn drain_founder(&self) -> anyhow::Result<()> {
        until_ok("a founder is drained", PATIENCE, async || {
            self.admin.drain(self.drained).await?;
            leads_nothing(&self.admin.status().await?, self.drained)
        })
        .await?;
        until_ok("it is to get its share again", PATIENCE, async || {
            self.admin.undrain(self.drained).await
        })
        .await
    }

    /// Drains and removes whoever else is a member, also one that joined and never came up.
    async fn remove_others(&self) -> anyhow::Result<()> {
        for number in others(&self.admin.status().await?, self.founders) {
            self.admin.drain(number).await?;
            // Refused until it holds nothing.
            self.admin.remove(number).await?;
        }
        Ok(())
    }
}

/// How many replicas a node holds that has its share of them.
fn share_in(status: &ClusterStatus, number: u32) -> anyhow::Result<u32> {
    let replicas = member(status, number)?.replicas;
    ensure!(replicas > 0, "it holds nothing yet");
    is_at_rest(status)?;
    Ok(replicas)
}

fn is_at_rest(status: &ClusterStatus) -> anyhow::Result<()> {
    ensure!(status.moves.is_empty(), "{} moves are planned or under way", status.moves.len());
    Ok(())
}

fn leads_nothing(status: &ClusterStatus, number: u32) -> anyhow::Result<()> {
    let leaders = member(status, number)?.leaders;
    ensure!(leaders == 0, "it still leads {leaders} groups");
    Ok(())
}

/// Whether nobody else is a member, and each of the founders, which are as many as replicas, holds one of every group.
fn founders_have_all(status: &ClusterStatus, founders: u32) -> anyhow::Result<()> {
    let others = others(status, founders);
    ensure!(others.is_empty(), "nodes {others:?} are still members");
    is_at_rest(status)?;
    let groups = status.shards.len();
    for number in 1..=founders {
        let founder = member(status, number)?;
        let (replicas, state) = (founder.replicas, founder.state());
        ensure!(replicas as usize == groups, "node {number} holds {replicas} of {groups} groups");
        ensure!(state == MemberState::Active, "node {number} is {state:?}");
    }
    Ok(())
}

fn others(status: &ClusterStatus, founders: u32) -> Vec<u32> {
    let numbers = status.nodes.iter().filter_map(|node| Some(node.member.as_ref()?.number));
    numbers.filter(|number| *number > founders).collect()
}

fn member(status: &ClusterStatus, number: u32) -> anyhow::Result<&NodeStatus> {
    let is_it =
        |node: &&NodeStatus| node.member.as_ref().is_some_and(|member| member.number == number);
    status.nodes.iter().find(is_it).with_context(|| format!("node {number} is no member"))
}

#[cfg(test)]
mod tests {
    use drover_proto::admin::{Member, MoveStatus, ShardStatus};

    use super::*;

    /// Five groups, and nodes that hold replicas of so many each, numbered from 1.
    fn cluster(replicas: &[u32]) -> ClusterStatus {
        let node = |(number, replicas): (u32, &u32)| NodeStatus {
            member: Some(Member { number, ..Member::default() }),
            replicas: *replicas,
            state: MemberState::Active.into(),
            ..NodeStatus::default()
        };
        let nodes = (1..).zip(replicas).map(node).collect();
        let shards = vec![ShardStatus::default(); 5];
        ClusterStatus { nodes, shards, ..ClusterStatus::default() }
    }

    fn moving(status: ClusterStatus) -> ClusterStatus {
        ClusterStatus { moves: vec![MoveStatus::default()], ..status }
    }

    #[test]
    fn a_node_that_gets_nothing_or_not_all_of_its_share_is_waited_for() {
        assert_eq!(share_in(&cluster(&[4, 4, 4, 4]), 4).expect("its share"), 4);
        share_in(&cluster(&[5, 5, 5, 0]), 4).expect_err("nothing");
        share_in(&moving(cluster(&[5, 5, 5, 1])), 4).expect_err("more is on its way");
        share_in(&cluster(&[5, 5, 5]), 4).expect_err("it is no member");
    }

    #[test]
    fn a_drained_node_that_goes_on_leading_is_waited_for() {
        let mut status = cluster(&[5, 5, 5, 1]);
        leads_nothing(&status, 2).expect("nobody leads");
        status.nodes[1].leaders = 1;
        leads_nothing(&status, 2).expect_err("it leads a group");
    }

    #[test]
    fn all_is_over_when_the_founders_alone_are_members_and_have_what_they_had() {
        let judged = |status: &ClusterStatus| founders_have_all(status, 3);
        judged(&cluster(&[5, 5, 5])).expect("as it was");
        judged(&cluster(&[5, 5, 5, 0])).expect_err("a fourth is still there");
        judged(&cluster(&[5, 4, 5])).expect_err("the drained one did not get its share again");
        judged(&cluster(&[5, 5])).expect_err("a founder is gone");
        judged(&moving(cluster(&[5, 5, 5]))).expect_err("something moves");
        let mut drained = cluster(&[5, 5, 5]);
        drained.nodes[1].state = MemberState::Drained.into();
        judged(&drained).expect_err("a founder is still drained");
    }
}
