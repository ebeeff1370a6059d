//! Direct methods: as many calls as the hub answers, each caller waiting for its answer before it calls again.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_proto::admin::InvokeMethodRequest;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::report::{Report, Tally};
use crate::fleet::Fleet;
use crate::nodes::backend::Backend;

/// What to do and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Devices 0 to so many are called; they answer at once.
    pub devices: usize,
    /// At most as many as devices.
    pub callers: usize,
    pub duration: Duration,
}

/// Callers spread over the nodes; each calls one of its own devices after the other. If they shared devices, all would queue
/// before a slow one, whose queue is short.
pub async fn call(fleet: &Fleet, backends: &[Backend], plan: &Plan) -> anyhow::Result<Report> {
    ensure!(plan.callers <= plan.devices, "each caller needs a device of its own");
    let begin = Instant::now();
    let end = begin + plan.duration;
    let mut callers = JoinSet::new();
    for caller in 0..plan.callers {
        let fleet = fleet.clone();
        let own: Vec<usize> = (caller..plan.devices).step_by(plan.callers).collect();
        let mut methods = backends[caller % backends.len()].methods.clone();
        callers.spawn(async move {
            let mut tally = Tally::new();
            for device in own.into_iter().cycle() {
                let sent = Instant::now();
                if sent >= end {
                    break;
                }
                let request = InvokeMethodRequest {
                    device_id: fleet.id(device),
                    method_name: "blink".to_owned(),
                    payload: "{\"times\":3}".to_owned(),
                    ..InvokeMethodRequest::default()
                };
                let answer = methods.invoke_method(request).await?.into_inner();
                ensure!(answer.status == 200, "a device answered {}", answer.status);
                tally.record(sent.elapsed());
            }
            Ok(tally)
        });
    }
    let mut total = Tally::new();
    while let Some(ended) = callers.join_next().await {
        total.merge(&ended.context("a caller's task panicked")??);
    }
    Ok(total.report(begin.elapsed(), Vec::new()))
}
