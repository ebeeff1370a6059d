//! Mutants that answer before what they say is committed (`drover_core::mutants`): the simulation must find them.

use drover_core::change::{Change, DeviceChange, Done};
use drover_core::ids::{GroupId, Offset};

use super::proposer::Proposal;
use crate::storage::{Storage, state};
use crate::wire::request::{Answer, decode_change};

/// Answers messages with the offsets that they would get if all went well; `next` is where the stream ends by now.
pub(super) fn acknowledge_early(proposals: &mut [Proposal], mut next: Offset) {
    for proposal in proposals {
        let change = decode_change(&proposal.change);
        if let Ok(Change::Device(_, DeviceChange::Telemetry { messages, .. })) = change {
            let count = messages.len() as u64;
            let answer = Answer::Done(Done::Appended { first: next, count });
            proposal.reply.answer_early(Ok(answer));
            next = next.plus(count);
        }
    }
}

/// Tells connections the epochs that they would get if all went well, as a leader could that keeps epochs in its memory.
pub(super) fn connect_early(proposals: &mut [Proposal], storage: &dyn Storage, group: GroupId) {
    for proposal in proposals {
        let Ok(Change::Device(id, DeviceChange::Connect { .. })) = decode_change(&proposal.change)
        else {
            continue;
        };
        if let Ok(Some(device)) = state::device(storage, group, &id) {
            let (epoch, subscriptions) =
                (device.presence.epoch.next(), device.presence.subscriptions);
            let done = Done::Connected { epoch, session_present: true, subscriptions };
            proposal.reply.answer_early(Ok(Answer::Done(done)));
        }
    }
}
