//! What a device has asked for and has no answer to.

use drover_core::change::Message;
use drover_core::device::{Channel, Qos, Subscriptions};
use drover_core::ids::{CallId, CommandSequence, Version};
use drover_core::mailbox::Settlement;
use drover_core::method::CallReport;
use tokio::time::Instant;

/// One of the things that wait for the cluster, in the order in which they came.
#[derive(Debug)]
pub(super) enum Work {
    Telemetry(Telemetry),
    ReadTwin(TwinRequest),
    PatchReported {
        request: TwinRequest,
        expected: Option<Version>,
        payload: Box<[u8]>,
    },
    /// What became of a call.
    ReportCall(CallReported),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    /// What became of a command.
    Settle(Settle),
}

#[derive(Debug)]
pub(super) struct CallReported {
    /// `None`: the device has answered what it was not asked.
    pub(super) call: Option<CallId>,
    pub(super) report: CallReport,
    pub(super) ack: Option<Ack>,
}

impl CallReported {
    pub(super) fn bytes(&self) -> usize {
        match &self.report {
            CallReport::Answered(response) => response.payload.len(),
            CallReport::BadResponse | CallReport::NotSent => 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Settle {
    pub(super) sequence: CommandSequence,
    pub(super) settlement: Settlement,
}

impl Work {
    /// What it counts against the window.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Telemetry(telemetry) => telemetry.message.0.len(),
            Self::PatchReported { payload, .. } => payload.len(),
            Self::ReportCall(reported) => reported.bytes(),
            Self::ReadTwin(_) | Self::Subscribe(_) | Self::Unsubscribe(_) | Self::Settle(_) => 0,
        }
    }
}

#[derive(Debug)]
pub(super) struct Telemetry {
    pub(super) message: Message,
    pub(super) ack: Option<Ack>,
}

#[derive(Debug)]
pub(super) struct TwinRequest {
    pub(super) id: Box<str>,
    pub(super) ack: Option<Ack>,
}

#[derive(Debug)]
pub(super) struct Subscribe {
    pub(super) packet_id: u16,
    /// `None` for a filter that is refused.
    pub(super) filters: Vec<(Option<Channel>, Qos)>,
}

impl Subscribe {
    /// What is asked for. Of a filter that is named twice, the last counts.
    pub(super) fn wanted(&self) -> Subscriptions {
        self.filters.iter().filter_map(|(channel, qos)| Some(((*channel)?, *qos))).collect()
    }

    /// A return code for each filter, in order.
    pub(super) fn granted(&self) -> Vec<Option<Qos>> {
        self.filters.iter().map(|(channel, qos)| channel.map(|_| *qos)).collect()
    }
}

#[derive(Debug)]
pub(super) struct Unsubscribe {
    pub(super) packet_id: u16,
    pub(super) channels: Vec<Channel>,
}

/// A PUBACK that is owed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) packet_id: u16,
    pub(super) received: Instant,
}
