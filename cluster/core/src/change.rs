//! The vocabulary of apply: what Raft replicates, what apply answers, and what it asks the outside to do.
//!
//! A change keeps its meaning for ever, since logs are replayed: add a variant, never redefine one.

use bytes::Bytes;

use crate::device::{Authentication, Channel, Device, Status, Subscriptions};
use crate::document::Object;
use crate::ids::{
    CommandId, CommandSequence, DeviceId, Etag, GenerationId, LogTime, NodeId, Offset,
    SessionEpoch, Version,
};
use crate::mailbox::{Command, Ending, NewCommand, Outgoing, Settlement};
use crate::twin::Twin;

/// One log entry of a shard: the changes that the proposer gathered, with the time that the leader stamped.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub at: LogTime,
    pub changes: Vec<Change>,
}

/// What Raft replicates in a shard.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Device(DeviceId, DeviceChange),
    Stream(StreamChange),
}

/// A change of one device, or of one module.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceChange {
    /// Register it, with an initial twin. A module takes the status of its device, not the given one.
    Create {
        generation: GenerationId,
        spec: DeviceSpec,
    },
    /// Replace what a back end may set of an identity. Absent fields stay. New keys or `Disabled` end the live
    /// connection (the epoch rises). A device's modules share its status.
    Update {
        if_match: Condition,
        status: Option<Status>,
        status_reason: Option<Option<String>>,
        authentication: Option<Authentication>,
    },
    /// Remove it with its twin and its modules. Its messages stay in the stream until retention takes them.
    Delete {
        if_match: Condition,
    },
    /// Raise the epoch and make this the live connection. `credentials` is the etag of the identity that the
    /// credential was checked against: if the identity has changed since, the connect is refused.
    Connect {
        credentials: Etag,
        clean_session: bool,
        /// Where the connection is. `None` in logs of versions that did not say it.
        node: Option<NodeId>,
    },
    Subscribe {
        epoch: SessionEpoch,
        subscriptions: Subscriptions,
    },
    Unsubscribe {
        epoch: SessionEpoch,
        channels: Vec<Channel>,
    },
    /// The connection of `epoch` has ended. `will` is appended to the stream if it was the live one.
    Disconnect {
        epoch: SessionEpoch,
        will: Option<Message>,
    },
    /// Append to the shard's stream, all or none.
    Telemetry {
        sender: Sender,
        messages: Vec<Message>,
    },
    /// The device reports its state. `expected` is a condition on the reported version.
    PatchReported {
        sender: Sender,
        expected: Option<Version>,
        patch: Object,
    },
    /// A back end changes tags and desired properties: merge what is given, or replace both sections.
    UpdateTwin {
        if_match: Condition,
        expected_desired: Option<Version>,
        mode: TwinUpdate,
        tags: Option<Object>,
        desired: Option<Object>,
    },
    /// Put a command into the mailbox. One whose id is there already adds nothing.
    SendCommand(Box<NewCommand>),
    /// The device has dealt with a command, or will not. It counts if the command was last sent over this connection.
    SettleCommand {
        epoch: SessionEpoch,
        sequence: CommandSequence,
        settlement: Settlement,
    },
    /// A back end takes a command back. What was sent already cannot be unsent: the answer says so.
    CancelCommand {
        command: CommandId,
    },
    /// Take back all that wait.
    PurgeCommands,
    /// A time that the mailbox waits for has come: an expiry, the end of a lock, a schedule. A repeat changes nothing.
    RunCommandTimers,
}

/// How a back end's twin update treats what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwinUpdate {
    /// RFC 7396, member by member; `null` deletes.
    Merge,
    /// Sections that are given are replaced whole; sections that are not given become empty.
    Replace,
}

/// A condition on an `ETag` (RFC 9110, `If-Match`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Any,
    Match(Etag),
}

/// Who a device's change comes from, checked again at apply so that no revoked right outlives its revocation (I-28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A connection: refused unless it is the live one.
    Session(SessionEpoch),
    /// A single request with a credential checked against the identity of this etag: refused if it has changed.
    Request(Etag),
}

/// What a new device is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSpec {
    pub status: Status,
    pub status_reason: Option<String>,
    pub authentication: Authentication,
    pub tags: Object,
    pub desired: Object,
}

/// A device's message as it will be stored: an encoded `drover.record.v1.Message`, opaque to the rules. The edge that
/// received it encodes it once, and every later layer copies bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(pub Bytes);

impl Message {
    /// What the message counts towards the size of its stream.
    pub fn bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A change of a shard's stream that belongs to no device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamChange {
    /// A consumer group has processed everything before `next`. A cursor never goes back (I-9).
    CommitCursor {
        group: String,
        next: Offset,
    },
    /// Move the cursor of a group wherever an operator wants it.
    SeekCursor {
        group: String,
        next: Offset,
    },
    DeleteCursor {
        group: String,
    },
    /// Drop the prefix before `before`, which has so many bytes of messages. The leader plans it from the configured age
    /// and size (`stream::Retention`) when the stream begins at `from`; if it begins elsewhere by now, nothing is dropped.
    Retain {
        from: Offset,
        before: Offset,
        bytes: u64,
    },
    /// What `CommitCursor` is, for the shard's feedback.
    CommitFeedbackCursor {
        group: String,
        next: Offset,
    },
    SeekFeedbackCursor {
        group: String,
        next: Offset,
    },
    DeleteFeedbackCursor {
        group: String,
    },
    /// Drop the feedback before `before`, as the leader plans it from the configured age and count.
    RetainFeedback {
        before: Offset,
    },
}

/// What apply answers to one change.
pub type Outcome = Result<Done, Refusal>;

/// What an accepted change did.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// The identity as it is now.
    Device(Box<Device>),
    Deleted,
    Connected {
        epoch: SessionEpoch,
        session_present: bool,
        subscriptions: Subscriptions,
    },
    /// The subscriptions as they are now.
    Subscribed(Subscriptions),
    Disconnected,
    /// The messages have the offsets from `first` on.
    Appended {
        first: Offset,
        count: u64,
    },
    Reported {
        version: Version,
    },
    /// The twin as it is now.
    Twin(Box<Twin>),
    Cursor {
        next: Offset,
    },
    Retained {
        first: Offset,
    },
    /// The command as it stands in the mailbox.
    Queued {
        command: Box<Command>,
        /// A command of this id was there already, and nothing was added.
        repeated: bool,
        /// How many older ones of its key it has replaced.
        superseded: u32,
    },
    Settled,
    /// The command as it was taken back. If it has been sent before, the device may have it, or be about to.
    Cancelled(Box<Command>),
    Purged {
        count: u32,
        /// How many of them have been sent before.
        sent: u32,
    },
    TimersRun,
}

/// Why apply refused a change. Deterministic: every replica refuses alike, and nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no device {device}: create it first")]
    DeviceNotFound { device: DeviceId },
    #[error("a device with the id {device} is registered already: choose another id or update it")]
    DeviceAlreadyExists { device: DeviceId },
    #[error("there is no module {module}: create it first, and its device before it")]
    ModuleNotFound { module: DeviceId },
    #[error("there is a module {module} already: choose another id or update it")]
    ModuleAlreadyExists { module: DeviceId },
    #[error("device {device} has {limit} modules already: delete one first")]
    TooManyModules { device: DeviceId, limit: usize },
    #[error("device {device} is disabled: enable it first")]
    DeviceDisabled { device: DeviceId },
    #[error(
        "the etag does not match, the current one is {current}: read again and repeat the change on what you read"
    )]
    EtagMismatch { current: Etag },
    #[error(
        "the version does not match, the current one is {current}: read again and repeat the change on what you read"
    )]
    VersionMismatch { current: Version },
    #[error(
        "the connection with epoch {given} has ended, the newest epoch is {current}: connect again"
    )]
    StaleSession { given: SessionEpoch, current: SessionEpoch },
    #[error("the identity has changed since the credential was checked: authenticate again")]
    CredentialsChanged,
    #[error("{path}: {problem}")]
    InvalidTwin { path: String, problem: String },
    #[error("the cursor of group {group} is at {current} already: a commit cannot move it back")]
    CursorBehind { group: String, current: Offset },
    #[error("offset {given} is outside the stream, which ends before {end}")]
    OffsetOutOfRange { given: Offset, end: Offset },
    #[error("there are {limit} consumer groups already: delete one first")]
    TooManyConsumerGroups { limit: usize },
    #[error(
        "the mailbox holds {limit} commands already: wait until the device has dealt with some, or purge it"
    )]
    MailboxFull { limit: u32 },
    #[error(
        "the mailbox would hold more than {limit_bytes} bytes: wait until the device has dealt with some"
    )]
    MailboxTooLarge { limit_bytes: u64 },
    #[error("the command has {bytes} bytes with its properties: at most {limit_bytes} are allowed")]
    CommandTooLarge { bytes: u64, limit_bytes: u64 },
    #[error("the command would expire before it could be sent: give it a later expiry")]
    CommandExpired,
    #[error("the command would expire after {limit}: give it an earlier expiry")]
    CommandExpiryTooFar { limit: LogTime },
    #[error(
        "there is no command {command} in the mailbox: it may have been forgotten after its end"
    )]
    CommandNotFound { command: String },
    #[error("the command has ended already: it is {ending}")]
    CommandEnded { ending: Ending },
    #[error("the command was not sent over this connection, or has been sent again since")]
    CommandNotLocked,
}

impl Refusal {
    /// There is no such device, or no such module.
    pub fn not_found(id: &DeviceId) -> Self {
        if id.is_module() {
            return Self::ModuleNotFound { module: id.clone() };
        }
        Self::DeviceNotFound { device: id.clone() }
    }
}

/// What apply asks the outside to do once the change is committed. Only the shard's leader performs effects, and
/// receivers expect repeats.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// End the connections of this device whose epoch is lower than `live`.
    EndSessions { device: DeviceId, live: SessionEpoch },
    /// Send the patch to the live connection, if it listens.
    SendDesired { device: DeviceId, epoch: SessionEpoch, version: Version, patch: Object },
    /// A connection that listens to methods is live: calls that wait can go to it.
    Reachable { device: DeviceId, epoch: SessionEpoch },
    /// Send these commands, which are locked for it, to the live connection, in this order.
    SendCommands { device: DeviceId, epoch: SessionEpoch, commands: Vec<Outgoing> },
    /// For whoever counts: a mailbox has taken a command in, or commands of it have ended; so many wait now.
    MailboxMoved { queued: bool, endings: Vec<Ending>, waiting: u32 },
    /// A mailbox waits for this time: [`DeviceChange::RunCommandTimers`] is due then.
    CommandsDue { at: LogTime },
    /// The feedback ends at `next` now.
    FeedbackAppended { next: Offset },
    /// Tell live readers that the stream has grown.
    Appended { first: Offset, count: u64 },
    /// Tell live readers what happened to a device.
    Notify(Event),
}

/// Something that happened to a device, for those who watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Created {
        device: DeviceId,
        at: LogTime,
    },
    Deleted {
        device: DeviceId,
        at: LogTime,
    },
    /// `node`: where the connection is. `None` in logs of versions that did not say it.
    Connected {
        device: DeviceId,
        epoch: SessionEpoch,
        node: Option<NodeId>,
        at: LogTime,
    },
    Disconnected {
        device: DeviceId,
        epoch: SessionEpoch,
        at: LogTime,
    },
    TwinChanged {
        device: DeviceId,
        version: Version,
        at: LogTime,
    },
}
