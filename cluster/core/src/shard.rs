//! Apply: how one change turns a shard's records into new ones, an outcome and effects.
//!
//! The shell loads what [`needs_twin`], [`needs_commands`] and [`needs_owner`] name, calls [`apply_device`] or
//! [`apply_stream`], does the same for what follows, and writes what was touched and the applied index in one batch.
//! Whatever the input, apply answers; only a broken invariant of our own state panics, because a stopped replica can be
//! repaired and one that has drifted cannot.

use crate::change::{
    Condition, DeviceChange, DeviceSpec, Done, Effect, Event, Message, Outcome, Refusal,
    StreamChange,
};
use crate::device::{self, Channel, Device, Revoked, check_etag};
use crate::document::Object;
use crate::feedback::{Feedback, FeedbackLog};
use crate::ids::{DeviceId, Etag, GenerationId, LogTime, NodeId, Offset, SessionEpoch, Version};
use crate::mailbox::{self, Commands, Mailbox, Needs};
use crate::module;
pub use crate::module::needs_owner;
pub use crate::stream::Stream;
use crate::twin::Twin;

/// The records of one device, or of one module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Records {
    pub device: Option<Device>,
    /// Loaded only for changes that need it.
    pub twin: Option<Twin>,
    /// Loaded only for changes that need them.
    pub commands: Option<Commands>,
    /// The device whose module this is. Loaded only for changes that need it, and the shell's to put back.
    pub owner: Option<Box<Device>>,
}

/// What the change did, for the shell to carry out.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    pub outcome: Outcome,
    pub effects: Vec<Effect>,
    /// Whether the device record (twin record) differs from what was given: write it, or remove it if it is `None`.
    pub device_touched: bool,
    pub twin_touched: bool,
    pub owner_touched: bool,
    /// What becomes of other identities: to be applied next, in the same entry. Of their answers only the effects count.
    pub follows: Vec<(DeviceId, DeviceChange)>,
    /// What to append to the stream, from the offset on that `Stream::next` had before the call.
    pub appended: Vec<Message>,
    /// Everything before this is to be removed from the stream and from the history.
    pub retain_from: Option<Offset>,
    /// What to write of the mailbox.
    pub mailbox: Option<mailbox::Writes>,
    /// What to append to the feedback, from the offset on that its `next` had before the call.
    pub feedback: Vec<Feedback>,
    /// All feedback before this is to be removed.
    pub retain_feedback_from: Option<Offset>,
}

impl Applied {
    pub(crate) fn accepted(done: Done) -> Self {
        Self::new(Ok(done))
    }

    fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            effects: Vec::new(),
            device_touched: false,
            twin_touched: false,
            owner_touched: false,
            follows: Vec::new(),
            appended: Vec::new(),
            retain_from: None,
            mailbox: None,
            feedback: Vec::new(),
            retain_feedback_from: None,
        }
    }

    fn touching_device(self) -> Self {
        Self { device_touched: true, ..self }
    }

    fn touching_twin(self) -> Self {
        Self { twin_touched: true, ..self }
    }

    fn with(mut self, effects: impl IntoIterator<Item = Effect>) -> Self {
        self.effects.extend(effects);
        self
    }
}

/// Whether a change reads or writes the twin. The device record is needed by all.
pub fn needs_twin(change: &DeviceChange) -> bool {
    match change {
        DeviceChange::Create { .. }
        | DeviceChange::Delete { .. }
        | DeviceChange::PatchReported { .. }
        | DeviceChange::UpdateTwin { .. } => true,
        DeviceChange::Update { .. }
        | DeviceChange::Connect { .. }
        | DeviceChange::Subscribe { .. }
        | DeviceChange::Unsubscribe { .. }
        | DeviceChange::Disconnect { .. }
        | DeviceChange::Telemetry { .. }
        | DeviceChange::SendCommand(_)
        | DeviceChange::SettleCommand { .. }
        | DeviceChange::CancelCommand { .. }
        | DeviceChange::PurgeCommands
        | DeviceChange::RunCommandTimers => false,
    }
}

/// Which commands of a device that is registered as `device` a change reads or writes at a time, as [`Stream::advance`] tells
/// it. What moves a connection moves what is on its way to it.
pub fn needs_commands<'a>(
    device: Option<&Device>,
    change: &'a DeviceChange,
    at: LogTime,
) -> Needs<'a> {
    let Some(head) = device.map(|device| &device.mailbox) else { return Needs::None };
    let all_if = |condition| if condition { Needs::All } else { Needs::None };
    match change {
        DeviceChange::SendCommand(new) => head.needs(new, at),
        DeviceChange::SettleCommand { .. }
        | DeviceChange::CancelCommand { .. }
        | DeviceChange::PurgeCommands
        | DeviceChange::RunCommandTimers => Needs::All,
        DeviceChange::Delete { .. } => all_if(head.has_commands()),
        DeviceChange::Update { .. }
        | DeviceChange::Connect { .. }
        | DeviceChange::Subscribe { .. }
        | DeviceChange::Disconnect { .. } => all_if(head.waiting > 0),
        DeviceChange::Create { .. }
        | DeviceChange::Unsubscribe { .. }
        | DeviceChange::Telemetry { .. }
        | DeviceChange::PatchReported { .. }
        | DeviceChange::UpdateTwin { .. } => Needs::None,
    }
}

/// Applies one change of one device. A refusal changes nothing but the stream's time.
pub fn apply_device(
    records: &mut Records,
    stream: &mut Stream,
    device: &DeviceId,
    change: &DeviceChange,
    at: LogTime,
) -> Applied {
    let at = stream.advance(at);
    let moves_mail = needs_commands(records.device.as_ref(), change, at) != Needs::None;
    let applied = match decide(records, stream, device, change, at) {
        Ok(applied) if moves_mail && applied.mailbox.is_none() => {
            let Some(device) = &mut records.device else { return applied };
            let mailbox = Mailbox::new(device, commands_of_existing(&mut records.commands), at);
            mailed(mailbox, &mut stream.feedback, applied)
        }
        Ok(applied) => applied,
        Err(refusal) => return Applied::new(Err(refusal)),
    };
    match &mut records.device {
        Some(device) if is_activity(change, &applied.effects) => {
            device.presence.active = Some(at);
            applied.touching_device()
        }
        Some(_) | None => applied,
    }
}

/// Whether an accepted change is something that the device did, or received. Telemetry is left out: it would cost a write
/// of the record for each message.
fn is_activity(change: &DeviceChange, effects: &[Effect]) -> bool {
    match change {
        DeviceChange::Connect { .. }
        | DeviceChange::Subscribe { .. }
        | DeviceChange::Unsubscribe { .. }
        | DeviceChange::SettleCommand { .. }
        | DeviceChange::PatchReported { .. } => true,
        DeviceChange::SendCommand(_)
        | DeviceChange::CancelCommand { .. }
        | DeviceChange::PurgeCommands
        | DeviceChange::RunCommandTimers => {
            effects.iter().any(|effect| matches!(effect, Effect::SendCommands { .. }))
        }
        DeviceChange::Create { .. }
        | DeviceChange::Update { .. }
        | DeviceChange::Delete { .. }
        | DeviceChange::Disconnect { .. }
        | DeviceChange::Telemetry { .. }
        | DeviceChange::UpdateTwin { .. } => false,
    }
}

/// Applies one change of the stream.
pub fn apply_stream(stream: &mut Stream, change: &StreamChange) -> Applied {
    stream.apply(change).unwrap_or_else(|refusal| Applied::new(Err(refusal)))
}

fn decide(
    records: &mut Records,
    stream: &mut Stream,
    id: &DeviceId,
    change: &DeviceChange,
    at: LogTime,
) -> Result<Applied, Refusal> {
    match change {
        DeviceChange::Create { generation, spec } => {
            create(records, stream, id, *generation, spec, at)
        }
        DeviceChange::Update { if_match, status, status_reason, authentication } => {
            let device = existing(&mut records.device, id)?;
            check_etag(*if_match, device.etag)?;
            let update = device::Update {
                status: *status,
                status_reason: status_reason.as_ref(),
                authentication: authentication.as_ref(),
            };
            Ok(update_identity(device, stream, update, at))
        }
        DeviceChange::Delete { if_match } => delete(records, stream, id, *if_match, at),
        DeviceChange::Connect { credentials, clean_session, node } => {
            let device = existing(&mut records.device, id)?;
            device.check_credentials(*credentials)?;
            Ok(connect(device, *clean_session, *node, at))
        }
        DeviceChange::Subscribe { epoch, subscriptions } => {
            let device = existing(&mut records.device, id)?;
            device.presence.check_live(*epoch)?;
            device.presence.subscriptions.extend(subscriptions);
            Ok(subscribed(device).with(reachable(device)))
        }
        DeviceChange::Unsubscribe { epoch, channels } => {
            let device = existing(&mut records.device, id)?;
            device.presence.check_live(*epoch)?;
            device.presence.subscriptions.retain(|channel, _| !channels.contains(channel));
            Ok(subscribed(device))
        }
        DeviceChange::Disconnect { epoch, will } => {
            let device = existing(&mut records.device, id)?;
            device.presence.check_live(*epoch)?;
            Ok(disconnect(device, stream, will.as_ref(), at))
        }
        DeviceChange::Telemetry { sender, messages } => {
            existing(&mut records.device, id)?.check_sender(*sender)?;
            Ok(append(stream, messages))
        }
        DeviceChange::PatchReported { sender, expected, patch } => {
            existing(&mut records.device, id)?.check_sender(*sender)?;
            report(twin_of_existing(&mut records.twin), id, *expected, patch, at)
        }
        DeviceChange::UpdateTwin { if_match, expected_desired, mode, tags, desired } => {
            let device = existing(&mut records.device, id)?;
            let twin = twin_of_existing(&mut records.twin);
            check_etag(*if_match, twin.etag)?;
            twin.desired.check_version(*expected_desired)?;
            let patch = twin.update(*mode, tags.as_ref(), desired.as_ref(), at)?;
            Ok(twin_updated(device, twin, patch, at))
        }
        DeviceChange::SendCommand(new) => {
            mail(records, stream, id, at, |mailbox| mailbox.send(new))
        }
        DeviceChange::SettleCommand { epoch, sequence, settlement } => {
            existing(&mut records.device, id)?.presence.check_live(*epoch)?;
            mail(records, stream, id, at, |mail| mail.settle(*epoch, *sequence, *settlement))
        }
        DeviceChange::CancelCommand { command } => {
            mail(records, stream, id, at, |mail| mail.cancel(command))
        }
        DeviceChange::PurgeCommands => mail(records, stream, id, at, |mailbox| Ok(mailbox.purge())),
        DeviceChange::RunCommandTimers => mail(records, stream, id, at, |_| Ok(Done::TimersRun)),
    }
}

/// A change of the mailbox itself.
fn mail(
    records: &mut Records,
    stream: &mut Stream,
    id: &DeviceId,
    at: LogTime,
    change: impl FnOnce(&mut Mailbox<'_>) -> Result<Done, Refusal>,
) -> Result<Applied, Refusal> {
    let device = existing(&mut records.device, id)?;
    let mut mailbox = Mailbox::new(device, commands_of_existing(&mut records.commands), at);
    let done = change(&mut mailbox)?;
    Ok(mailed(mailbox, &mut stream.feedback, Applied::accepted(done)))
}

/// Adds what the mailbox did to what is applied.
fn mailed(mailbox: Mailbox<'_>, feedback: &mut FeedbackLog, applied: Applied) -> Applied {
    let device = mailbox.device().clone();
    let (mut writes, sent) = mailbox.finish();
    let records = std::mem::take(&mut writes.feedback);
    feedback.append(records.len());
    let next = feedback.next;
    let send = sent.map(|(epoch, commands)| Effect::SendCommands { device, epoch, commands });
    let due = writes.due.filter(|_| writes.due != writes.due_before);
    let appended = (!records.is_empty()).then_some(Effect::FeedbackAppended { next });
    let (queued, waiting) = (writes.added.is_some(), writes.waiting);
    let endings = std::mem::take(&mut writes.endings);
    let has_moved = queued || !endings.is_empty();
    let moved = has_moved.then_some(Effect::MailboxMoved { queued, endings, waiting });
    let effects = send
        .into_iter()
        .chain(due.map(|at| Effect::CommandsDue { at }))
        .chain(appended)
        .chain(moved);
    let applied = applied.touching_device().with(effects);
    Applied { mailbox: Some(writes), feedback: records, ..applied }
}

fn commands_of_existing(commands: &mut Option<Commands>) -> &mut Commands {
    commands.as_mut().expect("needs_commands said to load them")
}

fn report(
    twin: &mut Twin,
    id: &DeviceId,
    expected: Option<Version>,
    patch: &Object,
    at: LogTime,
) -> Result<Applied, Refusal> {
    let version = twin.report(expected, patch, at)?;
    let changed = Event::TwinChanged { device: id.clone(), version: twin.version, at };
    Ok(Applied::accepted(Done::Reported { version })
        .touching_twin()
        .with([Effect::Notify(changed)]))
}

fn existing<'a>(device: &'a mut Option<Device>, id: &DeviceId) -> Result<&'a mut Device, Refusal> {
    device.as_mut().ok_or_else(|| Refusal::not_found(id))
}

fn twin_of_existing(twin: &mut Option<Twin>) -> &mut Twin {
    twin.as_mut()
        .expect("a device and its twin are written together, and needs_twin said to load it")
}

fn create(
    records: &mut Records,
    stream: &mut Stream,
    id: &DeviceId,
    generation: GenerationId,
    spec: &DeviceSpec,
    at: LogTime,
) -> Result<Applied, Refusal> {
    if records.device.is_some() {
        return Err(already_exists(id));
    }
    let module = module::name(id);
    let status = match module {
        None => spec.status,
        Some(_) => module::admit(records.owner.as_deref(), id)?,
    };
    let etag = Etag::new(stream.retired).next();
    let twin = Twin::new(etag, &spec.tags, &spec.desired, at)?;
    let device = Device::new(id.clone(), generation, spec, stream.retired, at);
    let device = Device { status, ..device };
    stream.count_status(id, None, Some(status));
    records.twin = Some(twin);
    records.device = Some(device.clone());
    if let (Some(owner), Some(module)) = (&mut records.owner, module) {
        owner.modules.insert(module);
    }
    let created = Effect::Notify(Event::Created { device: id.clone(), at });
    let applied = Applied::accepted(Done::Device(Box::new(device)));
    let applied = applied.touching_device().touching_twin().with([created]);
    Ok(Applied { owner_touched: id.is_module(), ..applied })
}

fn already_exists(id: &DeviceId) -> Refusal {
    if id.is_module() {
        return Refusal::ModuleAlreadyExists { module: id.clone() };
    }
    Refusal::DeviceAlreadyExists { device: id.clone() }
}

fn update_identity(
    device: &mut Device,
    stream: &mut Stream,
    update: device::Update<'_>,
    at: LogTime,
) -> Applied {
    let status = device.status;
    let revoked = device.update(update, at);
    stream.count_status(&device.id, Some(status), Some(device.status));
    let applied = Applied::accepted(Done::Device(Box::new(device.clone()))).touching_device();
    let has_changed = device.status != status;
    let follows = if has_changed { module::updated_with(device) } else { Vec::new() };
    let applied = Applied { follows, ..applied };
    match revoked {
        Revoked::No => applied,
        Revoked::Yes { former } => applied.with(ended(device, former, at)),
    }
}

fn delete(
    records: &mut Records,
    stream: &mut Stream,
    id: &DeviceId,
    if_match: Condition,
    at: LogTime,
) -> Result<Applied, Refusal> {
    let device = existing(&mut records.device, id)?;
    check_etag(if_match, device.etag)?;
    let former = device.presence.revoke(at);
    let twin = twin_of_existing(&mut records.twin);
    stream.retire(device, twin);
    let deleted = Effect::Notify(Event::Deleted { device: id.clone(), at });
    let effects = ended(device, former, at).into_iter().chain([deleted]);
    let applied = Applied::accepted(Done::Deleted).touching_device().touching_twin().with(effects);
    let due_before = device.mailbox.due;
    let follows = module::deleted_with(device);
    if let (Some(owner), Some(module)) = (&mut records.owner, module::name(id)) {
        owner.modules.remove(&module);
    }
    // The mailbox goes without feedback, as at Azure IoT Hub.
    let mailbox = records.commands.take().map(|commands| mailbox::Writes {
        forgotten: commands
            .loaded
            .into_values()
            .map(|command| (command.sequence, command.id))
            .collect(),
        due_before,
        ..mailbox::Writes::default()
    });
    (records.device, records.twin) = (None, None);
    Ok(Applied { owner_touched: records.owner.is_some(), follows, mailbox, ..applied })
}

/// What the outside is told when the right to speak of `former`, if anybody, has ended.
fn ended(device: &Device, former: Option<SessionEpoch>, at: LogTime) -> Vec<Effect> {
    let end = Effect::EndSessions { device: device.id.clone(), live: device.presence.epoch };
    let disconnected = former
        .map(|epoch| Effect::Notify(Event::Disconnected { device: device.id.clone(), epoch, at }));
    [end].into_iter().chain(disconnected).collect()
}

fn connect(device: &mut Device, clean_session: bool, node: Option<NodeId>, at: LogTime) -> Applied {
    let former = device.presence.connect(clean_session, node, at);
    let epoch = device.presence.epoch;
    let subscriptions = device.presence.subscriptions.clone();
    let session_present = !subscriptions.is_empty();
    let connected = Effect::Notify(Event::Connected { device: device.id.clone(), epoch, node, at });
    Applied::accepted(Done::Connected { epoch, session_present, subscriptions })
        .touching_device()
        .with(ended(device, former, at))
        .with([connected])
        .with(reachable(device))
}

fn subscribed(device: &Device) -> Applied {
    Applied::accepted(Done::Subscribed(device.presence.subscriptions.clone())).touching_device()
}

fn reachable(device: &Device) -> Option<Effect> {
    let epoch = device.presence.epoch;
    let listens = device.presence.listens_to(Channel::Methods);
    listens.then(|| Effect::Reachable { device: device.id.clone(), epoch })
}

fn disconnect(
    device: &mut Device,
    stream: &mut Stream,
    will: Option<&Message>,
    at: LogTime,
) -> Applied {
    let will: Vec<Message> = will.into_iter().cloned().collect();
    let former = device.presence.end(at);
    let disconnected = former
        .map(|epoch| Effect::Notify(Event::Disconnected { device: device.id.clone(), epoch, at }));
    let effects = stream.append(&will).into_iter().chain(disconnected);
    let applied = Applied::accepted(Done::Disconnected).touching_device().with(effects);
    Applied { appended: will, ..applied }
}

fn append(stream: &mut Stream, messages: &[Message]) -> Applied {
    let first = stream.next;
    let grown = stream.append(messages);
    let done = Done::Appended { first, count: messages.len() as u64 };
    Applied { appended: messages.to_vec(), ..Applied::accepted(done).with(grown) }
}

/// `patch` is what the device is told, if the desired properties were written.
fn twin_updated(device: &Device, twin: &Twin, patch: Option<Object>, at: LogTime) -> Applied {
    let id = &device.id;
    let version = twin.desired.version;
    let epoch = device.presence.epoch;
    let send = patch
        .filter(|_| device.presence.listens_to(Channel::DesiredPatches))
        .map(|patch| Effect::SendDesired { device: id.clone(), epoch, version, patch });
    let changed = Event::TwinChanged { device: id.clone(), version: twin.version, at };
    Applied::accepted(Done::Twin(Box::new(twin.clone())))
        .touching_twin()
        .with(send)
        .with([Effect::Notify(changed)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Sender;
    use crate::device::Qos;
    use crate::testing::spec;

    /// What a device does or receives is in its record, but for telemetry; what others do to it is not.
    #[test]
    fn the_last_activity_moves_with_what_a_device_does_and_with_nothing_else() {
        let id: DeviceId = "pump".parse().expect("a legal id");
        let (mut records, mut stream) = (Records::default(), Stream::default());
        let (epoch, sender) = (SessionEpoch::new(1), Sender::Session(SessionEpoch::new(1)));
        let patch = Object::new();
        let mut clock = 0;
        let mut active_after = |change: DeviceChange| {
            clock += 1;
            records.commands = Some(Commands::default());
            let at = LogTime::new(clock);
            let applied = apply_device(&mut records, &mut stream, &id, &change, at);
            applied.outcome.expect("accepted");
            let device = records.device.as_ref().expect("it exists");
            let is_moved = device.presence.active == Some(at);
            assert!(applied.device_touched || !is_moved, "{change:?} is not written");
            is_moved
        };
        let generation = GenerationId::new(1);
        assert!(!active_after(DeviceChange::Create { generation, spec: spec() }));
        let credentials = Etag::new(1);
        assert!(active_after(DeviceChange::Connect {
            credentials,
            clean_session: false,
            node: None
        }));
        let subscriptions = [(Channel::DesiredPatches, Qos::AtMostOnce)].into();
        assert!(active_after(DeviceChange::Subscribe { epoch, subscriptions }));
        let expected = None;
        assert!(active_after(DeviceChange::PatchReported {
            sender,
            expected,
            patch: patch.clone()
        }));
        assert!(!active_after(DeviceChange::UpdateTwin {
            if_match: Condition::Any,
            expected_desired: None,
            mode: crate::change::TwinUpdate::Merge,
            tags: None,
            desired: Some(patch),
        }));
        let messages = vec![Message(bytes::Bytes::from_static(b"a"))];
        assert!(!active_after(DeviceChange::Telemetry { sender, messages }));
        assert!(!active_after(DeviceChange::Disconnect { epoch, will: None }));
    }
}
