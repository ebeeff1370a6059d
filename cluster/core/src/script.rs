//! Runs `scripts/*.txt`: scenario in, trace out, as text that a reviewer can read (test builds only).
//!
//! A script is a row of blocks: commands, a line `---`, and what they answer, compared literally. To see what a script
//! answers today, run the test with `DROVER_SCRIPTS=write` and read the difference.
//!
//! ```text
//! create pump
//! connect pump credentials=1
//! ---
//! create pump: etag 1, enabled
//!   created
//! connect pump: epoch 1, no stored session
//!   end sessions before 1
//!   connected 1
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::change::{
    Condition, DeviceChange, DeviceSpec, Done, Effect, Event, Message, Refusal, Sender,
    StreamChange, TwinUpdate,
};
use crate::device::{Authentication, Channel, Device, Qos, Status};
use crate::document::{Object, Value};
use crate::feedback::FeedbackLog;
use crate::ids::{
    CommandSequence, DeviceId, Etag, GenerationId, LogTime, ModuleId, NodeId, Offset, SessionEpoch,
    Version,
};
use crate::mailbox::{Ack, Command as Mail, Ending, Expiry, Limits, NewCommand, Settlement, State};
use crate::shard::{Applied, Records, Stream, apply_stream};
use crate::testing::{apply_all, key, object, spec};

#[test]
fn the_scripts_answer_what_is_written_in_them() {
    // Cargo runs tests in their package's folder. Where it was when this was compiled may be another checkout's.
    let mut paths: Vec<PathBuf> = std::fs::read_dir("scripts")
        .expect("the scripts are there")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "only {} scripts were found", paths.len());
    let write = std::env::var("DROVER_SCRIPTS").is_ok_and(|mode| mode == "write");
    for path in paths {
        let script = std::fs::read_to_string(&path).expect("it can be read");
        let answered = run(&script);
        if write {
            std::fs::write(&path, answered).expect("it can be written");
        } else {
            assert_eq!(answered, script, "{}", path.display());
        }
    }
}

/// The script with the answers that it gets.
fn run(script: &str) -> String {
    let mut shard = Shard::default();
    let blocks = script.trim_end().split("\n\n").map(|block| {
        let commands: Vec<&str> = block.lines().take_while(|line| *line != "---").collect();
        let asked = commands.iter().filter(|line| !line.starts_with('#'));
        let answers: String = asked.map(|command| shard.answer(command)).collect();
        let commands = commands.join("\n");
        if answers.is_empty() {
            commands
        } else {
            format!("{commands}\n---\n{}", answers.trim_end())
        }
    });
    blocks.collect::<Vec<_>>().join("\n\n") + "\n"
}

/// A shard with its records in memory.
#[derive(Debug, Default)]
struct Shard {
    devices: BTreeMap<DeviceId, Records>,
    stream: Stream,
    at: LogTime,
    created: u64,
}

impl Shard {
    fn answer(&mut self, line: &str) -> String {
        let command = Command::parse(line);
        match command.verb {
            "at" => {
                self.at = LogTime::new(command.number(command.subject));
                String::new()
            }
            "show" if command.subject == "stream" => format!("{}\n", show_stream(&self.stream)),
            "show" => self.show(&command),
            "mailbox" => self.show_mailbox(&command),
            "commit" | "seek" | "drop" | "retain" | "commit-feedback" | "retain-feedback" => {
                let applied = apply_stream(&mut self.stream, &command.stream_change());
                command.trace(&applied)
            }
            _ => {
                let change = self.device_change(&command);
                let id = command.device();
                let mut all = apply_all(&mut self.devices, &mut self.stream, &id, &change, self.at)
                    .into_iter();
                let (_, applied) = all.next().expect("the answer to the change itself");
                let mut text = command.trace(&applied);
                for (id, applied) in all {
                    text += &trace(&format!("  {} {id}", command.verb), &applied);
                }
                text
            }
        }
    }

    fn device_change(&mut self, command: &Command<'_>) -> DeviceChange {
        match command.verb {
            "create" => {
                self.created += 1;
                let spec = DeviceSpec {
                    status: command.status().unwrap_or(Status::Enabled),
                    tags: command.document("tags").unwrap_or_default(),
                    desired: command.document("desired").unwrap_or_default(),
                    ..spec()
                };
                DeviceChange::Create { generation: GenerationId::new(self.created), spec }
            }
            _ => command.device_change(),
        }
    }

    fn show_mailbox(&self, command: &Command<'_>) -> String {
        let records = &self.devices[&command.device()];
        let head = &records.device.as_ref().expect("it is there").mailbox;
        let due = head.due.map_or("nothing due".to_owned(), |due| format!("due at {due}"));
        let mut text = format!(
            "mailbox {}: {} waiting with {} bytes, {} ended, {due}\n",
            command.subject, head.waiting, head.bytes, head.ended
        );
        for mail in records.commands.iter().flat_map(|commands| commands.loaded.values()) {
            writeln!(text, "  {}", show_mail(mail)).expect("memory does not fail");
        }
        text
    }

    fn show(&self, command: &Command<'_>) -> String {
        let records = self.devices.get(&command.device());
        let Some(Records { device: Some(device), twin: Some(twin), .. }) = records else {
            return format!("{}: not there\n", command.subject);
        };
        format!(
            "{}\ntwin etag {}, version {}\n  tags {}\n  desired {} {}\n  reported {} {}\n",
            show_device(device),
            twin.etag,
            twin.version,
            show_object(&twin.tags),
            twin.desired.version,
            show_object(&twin.desired.properties),
            twin.reported.version,
            show_object(&twin.reported.properties),
        )
    }
}

/// `verb subject key=value word …`
#[derive(Debug)]
struct Command<'a> {
    line: &'a str,
    verb: &'a str,
    subject: &'a str,
    fields: BTreeMap<&'a str, &'a str>,
    words: Vec<&'a str>,
}

impl<'a> Command<'a> {
    fn parse(line: &'a str) -> Self {
        let mut parts = line.split(' ');
        let (verb, subject) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (fields, words): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.contains('='));
        let fields = fields.into_iter().filter_map(|field| field.split_once('=')).collect();
        Self { line, verb, subject, fields, words }
    }

    fn number(&self, text: &str) -> u64 {
        text.parse().unwrap_or_else(|_| panic!("no number in {}", self.line))
    }

    fn field(&self, name: &str) -> Option<u64> {
        self.fields.get(name).map(|text| self.number(text))
    }

    fn required(&self, name: &str) -> u64 {
        self.field(name).unwrap_or_else(|| panic!("no {name} in {}", self.line))
    }

    fn says(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    fn document(&self, name: &str) -> Option<Object> {
        self.fields.get(name).map(|text| object(text))
    }

    fn device(&self) -> DeviceId {
        DeviceId::from_key(self.subject).expect("a legal id")
    }

    fn condition(&self) -> Condition {
        self.field("if").map_or(Condition::Any, |etag| Condition::Match(Etag::new(etag)))
    }

    fn epoch(&self) -> SessionEpoch {
        SessionEpoch::new(self.required("epoch"))
    }

    fn sender(&self) -> Sender {
        match self.field("credentials") {
            Some(etag) => Sender::Request(Etag::new(etag)),
            None => Sender::Session(self.epoch()),
        }
    }

    fn status(&self) -> Option<Status> {
        let named = [("enabled", Status::Enabled), ("disabled", Status::Disabled)];
        named.into_iter().find_map(|(word, status)| self.says(word).then_some(status))
    }

    fn expected(&self) -> Option<Version> {
        self.field("expected").map(Version::new)
    }

    fn channels(&self) -> Vec<Channel> {
        let channel = |word: &&str| match *word {
            "commands" => Channel::Commands,
            "responses" => Channel::TwinResponses,
            "desired" => Channel::DesiredPatches,
            "methods" => Channel::Methods,
            word => panic!("no channel {word}"),
        };
        self.words.iter().map(channel).collect()
    }

    fn device_change(&self) -> DeviceChange {
        match self.verb {
            "update" => DeviceChange::Update {
                if_match: self.condition(),
                status: self.status(),
                status_reason: self.fields.get("reason").map(|text| Some((*text).to_owned())),
                authentication: self.field("keys").map(|byte| {
                    let byte = u8::try_from(byte).expect("keys are made from a byte");
                    Authentication::Sas { primary: key(byte), secondary: key(byte) }
                }),
            },
            "delete" => DeviceChange::Delete { if_match: self.condition() },
            "connect" => DeviceChange::Connect {
                credentials: Etag::new(self.required("credentials")),
                clean_session: self.says("clean"),
                node: self.field("node").map(|node| NodeId::new(node as u32, 0)),
            },
            "subscribe" => DeviceChange::Subscribe {
                epoch: self.epoch(),
                subscriptions: self.channels().into_iter().map(|c| (c, Qos::AtLeastOnce)).collect(),
            },
            "unsubscribe" => {
                DeviceChange::Unsubscribe { epoch: self.epoch(), channels: self.channels() }
            }
            "disconnect" => DeviceChange::Disconnect {
                epoch: self.epoch(),
                will: self.fields.get("will").map(|text| message(text)),
            },
            "send" => DeviceChange::Telemetry {
                sender: self.sender(),
                messages: self.words.iter().map(|text| message(text)).collect(),
            },
            "report" => DeviceChange::PatchReported {
                sender: self.sender(),
                expected: self.expected(),
                patch: self.document("patch").expect("a report has a patch"),
            },
            "patch" | "replace" => DeviceChange::UpdateTwin {
                if_match: self.condition(),
                expected_desired: self.expected(),
                mode: if self.verb == "patch" { TwinUpdate::Merge } else { TwinUpdate::Replace },
                tags: self.document("tags"),
                desired: self.document("desired"),
            },
            "command" => DeviceChange::SendCommand(Box::new(self.new_command())),
            "complete" => self.settle(Settlement::Complete),
            "reject" => self.settle(Settlement::Reject),
            "abandon" => self.settle(Settlement::Abandon),
            "cancel" => {
                let command = self.words[0].parse().expect("a legal id");
                DeviceChange::CancelCommand { command }
            }
            "purge" => DeviceChange::PurgeCommands,
            "timers" => DeviceChange::RunCommandTimers,
            verb => panic!("no command {verb}"),
        }
    }

    fn settle(&self, settlement: Settlement) -> DeviceChange {
        let sequence = CommandSequence::new(self.number(self.words[0]));
        DeviceChange::SettleCommand { epoch: self.epoch(), sequence, settlement }
    }

    /// With limits so small that a script can meet them.
    fn new_command(&self) -> NewCommand {
        let limits = Limits {
            depth_max: self.field("depth").unwrap_or(20) as u32,
            mailbox_bytes_max: 100,
            command_bytes_max: 20,
            ttl_ms_max: 5000,
            lock_ms: self.field("lock").unwrap_or(100),
            deliveries_max: self.field("deliveries").unwrap_or(3) as u32,
            ended_max: 4,
            ended_ms: 10_000,
        };
        let ack = [("positive", Ack::Positive), ("negative", Ack::Negative), ("full", Ack::Full)];
        let ack = ack.into_iter().find_map(|(word, ack)| self.says(word).then_some(ack));
        NewCommand {
            id: self.words[0].parse().expect("a legal id"),
            key: self.fields.get("key").map(|key| (*key).to_owned()),
            ack: ack.unwrap_or_default(),
            expiry: match self.field("expires") {
                Some(at) => Expiry::At(LogTime::new(at)),
                None => Expiry::After { ms: self.field("ttl").unwrap_or(1000) },
            },
            not_before: self.field("from").map(LogTime::new),
            message: message(self.fields.get("body").unwrap_or(&"body")),
            limits,
        }
    }

    fn stream_change(&self) -> StreamChange {
        let group = || self.subject.to_owned();
        let offset = |name| Offset::new(self.required(name));
        match self.verb {
            "commit" => StreamChange::CommitCursor { group: group(), next: offset("next") },
            "seek" => StreamChange::SeekCursor { group: group(), next: offset("next") },
            "drop" => StreamChange::DeleteCursor { group: group() },
            "commit-feedback" => {
                StreamChange::CommitFeedbackCursor { group: group(), next: offset("next") }
            }
            "retain-feedback" => StreamChange::RetainFeedback { before: offset("before") },
            verb => {
                assert_eq!(verb, "retain");
                let [from, before] = ["from", "before"].map(offset);
                StreamChange::Retain { from, before, bytes: self.required("bytes") }
            }
        }
    }

    fn trace(&self, applied: &Applied) -> String {
        trace(&format!("{} {}", self.verb, self.subject), applied)
    }
}

/// The outcome on a line of its own, then an effect a line.
fn trace(what: &str, applied: &Applied) -> String {
    let outcome = match &applied.outcome {
        Ok(done) => show_done(done),
        Err(refusal) => show_refusal(refusal),
    };
    let mut text = format!("{what}: {outcome}\n");
    for effect in &applied.effects {
        writeln!(text, "  {}", show_effect(effect)).expect("memory does not fail");
    }
    for feedback in &applied.feedback {
        let (command, ending) = (&feedback.command, feedback.ending);
        writeln!(text, "  feedback {command} {ending}").expect("memory does not fail");
    }
    text
}

fn message(text: &str) -> Message {
    Message(text.to_owned().into())
}

fn show_refusal(refusal: &Refusal) -> String {
    format!("refused, {refusal}")
}

fn show_done(done: &Done) -> String {
    match done {
        Done::Device(device) => show_device(device),
        Done::Deleted => "deleted".to_owned(),
        Done::Connected { epoch, session_present, subscriptions } => {
            let session = if *session_present { "stored" } else { "no stored" };
            let channels: Vec<&Channel> = subscriptions.keys().collect();
            format!("epoch {epoch}, {session} session {channels:?}")
        }
        Done::Subscribed(subscriptions) => {
            format!("subscribed {:?}", subscriptions.keys().collect::<Vec<_>>())
        }
        Done::Disconnected => "disconnected".to_owned(),
        Done::Appended { first, count } => format!("{count} from offset {first}"),
        Done::Reported { version } => format!("reported {version}"),
        Done::Twin(twin) => {
            format!(
                "twin etag {}, version {}, desired {}",
                twin.etag, twin.version, twin.desired.version
            )
        }
        Done::Cursor { next } => format!("cursor {next}"),
        Done::Retained { first } => format!("begins at {first}"),
        Done::Queued { command, repeated: true, .. } => {
            format!("there already, {}", show_mail(command))
        }
        Done::Queued { command, superseded: 0, .. } | Done::Cancelled(command) => {
            show_mail(command)
        }
        Done::Queued { command, superseded, .. } => {
            format!("{}, superseded {superseded}", show_mail(command))
        }
        Done::Settled => "settled".to_owned(),
        Done::Purged { count, sent } => format!("purged {count}, {sent} of them sent before"),
        Done::TimersRun => "run".to_owned(),
    }
}

fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::EndSessions { live, .. } => format!("end sessions before {live}"),
        Effect::SendDesired { epoch, version, patch, .. } => {
            format!("send desired {version} to {epoch}: {}", show_object(patch))
        }
        Effect::SendCommands { epoch, commands, .. } => {
            let commands: Vec<String> = commands
                .iter()
                .map(|outgoing| format!("#{} as {}", outgoing.sequence, outgoing.number))
                .collect();
            format!("send commands to {epoch}: {}", commands.join(", "))
        }
        Effect::MailboxMoved { queued, endings, waiting } => {
            let queued = if *queued { "one more" } else { "" };
            let ended = endings.iter().map(|ending| format!("one {ending}"));
            let moved: Vec<_> = [queued.to_owned()].into_iter().chain(ended).collect();
            format!("mailbox: {}, {waiting} waiting", moved.join(", ").trim_start_matches(", "))
        }
        Effect::CommandsDue { at } => format!("commands due at {at}"),
        Effect::Reachable { device, epoch } => format!("{device} can be called, epoch {epoch}"),
        Effect::FeedbackAppended { next } => format!("feedback ends at {next}"),
        Effect::Appended { first, count } => format!("appended {count} from {first}"),
        Effect::Notify(event) => match event {
            Event::Created { at, .. } => format!("created at {at}"),
            Event::Deleted { at, .. } => format!("deleted at {at}"),
            Event::Connected { epoch, at, .. } => format!("connected {epoch} at {at}"),
            Event::Disconnected { epoch, at, .. } => format!("disconnected {epoch} at {at}"),
            Event::TwinChanged { version, at, .. } => format!("twin changed {version} at {at}"),
        },
    }
}

fn show_mail(mail: &Mail) -> String {
    let state = match mail.state {
        State::Queued => "queued".to_owned(),
        State::Locked { until } => format!("locked until {until}"),
        State::Ended { ending: ending @ Ending::DeliveryCountExceeded, at } => {
            format!("{ending}, at {at}")
        }
        State::Ended { ending, at } => format!("{ending} at {at}"),
    };
    let attempts = mail.attempts.iter().map(|attempt| {
        let node = attempt.node.map_or(String::new(), |node| format!(" at node {node}"));
        format!(", sent {} to {}{node}", attempt.at, attempt.epoch)
    });
    format!(
        "#{} {} {state}, expires {}, {} deliveries{}",
        mail.sequence,
        mail.id,
        mail.expires,
        mail.deliveries,
        attempts.collect::<String>()
    )
}

fn show_device(device: &Device) -> String {
    let status = match device.status {
        Status::Enabled => "enabled",
        Status::Disabled => "disabled",
    };
    let presence = match device.presence.connected_since {
        Some(since) => format!("connected since {since}"),
        None => "not connected".to_owned(),
    };
    let modules: Vec<&str> = device.modules.iter().map(ModuleId::as_str).collect();
    let modules = if modules.is_empty() { String::new() } else { format!(", has {modules:?}") };
    format!("etag {}, {status}, epoch {}, {presence}{modules}", device.etag, device.presence.epoch)
}

fn show_stream(stream: &Stream) -> String {
    let Stream { first, next, bytes, cursors, at, device_count, disabled_count, retired, feedback } =
        stream;
    let FeedbackLog { first: of, next: to, .. } = feedback;
    let feedback =
        if *to == Offset::new(0) { String::new() } else { format!(", feedback {of}..{to}") };
    let cursors: Vec<String> =
        cursors.iter().map(|(group, next)| format!("{group}={next}")).collect();
    format!(
        "stream {first}..{next}, {bytes} bytes, cursors [{}], at {at}, {device_count} devices, \
         {disabled_count} disabled, retired {retired}{feedback}",
        cursors.join(" ")
    )
}

/// As [`object`] reads it.
fn show_object(object: &Object) -> String {
    let members: Vec<String> =
        object.iter().map(|(key, value)| format!("{key}:{}", show_value(value))).collect();
    format!("{{{}}}", members.join(","))
}

fn show_value(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        Value::Text(value) => value.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(show_value).collect::<Vec<_>>().join(","))
        }
        Value::Object(members) => show_object(members),
    }
}
