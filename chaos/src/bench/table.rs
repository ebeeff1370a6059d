//! The table: ratios and bars first, then every figure, as Markdown that the documentation can take as it is.

use std::fmt::Write as _;

use super::Row;
use super::figures::{Figure, Figures, System};

/// What is claimed: a value, a bound, and how it reads.
struct Claim {
    what: &'static str,
    bar: Bar,
    value: Option<f64>,
    unit: &'static str,
}

#[derive(Clone, Copy)]
enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Claim {
    fn line(&self) -> String {
        let (sign, bound) = match self.bar {
            Bar::AtLeast(bound) => ("≥", bound),
            Bar::AtMost(bound) => ("≤", bound),
        };
        let measured =
            self.value.map_or("not measured".to_owned(), |value| round(value) + self.unit);
        let verdict = match (self.value, self.bar) {
            (None, _) => "",
            (Some(value), Bar::AtLeast(bound)) if value >= bound => "reached",
            (Some(value), Bar::AtMost(bound)) if value <= bound => "reached",
            (Some(_), _) => "missed",
        };
        format!("| {} | {sign} {}{} | {measured} | {verdict} |", self.what, round(bound), self.unit)
    }
}

/// Everything, as Markdown.
pub fn markdown(figures: &Figures) -> String {
    let mut text = String::from("| claim | bar | measured | |\n|---|---|---|---|\n");
    let all =
        claims(figures).into_iter().chain(herd_claims(figures)).chain(members_claims(figures));
    for claim in all {
        text.push_str(&claim.line());
        text.push('\n');
    }
    text.push_str(
        "\n| what | system | median | of runs | Drover, 3 nodes, to it |\n|---|---|---|---|---|\n",
    );
    let mut measured: Vec<&Figure> = figures.measured.iter().collect();
    measured.sort_by_key(|figure| (figure.row, figure.metric, figure.system));
    for figure in measured {
        text.push_str(&figure_line(figures, figure));
        text.push('\n');
    }
    for (title, lines) in [("Machine", &figures.machine), ("Not measured", &figures.failures)] {
        if !lines.is_empty() {
            write!(text, "\n{title}:\n\n").expect("writing to a string");
            for line in lines {
                writeln!(text, "- {line}").expect("writing to a string");
            }
        }
    }
    text
}

fn figure_line(figures: &Figures, figure: &Figure) -> String {
    let runs: Vec<String> = figure.runs.iter().map(|run| round(*run)).collect();
    let ours = figures.get(figure.row, System::Drover3, figure.metric);
    let ratio = match ours {
        Some(ours) if figure.system != System::Drover3 && figure.median > 0.0 => {
            format!("{:.2} ×", ours / figure.median)
        }
        _ => String::new(),
    };
    format!(
        "| {:?}, {} | {} | {} | {} | {ratio} |",
        figure.row,
        figure.metric,
        figure.system.name(),
        round(figure.median),
        runs.join(", ")
    )
}

/// RSS of the same node differs by some MiB from one start to the next: so much for each of 100,000 devices.
const RSS_VARIES_BYTES: f64 = 64.0;

fn claims(figures: &Figures) -> Vec<Claim> {
    use System::{Drover1, Drover3, Etcd, Nats};
    let get = |row, system, metric| figures.get(row, system, metric);
    let rate = |row, system| get(row, system, "a second");
    let ratio = |over: Option<f64>, under: Option<f64>| Some(over? / under?);
    let ours = rate(Row::Telemetry, Drover3);
    let puts = rate(Row::Telemetry, Etcd);
    let few = get(Row::Growth, Drover3, "CPU us a message, 100 devices");
    let grown = |metric| ratio(get(Row::Growth, Drover3, metric), few);
    let claim = |what, bar, unit, value| Claim { what, bar, value, unit };
    let absolute = |what, row, metric, bound, unit| {
        claim(what, Bar::AtMost(bound), unit, get(row, Drover3, metric))
    };
    let at_least = |what, bound, value| claim(what, Bar::AtLeast(bound), " ×", value);
    vec![
        at_least("telemetry to NATS (no fsync)", 2.0, ratio(ours, rate(Row::Telemetry, Nats))),
        at_least("telemetry to etcd's puts, 128 clients", 4.0, ratio(ours, puts)),
        at_least("one node to three", 2.0, ratio(rate(Row::Telemetry, Drover1), ours)),
        at_least(
            "one connection to etcd's puts, 1 client",
            1.0,
            ratio(rate(Row::Single, Drover3), rate(Row::Single, Etcd)),
        ),
        at_least(
            "reported patches to etcd's puts, 128 clients",
            1.0,
            ratio(rate(Row::Reported, Drover3), puts),
        ),
        absolute("acknowledgement at 1,000/s, p50", Row::Latency, "p50 ms", 1.5, " ms"),
        absolute("acknowledgement at 1,000/s, p99", Row::Latency, "p99 ms", 6.0, " ms"),
        absolute("idle device, plain", Row::Idle, "KB a connection, plain", 12.0, " KB"),
        absolute("idle device, TLS", Row::Idle, "KB a connection, TLS", 40.0, " KB"),
        absolute(
            "offline device, RSS (0, and what RSS varies by)",
            Row::Offline,
            "bytes a device",
            RSS_VARIES_BYTES,
            " bytes",
        ),
        absolute("idle node, 16 shards", Row::IdleCpu, "% of a core a node, 16 shards", 3.0, " %"),
        absolute(
            "idle node, 256 shards",
            Row::IdleCpu,
            "% of a core a node, 256 shards",
            10.0,
            " %",
        ),
        absolute(
            "leader killed to next acknowledgement, p99",
            Row::Failover,
            "p99 ms",
            2000.0,
            " ms",
        ),
        absolute("restart of a full node", Row::Restart, "s until ready", 5.0, " s"),
        claim(
            "CPU a message, devices × 10",
            Bar::AtMost(1.2),
            " ×",
            grown("CPU us a message, 1,000 of 100,000 devices"),
        ),
        claim(
            "CPU a message, messages × 10",
            Bar::AtMost(1.2),
            " ×",
            grown("CPU us a message, after 1,000,000 messages"),
        ),
    ]
}

/// What is claimed of nodes that come and go, and of leaders that move.
fn members_claims(figures: &Figures) -> [Claim; 7] {
    let at_most = |what, row, metric, bound, unit| {
        let value = figures.get(row, System::Drover3, metric);
        Claim { what, bar: Bar::AtMost(bound), unit, value }
    };
    let meanwhile = |what, row| {
        // More nodes on the same cores do less, whether or not anything moves.
        let metric = "throughput meanwhile to the less of before and after";
        let value = figures.get(row, System::Drover3, metric);
        Claim { what, bar: Bar::AtLeast(0.75), unit: " ×", value }
    };
    let (copied, sent) = ("replicas copied to the ideal", "bytes sent to the ideal");
    [
        at_most(
            "an acknowledgement that meets a planned leader move, p99",
            Row::Handover,
            "p99 ms",
            150.0,
            " ms",
        ),
        at_most(
            "3 to 5 nodes: replicas copied to those that must be",
            Row::Grow,
            copied,
            1.2,
            " ×",
        ),
        at_most("3 to 5 nodes: bytes sent to those of such replicas", Row::Grow, sent, 1.25, " ×"),
        meanwhile("3 to 5 nodes: throughput meanwhile to the less of before and after", Row::Grow),
        at_most(
            "5 to 3 nodes: replicas copied to those that must be",
            Row::Shrink,
            copied,
            1.0,
            " ×",
        ),
        at_most(
            "5 to 3 nodes: bytes sent to those of such replicas",
            Row::Shrink,
            sent,
            1.25,
            " ×",
        ),
        meanwhile(
            "5 to 3 nodes: throughput meanwhile to the less of before and after",
            Row::Shrink,
        ),
    ]
}

/// What is claimed of a node's death with many devices.
fn herd_claims(figures: &Figures) -> Vec<Claim> {
    let claim = |what, metric, bound, unit| {
        let value = figures.get(Row::Herd, System::Drover3, metric);
        Claim { what, bar: Bar::AtMost(bound), value, unit }
    };
    vec![
        claim("10,000 devices back after their node died", "s until all are back", 30.0, " s"),
        claim("memory a device of them at the peak", "KB a device at the peak", 64.0, " KB"),
    ]
}

fn round(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_reached_missed_or_not_measured() {
        let mut figures = Figures::default();
        figures.add(Row::Telemetry, System::Drover3, "a second", vec![300.0]);
        figures.add(Row::Telemetry, System::Nats, "a second", vec![100.0]);
        figures.add(Row::Telemetry, System::Etcd, "a second", vec![100.0]);
        let text = markdown(&figures);
        assert!(text.contains("| telemetry to NATS (no fsync) | ≥ 2.00 × | 3.00 × | reached |"));
        assert!(text.contains("puts, 128 clients | ≥ 4.00 × | 3.00 × | missed |"));
        assert!(text.contains("| restart of a full node | ≤ 5.00 s | not measured |  |"));
    }
}
