//! The simulation: whole nodes above storage in one process, on virtual time, with power losses and partitions.
//!
//! [`plan`] draws a run from a seed, `node` is a machine with the unchanged product on it, `workload` its clients,
//! `sockets` devices that speak MQTT to it, `operator` changes the members, `faults` is what goes wrong, `observe` looks at the disks meanwhile, and [`verdict`] holds what clients saw against what
//! the disks hold. One seed gives one run, event by event: that needs a process of its own for each seed, because a few
//! statics of libraries would carry over. [`seeds`] starts those processes.

mod clock;
mod counts;
mod faults;
mod history;
mod mailboxes;
mod network;
mod node;
mod observe;
mod operator;
mod panics;
pub mod plan;
pub mod seeds;
mod sockets;
pub mod verdict;
mod workload;

pub use counts::Counts;

use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use turmoil::Sim;

use crate::promises::Violation;
use faults::Faults;
use history::{History, Phase};
use network::Directory;
use node::Machine;
use observe::Observer;
use operator::Operator;
use plan::Plan;
use sockets::Fleet;
use verdict::{Evidence, Verdict};

const TICK: Duration = Duration::from_millis(1);
const LOOK_EVERY_MS: u64 = 500;
/// A cluster is made within this.
const START_MS_MAX: u64 = 60_000;
/// What an operator has begun when the faults end is carried out within this.
const ORDERS_MS_MAX: u64 = 60_000;
/// After that every shard accepts writes and all replicas agree within this (I-38).
const HEAL_MS_MAX: u64 = 30_000;
/// Segments that a socket holds.
const SOCKET_SEGMENTS: usize = 4_096;

/// Runs a plan to its end, on this thread.
pub fn run(plan: Plan) -> Verdict {
    panics::watch();
    let mut run = Run::new(plan);
    run.carry_out();
    run.judge()
}

struct Run {
    plan: Rc<Plan>,
    history: History,
    machines: Vec<Machine>,
    devices: Rc<Vec<drover_cluster::core::ids::DeviceId>>,
    operator: Operator,
    observer: Observer,
    sim: Sim<'static>,
}

impl Run {
    fn new(plan: Plan) -> Self {
        let plan = Rc::new(plan);
        let history = History::new();
        let devices = Rc::new(node::devices(&plan));
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_hours(1))
            .min_message_latency(TICK)
            .max_message_latency(plan.latency_max)
            .tcp_capacity(SOCKET_SEGMENTS)
            .enable_random_order()
            .build();
        let directory = Directory::new(plan.nodes);
        let operator = Operator::new(&plan, history.clone());
        let machine = |number| {
            let (plan, devices, history) = (Rc::clone(&plan), Rc::clone(&devices), history.clone());
            Machine::new(number, plan, devices, history, directory.clone(), operator.clone())
        };
        let machines: Vec<_> = (1..=plan.machines).map(machine).collect();
        for machine in &machines {
            let machine = machine.clone();
            sim.host(network::host(machine.number), move || machine.clone().live());
        }
        let speakers = devices[devices.len() - plan.socket_devices..].to_vec();
        let fleet = Fleet::new(Rc::clone(&plan), history.clone(), &speakers);
        sim.host(sockets::HOST, move || fleet.clone().live());
        let observer = Observer::new(history.clone(), &plan, directory);
        Self { plan, history, machines, devices, operator, observer, sim }
    }

    fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    fn carry_out(&mut self) {
        let started = |run: &mut Self| {
            let finished = run.history.lock().finished.len();
            finished > run.plan.nodes as usize
        };
        if !self.step_until(START_MS_MAX, None, started) {
            return self.give_up("I-38 start", "the cluster did not start");
        }
        self.enter(Phase::Load);
        self.operator.begin(self.now_ms());
        let (history, operator) = (self.history.clone(), self.operator.clone());
        let mut faults = Faults::new(&self.plan, history, operator, &self.machines, self.now_ms());
        self.step_until(self.plan.faults_ms, Some(&mut faults), |_| false);
        faults.end(&mut self.sim, &self.machines);
        self.heal(&mut faults);
    }

    /// Without faults everything comes right: orders, placement, clients, replicas (I-38).
    fn heal(&mut self, faults: &mut Faults) {
        self.enter(Phase::Heal);
        if !self.step_until(ORDERS_MS_MAX, Some(faults), |run| run.operator.is_done()) {
            return self.give_up("I-38 heal", "what the operator has begun cannot be finished");
        }
        let healed_ms = self.now_ms();
        let left_ms = |run: &Self| HEAL_MS_MAX.saturating_sub(run.now_ms() - healed_ms);
        self.step_until(HEAL_MS_MAX / 3, Some(faults), |_| false);
        if !self.step_until(left_ms(self), Some(faults), Self::is_settled) {
            return self.give_up("I-38 heal", "the replicas are not where they should be");
        }
        self.enter(Phase::Final);
        self.history.lock().finished.clear();
        let powered = self.operator.powered();
        let finished = |run: &mut Self| {
            powered.iter().all(|node| run.history.lock().finished.get(node) == Some(&true))
        };
        if !self.step_until(left_ms(self), Some(faults), finished) {
            return self.give_up("I-38 heal", "not every node could write and read everything");
        }
        if !self.step_until(left_ms(self), Some(faults), Self::replicas_agree) {
            self.give_up("I-38 heal", "the replicas have not come together");
        }
    }

    fn enter(&self, phase: Phase) {
        self.history.note(format_args!("phase {phase:?}"));
        self.history.lock().phase = phase;
    }

    fn give_up(&self, invariant: &'static str, seen: &str) {
        self.history.violate(Violation::new(invariant, "the cluster", seen));
    }

    /// Steps until `is_done`, at the most for so long. Whether it was done.
    fn step_until(
        &mut self,
        ms: u64,
        mut faults: Option<&mut Faults>,
        is_done: impl Fn(&mut Self) -> bool,
    ) -> bool {
        let until_ms = self.now_ms() + ms;
        while self.now_ms() < until_ms {
            if let Err(error) = self.sim.step() {
                self.give_up("no panic", &error.to_string());
                return true;
            }
            self.history.lock().now = self.sim.elapsed();
            let now_ms = self.now_ms();
            if let Some(faults) = &mut faults {
                faults.step(now_ms, &mut self.sim, &self.machines, &mut self.observer);
            }
            if now_ms.is_multiple_of(LOOK_EVERY_MS) {
                self.observer.look(&self.machines);
            }
            if now_ms.is_multiple_of(10) && is_done(self) {
                return true;
            }
        }
        false
    }

    /// Whether the members are those that the operator wants, and every group has its replicas where they belong.
    fn is_settled(&mut self) -> bool {
        self.observer.look(&self.machines);
        self.observer.is_settled(&self.operator.members())
    }

    /// Whether every group is equally far on all its replicas. That they then hold the same is checked by the look.
    fn replicas_agree(&mut self) -> bool {
        let standings = self.observer.look(&self.machines);
        self.observer.groups().all(|group| {
            let of_group = standings.get(&group);
            let hosts = self.observer.hosts(group);
            let replicas: Vec<_> = hosts.iter().map(|host| of_group?.get(host)).collect();
            let is_level = |replica: Option<&observe::Standing>| {
                replica == replicas[0] && replica.is_some_and(|it| it.applied == it.last)
            };
            !replicas.is_empty() && replicas.iter().copied().all(is_level)
        })
    }

    fn judge(self) -> Verdict {
        let simulated_ms = self.now_ms();
        let mut history = self.history.lock();
        let evidence = Evidence {
            plan: &self.plan,
            history: &mut history,
            observer: &self.observer,
            machines: &self.machines,
            devices: &self.devices,
        };
        verdict::judge(evidence, simulated_ms)
    }
}
