//! The verdict of a kill test, for people and as JSON.

use std::fmt;

use serde::Serialize;

use super::failover::Failover;
use super::faults::Kill;
use super::plan::Plan;
use crate::history::DeviceHistory;
use crate::promises::Checked;

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

impl Verdict {
    pub(crate) fn new(is_broken: bool, is_vacuous: bool) -> Self {
        match (is_broken, is_vacuous) {
            (true, _) => Self::Invalid,
            (false, false) => Self::Valid,
            (false, true) => Self::Vacuous,
        }
    }
}

/// What devices saw to be wrong.
pub(crate) fn complaints(histories: &[DeviceHistory]) -> impl Iterator<Item = String> {
    histories.iter().flat_map(|history| {
        history.complaints.iter().map(|text| format!("{}: {text}", history.device))
    })
}

/// How often the devices connected.
pub(crate) fn connections(histories: &[DeviceHistory]) -> u64 {
    histories.iter().map(|history| u64::from(history.connections)).sum()
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub replay: String,
    pub devices: usize,
    pub connections: u64,
    #[serde(flatten)]
    pub findings: Findings,
    pub kills_of_leaders: usize,
    pub kills_of_followers: usize,
    /// With so many acknowledged and none lost, at most this share is lost at 95 % confidence.
    pub loss_bound: f64,
    pub complaints: Vec<String>,
    pub vacuous: Vec<String>,
    pub kills: Vec<Kill>,
}

/// What was measured and checked.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Findings {
    #[serde(flatten)]
    pub checked: Checked,
    /// Commands, cancellations and calls that were under way when a node was killed.
    pub under_way_at_kills: u64,
    /// How far all groups' terms have grown together.
    pub terms: u64,
    pub failover: Failover,
}

impl Findings {
    /// What must have happened for the run to show anything.
    fn needed(&self) -> [(&'static str, u64); 12] {
        let Checked { twins, commands, methods, .. } = &self.checked;
        [
            ("twin patch was acknowledged", twins.acknowledged),
            ("command was accepted", commands.accepted),
            ("command was sent again and recognized", commands.repeated),
            ("command was delivered", commands.delivered),
            ("command was delivered again", commands.redelivered),
            ("command was completed", commands.completed),
            ("command was cancelled before it was sent", commands.cancelled_unsent),
            ("command was superseded", commands.superseded),
            ("command expired", commands.expired),
            ("method was answered", methods.answered),
            ("call of a method stayed unknown", methods.unknown),
            ("command or call was under way at a kill", self.under_way_at_kills),
        ]
    }
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        kills: &[Kill],
        findings: Findings,
        histories: &[DeviceHistory],
    ) -> Self {
        let kills_of_leaders = kills.iter().filter(|kill| !kill.shards.is_empty()).count();
        let complaints: Vec<String> = complaints(histories).collect();
        let acknowledged = findings.checked.telemetry.acknowledged;
        let mut vacuous = Vec::new();
        if kills_of_leaders == 0 {
            vacuous.push("no leader was killed".to_owned());
        }
        if acknowledged < plan.acknowledged_min {
            vacuous
                .push(format!("fewer than {} messages were acknowledged", plan.acknowledged_min));
        }
        let never = findings.needed().into_iter().filter(|(_, count)| *count == 0);
        vacuous.extend(never.map(|(what, _)| format!("no {what}")));
        let is_broken = findings.checked.violations().next().is_some() || !complaints.is_empty();
        let seconds = plan.duration.as_secs();
        Self {
            verdict: Verdict::new(is_broken, !vacuous.is_empty()),
            replay: format!("chaos kill --seed {} --seconds {seconds}", plan.seed),
            devices: histories.len(),
            connections: connections(histories),
            kills_of_leaders,
            kills_of_followers: kills.len() - kills_of_leaders,
            loss_bound: findings.checked.loss_bound(),
            complaints,
            vacuous,
            findings,
            kills: kills.to_vec(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.findings)?;
        writeln!(
            f,
            "faults     {} kills of leaders, {} of followers; {} commands and calls were under way; terms grew by {}; {} \
             devices connected {} times",
            self.kills_of_leaders,
            self.kills_of_followers,
            self.findings.under_way_at_kills,
            self.findings.terms,
            self.devices,
            self.connections
        )?;
        let failover = &self.findings.failover;
        writeln!(
            f,
            "failover   p50 {} ms, p99 {} ms, max {} ms from kill to first acknowledgement ({} samples, {} unserved)",
            failover.p50_ms, failover.p99_ms, failover.max_ms, failover.samples, failover.unserved
        )?;
        writeln!(f, "bound      less than {:.1e} of messages are lost (95 %)", self.loss_bound)?;
        for violation in self.findings.checked.violations().take(SHOWN_MAX) {
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

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checked { telemetry, twins, commands, methods } = &self.checked;
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
            "commands   {} accepted ({} found again by their ids, {} answers unknown), {} delivered, {} of them again; {} \
             completed, {} cancelled ({} unsent), {} superseded, {} expired, {} dead",
            commands.accepted,
            commands.repeated,
            commands.unknown,
            commands.delivered,
            commands.redelivered,
            commands.completed,
            commands.cancelled,
            commands.cancelled_unsent,
            commands.superseded,
            commands.expired,
            commands.dead
        )?;
        write!(
            f,
            "methods    {} called, {} answered, {} not called, {} unknown ({} of them carried out)",
            methods.called,
            methods.answered,
            methods.not_called,
            methods.unknown,
            methods.executed_unknown
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::promises::Violation;
    use crate::promises::p1_telemetry::Telemetry;
    use crate::promises::p2_twin::Twins;
    use crate::promises::p3_commands::Commands;
    use crate::promises::p4_methods::Methods;

    /// Findings of a run in which each kind of thing has happened once.
    fn busy() -> Findings {
        Findings {
            checked: Checked {
                telemetry: Telemetry { acknowledged: u64::MAX, ..Telemetry::default() },
                twins: Twins { acknowledged: 1, ..Twins::default() },
                commands: Commands {
                    accepted: 1,
                    repeated: 1,
                    delivered: 1,
                    redelivered: 1,
                    completed: 1,
                    cancelled_unsent: 1,
                    superseded: 1,
                    expired: 1,
                    ..Commands::default()
                },
                methods: Methods { answered: 1, unknown: 1, ..Methods::default() },
            },
            under_way_at_kills: 1,
            ..Findings::default()
        }
    }

    fn verdict(findings: Findings) -> Verdict {
        let kill = Kill { at_ms: 0, node: 1, shards: vec![0], down_ms: 0, return_ms: 0 };
        Report::new(&Plan::new(1, Duration::from_mins(1)), &[kill], findings, &[]).verdict
    }

    #[test]
    fn a_run_in_which_one_kind_of_thing_never_happened_proves_nothing() {
        assert_eq!(verdict(busy()), Verdict::Valid);
        let mut quiet = busy();
        quiet.checked.commands.expired = 0;
        assert_eq!(verdict(quiet), Verdict::Vacuous);
        let mut quiet = busy();
        quiet.under_way_at_kills = 0;
        assert_eq!(verdict(quiet), Verdict::Vacuous);
    }

    #[test]
    fn a_violation_of_any_promise_makes_a_run_invalid() {
        let broken = || vec![Violation::new("I-0", "a", "b")];
        let breaks: [fn(&mut Checked) -> &mut Vec<Violation>; 4] = [
            |checked| &mut checked.telemetry.violations,
            |checked| &mut checked.twins.violations,
            |checked| &mut checked.commands.violations,
            |checked| &mut checked.methods.violations,
        ];
        for violations in breaks {
            let mut findings = busy();
            *violations(&mut findings.checked) = broken();
            assert_eq!(verdict(findings), Verdict::Invalid);
        }
    }
}
