//! What was done with mailboxes in a run, and what the disks say became of the commands.

use std::collections::BTreeMap;

use drover_cluster::core::feedback::StoredFeedback;
use drover_cluster::core::ids::{DeviceId, GroupId, Offset, ShardCount, ShardId};
use drover_cluster::storage::{self, mailbox};

use super::node::Machine;
use super::observe::Observer;
use super::plan::Plan;
use crate::history::commands::{Ended, Ledger, MailboxHistory};

/// The histories of all mailboxes.
#[derive(Debug, Default)]
pub(super) struct Mailboxes {
    of_device: BTreeMap<String, MailboxHistory>,
    numbers: BTreeMap<String, u64>,
}

impl Mailboxes {
    pub(super) fn of(&mut self, device: &DeviceId) -> &mut MailboxHistory {
        let device = device.to_string();
        let empty = || MailboxHistory { device: device.clone(), ..MailboxHistory::default() };
        self.of_device.entry(device.clone()).or_insert_with(empty)
    }

    /// The id of a new command. Each is used once.
    pub(super) fn next_id(&mut self, device: &DeviceId) -> String {
        let number = self.numbers.entry(device.to_string()).or_default();
        *number += 1;
        format!("c-{number}")
    }

    pub(super) fn histories(&self) -> Vec<MailboxHistory> {
        self.of_device.values().cloned().collect()
    }
}

/// The ledger of each device, read from a machine that has its shard when all is over: all replicas are equal then.
pub(super) fn ledgers(
    plan: &Plan,
    observer: &Observer,
    machines: &[Machine],
    devices: &[DeviceId],
) -> Result<BTreeMap<String, Ledger>, storage::Error> {
    let shards = ShardCount::new(plan.shards).expect("a plan has a few shards");
    let mut ledgers = BTreeMap::new();
    for shard in shards.shards() {
        let mut longest: Vec<StoredFeedback> = Vec::new();
        for machine in machines {
            let storage = machine.disk.inspect();
            let page = mailbox::feedback(&storage, shard, Offset::new(0), usize::MAX)?;
            if longest.len() < page.records.len() {
                longest = page.records;
            }
        }
        for StoredFeedback { feedback, .. } in longest {
            let ledger: &mut Ledger = ledgers.entry(feedback.device.to_string()).or_default();
            ledger.ended.push(Ended {
                command: feedback.command.to_string(),
                ending: feedback.ending,
                at_ms: feedback.at.get(),
                deliveries: feedback.deliveries,
            });
        }
    }
    for device in devices {
        let group = GroupId::Shard(ShardId::of(device, shards));
        let hosts = observer.hosts(group);
        for machine in machines.iter().filter(|machine| hosts.contains(&machine.number)) {
            let commands = mailbox::commands(&machine.disk.inspect(), group, device)?;
            if !commands.loaded.is_empty() {
                let waiting = commands.loaded.values().filter(|command| command.is_waiting());
                ledgers.entry(device.to_string()).or_default().waiting =
                    waiting.map(|command| command.id.to_string()).collect();
            }
        }
    }
    Ok(ledgers)
}
