//! What a run does and when, drawn from its seed.
//!
//! As in jepsen.nats, time is cut into periods, and each has a random subset of the faults; a quarter of them have none. Here
//! the subset takes one of each family at most, and each family goes through its members in a shuffled order, so that a
//! short run meets all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_proto::admin::ClusterStatus;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::nemesis::{Family, Nemesis};
use crate::kill::plan::Plan as Workload;

const CALM_MS: std::ops::Range<u64> = 500..2_500;
const PERIOD_MS: std::ops::Range<u64> = 4_000..9_000;
/// Single faults: calm enough to show what was before, and so short that a quarter of an hour has thirty of each of three.
const SINGLE_CALM_MS: std::ops::Range<u64> = 2_500..3_500;
const SINGLE_PERIOD_MS: std::ops::Range<u64> = 3_500..4_500;
/// By how much a clock jumps, forwards or back.
pub(super) const CLOCK_JUMP_S: std::ops::Range<u64> = 5..3_600;

#[derive(Debug, Clone)]
pub struct Plan {
    pub workload: Workload,
    pub nemeses: Vec<Nemesis>,
    /// One fault after the other, each alone, at a leader, and none of them spared: for the times of failovers.
    pub is_single: bool,
    /// Disks say that they have synced and have not. Such a run must miss acknowledged messages, or it proves nothing about
    /// syncs.
    pub has_lying_disks: bool,
    /// Proxies stand between the nodes, also where there could be namespaces.
    pub is_userspace: bool,
}

/// A calm, and then faults.
#[derive(Debug, Clone)]
pub(super) struct Period {
    pub(super) calm: Duration,
    pub(super) length: Duration,
    pub(super) faults: Vec<Aimed>,
}

/// A fault before it is known who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aimed {
    pub(super) nemesis: Nemesis,
    aim: Aim,
    /// Draws what else there is to draw.
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    LeaderOf(u32),
    Node(usize),
}

/// A fault and the node that it befalls, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Draw {
    pub(super) nemesis: Nemesis,
    pub(super) node: usize,
    pub(super) seed: u64,
}

impl Plan {
    pub fn new(seed: u64, duration: Duration, nemeses: Vec<Nemesis>) -> Self {
        let mut workload = Workload::new(seed, duration);
        // Half of a kill test's: what stands below the nodes here costs time as well, and the cluster is away for longer.
        workload.rate /= 2;
        workload.acknowledged_min /= 10;
        if nemeses.contains(&Nemesis::Clock) {
            workload.skew_ms = 2 * CLOCK_JUMP_S.end * 1_000;
        }
        let (is_single, has_lying_disks, is_userspace) = (false, false, false);
        Self { workload, nemeses, is_single, has_lying_disks, is_userspace }
    }

    /// How many nodes have a place: the founders, and one that joins and leaves if any does.
    pub fn places(&self) -> usize {
        self.workload.nodes + usize::from(self.nemeses.contains(&Nemesis::Member))
    }

    /// The command that runs it again.
    pub fn replay(&self) -> String {
        let names: Vec<String> = self.nemeses.iter().map(ToString::to_string).collect();
        let (seed, seconds) = (self.workload.seed, self.workload.duration.as_secs());
        let flags = [
            (" --single", self.is_single),
            (" --lying-disks", self.has_lying_disks),
            (" --userspace", self.is_userspace),
        ];
        let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag);
        let flags: String = flags.collect();
        format!("chaos run --seed {seed} --seconds {seconds} --nemesis {}{flags}", names.join(","))
    }

    /// Periods for ever: the run takes as many as it has time for.
    pub(super) fn periods(&self) -> impl Iterator<Item = Period> {
        let mut random = StdRng::seed_from_u64(self.workload.seed);
        let mut families = self.families(&mut random);
        let (nodes, shards) = (self.workload.nodes, self.workload.shards);
        let (calms, lengths) =
            if self.is_single { (SINGLE_CALM_MS, SINGLE_PERIOD_MS) } else { (CALM_MS, PERIOD_MS) };
        std::iter::repeat_with(move || {
            let calm = Duration::from_millis(random.random_range(calms.clone()));
            let length = Duration::from_millis(random.random_range(lengths.clone()));
            let is_quiet = random.random_bool(0.25) && !self.is_single;
            let mut faults = Vec::new();
            if !is_quiet && !families.is_empty() {
                let chosen = non_empty_subset(&mut random, families.len());
                for (cycle, is_chosen) in families.iter_mut().zip(chosen) {
                    if !is_chosen {
                        continue;
                    }
                    let aim = if random.random_bool(0.75) || self.is_single {
                        Aim::LeaderOf(random.random_range(0..shards))
                    } else {
                        Aim::Node(random.random_range(0..nodes))
                    };
                    faults.push(Aimed { nemesis: cycle.next(), aim, seed: random.random() });
                }
            }
            Period { calm, length, faults }
        })
    }

    /// A period for each of `missing`, in which nothing else happens, at a node that leads: where it is most likely to hit.
    /// `turn` counts how often they have been tried.
    pub(super) fn more_turns(&self, missing: &[Nemesis], turn: u64) -> Vec<Period> {
        let seed = self.workload.seed.wrapping_add(1 + turn).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = StdRng::seed_from_u64(seed);
        let period = |nemesis: &Nemesis| {
            let aim = Aim::LeaderOf(random.random_range(0..self.workload.shards));
            Period {
                calm: Duration::from_millis(random.random_range(CALM_MS)),
                length: Duration::from_millis(random.random_range(PERIOD_MS)),
                faults: vec![Aimed { nemesis: *nemesis, aim, seed: random.random() }],
            }
        };
        missing.iter().map(period).collect()
    }

    fn families(&self, random: &mut StdRng) -> Vec<Cycle> {
        let mut families: BTreeMap<Option<Family>, Vec<Nemesis>> = BTreeMap::new();
        for nemesis in &self.nemeses {
            let family = (!self.is_single).then(|| nemesis.family());
            families.entry(family).or_default().push(*nemesis);
        }
        let cycle = |mut members: Vec<Nemesis>| {
            members.shuffle(random);
            Cycle { members, next: 0 }
        };
        families.into_values().map(cycle).collect()
    }
}

/// One after the other, round and round.
struct Cycle {
    members: Vec<Nemesis>,
    next: usize,
}

impl Cycle {
    fn next(&mut self) -> Nemesis {
        let member = self.members[self.next % self.members.len()];
        self.next += 1;
        member
    }
}

fn non_empty_subset(random: &mut StdRng, size: usize) -> Vec<bool> {
    let mut chosen: Vec<bool> = (0..size).map(|_| random.random_bool(0.5)).collect();
    if !chosen.contains(&true) {
        chosen[random.random_range(0..size)] = true;
    }
    chosen
}

impl Period {
    /// Finds the leaders that are aimed at. Of two faults that concern a node itself and not its links, each befalls another
    /// node, or the one would undo the other.
    pub(super) fn resolve(&self, status: &ClusterStatus, nodes: usize) -> Vec<Draw> {
        let mut draws: Vec<Draw> = Vec::new();
        for Aimed { nemesis, aim, seed } in &self.faults {
            let mut node = match aim {
                Aim::Node(node) => *node,
                // A node that has joined is spared: it has no disk and no clock to take apart.
                Aim::LeaderOf(shard) => {
                    leader_of(status, *shard).filter(|leader| *leader < nodes).unwrap_or(0)
                }
            };
            let is_taken = |node: usize| {
                draws.iter().any(|draw| draw.nemesis.takes_down() && draw.node == node)
            };
            let concerns_itself = matches!(
                nemesis.family(),
                Family::Disk | Family::Clock | Family::Clients | Family::Operator
            ) || *nemesis == Nemesis::Herd;
            if concerns_itself {
                let mut others = (0..nodes).map(|step| (node + step) % nodes);
                node = others.find(|node| !is_taken(*node)).unwrap_or(node);
            }
            draws.push(Draw { nemesis: *nemesis, node, seed: *seed });
        }
        draws
    }
}

/// The node that leads `shard`, counted from 0.
fn leader_of(status: &ClusterStatus, shard: u32) -> Option<usize> {
    let group = status.shards.iter().find(|group| group.shard == Some(shard))?;
    usize::try_from(group.leader?).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum as _;

    use super::*;

    fn plan(seed: u64) -> Plan {
        Plan::new(seed, Duration::from_mins(10), Nemesis::value_variants().to_vec())
    }

    #[test]
    fn a_seed_draws_the_same_periods_again_and_another_seed_others() {
        let drawn = |seed| -> Vec<_> {
            plan(seed).periods().take(20).map(|period| (period.length, period.faults)).collect()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn a_quarter_of_the_periods_is_quiet_and_every_nemesis_has_its_turn() {
        let periods: Vec<Period> = plan(1).periods().take(200).collect();
        let quiet = periods.iter().filter(|period| period.faults.is_empty()).count();
        assert!((30..70).contains(&quiet), "{quiet} of 200");
        let early = periods.iter().take(60).flat_map(|period| &period.faults);
        let met: BTreeSet<Nemesis> = early.map(|fault| fault.nemesis).collect();
        assert_eq!(met.len(), Nemesis::value_variants().len(), "{met:?}");
    }

    #[test]
    fn single_faults_come_in_every_period_and_each_nemesis_as_often_as_the_others() {
        let plan = Plan { is_single: true, ..plan(3) };
        let count = Nemesis::value_variants().len();
        let periods: Vec<Period> = plan.periods().take(2 * count).collect();
        assert!(periods.iter().all(|period| period.faults.len() == 1));
        for nemesis in Nemesis::value_variants() {
            let drawn = periods.iter().filter(|period| period.faults[0].nemesis == *nemesis);
            assert_eq!(drawn.count(), 2, "{nemesis}");
        }
    }

    #[test]
    fn a_quarter_of_an_hour_of_single_faults_has_thirty_of_each_of_three_at_leaders() {
        let nemeses = vec![Nemesis::Kill, Nemesis::Pause, Nemesis::Partition];
        let plan = Plan::new(5, Duration::from_mins(15), nemeses);
        let plan = Plan { is_single: true, ..plan };
        // To be healthy again takes a second or two.
        let healing = Duration::from_secs(2);
        let mut left = plan.workload.duration;
        let fits = |period: &Period| {
            left = left.saturating_sub(period.calm + period.length + healing);
            !left.is_zero()
        };
        let periods: Vec<Period> = plan.periods().take_while(fits).collect();
        let faults: Vec<&Aimed> = periods.iter().flat_map(|period| &period.faults).collect();
        assert!(faults.iter().all(|fault| matches!(fault.aim, Aim::LeaderOf(_))));
        for nemesis in &plan.nemeses {
            assert!(faults.iter().filter(|fault| fault.nemesis == *nemesis).count() >= 30);
        }
    }

    #[test]
    fn the_command_that_runs_it_again_has_every_flag() {
        let nemeses = vec![Nemesis::PowerAll, Nemesis::OneWay];
        let plan = Plan::new(7, Duration::from_secs(20), nemeses);
        let command = "chaos run --seed 7 --seconds 20 --nemesis power-all,one-way";
        assert_eq!(plan.replay(), command);
        let (is_single, has_lying_disks, is_userspace) = (true, true, true);
        let plan = Plan { is_single, has_lying_disks, is_userspace, ..plan };
        assert_eq!(plan.replay(), format!("{command} --single --lying-disks --userspace"));
    }

    #[test]
    fn whatever_has_hit_nothing_gets_a_period_of_its_own_at_a_leader() {
        let missing = [Nemesis::Power, Nemesis::OneWay];
        let turns = plan(4).more_turns(&missing, 0);
        let drawn: Vec<Nemesis> = turns.iter().map(|period| period.faults[0].nemesis).collect();
        assert_eq!(drawn, missing);
        let is_aimed =
            |period: &Period| matches!(period.faults[..], [Aimed { aim: Aim::LeaderOf(_), .. }]);
        assert!(turns.iter().all(is_aimed));
        let again = plan(4).more_turns(&missing, 1);
        assert_ne!(turns[0].faults, again[0].faults, "another turn is another draw");
        assert!(plan(4).more_turns(&[], 0).is_empty());
    }

    #[test]
    fn a_period_has_no_two_faults_of_a_family_and_none_that_undoes_another() {
        let status = ClusterStatus::default();
        for period in plan(2).periods().take(300) {
            let draws = period.resolve(&status, 3);
            let families: BTreeSet<Family> =
                draws.iter().map(|draw| draw.nemesis.family()).collect();
            assert_eq!(families.len(), draws.len());
            let of = |family| draws.iter().find(|draw| draw.nemesis.family() == family);
            for itself in [Family::Disk, Family::Clock, Family::Clients] {
                if let (Some(process), Some(other)) = (of(Family::Process), of(itself)) {
                    assert_ne!(process.node, other.node);
                }
            }
            let flipped = draws.iter().find(|draw| draw.nemesis == Nemesis::FlippedBits);
            for itself in [Family::Clock, Family::Clients, Family::Operator] {
                if let (Some(flipped), Some(other)) = (flipped, of(itself)) {
                    assert_ne!(flipped.node, other.node);
                }
            }
        }
    }
}
