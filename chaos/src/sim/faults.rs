//! What goes wrong in a run, and when: periods of a few seconds, each with its own draw of faults, some of them quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use drover_cluster::core::ids::GroupId;
use drover_cluster::raft::log_record;
use drover_cluster::storage::{Table, keys};
use rand::Rng;
use rand::rngs::StdRng;
use turmoil::Sim;

use super::history::History;
use super::network::host;
use super::node::Machine;
use super::observe::Observer;
use super::operator::{Operator, Order};
use super::plan::{Fault, Plan, stream};
use super::sockets::HOST;

/// How likely each fault of the plan is in a period.
const LIKELY: f64 = 0.5;
const SLOW: Duration = Duration::from_millis(250);
/// Records that rot together.
const ROTTEN_MAX: usize = 8;

/// What is to happen at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Crash(u32),
    PowerCut,
    Start(u32),
    /// Some records of the machine's disk rot.
    Rot(u32),
    /// The links of a period are made whole.
    Restore,
    /// The next period is drawn.
    Period,
}

pub(super) struct Faults {
    draw: StdRng,
    /// For the faults that came later than seeds which are kept.
    other_draw: StdRng,
    plan: Plan,
    history: History,
    operator: Operator,
    /// By time in milliseconds, and by when it was planned.
    due: BTreeMap<(u64, u64), Act>,
    planned: u64,
    down: BTreeSet<u32>,
    is_over: bool,
}

impl Faults {
    /// From here on disks may fail.
    pub(super) fn new(
        plan: &Plan,
        history: History,
        operator: Operator,
        machines: &[Machine],
        now_ms: u64,
    ) -> Self {
        for machine in machines {
            machine.disk.set_behaviour(plan.disk);
        }
        let draw = stream(plan.seed, "faults", 0);
        let mut faults = Self {
            draw,
            other_draw: stream(plan.seed, "other faults", 0),
            plan: plan.clone(),
            history,
            operator,
            due: BTreeMap::new(),
            planned: 0,
            down: BTreeSet::new(),
            is_over: false,
        };
        faults.plan_at(now_ms, Act::Period);
        faults
    }

    fn plan_at(&mut self, at_ms: u64, act: Act) {
        self.planned += 1;
        self.due.insert((at_ms, self.planned), act);
    }

    /// Does what is due.
    pub(super) fn step(
        &mut self,
        now_ms: u64,
        sim: &mut Sim<'_>,
        machines: &[Machine],
        observer: &mut Observer,
    ) {
        let failed = std::mem::take(&mut self.history.lock().failed);
        for (node, _) in failed {
            self.history.lock().counts.faults.syncs_failed += 1;
            self.crash(node, now_ms, sim, machines, observer);
        }
        while let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now_ms
        {
            match entry.remove() {
                Act::Crash(node) => {
                    self.history.lock().counts.faults.crashes += 1;
                    self.crash(node, now_ms, sim, machines, observer);
                }
                Act::PowerCut => {
                    self.history.lock().counts.faults.power_cuts += 1;
                    for machine in machines {
                        self.crash(machine.number, now_ms, sim, machines, observer);
                    }
                }
                Act::Start(node) => self.start(node, sim),
                Act::Rot(node) => self.rot(&machines[node as usize - 1]),
                Act::Restore => self.restore(sim),
                Act::Period if self.is_over => {}
                Act::Period => self.begin_period(now_ms, sim),
            }
        }
        match self.operator.take_outside(now_ms) {
            Some(Order::Lose(node)) => self.crash(node, now_ms, sim, machines, observer),
            Some(Order::Revive(node)) => self.start(node, sim),
            Some(_) | None => {}
        }
    }

    /// No faults from now on: links are whole, disks work, every node runs that is not lost for good.
    pub(super) fn end(&mut self, sim: &mut Sim<'_>, machines: &[Machine]) {
        self.is_over = true;
        self.history.note("the faults are over");
        self.restore(sim);
        for machine in machines {
            machine.disk.set_behaviour(self.plan.disk.sound());
        }
        for node in self.down.clone() {
            self.start(node, sim);
        }
        self.due.clear();
        self.operator.wind_up();
    }

    fn crash(
        &mut self,
        node: u32,
        now_ms: u64,
        sim: &mut Sim<'_>,
        machines: &[Machine],
        observer: &mut Observer,
    ) {
        if !self.down.insert(node) {
            return;
        }
        let disk = &machines[node as usize - 1].disk;
        let unsynced = disk.unsynced();
        let lost = disk.crash();
        self.history.note(format_args!(
            "node {node} loses power, and {lost} of {unsynced} unsynced writes"
        ));
        {
            let counts = &mut self.history.lock().counts.faults;
            counts.writes_unsynced += unsynced as u64;
            counts.writes_lost += lost as u64;
        }
        sim.crash(host(node));
        observer.forget(node);
        let pause_ms = self.draw.random_range(50..3_000);
        self.plan_at(now_ms + pause_ms, Act::Start(node));
    }

    fn start(&mut self, node: u32, sim: &mut Sim<'_>) {
        if !self.operator.is_lost(node) && self.down.remove(&node) {
            self.note_start(node);
            sim.bounce(host(node));
        }
    }

    fn note_start(&self, node: u32) {
        self.history.note(format_args!("node {node} has power again"));
    }

    fn begin_period(&mut self, now_ms: u64, sim: &mut Sim<'_>) {
        let length_ms = self.draw.random_range(2_000..=self.plan.period_ms_max);
        let end_ms = now_ms + length_ms;
        self.plan_at(end_ms, Act::Restore);
        self.plan_at(end_ms, Act::Period);
        if self.draw.random_bool(self.plan.quiet) {
            self.history.note("a quiet period");
            self.history.lock().counts.faults.quiet_periods += 1;
            return;
        }
        for fault in self.plan.faults.clone() {
            if self.draw.random_bool(LIKELY) {
                self.begin(fault, now_ms, end_ms, sim);
            }
        }
        if let Some(node) = self.plan.rotting.filter(|_| self.other_draw.random_bool(LIKELY)) {
            let at_ms = self.other_draw.random_range(now_ms..end_ms);
            self.plan_at(at_ms, Act::Rot(node));
        }
        if self.plan.cuts_devices_off && self.other_draw.random_bool(LIKELY) {
            self.cut_devices_off(sim);
        }
    }

    /// A block of a file: some records of one replica. Of a log it is entries, because nothing helps a node that cannot say which
    /// replica it has but to be replaced.
    fn rot(&mut self, machine: &Machine) {
        let draw = &mut self.other_draw;
        let shard = draw.random_range(0..self.plan.shards);
        let group = GroupId::from_number(shard + 1).expect("a plan has a few shards");
        let table = Table::ALL[draw.random_range(0..Table::ALL.len())];
        let range = match table {
            Table::Log => log_record::entry_keys(group, 0..u64::MAX),
            Table::Group
            | Table::Device
            | Table::Twin
            | Table::Stream
            | Table::History
            | Table::Mailbox => keys::all(group),
        };
        let (place, count) = (draw.random_range(0..usize::MAX), draw.random_range(1..=ROTTEN_MAX));
        let rotten = machine.disk.rot(table, &range, place, count);
        self.history.lock().counts.faults.records_rotted += rotten as u64;
        self.history.note(format_args!(
            "fault: {rotten} records of {group} in {table:?} rot at node {}",
            machine.number
        ));
    }

    /// From one node, in one direction or in both.
    fn cut_devices_off(&mut self, sim: &mut Sim<'_>) {
        let powered = self.operator.powered();
        let node = powered[self.other_draw.random_range(0..powered.len())];
        let way = self.other_draw.random_range(0..3);
        self.history.lock().counts.faults.devices_cut_off += 1;
        self.history.note(format_args!("fault: devices are cut off from node {node}, way {way}"));
        match way {
            0 => sim.partition(HOST, host(node)),
            1 => sim.partition_oneway(HOST, host(node)),
            _ => sim.partition_oneway(host(node), HOST),
        }
    }

    fn begin(&mut self, fault: Fault, now_ms: u64, end_ms: u64, sim: &mut Sim<'_>) {
        let powered = self.operator.powered();
        let place = self.draw.random_range(0..powered.len());
        let (node, other) = (powered[place], powered[(place + 1) % powered.len()]);
        let at_ms = self.draw.random_range(now_ms..end_ms);
        self.history.note(format_args!("fault: {fault:?} of node {node}"));
        match fault {
            Fault::Crash => self.plan_at(at_ms, Act::Crash(node)),
            Fault::PowerCut => self.plan_at(at_ms, Act::PowerCut),
            Fault::Isolate => {
                self.history.lock().counts.faults.partitions += 1;
                self.each_other(node, |other| sim.partition(host(node), host(other)));
            }
            Fault::OneWay => {
                self.history.lock().counts.faults.partitions += 1;
                sim.partition_oneway(host(node), host(other));
            }
            Fault::Hold => {
                self.history.lock().counts.faults.holds += 1;
                self.each_other(node, |other| sim.hold(host(node), host(other)));
            }
            Fault::Slow => {
                self.history.lock().counts.faults.slow_periods += 1;
                sim.set_max_message_latency(SLOW);
            }
        }
    }

    fn each_other(&self, node: u32, mut act: impl FnMut(u32)) {
        (1..=self.plan.machines).filter(|other| *other != node).for_each(&mut act);
    }

    fn restore(&self, sim: &mut Sim<'_>) {
        sim.set_max_message_latency(self.plan.latency_max);
        for node in 1..=self.plan.machines {
            sim.repair(HOST, host(node));
            self.each_other(node, |other| {
                if other > node {
                    sim.release(host(node), host(other));
                    sim.repair(host(node), host(other));
                }
            });
        }
    }
}
