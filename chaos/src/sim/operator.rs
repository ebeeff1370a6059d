//! What an operator does to the cluster while it works: nodes join it, are drained, are lost for good, are removed and
//! replaced.
//!
//! A plan names the orders; here is which of them is due, and what has become of the machines. What has to be asked of the
//! cluster is asked at one of its nodes (`workload/administration.rs`), machines are switched off and on from outside
//! (`faults`). An order is given again until it is known to be carried out, as people do who get no answer.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use rand::Rng;
use rand::rngs::StdRng;

use super::history::History;
use super::plan::{Plan, stream};

/// Between two orders, at the most.
const PAUSE_MS_MAX: u64 = 3_000;
/// Whoever was asked and has not answered by then was lost: longer than the deadline of a request.
const TAKEN_MS: u64 = 5_000;

/// What an operator does. Machines are named, which have the numbers of the nodes that they begin as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A machine with an empty disk becomes a member, perhaps under the number of a node that was removed.
    Join {
        machine: u32,
        replaces: Option<u32>,
    },
    Drain(u32),
    /// Ends a drain.
    Return(u32),
    /// The machine is switched off, and nobody knows whether it will be seen again.
    Lose(u32),
    /// Done when the node is no member any more.
    Remove(u32),
    /// A machine that was removed is switched on again, with what its disk held.
    Revive(u32),
    PauseMoves,
    CancelMoves,
    ResumeMoves,
}

impl Order {
    /// Whether it is a matter of power and not of the cluster.
    fn is_outside(self) -> bool {
        match self {
            Self::Lose(_) | Self::Revive(_) => true,
            Self::Join { .. }
            | Self::Drain(_)
            | Self::Return(_)
            | Self::Remove(_)
            | Self::PauseMoves
            | Self::CancelMoves
            | Self::ResumeMoves => false,
        }
    }
}

/// Machines that join a running cluster, at the most.
pub(super) const SPARES: u32 = 2;

/// Orders that leave as many nodes as replicas are needed, and nothing half done.
pub(super) fn draw_orders(draw: &mut StdRng, nodes: u32) -> Vec<Order> {
    let (first, second) = (nodes + 1, nodes + SPARES);
    let old = draw.random_range(1..=nodes);
    let mut orders = vec![Order::Join { machine: first, replaces: None }];
    if draw.random_bool(0.3) {
        let halt = if draw.random_bool(0.5) { Order::PauseMoves } else { Order::CancelMoves };
        orders.extend([halt, Order::ResumeMoves]);
    }
    let successor = Order::Join { machine: second, replaces: Some(old) };
    orders.extend(match draw.random_range(0..6) {
        0 => vec![Order::Join { machine: second, replaces: None }],
        1 | 2 => vec![Order::Drain(old), Order::Return(old)],
        3 => vec![Order::Drain(old), Order::Remove(old), successor],
        _ => vec![Order::Lose(old), Order::Remove(old), Order::Revive(old), successor],
    });
    orders
}

/// The operator of a run. Cheap to clone.
#[derive(Clone)]
pub(super) struct Operator {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    history: History,
    orders: VecDeque<Order>,
    draw: StdRng,
    due_ms: u64,
    /// The first order is with this machine, until then.
    taken: Option<(u32, u64)>,
    members: BTreeSet<u32>,
    drained: BTreeSet<u32>,
    lost: BTreeSet<u32>,
    outcasts: BTreeSet<u32>,
    is_halted: bool,
}

impl Operator {
    pub(super) fn new(plan: &Plan, history: History) -> Self {
        let inner = Inner {
            history,
            orders: plan.orders.iter().copied().collect(),
            draw: stream(plan.seed, "operator", 0),
            due_ms: 0,
            taken: None,
            members: (1..=plan.nodes).collect(),
            drained: BTreeSet::new(),
            lost: BTreeSet::new(),
            outcasts: BTreeSet::new(),
            is_halted: false,
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    fn inner(&self) -> RefMut<'_, Inner> {
        self.inner.borrow_mut()
    }

    /// The first order comes so soon.
    pub(super) fn begin(&self, now_ms: u64) {
        self.inner().pause(now_ms);
    }

    /// The order that is due, for a node that carries it out. No other node gets it meanwhile.
    pub(super) fn take(&self, machine: u32, now_ms: u64) -> Option<Order> {
        let mut inner = self.inner();
        let order = inner.orders.front().copied().filter(|order| !order.is_outside())?;
        let is_taken = inner.taken.is_some_and(|(_, until_ms)| now_ms < until_ms);
        if is_taken || now_ms < inner.due_ms || inner.outcasts.contains(&machine) {
            return None;
        }
        inner.taken = Some((machine, now_ms + TAKEN_MS));
        Some(order)
    }

    /// A node that took an order knows what came of it.
    pub(super) fn answer(&self, machine: u32, order: Order, is_done: bool, now_ms: u64) {
        let mut inner = self.inner();
        let has_it = inner.taken.is_some_and(|(taker, _)| taker == machine);
        if !has_it || inner.orders.front() != Some(&order) {
            return;
        }
        inner.taken = None;
        if is_done {
            inner.orders.pop_front();
            inner.note_done(order);
            inner.pause(now_ms);
        }
    }

    /// The order that is due, if it is about power. It counts as carried out.
    pub(super) fn take_outside(&self, now_ms: u64) -> Option<Order> {
        let mut inner = self.inner();
        let order = inner.orders.front().copied().filter(|order| order.is_outside())?;
        if now_ms < inner.due_ms {
            return None;
        }
        inner.orders.pop_front();
        inner.note_done(order);
        inner.pause(now_ms);
        Some(order)
    }

    /// No new orders: what is half done is brought to its end.
    pub(super) fn wind_up(&self) {
        let mut inner = self.inner();
        let under_way = inner.taken.and(inner.orders.front().copied());
        let is_drained = |inner: &Inner, machine: u32| {
            inner.drained.contains(&machine) || under_way == Some(Order::Drain(machine))
        };
        let was_halted =
            inner.is_halted || matches!(under_way, Some(Order::PauseMoves | Order::CancelMoves));
        let left = std::mem::take(&mut inner.orders).into_iter();
        let kept = left.filter(|order| match *order {
            Order::Return(machine) => is_drained(&inner, machine),
            Order::Remove(machine) | Order::Revive(machine) => {
                is_drained(&inner, machine)
                    || inner.lost.contains(&machine)
                    || inner.outcasts.contains(&machine)
            }
            Order::ResumeMoves => was_halted,
            Order::Join { .. }
            | Order::Drain(_)
            | Order::Lose(_)
            | Order::PauseMoves
            | Order::CancelMoves => under_way == Some(*order),
        });
        let kept = kept.collect();
        inner.orders = kept;
    }

    /// Whether everything is carried out.
    pub(super) fn is_done(&self) -> bool {
        self.inner().orders.is_empty()
    }

    /// It is switched off for good, or until the operator wants it back.
    pub(super) fn is_lost(&self, machine: u32) -> bool {
        self.inner().lost.contains(&machine)
    }

    /// It was a member and is none any more.
    pub(super) fn is_outcast(&self, machine: u32) -> bool {
        self.inner().outcasts.contains(&machine)
    }

    /// Machines that belong to the cluster, whether they run or not.
    pub(super) fn members(&self) -> BTreeSet<u32> {
        self.inner().members.clone()
    }

    /// Machines with a node on them that is not lost for good, former members included.
    pub(super) fn powered(&self) -> Vec<u32> {
        let inner = self.inner();
        inner
            .members
            .union(&inner.outcasts)
            .filter(|it| !inner.lost.contains(it))
            .copied()
            .collect()
    }
}

impl Inner {
    fn pause(&mut self, now_ms: u64) {
        self.due_ms = now_ms + self.draw.random_range(0..PAUSE_MS_MAX);
    }

    fn note_done(&mut self, order: Order) {
        self.history.note(format_args!("the operator: {order:?}"));
        let mut history = self.history.lock();
        let operator = &mut history.counts.operator;
        match order {
            Order::Join { machine, replaces } => {
                operator.nodes_joined += 1;
                operator.nodes_replaced += u64::from(replaces.is_some());
                self.members.insert(machine);
            }
            Order::Drain(machine) => {
                operator.nodes_drained += 1;
                self.drained.insert(machine);
            }
            Order::Return(machine) => {
                operator.nodes_returned += 1;
                self.drained.remove(&machine);
            }
            Order::Lose(machine) => {
                operator.machines_lost += 1;
                self.lost.insert(machine);
            }
            Order::Remove(machine) => {
                operator.nodes_removed += 1;
                self.members.remove(&machine);
                self.drained.remove(&machine);
                self.outcasts.insert(machine);
            }
            Order::Revive(machine) => {
                operator.machines_revived += 1;
                self.lost.remove(&machine);
            }
            Order::PauseMoves | Order::CancelMoves => {
                operator.moves_halted += 1;
                self.is_halted = true;
            }
            Order::ResumeMoves => self.is_halted = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(orders: &[Order]) -> Operator {
        let plan = Plan { orders: orders.to_vec(), nodes: 3, ..Plan::new(1) };
        Operator::new(&plan, History::new())
    }

    #[test]
    fn an_order_is_with_one_node_at_a_time_until_that_has_had_its_time() {
        let operator = operator(&[Order::Drain(2), Order::Lose(3)]);
        assert_eq!(operator.take(1, 10), Some(Order::Drain(2)));
        assert_eq!(operator.take(2, 10 + TAKEN_MS - 1), None);
        assert_eq!(operator.take_outside(10), None, "it is not its turn");
        assert_eq!(operator.take(2, 10 + TAKEN_MS), Some(Order::Drain(2)));
        operator.answer(1, Order::Drain(2), true, 6_000);
        assert!(operator.take(3, 6_000).is_none(), "another one has it by now");
        operator.answer(2, Order::Drain(2), true, 6_000);
        assert_eq!(operator.take_outside(6_000 + PAUSE_MS_MAX), Some(Order::Lose(3)));
        assert_eq!(operator.powered(), [1, 2]);
        assert!(operator.is_done());
    }

    #[test]
    fn what_is_half_done_at_the_end_is_finished_and_nothing_else_is_begun() {
        let all = [Order::Drain(2), Order::Return(2), Order::Lose(1), Order::Remove(1)];
        let operator = operator(&all);
        operator.take(1, 10);
        operator.wind_up();
        assert_eq!(operator.take(1, 10 + TAKEN_MS), Some(Order::Drain(2)), "it was under way");
        operator.answer(1, Order::Drain(2), true, 0);
        assert_eq!(operator.take(1, PAUSE_MS_MAX), Some(Order::Return(2)));
        operator.answer(1, Order::Return(2), true, 0);
        assert!(operator.is_done(), "nobody is lost any more");
    }
}
