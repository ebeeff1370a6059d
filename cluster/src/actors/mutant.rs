//! The mutant that acknowledges messages before they are committed (`drover_core::mutants`): the simulation must find it.

use drover_core::change::{Change, DeviceChange, Done};
use drover_core::ids::Offset;

use super::proposer::Proposal;
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
