//! A report as one page of HTML that needs nothing else: verdict, counts, and a picture of the time.

use std::fmt::Write as _;

use super::around::Around;
use super::nemesis::Nemesis;
use super::report::Report;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#1c2733}\
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.2em .9em .2em 0;text-align:left;vertical-align:top;border-bottom:1px solid #dde3ea}\
td.n,th.n{text-align:right}.valid{color:#0a7d38}.red{color:#b3261e}code{background:#f1f4f8;padding:.1em .3em}\
svg{width:100%;height:auto}";
/// The picture, in units of its own.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 60.0;
const PLOT_HEIGHT: f64 = 130.0;
const GAP: f64 = 30.0;
const ROW: f64 = 16.0;
/// The longest latency that has a place of its own, and the shortest: the scale between them is logarithmic.
const LATENCY_MS: (f64, f64) = (1.0, 30_000.0);
const LATENCY_LABEL: &str = "p99 30 s … 1 ms, logarithmic";

/// The whole page.
pub fn html(report: &Report) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">");
    let class =
        if report.violations.is_empty() && report.vacuous.is_empty() { "valid" } else { "red" };
    put(
        &mut page,
        format_args!(
            "<title>Drover under faults</title><style>{STYLE}</style>\n<h1>Drover under faults: <span class=\"{class}\">{:?}</span></h1>\n\
         <p>{} nodes and {} devices on {} cores, {} s. Again with <code>{}</code></p>\n",
            report.verdict,
            report.nodes,
            report.devices,
            report.cores,
            report.seconds,
            escaped(&report.replay)
        ),
    );
    for (title, lines) in [("Broken", &report.violations), ("Proves too little", &report.vacuous)] {
        list(&mut page, title, lines);
    }
    let left_out: Vec<String> =
        report.left_out.iter().map(|left| format!("{}: {}", left.nemesis, left.reason)).collect();
    list(&mut page, "Left out on this machine", &left_out);
    page.push_str("<h2>Second by second</h2>\n");
    picture(&mut page, report);
    counts(&mut page, report);
    faults(&mut page, report);
    page.push_str("</html>\n");
    page
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing to a string cannot fail");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn list(page: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    put(page, format_args!("<h2>{title}</h2>\n<ul>"));
    for line in lines {
        put(page, format_args!("<li>{}</li>", escaped(line)));
    }
    page.push_str("</ul>\n");
}

fn counts(page: &mut String, report: &Report) {
    let (telemetry, twins) = (&report.checked.telemetry, &report.checked.twins);
    let rows = [
        ("operations", report.operations),
        ("acknowledged", report.acknowledged),
        ("unknown", report.unknown),
        ("messages acknowledged", telemetry.acknowledged),
        ("messages lost", telemetry.lost.total()),
        ("messages stored twice because they were sent again", telemetry.duplicated),
        ("twin patches acknowledged", twins.acknowledged),
        ("faults", report.faults.len() as u64),
        ("growth of all terms", report.terms),
        ("take-overs with messages under way", report.takeovers_in_flight),
        ("violations", report.violations.len() as u64),
    ];
    page.push_str("<h2>Counts</h2>\n<table>");
    for (name, count) in rows {
        put(page, format_args!("<tr><td>{name}<td class=\"n\">{count}"));
    }
    put(
        page,
        format_args!("<tr><td>share lost, at most (95 %)<td class=\"n\">{:.1e}", report.loss_bound),
    );
    page.push_str("</table>\n<h2>Failover</h2>\n<p>From a fault of a leader to the first acknowledgement of each device of its shards, counted apart for devices that were connected at the node itself or dialled it meanwhile: a process that is stopped cannot tell them, and they have to find out by their own time-outs.</p>\n<table>");
    page.push_str("<tr><th>fault<th>devices<th class=\"n\">faults of leaders<th class=\"n\">samples<th class=\"n\">p50 ms<th class=\"n\">p99 ms<th class=\"n\">max ms");
    for failover in &report.failovers {
        put(
            page,
            format_args!(
                "<tr><td>{}<td>{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}<td class=\"n\">{}",
                failover.nemesis,
                failover.through.name(),
                failover.faults,
                failover.samples,
                failover.p50_ms,
                failover.p99_ms,
                failover.max_ms
            ),
        );
    }
    page.push_str("</table>\n");
    for kind in &report.around {
        around(page, kind);
    }
}

/// Throughput and latency in the seconds before and after the faults of a kind.
fn around(page: &mut String, kind: &Around) {
    let count = kind.seconds.len().max(1) as f64;
    let at = |second: f64| LEFT + (WIDTH - LEFT) * second / count;
    let (latency_top, height) = (PLOT_HEIGHT + GAP, 2.0 * (PLOT_HEIGHT + GAP));
    put(
        page,
        format_args!(
            "<h3>Around {} faults: {}</h3>\n<svg viewBox=\"0 0 {WIDTH} {height}\" font-size=\"11\" role=\"img\" aria-label=\"throughput and latency around {}\">\n",
            kind.faults, kind.nemesis, kind.nemesis
        ),
    );
    // With room above for what the values are.
    let most = 1.2 * kind.seconds.iter().map(|second| second.acknowledged).fold(1.0, f64::max);
    let throughput = || kind.seconds.iter().map(|second| 1.0 - second.acknowledged / most);
    line(page, "#2463a8", 0.0, throughput(), &at);
    let counts = kind.seconds.iter().map(|second| format!("{:.0}/s", second.acknowledged));
    labels(page, 0.0, throughput().zip(counts), &at);
    let latency = || kind.seconds.iter().map(|second| 1.0 - logarithmic(second.p99_ms as f64));
    line(page, "#8a3b8f", latency_top, latency(), &at);
    let times = kind.seconds.iter().map(|second| format!("{} ms", second.p99_ms));
    labels(page, latency_top, latency().zip(times), &at);
    axis(page, 0.0, "acknowledged");
    axis(page, latency_top, LATENCY_LABEL);
    let begin = kind.seconds.iter().take_while(|second| second.from_s < 0).count();
    put(
        page,
        format_args!(
            "<path d=\"M{0:.1} 0V{1}\" stroke=\"#d9822b\" stroke-width=\"1.5\"/>\n",
            at(begin as f64),
            height - GAP
        ),
    );
    for (second, place) in kind.seconds.iter().zip(0_u32..) {
        put(
            page,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\">{} s</text>\n",
                at(f64::from(place)),
                height - 8.0,
                second.from_s
            ),
        );
    }
    page.push_str("</svg>\n");
}

fn faults(page: &mut String, report: &Report) {
    page.push_str("<h2>Faults</h2>\n<table><tr><th class=\"n\">from s<th class=\"n\">to s<th>fault<th>node<th>led<th class=\"n\">hits<th>what");
    for fault in &report.faults {
        let node = if fault.nemesis == Nemesis::PowerAll {
            "all".to_owned()
        } else {
            fault.node.to_string()
        };
        put(
            page,
            format_args!(
                "<tr><td class=\"n\">{:.1}<td class=\"n\">{:.1}<td>{}<td>{node}<td>{} shards<td class=\"n\">{}<td>{}",
                fault.from_ms as f64 / 1000.0,
                fault.until_ms as f64 / 1000.0,
                fault.nemesis,
                fault.shards.len(),
                fault.evidence,
                escaped(&fault.detail)
            ),
        );
    }
    page.push_str("</table>\n");
}

/// Throughput above, latency below it, and a row of bands for each nemesis.
fn picture(page: &mut String, report: &Report) {
    let rows: Vec<Nemesis> = report.by_nemesis().into_keys().collect();
    let seconds = report.timeline.len().max(1) as f64;
    let at = |second: f64| LEFT + (WIDTH - LEFT) * second / seconds;
    let (latency_top, rows_top) = (PLOT_HEIGHT + GAP, 2.0 * (PLOT_HEIGHT + GAP));
    let height = rows_top + ROW * rows.len() as f64 + GAP;
    put(
        page,
        format_args!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" font-size=\"11\" role=\"img\" aria-label=\"throughput, latency and faults over time\">\n"
        ),
    );
    for fault in &report.faults {
        let row = rows.iter().position(|nemesis| *nemesis == fault.nemesis).unwrap_or(0) as f64;
        let (from, until) = (at(fault.from_ms as f64 / 1000.0), at(fault.until_ms as f64 / 1000.0));
        let width = (until - from).max(1.0);
        let (bar_top, bar_height) = (rows_top + row * ROW + 2.0, ROW - 4.0);
        let detail = escaped(&fault.detail);
        put(
            page,
            format_args!(
                "<rect x=\"{from:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{rows_top}\" fill=\"#d9822b\" opacity=\".13\"/>"
            ),
        );
        put(
            page,
            format_args!(
                "<rect x=\"{from:.1}\" y=\"{bar_top:.1}\" width=\"{width:.1}\" height=\"{bar_height}\" fill=\"#d9822b\"><title>{} at node {}: {detail}</title></rect>\n",
                fault.nemesis, fault.node
            ),
        );
    }
    for (nemesis, row) in rows.iter().zip(1_u32..) {
        let baseline = rows_top + f64::from(row) * ROW - 4.0;
        put(
            page,
            format_args!(
                "<text x=\"{}\" y=\"{baseline:.1}\" text-anchor=\"end\">{nemesis}</text>\n",
                LEFT - 4.0
            ),
        );
    }
    let most = report.timeline.iter().map(|second| second.acknowledged).max().unwrap_or(1).max(1);
    let throughput =
        report.timeline.iter().map(|second| 1.0 - second.acknowledged as f64 / most as f64);
    line(page, "#2463a8", 0.0, throughput, &at);
    let latency = report.timeline.iter().map(|second| 1.0 - logarithmic(second.p99_ms as f64));
    line(page, "#8a3b8f", latency_top, latency, &at);
    axis(page, 0.0, &format!("{most}/s acknowledged"));
    axis(page, latency_top, LATENCY_LABEL);
    for tenth in 0..=10 {
        let second = seconds * f64::from(tenth) / 10.0;
        put(
            page,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second:.0} s</text>\n",
                at(second).min(WIDTH - 14.0),
                height - 8.0
            ),
        );
    }
    page.push_str("</svg>\n");
}

/// Where a latency stands between the shortest (0) and the longest (1).
fn logarithmic(ms: f64) -> f64 {
    let (least, most) = LATENCY_MS;
    (ms.clamp(least, most) / least).ln() / (most / least).ln()
}

/// Each value at the middle of its second, 0 at the top of the plot and 1 at its foot.
fn line(
    page: &mut String,
    colour: &str,
    top: f64,
    values: impl Iterator<Item = f64>,
    at: &impl Fn(f64) -> f64,
) {
    let points: Vec<String> = values
        .zip(0_u32..)
        .map(|(value, second)| {
            format!("{:.1},{:.1}", at(f64::from(second) + 0.5), top + value * PLOT_HEIGHT)
        })
        .collect();
    put(
        page,
        format_args!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\n",
            points.join(" ")
        ),
    );
}

/// What each value is, beside its place: below it near the top of the plot, and above it elsewhere.
fn labels(
    page: &mut String,
    top: f64,
    values: impl Iterator<Item = (f64, String)>,
    at: &impl Fn(f64) -> f64,
) {
    for ((value, text), second) in values.zip(0_u32..) {
        let beside = if value < 0.2 { 14.0 } else { -6.0 };
        let (x, y) = (at(f64::from(second) + 0.5), top + value * PLOT_HEIGHT + beside);
        put(
            page,
            format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>\n"),
        );
    }
}

fn axis(page: &mut String, top: f64, label: &str) {
    let foot = top + PLOT_HEIGHT;
    put(
        page,
        format_args!(
            "<path d=\"M{LEFT} {top}V{foot}H{WIDTH}\" fill=\"none\" stroke=\"#8795a5\"/><text x=\"{}\" y=\"{}\">{label}</text>\n",
            LEFT + 6.0,
            top + 12.0
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_stands_between_the_shortest_and_the_longest() {
        assert!(logarithmic(0.0).abs() < 1e-9);
        assert!((logarithmic(30_000.0) - 1.0).abs() < 1e-9);
        assert!(logarithmic(100.0) < logarithmic(200.0));
    }

    #[test]
    fn what_a_node_said_cannot_become_markup() {
        assert_eq!(escaped("<b>&"), "&lt;b&gt;&amp;");
    }
}
