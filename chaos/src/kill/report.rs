//! The verdict of a kill test, for people and as JSON.

use std::fmt;

use serde::Serialize;

use super::faults::Kill;
use super::plan::Plan;
use crate::history::DeviceHistory;
use crate::promises::p1_telemetry::Telemetry;
use crate::promises::p2_twin::Twins;

/// Violations that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Valid,
    Invalid,
    /// The run was too quiet to show anything: not passed.
    Vacuous,
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub replay: String,
    pub devices: usize,
    pub connections: u64,
    pub telemetry: Telemetry,
    pub twins: Twins,
    pub kills_of_leaders: usize,
    pub kills_of_followers: usize,
    /// How far all groups' terms have grown together.
    pub terms: u64,
    pub failover: Failover,
    /// With so many acknowledged and none lost, at most this share is lost at 95 % confidence.
    pub loss_bound: f64,
    pub complaints: Vec<String>,
    pub vacuous: Vec<String>,
    pub kills: Vec<Kill>,
}

/// From a kill to the first acknowledgement of each device whose shard the killed node led, of a message that it sent
/// after the kill.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failover {
    pub samples: usize,
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
    /// Devices that got none before the next kill or the end.
    pub unserved: usize,
}

impl Failover {
    pub(super) fn measure(kills: &[Kill], histories: &[DeviceHistory]) -> Self {
        let mut delays = Vec::new();
        let mut unserved = 0;
        for (index, kill) in kills.iter().enumerate() {
            let until = kills.get(index + 1).map_or(u64::MAX, |next| next.at_ms);
            for history in histories.iter().filter(|history| kill.shards.contains(&history.shard)) {
                let sent_after =
                    history.transmissions.iter().filter(|sent| sent.sent_ms >= kill.at_ms);
                match sent_after
                    .filter_map(|sent| sent.acked_ms)
                    .min()
                    .filter(|acked| *acked < until)
                {
                    Some(acked) => delays.push(acked - kill.at_ms),
                    None => unserved += 1,
                }
            }
        }
        delays.sort_unstable();
        let quantile = |q: usize| {
            let index = (delays.len() * q).div_ceil(100).saturating_sub(1);
            delays.get(index).copied().unwrap_or(0)
        };
        Self {
            samples: delays.len(),
            p50_ms: quantile(50),
            p99_ms: quantile(99),
            max_ms: quantile(100),
            unserved,
        }
    }
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        kills: &[Kill],
        terms: u64,
        telemetry: Telemetry,
        twins: Twins,
        failover: Failover,
        histories: &[DeviceHistory],
    ) -> Self {
        let kills_of_leaders = kills.iter().filter(|kill| !kill.shards.is_empty()).count();
        let complaints: Vec<String> = histories
            .iter()
            .flat_map(|history| {
                history.complaints.iter().map(|text| format!("{}: {text}", history.device))
            })
            .collect();
        let mut vacuous = Vec::new();
        if kills_of_leaders == 0 {
            vacuous.push("no leader was killed".to_owned());
        }
        if telemetry.acknowledged < plan.acknowledged_min {
            vacuous
                .push(format!("fewer than {} messages were acknowledged", plan.acknowledged_min));
        }
        if twins.acknowledged == 0 {
            vacuous.push("no twin patch was acknowledged".to_owned());
        }
        let is_broken = !telemetry.violations.is_empty()
            || !twins.violations.is_empty()
            || !complaints.is_empty();
        let verdict = match (is_broken, vacuous.is_empty()) {
            (true, _) => Verdict::Invalid,
            (false, true) => Verdict::Valid,
            (false, false) => Verdict::Vacuous,
        };
        let seconds = plan.duration.as_secs();
        Self {
            verdict,
            replay: format!("chaos kill --seed {} --seconds {seconds}", plan.seed),
            devices: plan.devices,
            connections: histories.iter().map(|history| u64::from(history.connections)).sum(),
            kills_of_leaders,
            kills_of_followers: kills.len() - kills_of_leaders,
            terms,
            failover,
            loss_bound: 3.0 / telemetry.acknowledged.max(1) as f64,
            complaints,
            vacuous,
            telemetry,
            twins,
            kills: kills.to_vec(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (telemetry, twins, failover) = (&self.telemetry, &self.twins, &self.failover);
        let lost = telemetry.lost;
        writeln!(
            f,
            "messages   {} acknowledged, {} lost ({} prefix, {} middle, {} postfix), {} duplicated by re-sending, {} \
             unknown, {} stored",
            telemetry.acknowledged,
            lost.total(),
            lost.prefix,
            lost.middle,
            lost.postfix,
            telemetry.duplicated,
            telemetry.unknown,
            telemetry.stored
        )?;
        writeln!(
            f,
            "twins      {} patches acknowledged, {} unknown, {} reads",
            twins.acknowledged, twins.unknown, twins.reads
        )?;
        writeln!(
            f,
            "faults     {} kills of leaders, {} of followers; terms grew by {}; {} devices connected {} times",
            self.kills_of_leaders,
            self.kills_of_followers,
            self.terms,
            self.devices,
            self.connections
        )?;
        writeln!(
            f,
            "failover   p50 {} ms, p99 {} ms, max {} ms from kill to first acknowledgement ({} samples, {} unserved)",
            failover.p50_ms, failover.p99_ms, failover.max_ms, failover.samples, failover.unserved
        )?;
        writeln!(f, "bound      less than {:.1e} of messages are lost (95 %)", self.loss_bound)?;
        let violations = telemetry.violations.iter().chain(&twins.violations);
        for violation in violations.take(SHOWN_MAX) {
            writeln!(f, "BROKEN     {violation}")?;
        }
        for complaint in self.complaints.iter().take(SHOWN_MAX) {
            writeln!(f, "BROKEN     {complaint}")?;
        }
        for reason in &self.vacuous {
            writeln!(f, "VACUOUS    {reason}")?;
        }
        write!(f, "verdict    {:?}; again with: {}", self.verdict, self.replay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Transmission;

    fn device(shard: u32, times: &[(u64, Option<u64>)]) -> DeviceHistory {
        let transmissions = times.iter().map(|(sent_ms, acked_ms)| Transmission {
            sequence: 0,
            connection: 1,
            position: 0,
            sent_ms: *sent_ms,
            acked_ms: *acked_ms,
        });
        let transmissions = transmissions.collect();
        DeviceHistory { shard, transmissions, ..DeviceHistory::default() }
    }

    fn kill(at_ms: u64, shards: Vec<u32>) -> Kill {
        Kill { at_ms, node: 1, shards, down_ms: 0, return_ms: 0 }
    }

    #[test]
    fn failover_counts_from_the_kill_and_only_what_was_sent_after_it() {
        let hit = device(0, &[(90, Some(110)), (120, Some(700)), (130, Some(650))]);
        let spared = device(1, &[(100, Some(101))]);
        let silent = device(0, &[(100, None)]);
        let failover = Failover::measure(&[kill(100, vec![0])], &[hit, spared, silent]);
        assert_eq!((failover.samples, failover.max_ms, failover.unserved), (1, 550, 1));
    }

    #[test]
    fn an_acknowledgement_after_the_next_kill_does_not_count_for_the_first() {
        let device = device(0, &[(100, Some(900))]);
        let kills = [kill(100, vec![0]), kill(800, vec![])];
        assert_eq!(Failover::measure(&kills, &[device]).unserved, 1);
    }
}
