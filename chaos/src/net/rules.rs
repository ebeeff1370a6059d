//! What a node suffers on its network, in the words of nftables and tc.
//!
//! Rules stand at the receiving end, so each direction of a link is cut for itself. They count what they hit: a rule that hit
//! nothing was no fault.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The table that holds all of them, so that one command takes them away.
pub(super) const TABLE: &str = "inet chaos";

/// What happens to packets that reach a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Those from this address vanish.
    Drop(Ipv4Addr),
    /// TCP from this address is answered with a reset; all else vanishes.
    Reset(Ipv4Addr),
    /// So many of a hundred vanish, at random, whoever sent them.
    Lose(u8),
}

/// How fast a node's packets leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub kilobits_per_second: u32,
    /// What waits longer than this in the queue is dropped.
    pub latency_ms: u32,
}

/// A script for `nft -f` that puts `rules` in place of those that are there.
pub(super) fn script(rules: &[Rule]) -> String {
    // Adding the table first makes deleting it possible whether it was there or not.
    let mut script = format!("add table {TABLE}\ndelete table {TABLE}\n");
    if rules.is_empty() {
        return script;
    }
    script.push_str("table inet chaos {\n chain input {\n");
    script.push_str("  type filter hook input priority 0; policy accept;\n");
    for rule in rules {
        let written = match rule {
            Rule::Drop(from) => writeln!(script, "  ip saddr {from} counter drop"),
            Rule::Reset(from) => writeln!(
                script,
                "  ip saddr {from} meta l4proto tcp counter reject with tcp reset\n  ip saddr {from} counter drop"
            ),
            Rule::Lose(percent) => {
                writeln!(script, "  iif != \"lo\" numgen random mod 100 < {percent} counter drop")
            }
        };
        written.expect("writing to a string cannot fail");
    }
    script.push_str(" }\n}\n");
    script
}

/// The packets that all rules together have hit, from what `nft list table` says.
pub(super) fn hits(listing: &str) -> u64 {
    let words: Vec<&str> = listing.split_whitespace().collect();
    let counts = words.windows(3).filter(|words| words[..2] == ["counter", "packets"]);
    counts.filter_map(|words| words[2].parse::<u64>().ok()).sum()
}

/// The packets that a limited rate has made wait, from what `tc -s qdisc` says.
pub(super) fn delayed(listing: &str) -> u64 {
    let mut words = listing.split_whitespace().skip_while(|word| *word != "overlimits");
    words.nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// What `tc` is told to slow down `interface`.
pub(super) fn slow(interface: &str, rate: Rate) -> String {
    let Rate { kilobits_per_second, latency_ms } = rate;
    format!(
        "tc qdisc replace dev {interface} root tbf rate {kilobits_per_second}kbit burst 32kbit latency {latency_ms}ms"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_summed_over_all_rules() {
        let listing = "table inet chaos {\n chain input {\n  type filter hook input priority filter; policy accept;\n  \
                       ip saddr 10.231.0.2 counter packets 12 bytes 720 drop\n  \
                       ip saddr 10.231.0.3 counter packets 5 bytes 300 reject with tcp reset\n }\n}\n";
        assert_eq!(hits(listing), 17);
    }

    #[test]
    fn packets_that_wait_for_a_limited_rate_are_counted() {
        let listing = "qdisc tbf 8001: root refcnt 2 rate 1Mbit burst 4Kb lat 400ms\n \
                       Sent 3370 bytes 21 pkt (dropped 0, overlimits 19 requeues 0)\n backlog 0b 0p requeues 0\n";
        assert_eq!(delayed(listing), 19);
        assert_eq!(delayed("qdisc noqueue 0: root refcnt 2\n"), 0);
    }

    #[test]
    fn no_rules_leave_no_table() {
        assert_eq!(script(&[]), "add table inet chaos\ndelete table inet chaos\n");
    }
}
