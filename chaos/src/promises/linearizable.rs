//! Whether a history of concurrent operations could have happened one by one (Herlihy and Wing, 1990).
//!
//! The search of Wing and Gong with Lowe's memo: take any operation that had begun before every open one ended, ask the
//! model whether it fits the state, go on, and take it back if that leads nowhere. What was tried is remembered as (set of
//! operations, state), so the search is fast where answers name versions. Operations of unknown outcome end never: they
//! may be taken anywhere after their begin, or not at all.

use std::collections::BTreeSet;

/// Steps after which the search gives up. A verdict that is not reached is not a pass.
const STEPS_MAX: u64 = 20_000_000;

/// What one object does, operation by operation.
pub trait Model {
    type State: Clone + Ord;
    type Operation;

    /// The state after `operation`, or `None` if what it answered cannot come from this state.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// An operation with its place in real time.
#[derive(Debug, Clone)]
pub struct Timed<O> {
    pub operation: O,
    pub begun: u64,
    /// `None` if its outcome is unknown.
    pub ended: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Linearizable,
    /// No order fits. `stuck` is the operation that the longest attempt could not go past.
    Violated {
        stuck: usize,
        fitted: usize,
    },
    /// The search was given up.
    Undecided,
}

/// Searches for an order of `history` that begins in `initial` and that the model accepts.
pub fn check<M: Model>(model: &M, initial: M::State, history: &[Timed<M::Operation>]) -> Judgement {
    let mut search = Search::new(initial, history);
    for _ in 0..STEPS_MAX {
        if search.open == 0 {
            return Judgement::Linearizable;
        }
        match search.at {
            Point::Begin(operation) => search.try_next(model, history, operation),
            Point::End(operation) => {
                search.remember_stuck(operation);
                if !search.take_back() {
                    let (fitted, stuck) = search.longest;
                    return Judgement::Violated { stuck, fitted };
                }
            }
        }
    }
    Judgement::Undecided
}

/// A point in time: an operation begins, or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    Begin(usize),
    End(usize),
}

/// All points in a doubly linked list, so that an operation is taken out and put back at no cost.
struct Search<S> {
    points: Vec<Point>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where the operations' points stand.
    begins: Vec<usize>,
    ends: Vec<usize>,
    has_end: Vec<bool>,
    at: Point,
    place: usize,
    state: S,
    taken: Vec<(usize, S)>,
    bits: Vec<u64>,
    tried: BTreeSet<(Vec<u64>, S)>,
    /// Operations with a known end that are not taken.
    open: usize,
    longest: (usize, usize),
}

/// The list's head; the points follow it.
const HEAD: usize = 0;

impl<S: Clone + Ord> Search<S> {
    fn new<O>(initial: S, history: &[Timed<O>]) -> Self {
        let mut order: Vec<(u64, u8, Point)> = Vec::with_capacity(history.len() * 2);
        for (index, timed) in history.iter().enumerate() {
            order.push((timed.begun, 1, Point::Begin(index)));
            // At the same instant an end comes first: what begins then has seen it.
            let (ended, rank) = timed.ended.map_or((u64::MAX, 2), |ended| (ended, 0));
            order.push((ended, rank, Point::End(index)));
        }
        order.sort_by_key(|(time, rank, _)| (*time, *rank));
        let mut begins = vec![0; history.len()];
        let mut ends = vec![0; history.len()];
        let mut points = vec![Point::End(usize::MAX)];
        for (place, (_, _, point)) in (1..).zip(&order) {
            match point {
                Point::Begin(operation) => begins[*operation] = place,
                Point::End(operation) => ends[*operation] = place,
            }
            points.push(*point);
        }
        let count = points.len();
        let mut search = Self {
            points,
            next: (1..=count).map(|place| place % count).collect(),
            previous: (0..count).map(|place| (place + count - 1) % count).collect(),
            begins,
            ends,
            has_end: history.iter().map(|timed| timed.ended.is_some()).collect(),
            at: Point::End(0),
            place: HEAD,
            state: initial,
            taken: Vec::new(),
            bits: vec![0; history.len().div_ceil(64)],
            tried: BTreeSet::new(),
            open: history.iter().filter(|timed| timed.ended.is_some()).count(),
            longest: (0, 0),
        };
        search.go_to(search.next[HEAD]);
        search
    }

    fn go_to(&mut self, place: usize) {
        self.place = place;
        self.at = self.points[place];
    }

    fn try_next<M: Model<State = S>>(
        &mut self,
        model: &M,
        history: &[Timed<M::Operation>],
        operation: usize,
    ) {
        if let Some(after) = model.step(&self.state, &history[operation].operation) {
            self.bits[operation / 64] |= 1 << (operation % 64);
            if self.tried.insert((self.bits.clone(), after.clone())) {
                let before = std::mem::replace(&mut self.state, after);
                self.taken.push((operation, before));
                self.unlink(self.begins[operation]);
                self.unlink(self.ends[operation]);
                self.open -= usize::from(self.has_end[operation]);
                return self.go_to(self.next[HEAD]);
            }
            self.bits[operation / 64] &= !(1 << (operation % 64));
        }
        self.go_to(self.next[self.place]);
    }

    fn remember_stuck(&mut self, operation: usize) {
        if self.taken.len() >= self.longest.0 {
            self.longest = (self.taken.len(), operation);
        }
    }

    /// Puts the operation that was taken last back, and looks behind it. `false` if none was taken.
    fn take_back(&mut self) -> bool {
        let Some((operation, before)) = self.taken.pop() else { return false };
        self.state = before;
        self.bits[operation / 64] &= !(1 << (operation % 64));
        self.link(self.ends[operation]);
        self.link(self.begins[operation]);
        self.open += usize::from(self.has_end[operation]);
        self.go_to(self.next[self.begins[operation]]);
        true
    }

    fn unlink(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn link(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = place;
        self.previous[next] = place;
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A register whose writes answer nothing and whose reads answer what they saw.
    struct Register;

    #[derive(Debug, Clone, Copy)]
    enum Access {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;
        type Operation = Access;

        fn step(&self, state: &u8, access: &Access) -> Option<u8> {
            match access {
                Access::Write(value) => Some(*value),
                Access::Read(value) => (value == state).then_some(*state),
            }
        }
    }

    /// Tries every order of every subset that leaves out unknown operations only.
    fn brute_force(state: u8, history: &[Timed<Access>], taken: &mut Vec<usize>) -> bool {
        let left = |index: &usize| !taken.contains(index);
        let open: Vec<usize> = (0..history.len()).filter(left).collect();
        let known = |index: &usize| history[*index].ended;
        if open.iter().all(|index| known(index).is_none()) {
            return true;
        }
        let first_end = open.iter().filter_map(known).min().unwrap_or(u64::MAX);
        for index in open {
            if history[index].begun >= first_end {
                continue;
            }
            if let Some(after) = Register.step(&state, &history[index].operation) {
                taken.push(index);
                let found = brute_force(after, history, taken);
                taken.pop();
                if found {
                    return true;
                }
            }
        }
        false
    }

    fn drawn(random: &mut StdRng) -> Vec<Timed<Access>> {
        let mut instants: Vec<u64> = (0..12).collect();
        let mut draw = || instants.swap_remove(random.random_range(0..instants.len()));
        let times: Vec<_> = (0..6).map(|_| [draw(), draw()]).collect();
        times
            .into_iter()
            .take(random.random_range(1..=6))
            .map(|[one, other]| Timed {
                operation: match random.random_range(0..2) {
                    0 => Access::Write(random.random_range(0..3)),
                    _ => Access::Read(random.random_range(0..3)),
                },
                begun: one.min(other),
                ended: random.random_bool(0.8).then_some(one.max(other)),
            })
            .collect()
    }

    #[test]
    fn the_search_agrees_with_brute_force_on_small_histories() {
        let mut random = StdRng::seed_from_u64(1);
        let mut seen = [0, 0];
        for _ in 0..20_000 {
            let history = drawn(&mut random);
            let expected = brute_force(0, &history, &mut Vec::new());
            let judgement = check(&Register, 0, &history);
            assert_eq!(judgement == Judgement::Linearizable, expected, "{history:?}");
            seen[usize::from(expected)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 2_000), "the histories are too tame: {seen:?}");
    }

    #[test]
    fn a_stale_read_after_an_acknowledged_write_is_found() {
        let timed = |operation, begun, ended| Timed { operation, begun, ended: Some(ended) };
        let history = [
            timed(Access::Write(1), 0, 1),
            timed(Access::Read(1), 2, 3),
            timed(Access::Read(0), 4, 5),
        ];
        assert_eq!(check(&Register, 0, &history), Judgement::Violated { stuck: 2, fitted: 2 });
    }
}
