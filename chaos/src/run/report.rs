//! The verdict of a run, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::around::{Around, around};
use super::fault::Fault;
use super::nemesis::Nemesis;
use super::outage::{Failover, failovers, takeovers_in_flight};
use super::plan::Plan;
use super::site::LeftOut;
use super::timeline::{Second, timeline};
use crate::kill::Driven;
use crate::kill::report::{Verdict, complaints, connections};
use crate::promises::Checked;
use crate::promises::restored::Restored;

/// Lines of a kind that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub replay: String,
    pub seconds: u64,
    pub nodes: usize,
    pub devices: usize,
    /// Of the machine that nodes and devices share: times depend on it.
    pub cores: usize,
    pub connections: u64,
    /// Messages, patches, reads, commands and calls that were begun; acknowledged; and without an answer.
    pub operations: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    #[serde(flatten)]
    pub checked: Checked,
    /// What was in the cluster that was made of the last backup; nothing if there was none.
    pub restored: Restored,
    /// Commands, cancellations and calls that were under way when a fault began.
    pub under_way_at_faults: u64,
    /// How far all groups' terms have grown together.
    pub terms: u64,
    /// Connections that replaced one with messages under way.
    pub takeovers_in_flight: u64,
    /// With so many acknowledged and none lost, at most this share is lost at 95 % confidence.
    pub loss_bound: f64,
    pub failovers: Vec<Failover>,
    pub around: Vec<Around>,
    pub violations: Vec<String>,
    /// Why the run proves less than it should.
    pub vacuous: Vec<String>,
    /// What this machine cannot do.
    pub left_out: Vec<LeftOut>,
    pub faults: Vec<Fault>,
    pub timeline: Vec<Second>,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        faults: Vec<Fault>,
        driven: Driven,
        restored: Restored,
        left_out: Vec<LeftOut>,
    ) -> Self {
        let mut violations = violations(&faults, &driven);
        violations.extend(restored.violations.iter().map(ToString::to_string));
        let begun: Vec<u64> = faults.iter().map(|fault| fault.from_ms).collect();
        let under_way_at_faults = driven.under_way.at(&begun);
        let takeovers_in_flight = takeovers_in_flight(&driven.histories);
        let mut vacuous: Vec<String> = never_hit(plan, &faults)
            .iter()
            .map(|nemesis| format!("{nemesis} never hit anything"))
            .collect();
        vacuous.extend(too_little(plan, &faults, &driven));
        if plan.nemeses.contains(&Nemesis::Backup) && restored.owed == 0 {
            vacuous.push("no backup was restored that owed anything".to_owned());
        }
        if faults.is_empty() {
            vacuous.push("there was no fault".to_owned());
        }
        if !faults.is_empty() && takeovers_in_flight == 0 {
            vacuous.push("no take-over met a message under way".to_owned());
        }
        if !faults.is_empty() && under_way_at_faults == 0 {
            vacuous.push("no command or call was under way at a fault".to_owned());
        }
        let Driven { senders, histories, checked, terms, .. } = driven;
        let Checked { telemetry, twins, commands, methods } = &checked;
        let acknowledged = telemetry.acknowledged
            + twins.acknowledged
            + twins.reads
            + commands.accepted
            + methods.answered
            + methods.not_called;
        let unknown = telemetry.unknown + twins.unknown + commands.unknown + methods.unknown;
        Self {
            verdict: Verdict::new(!violations.is_empty(), !vacuous.is_empty()),
            replay: plan.replay(),
            seconds: plan.workload.duration.as_secs(),
            nodes: plan.workload.nodes,
            devices: plan.workload.devices + plan.workload.recipients,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            connections: connections(&histories),
            operations: acknowledged + unknown,
            acknowledged,
            unknown,
            under_way_at_faults,
            terms,
            takeovers_in_flight,
            loss_bound: checked.loss_bound(),
            failovers: failovers(&faults, &senders),
            around: around(&faults, &histories),
            violations,
            vacuous,
            left_out,
            timeline: timeline(&histories),
            checked,
            restored,
            faults,
        }
    }

    /// How often each nemesis came, and how much it hit.
    pub(super) fn by_nemesis(&self) -> BTreeMap<Nemesis, (usize, u64)> {
        let mut counts: BTreeMap<Nemesis, (usize, u64)> = BTreeMap::new();
        for fault in &self.faults {
            let (faults, evidence) = counts.entry(fault.nemesis).or_default();
            *faults += 1;
            *evidence += fault.evidence;
        }
        counts
    }
}

/// What broke a promise, what devices saw to be wrong, and what nodes did that they must not.
fn violations(faults: &[Fault], driven: &Driven) -> Vec<String> {
    let of_promises = driven.checked.violations().map(ToString::to_string);
    let of_nodes = faults.iter().filter_map(|fault| fault.complaint.clone());
    let of_cluster = driven.unfinished.iter().map(|what| format!("it does not heal: {what}"));
    of_promises.chain(complaints(&driven.histories)).chain(of_nodes).chain(of_cluster).collect()
}

/// What must have happened for the run to show anything, and did not.
fn too_little(plan: &Plan, faults: &[Fault], driven: &Driven) -> Vec<String> {
    let Checked { telemetry, twins, commands, methods } = &driven.checked;
    let least = plan.workload.acknowledged_min;
    let deposed = faults.iter().filter(|fault| fault.nemesis.deposes() && !fault.shards.is_empty());
    let needed = [
        ("message was acknowledged", telemetry.acknowledged, least),
        ("twin patch was acknowledged", twins.acknowledged, 1),
        ("command was accepted", commands.accepted, 1),
        ("command was completed", commands.completed, 1),
        ("method was answered", methods.answered, 1),
        ("leader changed", driven.terms, u64::from(deposed.count() > 0)),
    ];
    let missing = needed.into_iter().filter(|(_, count, least)| count < least);
    missing
        .map(|(what, count, least)| format!("{count} times a {what}, of {least} at least"))
        .collect()
}

/// The nemeses of the plan that never hit anything.
pub(super) fn never_hit(plan: &Plan, faults: &[Fault]) -> Vec<Nemesis> {
    let hit = |nemesis: Nemesis| {
        faults.iter().any(|fault| fault.nemesis == nemesis && fault.evidence > 0)
    };
    plan.nemeses.iter().copied().filter(|nemesis| !hit(*nemesis)).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checked { telemetry, twins, commands, methods } = &self.checked;
        writeln!(
            f,
            "operations {} begun, {} acknowledged, {} unknown",
            self.operations, self.acknowledged, self.unknown
        )?;
        writeln!(
            f,
            "messages   {} acknowledged, {} lost, {} duplicated by re-sending, {} unknown, {} stored",
            telemetry.acknowledged,
            telemetry.lost.total(),
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
            "commands   {} accepted, {} delivered and {} again, {} completed, {} expired, {} unknown",
            commands.accepted,
            commands.delivered,
            commands.redelivered,
            commands.completed,
            commands.expired,
            commands.unknown
        )?;
        writeln!(
            f,
            "methods    {} called, {} answered, {} unknown; {} commands and calls under way at a fault",
            methods.called, methods.answered, methods.unknown, self.under_way_at_faults
        )?;
        if self.restored.owed > 0 {
            let Restored { messages, owed, .. } = self.restored;
            writeln!(f, "restored   {messages} messages, {owed} changes owed by the last backup")?;
        }
        let faults = self.by_nemesis().into_iter();
        let faults: Vec<String> = faults
            .map(|(nemesis, (faults, evidence))| format!("{faults} {nemesis} ({evidence} hits)"))
            .collect();
        writeln!(f, "faults     {}", faults.join(", "))?;
        writeln!(
            f,
            "           terms grew by {}; {} devices connected {} times, {} take-overs with messages under way",
            self.terms, self.devices, self.connections, self.takeovers_in_flight
        )?;
        for failover in &self.failovers {
            writeln!(f, "failover   {failover}")?;
        }
        if telemetry.lost.total() == 0 {
            let bound = self.loss_bound;
            writeln!(f, "bound      less than {bound:.1e} of messages are lost (95 %)")?;
        }
        self.write_findings(f)?;
        let violations = self.violations.len();
        write!(
            f,
            "verdict    {:?}, {violations} violations; again with: {}",
            self.verdict, self.replay
        )
    }
}

impl Report {
    /// What was left out, what is wrong, and what proves too little.
    fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for LeftOut { nemesis, reason } in &self.left_out {
            writeln!(f, "LEFT OUT   {nemesis}: {reason}")?;
        }
        for violation in self.violations.iter().take(SHOWN_MAX) {
            writeln!(f, "BROKEN     {violation}")?;
        }
        for reason in &self.vacuous {
            writeln!(f, "VACUOUS    {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::promises::Violation;
    use crate::run::page;

    #[test]
    fn a_cluster_that_does_not_heal_is_a_finding_with_a_report() {
        let plan = Plan::new(1, Duration::from_mins(1), vec![Nemesis::Kill]);
        let unfinished = vec!["node 2 <gave up>".to_owned()];
        let driven = Driven { unfinished, ..Driven::default() };
        let report = Report::new(&plan, Vec::new(), driven, Restored::default(), Vec::new());
        assert_eq!(report.verdict, Verdict::Invalid);
        assert!(report.violations[0].contains("node 2 <gave up>"), "{:?}", report.violations);
        assert!(page::html(&report).contains("node 2 &lt;gave up&gt;"));
    }

    #[test]
    fn what_is_wrong_with_a_restored_backup_fails_the_run_and_so_does_none() {
        let plan = Plan::new(1, Duration::from_mins(1), vec![Nemesis::Backup]);
        let faults = vec![Fault::sample(Nemesis::Backup, Vec::new(), 0)];
        let report = |restored: Restored| {
            Report::new(&plan, faults.clone(), Driven::default(), restored, Vec::new())
        };
        let nothing = report(Restored::default());
        assert!(nothing.vacuous.iter().any(|why| why.contains("no backup")), "{nothing}");
        let lost = Violation::new("I-42 restored backups", "device 7", "message 3 is not there");
        let lost = report(Restored { owed: 1, violations: vec![lost], messages: 0 });
        assert_eq!(lost.verdict, Verdict::Invalid);
        assert!(lost.violations[0].contains("message 3"), "{:?}", lost.violations);
    }

    #[test]
    fn a_run_in_which_a_nemesis_hit_nothing_does_not_pass() {
        let plan = Plan::new(1, Duration::from_mins(1), vec![Nemesis::Kill, Nemesis::Power]);
        let hit = |nemesis, evidence| Fault { evidence, ..Fault::sample(nemesis, Vec::new(), 0) };
        let faults = [hit(Nemesis::Kill, 1), hit(Nemesis::Power, 0)];
        assert_eq!(never_hit(&plan, &faults), [Nemesis::Power]);
        let report =
            Report::new(&plan, faults.to_vec(), Driven::default(), Restored::default(), Vec::new());
        assert_eq!(report.verdict, Verdict::Vacuous);
    }
}
