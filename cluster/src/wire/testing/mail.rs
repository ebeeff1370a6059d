//! Commands, mailboxes, feedback.

use drover_core::change::DeviceChange;
use drover_core::feedback::{Feedback, FeedbackLog};
use drover_core::ids::{
    CommandId, CommandSequence, DeliveryNumber, GenerationId, LogTime, Offset, SessionEpoch,
};
use drover_core::mailbox::{
    Ack, Attempt, Command, Ending, Expiry, Head, Limits, NewCommand, Settlement, State,
};
use proptest::prelude::*;

use super::{device_id, message, node, text};

fn time() -> impl Strategy<Value = LogTime> {
    any::<u64>().prop_map(LogTime::new)
}

fn command_id() -> impl Strategy<Value = CommandId> {
    "[a-zA-Z0-9:$%#]{1,8}".prop_map(|id| id.parse().expect("a legal id"))
}

fn ack() -> impl Strategy<Value = Ack> {
    prop::sample::select(vec![Ack::None, Ack::Positive, Ack::Negative, Ack::Full])
}

fn ending() -> impl Strategy<Value = Ending> {
    prop::sample::select(vec![
        Ending::Completed,
        Ending::Rejected,
        Ending::Expired,
        Ending::DeliveryCountExceeded,
        Ending::Purged,
        Ending::Cancelled,
        Ending::Superseded,
    ])
}

pub(super) fn mail_change() -> impl Strategy<Value = DeviceChange> {
    let settlement =
        prop::sample::select(vec![Settlement::Complete, Settlement::Reject, Settlement::Abandon]);
    prop_oneof![
        4 => new_command().prop_map(|new| DeviceChange::SendCommand(Box::new(new))),
        2 => (any::<u64>(), any::<u64>(), settlement).prop_map(|(epoch, sequence, settlement)| {
            let sequence = CommandSequence::new(sequence);
            DeviceChange::SettleCommand { epoch: SessionEpoch::new(epoch), sequence, settlement }
        }),
        1 => command_id().prop_map(|command| DeviceChange::CancelCommand { command }),
        1 => Just(DeviceChange::PurgeCommands),
        1 => Just(DeviceChange::RunCommandTimers),
    ]
}

fn new_command() -> impl Strategy<Value = NewCommand> {
    let expiry =
        prop_oneof![time().prop_map(Expiry::At), any::<u64>().prop_map(|ms| Expiry::After { ms }),];
    let limits = (any::<[u32; 3]>(), any::<[u64; 5]>()).prop_map(|(counts, sizes)| Limits {
        depth_max: counts[0],
        mailbox_bytes_max: sizes[0],
        command_bytes_max: sizes[1],
        ttl_ms_max: sizes[2],
        lock_ms: sizes[3],
        deliveries_max: counts[1],
        ended_max: counts[2],
        ended_ms: sizes[4],
    });
    (command_id(), text(), ack(), expiry, prop::option::of(time()), message(), limits).prop_map(
        |(id, key, ack, expiry, not_before, message, limits)| NewCommand {
            id,
            key,
            ack,
            expiry,
            not_before,
            message,
            limits,
        },
    )
}

pub(super) fn head() -> impl Strategy<Value = Head> {
    (any::<[u64; 4]>(), any::<[u32; 4]>(), prop::option::of(time())).prop_map(
        |([last, bytes, epoch, sent], [waiting, locked, ended, ended_max], due)| Head {
            last: CommandSequence::new(last),
            waiting,
            bytes,
            locked,
            ended,
            ended_max,
            epoch: SessionEpoch::new(epoch),
            sent: DeliveryNumber::new(sent),
            due,
        },
    )
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let state = prop_oneof![
        Just(State::Queued),
        time().prop_map(|until| State::Locked { until }),
        (ending(), time()).prop_map(|(ending, at)| State::Ended { ending, at }),
    ];
    let attempt = (any::<[u64; 3]>(), node()).prop_map(|([at, epoch, number], node)| Attempt {
        at: LogTime::new(at),
        epoch: SessionEpoch::new(epoch),
        number: DeliveryNumber::new(number),
        node,
    });
    let attempts = prop::collection::vec(attempt, 0..3);
    let counts = (any::<[u64; 6]>(), any::<[u32; 2]>(), prop::option::of(time()));
    (command_id(), text(), ack(), counts, state, attempts).prop_map(
        |(id, key, ack, (numbers, [deliveries, deliveries_max], not_before), state, attempts)| {
            let [sequence, bytes, queued, expires, lock_ms, keep_ms] = numbers;
            Command {
                sequence: CommandSequence::new(sequence),
                id,
                key,
                ack,
                bytes,
                queued: LogTime::new(queued),
                not_before,
                expires: LogTime::new(expires),
                lock_ms,
                deliveries_max,
                keep_ms,
                state,
                deliveries,
                attempts,
            }
        },
    )
}

pub(crate) fn feedback() -> impl Strategy<Value = Feedback> {
    (device_id(), any::<u64>(), command_id(), ending(), time(), time(), any::<u32>()).prop_map(
        |(device, generation, command, ending, queued, at, deliveries)| Feedback {
            device,
            generation: GenerationId::new(generation),
            command,
            ending,
            queued,
            at,
            deliveries,
        },
    )
}

pub(super) fn feedback_log() -> impl Strategy<Value = FeedbackLog> {
    let cursors = prop::collection::btree_map(".{0,4}", any::<u64>().prop_map(Offset::new), 0..4);
    (any::<[u64; 2]>(), cursors).prop_map(|([first, next], cursors)| FeedbackLog {
        first: Offset::new(first),
        next: Offset::new(next),
        cursors,
    })
}
