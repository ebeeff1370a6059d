//! What back ends do at one node with twins and streams.

use drover_cluster::Error;
use drover_cluster::actors::cluster::{ReadLimits, TwinChange};
use drover_cluster::core::change::{Condition, Refusal, TwinUpdate};
use drover_cluster::core::ids::{DeviceId, Etag, Offset, ShardCount, ShardId, Version};
use drover_cluster::core::twin::Twin;
use rand::Rng;
use rand::rngs::StdRng;

use super::Workload;
use super::commands::Sender;
use super::content::{is_unknown, patch, states};
use crate::promises::twin_section::{SectionOperation, WriteAnswer, WriteCondition};
use crate::sim::history::Section;
use crate::sim::observe;

impl Workload {
    pub(super) async fn serve_often(&self, mut draw: StdRng) {
        let mut known = None;
        let mut sender = Sender::default();
        while self.is_working() {
            self.pause(&mut draw, 1).await;
            let device = &self.devices[draw.random_range(0..self.devices.len())];
            match draw.random_range(0..15) {
                0..4 => self.desire(device, known.as_ref(), &mut draw).await,
                4..8 => known = self.read_twin(device).await,
                8..12 => self.send_command(device, &mut sender, &mut draw).await,
                12 => self.cancel_command(device, &mut draw).await,
                _ => self.read_stream(&mut draw).await,
            }
        }
    }

    /// `known` is a device and its twin as it was read some time ago, which conditions name.
    async fn desire(&self, device: &DeviceId, known: Option<&(DeviceId, Twin)>, draw: &mut StdRng) {
        let (device, condition) = match known {
            Some((device, twin)) if draw.random_bool(0.5) => {
                let version = WriteCondition::Version(twin.desired.version.get());
                let etag = WriteCondition::Etag(twin.etag.get());
                (device, if draw.random_bool(0.5) { version } else { etag })
            }
            Some(_) | None => (device, WriteCondition::None),
        };
        self.write_desired(device, condition).await;
    }

    pub(super) async fn write_desired(&self, device: &DeviceId, condition: WriteCondition) -> bool {
        let value = self.history.lock().next_number(device.as_str(), Section::Desired);
        let write = |answer| SectionOperation::Write { value, condition, answer };
        let begun = {
            let mut history = self.history.lock();
            let at = history.note(format_args!("{device}: desire {value} {condition:?}"));
            let unknown = write(WriteAnswer::Unknown);
            history.begin_twin(device.as_str(), Section::Desired, unknown, at)
        };
        let change = TwinChange {
            if_match: match condition {
                WriteCondition::Etag(etag) => Condition::Match(Etag::new(etag)),
                WriteCondition::None | WriteCondition::Version(_) => Condition::Any,
            },
            expected_desired: match condition {
                WriteCondition::Version(version) => Some(Version::new(version)),
                WriteCondition::None | WriteCondition::Etag(_) => None,
            },
            mode: TwinUpdate::Merge,
            tags: None,
            desired: Some(patch(value)),
        };
        let answer = self.cluster.update_twin(device, change).await;
        let mut history = self.history.lock();
        let answer = match answer {
            Ok(twin) => Ok(WriteAnswer::Accepted { version: twin.desired.version.get() }),
            Err(Error::Refused(Refusal::VersionMismatch { current })) => {
                Ok(WriteAnswer::Mismatch { current: current.get() })
            }
            Err(Error::Refused(Refusal::EtagMismatch { current })) => {
                Ok(WriteAnswer::Mismatch { current: current.get() })
            }
            Err(error) => Err(error),
        };
        let at = history.note(format_args!("{device}: desired {value}: {answer:?}"));
        match answer {
            Ok(answer) => {
                let is_accepted = matches!(answer, WriteAnswer::Accepted { .. });
                history.counts.operations.desired_acknowledged += u64::from(is_accepted);
                history.end_twin(begun, Some((write(answer), at)));
                is_accepted
            }
            Err(error) if is_unknown(&error) => {
                history.counts.operations.unknown += 1;
                false
            }
            Err(_) => {
                history.end_twin(begun, None);
                false
            }
        }
    }

    pub(super) async fn read_twin(&self, device: &DeviceId) -> Option<(DeviceId, Twin)> {
        let begun = self.history.note(format_args!("{device}: read at node {}", self.node));
        match self.cluster.twin(device).await {
            Ok(twin) => {
                self.has_read(device, &twin, begun);
                Some((device.clone(), twin))
            }
            Err(error) => {
                self.history.note(format_args!("{device}: not read: {error}"));
                None
            }
        }
    }

    pub(super) fn has_read(&self, device: &DeviceId, twin: &Twin, begun: u64) {
        let (desired, reported) = states(twin);
        let mut history = self.history.lock();
        let at = history.note(format_args!(
            "{device}: read desired {}, reported {}",
            desired.version, reported.version
        ));
        history.counts.operations.twins_read += 1;
        for (section, state) in [(Section::Desired, desired), (Section::Reported, reported)] {
            let read = SectionOperation::Read(state);
            let operation = history.begin_twin(device.as_str(), section, read.clone(), begun);
            history.end_twin(operation, Some((read, at)));
        }
    }

    async fn read_stream(&self, draw: &mut StdRng) {
        let shards = ShardCount::new(self.plan.shards).expect("a plan has a few shards");
        let number = draw.random_range(0..self.plan.shards);
        let shard = ShardId::new(number, shards).expect("below the count");
        let Ok(state) = self.cluster.stream_state(shard).await else { return };
        let from = Offset::new(draw.random_range(0..=state.next.get()));
        let limits = ReadLimits { messages_max: 50, bytes_max: 100_000, wait_ms: 0 };
        let Ok(page) = self.cluster.read_stream(shard, from, limits).await else { return };
        let mut history = self.history.lock();
        history.note(format_args!("shard {number}: read {} from {from}", page.messages.len()));
        history.counts.operations.pages_read += 1;
        let reader = format!("a client of node {}", self.node);
        for stored in &page.messages {
            let hash = observe::message_hash(stored);
            history.read_offset(number, stored.offset.get(), hash, &reader);
        }
    }
}
