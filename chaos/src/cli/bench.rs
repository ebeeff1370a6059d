//! `chaos bench`: one sitting, one table.

use std::path::PathBuf;

use clap::Args;
use drover_chaos::bench::{Options, Row, Sitting, table};
use drover_chaos::process;

#[derive(Args)]
pub(super) struct Bench {
    /// A few seconds a row, once: to see that it runs, not to quote.
    #[arg(long)]
    quick: bool,
    /// Only these rows.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Row>,
    /// Leave mosquitto, NATS and etcd out.
    #[arg(long)]
    alone: bool,
    /// Also write every figure here, as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        process::raise_file_limit(65_536).await?;
        let options = Options { quick: self.quick, only: self.only, alone: self.alone };
        let sitting = Sitting::run(options).await;
        if let Some(path) = self.report {
            std::fs::write(&path, serde_json::to_vec_pretty(&sitting.figures)?)?;
        }
        super::print(&table::markdown(&sitting.figures), &sitting.figures, self.json)
    }
}
