//! What the cluster kept: every stream, twice and at different nodes, every twin, and what became of every command.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use drover_core::mailbox::Ending;
use drover_proto::admin::{CommandState, Feedback, Message, Twin};
use prost_types::value::Kind;
use serde_json::Value;

use super::backend::unix_ms;
use super::device::body;
use crate::history::commands::{Ended, Ledger};
use crate::history::{DeviceHistory, FinalTwin, GUEST, PATCH_SLOTS, StoredCopy};
use crate::nodes::Nodes;
use crate::promises::Violation;
use crate::promises::p1_telemetry::Streams;

#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) streams: Streams,
    pub(crate) twins: BTreeMap<String, FinalTwin>,
    pub(super) ledgers: BTreeMap<String, Ledger>,
    /// Two reads that differ.
    pub(crate) violations: Vec<Violation>,
}

pub(crate) async fn read(
    nodes: &Nodes,
    shards: u32,
    histories: &[DeviceHistory],
) -> anyhow::Result<Kept> {
    let admin = nodes.admin();
    let status = admin.status().await?;
    let mut kept = Kept::default();
    for shard in 0..shards {
        let group = status.shards.iter().find(|group| group.shard == Some(shard));
        let until =
            group.with_context(|| format!("shard {shard} is not in the status"))?.next_offset;
        let (one, other) = (shard as usize % nodes.count(), (shard as usize + 1) % nodes.count());
        let first = admin.stream(one, shard, until).await?;
        let second = admin.stream(other, shard, until).await?;
        if first != second {
            let seen = format!("nodes {} and {} give different streams", one + 1, other + 1);
            kept.violations.push(Violation::new(
                "I-2 stable reads",
                format!("shard {shard}"),
                seen,
            ));
        }
        kept.streams.insert(shard, first.iter().map(stored).collect());
        for feedback in admin.feedback(shard).await? {
            let ledger = kept.ledgers.entry(feedback.device_id.clone()).or_default();
            ledger.ended.push(ended(feedback)?);
        }
    }
    for history in histories {
        let twin = admin.twin(&history.device).await?;
        kept.twins.insert(history.device.clone(), final_twin(&twin));
        let waiting = admin.waiting_commands(&history.device).await?;
        kept.ledgers.entry(history.device.clone()).or_default().waiting = waiting;
    }
    Ok(kept)
}

fn ended(feedback: Feedback) -> anyhow::Result<Ended> {
    let ending = match feedback.state() {
        CommandState::Completed => Ending::Completed,
        CommandState::Rejected => Ending::Rejected,
        CommandState::Expired => Ending::Expired,
        CommandState::Dead => Ending::DeliveryCountExceeded,
        CommandState::Purged => Ending::Purged,
        CommandState::Cancelled => Ending::Cancelled,
        CommandState::Superseded => Ending::Superseded,
        state @ (CommandState::Unspecified | CommandState::Queued | CommandState::Locked) => {
            bail!("feedback on a command that is {state:?}")
        }
    };
    Ok(Ended {
        ending,
        at_ms: feedback.ended.as_ref().map_or(0, unix_ms),
        deliveries: feedback.delivery_count,
        command: feedback.message_id,
    })
}

fn stored(message: &Message) -> Result<StoredCopy, (u64, String)> {
    if message.device_id.starts_with(GUEST) {
        let (device, sequence, connection, position) = (message.device_id.clone(), 0, 0, 0);
        return Ok(StoredCopy { offset: message.offset, device, sequence, connection, position });
    }
    let unreadable = |problem: &str| (message.offset, problem.to_owned());
    let content: Value =
        serde_json::from_slice(&message.body).map_err(|_| unreadable("the body is not JSON"))?;
    let sequence = content["sequence"].as_u64().ok_or_else(|| unreadable("no sequence"))?;
    if message.body != body(&message.device_id, sequence).as_bytes() {
        return Err(unreadable("the body is not what the device sent"));
    }
    let property = |key: &str| {
        let property =
            message.application_properties.iter().find(|property| property.key == key)?;
        property.value.as_ref()?.parse::<u32>().ok()
    };
    Ok(StoredCopy {
        offset: message.offset,
        device: message.device_id.clone(),
        sequence,
        connection: property("c").ok_or_else(|| unreadable("no property c"))?,
        position: property("p").ok_or_else(|| unreadable("no property p"))?,
    })
}

fn final_twin(twin: &Twin) -> FinalTwin {
    let Some(reported) = &twin.reported else { return FinalTwin::default() };
    let number = |key: &str| {
        let value = reported.properties.as_ref()?.fields.get(key)?;
        match value.kind {
            Some(Kind::NumberValue(number)) => Some(number as u64),
            _ => None,
        }
    };
    FinalTwin {
        version: reported.version,
        last: number("last").unwrap_or(0),
        slots: (0..PATCH_SLOTS).map(|slot| number(&format!("s{slot}")).unwrap_or(0)).collect(),
    }
}
