//! Figures of a sitting: medians of several runs, with what they were made from.

use serde::Serialize;

use super::Row;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Three nodes, 16 shards.
    Drover3,
    Drover1,
    /// Five nodes, three replicas of each shard.
    Drover5,
    Mosquitto,
    /// Three nodes, its default: no fsync before an acknowledgement.
    Nats,
    /// Three nodes, fsync before each acknowledgement.
    NatsSync,
    /// Three nodes.
    Etcd,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            Self::Drover3 => "Drover, 3 nodes",
            Self::Drover1 => "Drover, 1 node",
            Self::Drover5 => "Drover, 5 nodes",
            Self::Mosquitto => "mosquitto",
            Self::Nats => "NATS, 3 replicas, default sync",
            Self::NatsSync => "NATS, 3 replicas, sync always",
            Self::Etcd => "etcd, 3 nodes",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    pub row: Row,
    pub system: System,
    /// With its unit.
    pub metric: &'static str,
    pub median: f64,
    pub runs: Vec<f64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    pub measured: Vec<Figure>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
    /// What the machine itself does.
    pub machine: Vec<String>,
}

impl Figures {
    pub fn add(&mut self, row: Row, system: System, metric: &'static str, runs: Vec<f64>) {
        let Some(median) = median(&runs) else { return };
        tracing::info!(?row, system = system.name(), metric, median, "measured");
        self.measured.push(Figure { row, system, metric, median, runs });
    }

    pub fn failed(&mut self, part: &str, error: &anyhow::Error) {
        tracing::warn!(part, "{error:#}");
        self.failures.push(format!("{part}: {error:#}"));
    }

    pub fn get(&self, row: Row, system: System, metric: &str) -> Option<f64> {
        let is_it =
            |figure: &&Figure| (figure.row, figure.system, figure.metric) == (row, system, metric);
        self.measured.iter().find(is_it).map(|figure| figure.median)
    }
}

/// The middle value; of two middle ones their mean.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_however_the_runs_came() {
        assert_eq!(median(&[3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
