//! The members of the cluster change while other faults happen: a node joins with an empty folder and gets its share, one of
//! the founders is drained and gets its share again, and the new one gives everything back and is removed.
//!
//! All of it goes through the API as an operator would do it, and whatever fails is asked for again: a leader that dies in
//! the middle of a move must be nothing special.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_proto::admin::{ClusterStatus, NodeStatus};
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
        let share =
            until_ok("the new node has its share", PATIENCE, async || self.share_of(number).await)
                .await?;
        let joined = begin.elapsed();
        self.drain_founder().await?;
        until_ok("only the founders are left", PATIENCE * 2, async || self.only_founders().await)
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

    async fn share_of(&self, number: u32) -> anyhow::Result<u32> {
        let status = self.admin.status().await?;
        let replicas = member(&status, number).context("it is not in the status")?.replicas;
        ensure!(replicas > 0, "it holds nothing yet");
        ensure!(status.moves.is_empty(), "{} moves are planned or under way", status.moves.len());
        Ok(replicas)
    }

    async fn drain_founder(&self) -> anyhow::Result<()> {
        until_ok("a founder is drained", PATIENCE, async || {
            self.admin.drain(self.drained).await?;
            let status = self.admin.status().await?;
            let leaders = member(&status, self.drained).context("it is a founder")?.leaders;
            ensure!(leaders == 0, "it still leads {leaders} groups");
            Ok(())
        })
        .await?;
        until_ok("it gets its share again", PATIENCE, async || {
            self.admin.undrain(self.drained).await
        })
        .await
    }

    /// Drains and removes whoever else is a member, also one that joined and never came up.
    async fn only_founders(&self) -> anyhow::Result<()> {
        let status = self.admin.status().await?;
        let numbers = status.nodes.iter().filter_map(|node| Some(node.member.as_ref()?.number));
        let others: Vec<u32> = numbers.filter(|number| *number > self.founders).collect();
        for number in &others {
            self.admin.drain(*number).await?;
            // Refused until it holds nothing.
            self.admin.remove(*number).await?;
        }
        ensure!(others.is_empty(), "nodes {others:?} are still members");
        Ok(())
    }
}

fn member(status: &ClusterStatus, number: u32) -> Option<&NodeStatus> {
    status.nodes.iter().find(|node| node.member.as_ref().is_some_and(|of| of.number == number))
}
