//! How the operator's orders reach the cluster: any node may carry one out, and gives it again until it is known to be done.

use std::time::Duration;

use bytes::Bytes;
use drover_cluster::Error;
use drover_cluster::core::ids::NodeId;
use drover_cluster::core::level;
use drover_cluster::core::membership::{Departure, Joining, MembershipRefusal};
use drover_cluster::core::meta::{Meta, MetaRefusal};
use tokio::time::sleep;

use super::Workload;
use crate::sim::history::Phase;
use crate::sim::node::member;
use crate::sim::operator::Order;

/// How often a node looks whether an order is due.
const EVERY: Duration = Duration::from_millis(200);
/// Longer than any run, by any clock of it.
const TOKEN_MS: u64 = 36_000_000;

impl Workload {
    /// Until everything is carried out, and the last phase begins.
    pub(super) async fn administer(&self) {
        while self.history.phase() < Phase::Final {
            sleep(EVERY).await;
            if let Some(order) = self.operator.take(self.node, now_ms()) {
                let done = self.carry_out(order).await;
                self.history.note(format_args!("node {}: {order:?}: {done:?}", self.node));
                self.operator.answer(self.node, order, done == Ok(true), now_ms());
            } else if self.operator.is_done() {
                self.correct().await;
            }
        }
    }

    /// Whether it is known to be carried out; an error leaves that open.
    async fn carry_out(&self, order: Order) -> Result<bool, Error> {
        match order {
            Order::Join { machine, replaces } => self.join(machine, replaces).await,
            Order::Drain(machine) => {
                self.known(machine, async |node| self.cluster.drain(node).await).await
            }
            Order::Return(machine) => {
                self.known(machine, async |node| unless_gone(self.cluster.undrain(node).await))
                    .await
            }
            Order::Remove(machine) => self.remove(machine).await,
            Order::PauseMoves => self.cluster.pause_moves().await.map(|()| true),
            Order::CancelMoves => self.cluster.cancel_moves().await.map(|()| true),
            Order::ResumeMoves => self.cluster.resume_moves().await.map(|()| true),
            Order::Lose(_) | Order::Revive(_) => Ok(false),
        }
    }

    async fn known(
        &self,
        machine: u32,
        act: impl AsyncFn(NodeId) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        match self.directory.node(machine) {
            Some(node) => act(node).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// The token is made once: one that is made again would forget that it was used.
    async fn join(&self, machine: u32, replaces: Option<u32>) -> Result<bool, Error> {
        let token = format!("join-{machine}");
        let meta = self.cluster.meta().ok_or(Error::NotInitialized)?;
        if !meta.membership.tokens.contains_key(&token) {
            let expires = self.cluster.now().plus_ms(TOKEN_MS);
            let digest = Bytes::from_static(b"digest");
            self.cluster.add_join_token(token.clone(), digest, expires).await?;
        }
        let former = replaces.and_then(|machine| self.directory.node(machine));
        let (number, key_digest) = (former.map(NodeId::number), Bytes::from(token.clone()));
        let member = member(machine);
        let address = member.peer_address.clone();
        let supports = level::supported();
        let joining = Joining { token, number, key_digest, member, supports };
        let joined = match self.cluster.join(joining).await {
            // The answer to an earlier attempt was lost, and so was the token's memory.
            Err(Error::RefusedByMeta(MetaRefusal::Membership(
                MembershipRefusal::AddressTaken { .. },
            ))) => self.cluster.meta().and_then(|meta| with_address(&meta, &address)),
            joined => Some(joined?),
        };
        if let Some(node) = joined {
            self.directory.set(machine, node);
        }
        Ok(joined.is_some())
    }

    /// Done when it is no member any more, which takes the moves of all that it held.
    async fn remove(&self, machine: u32) -> Result<bool, Error> {
        let Some(node) = self.directory.node(machine) else { return Ok(false) };
        let meta = self.cluster.meta().ok_or(Error::NotInitialized)?;
        if meta.membership.removed.contains(&node) {
            return Ok(true);
        }
        if !meta.membership.is_leaving(node) {
            self.cluster.remove(node).await?;
        }
        Ok(false)
    }

    /// A request without an answer may have been carried out late, after what was meant to follow it.
    async fn correct(&self) {
        let Some(meta) = self.cluster.meta() else { return };
        if meta.membership.is_paused {
            drop(self.cluster.resume_moves().await);
        }
        for (node, departure) in &meta.membership.departures {
            if *departure == Departure::Drained {
                drop(self.cluster.undrain(*node).await);
            }
        }
    }
}

fn now_ms() -> u64 {
    turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64
}

fn with_address(meta: &Meta, address: &str) -> Option<NodeId> {
    let found = meta.members.iter().find(|(_, member)| member.peer_address == address);
    found.map(|(node, _)| *node)
}

/// Who does not depart any more has returned.
fn unless_gone(returned: Result<(), Error>) -> Result<(), Error> {
    match returned {
        Err(Error::RefusedByMeta(MetaRefusal::Membership(MembershipRefusal::MemberNotFound {
            ..
        }))) => Ok(()),
        returned => returned,
    }
}
