//! A node whose disk gives bits back wrong: blocks of tables while it runs, or the log when it starts.
//!
//! It must notice: end with the code for a store that cannot be trusted, or stop the replica and say so. And it must serve
//! nothing of it, so somebody reads all streams there meanwhile, and compares them with another node's in the end. What is
//! stored is sound. When the disk is, too, whatever ended is started again, and replicas that were stopped are rebuilt, as
//! an operator would.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use anyhow::ensure;
use drover_proto::admin::{ClusterStatus, Message};
use prost::Message as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::fault::{PAUSE, Seen};
use super::site::{self, Site};
use crate::disk::{Behaviour, Flips};
use crate::nodes::Nodes;
use crate::nodes::admin::Admin;
use crate::peers::until_ok;

/// What a node ends with when its store cannot be trusted (`docs/operations.md`).
const STORAGE_FAILED: i32 = 11;
/// For a node to be up again with nothing in its caches.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that has read a wrong bit must have said so by then.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
/// For replicas to be rebuilt, and for reading the streams elsewhere.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a node does about a disk that it cannot trust.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Notice {
    Nothing,
    /// Its process ended, with this code if it was by itself.
    Ended(Option<i32>),
    /// Groups that it has stopped, with the reason.
    Stopped(Vec<String>),
}

/// Starts the node anew, so that it reads from its disk, and lets that be wrong.
pub(super) async fn install(
    site: &Site,
    nodes: &mut Nodes,
    node: usize,
    random: &mut StdRng,
) -> anyhow::Result<Seen> {
    let (is_log, seed) = (random.random_bool(0.3), random.random());
    let flips = if is_log {
        Flips::Log { seed }
    } else {
        Flips::Blocks { blocks: random.random_range(1..=3), seed }
    };
    let disk = site.disk(node)?;
    // Another fault of the period may want it down: then it reads when it is started.
    let is_up = nodes.process(node).is_ok();
    if is_up {
        nodes.kill(node).await?;
    }
    disk.reset_counters();
    let begin = || disk.behave(Behaviour { flips: Some(flips), ..Behaviour::default() });
    if is_log {
        begin();
    }
    if is_up {
        nodes.restart(node)?;
    }
    if !is_log {
        // One that takes longer reads wrong bits already while it starts.
        nodes.until_answers(node, START_TIMEOUT).await.ok();
        begin();
    }
    let reader = Reader::new(nodes.admin().clone(), node);
    Ok(Seen::later(|over| reader.run(over)))
}

/// Waits until the node has noticed what it read, and lets the disk be sound again.
pub(super) async fn heal(site: &Site, nodes: &mut Nodes, node: usize) -> anyhow::Result<Seen> {
    let disk = site.disk(node)?;
    let begin = Instant::now();
    let notice = loop {
        let is_hit = disk.counters().flipped > 0;
        let notice = look(nodes, node).await?;
        if !is_hit || notice != Notice::Nothing || begin.elapsed() > NOTICE_TIMEOUT {
            break notice;
        }
        sleep(PAUSE).await;
    };
    disk.behave(Behaviour::default());
    let flipped = disk.counters().flipped;
    site::restart_ended(nodes, &[node])?;
    if notice.concerns_meta() {
        // No other replica brings it back: the operator starts the node again, and what is stored is sound.
        nodes.kill(node).await?;
        nodes.restart(node)?;
    }
    let evidence = if notice == Notice::Nothing { 0 } else { flipped };
    let detail = format!("{flipped} answers with a wrong bit: {}", notice.text());
    Ok(Seen::of(evidence, detail).complaining(notice.complaint(node, flipped)))
}

async fn look(nodes: &mut Nodes, node: usize) -> anyhow::Result<Notice> {
    if let Ok(process) = nodes.process(node)
        && let Some(status) = process.ended()?
    {
        return Ok(Notice::Ended(status.code()));
    }
    let problems = nodes.admin().status_at(node).await.map(|status| problems(&status, node));
    // One that does not answer may be about to end.
    let problems = problems.unwrap_or_default();
    Ok(if problems.is_empty() { Notice::Nothing } else { Notice::Stopped(problems) })
}

impl Notice {
    /// What the node did that it must not, after so many answers with a wrong bit.
    fn complaint(&self, node: usize, flipped: u64) -> Option<String> {
        let node = node + 1;
        match self {
            Self::Ended(Some(STORAGE_FAILED)) => None,
            Self::Ended(code) => {
                let code = code.map_or("a signal".to_owned(), |code| format!("code {code}"));
                Some(format!("node {node} ended with {code} on a disk with wrong bits"))
            }
            Self::Stopped(problems) if flipped == 0 => Some(format!(
                "node {node} read no wrong bit, and has stopped {}",
                problems.join(", ")
            )),
            Self::Stopped(_) => None,
            Self::Nothing if flipped == 0 => None,
            Self::Nothing => Some(format!(
                "node {node} goes on after {flipped} answers of its disk with a wrong bit"
            )),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Nothing => "nothing was noticed".to_owned(),
            Self::Ended(code) => format!("the node ended with {code:?}"),
            Self::Stopped(problems) => format!("stopped {}", problems.join(", ")),
        }
    }

    fn concerns_meta(&self) -> bool {
        let is_meta = |problem: &String| problem.starts_with("meta:");
        matches!(self, Self::Stopped(problems) if problems.iter().any(is_meta))
    }
}

/// The groups that a node has stopped, by its own word.
fn problems(status: &ClusterStatus, node: usize) -> Vec<String> {
    let is_it = |number: u32| usize::try_from(number) == Ok(node + 1);
    let of_node = status
        .nodes
        .iter()
        .filter(|of| of.member.as_ref().is_some_and(|member| is_it(member.number)));
    of_node.flat_map(|of| of.problems.clone()).collect()
}

/// The shards among them.
fn shards(problems: &[String]) -> Vec<u32> {
    let shard = |problem: &String| problem.strip_prefix("shard ")?.split(':').next()?.parse().ok();
    problems.iter().filter_map(shard).collect()
}

/// Reads all streams at one node, over and over.
struct Reader {
    admin: Admin,
    node: usize,
    served: Served,
    /// Where it served two things.
    conflict: Option<String>,
}

impl Reader {
    fn new(admin: Admin, node: usize) -> Self {
        Self { admin, node, served: Served::default(), conflict: None }
    }

    /// Until the faults are over. Then it rebuilds what was stopped, and compares.
    async fn run(mut self, over: watch::Receiver<bool>) -> anyhow::Result<Seen> {
        let mut shard = 0;
        // Nobody is there to say so when the run has failed: then it is over, too.
        while over.has_changed().is_ok() && !*over.borrow() {
            let count = self.shard_count().await.unwrap_or(1);
            shard = (shard + 1) % count;
            // A node that is down, or cannot read, serves nothing, and that is right.
            self.read(shard).await.ok();
            sleep(PAUSE).await;
        }
        let rebuilt = self.rebuild_stopped().await?;
        let mut detail = format!("{} messages read there", self.served.0.len());
        if !rebuilt.is_empty() {
            detail = format!("{detail}; rebuilt shards {rebuilt:?}");
        }
        let conflict = match self.conflict.take() {
            Some(conflict) => Some(conflict),
            None => self.compared().await?,
        };
        let complaint = conflict
            .map(|what| format!("node {} served what no other does: {what}", self.node + 1));
        Ok(Seen::of(0, detail).complaining(complaint))
    }

    async fn shard_count(&self) -> anyhow::Result<u32> {
        let status = self.admin.status_at(self.node).await?;
        let count = status.shards.iter().filter(|group| group.shard.is_some()).count();
        ensure!(count > 0, "it knows no shards");
        Ok(u32::try_from(count)?)
    }

    /// What it serves twice must be the same.
    async fn read(&mut self, shard: u32) -> anyhow::Result<()> {
        let Self { admin, node, served, conflict } = self;
        let note = |message: Message| {
            let changed = served.note(shard, &message);
            if let (None, Some(changed)) = (&conflict, changed) {
                *conflict = Some(changed);
            }
        };
        admin.each_message(*node, shard, u64::MAX, note).await
    }

    /// Where another node serves something else, or nothing.
    async fn compared(&self) -> anyhow::Result<Option<String>> {
        let other = (self.node + 1) % self.admin.node_count();
        let mut elsewhere = Served::default();
        for shard in self.served.shards() {
            until_ok("a stream is read at another node", PATIENCE, async || {
                let note = |message: Message| drop(elsewhere.note(shard, &message));
                self.admin.each_message(other, shard, u64::MAX, note).await
            })
            .await?;
        }
        Ok(self.served.missing_in(&elsewhere))
    }

    /// Asks for what is stopped to be rebuilt, and waits until it is; says which shards that were.
    async fn rebuild_stopped(&self) -> anyhow::Result<BTreeSet<u32>> {
        let number = u32::try_from(self.node + 1)?;
        let mut begun = BTreeSet::new();
        until_ok("stopped replicas are rebuilt", PATIENCE, async || {
            let status = self.admin.status_at(self.node).await?;
            let problems = problems(&status, self.node);
            for shard in shards(&problems) {
                // Refused while it is under way, or another replica of the shard is.
                if self.admin.rebuild(number, shard).await.is_ok() {
                    begun.insert(shard);
                }
            }
            ensure!(problems.is_empty(), "still stopped: {}", problems.join(", "));
            let moving = status.moves.iter().find(|under_way| begun.contains(&under_way.shard));
            ensure!(moving.is_none(), "on its way: {moving:?}");
            Ok(())
        })
        .await?;
        Ok(begun)
    }
}

/// What stood where, by shard and offset, when somebody read it.
#[derive(Debug, Default)]
struct Served(BTreeMap<(u32, u64), u64>);

impl Served {
    /// Says where it was if it was something else before.
    fn note(&mut self, shard: u32, message: &Message) -> Option<String> {
        let digest = digest(message);
        let before = *self.0.entry((shard, message.offset)).or_insert(digest);
        (before != digest).then(|| place(shard, message.offset))
    }

    fn shards(&self) -> BTreeSet<u32> {
        self.0.keys().map(|(shard, _)| *shard).collect()
    }

    /// The first that is not the same there.
    fn missing_in(&self, other: &Self) -> Option<String> {
        let missing = self.0.iter().find(|(at, digest)| other.0.get(*at) != Some(*digest));
        missing.map(|((shard, offset), _)| place(*shard, *offset))
    }
}

fn place(shard: u32, offset: u64) -> String {
    format!("shard {shard}, offset {offset}")
}

fn digest(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use drover_proto::admin::{Member, NodeStatus};

    use super::*;

    fn message(offset: u64, body: &[u8]) -> Message {
        Message { offset, body: body.to_vec(), ..Message::default() }
    }

    #[test]
    fn a_node_that_goes_on_after_a_wrong_bit_is_found() {
        let complaint = Notice::Nothing.complaint(1, 3).expect("it has noticed nothing");
        assert!(complaint.contains("node 2 goes on after 3"), "{complaint}");
        assert_eq!(Notice::Nothing.complaint(1, 0), None, "it has read nothing wrong");
    }

    #[test]
    fn a_node_that_ends_for_another_reason_is_found() {
        for code in [None, Some(0), Some(1), Some(101)] {
            assert!(Notice::Ended(code).complaint(0, 1).is_some(), "{code:?}");
        }
        assert_eq!(Notice::Ended(Some(STORAGE_FAILED)).complaint(0, 1), None);
    }

    #[test]
    fn a_replica_may_be_stopped_for_a_wrong_bit_and_not_without_one() {
        let stopped = Notice::Stopped(vec!["shard 5: corrupt".to_owned()]);
        assert_eq!(stopped.complaint(0, 1), None);
        assert!(stopped.complaint(0, 0).is_some());
    }

    #[test]
    fn what_was_served_with_a_wrong_bit_is_found() {
        let mut sound = Served::default();
        let mut served = Served::default();
        for offset in 0..10 {
            assert_eq!(sound.note(4, &message(offset, b"body")), None);
            let body: &[u8] = if offset == 7 { b"bodx" } else { b"body" };
            assert_eq!(served.note(4, &message(offset, body)), None);
        }
        assert_eq!(served.missing_in(&sound).as_deref(), Some("shard 4, offset 7"));
        assert_eq!(served.note(4, &message(7, b"body")).as_deref(), Some("shard 4, offset 7"));
        served.0.remove(&(4, 7));
        assert_eq!(served.missing_in(&sound), None, "it need not have served everything");
        served.note(4, &message(10, b"body"));
        assert_eq!(served.missing_in(&sound).as_deref(), Some("shard 4, offset 10"));
    }

    #[test]
    fn what_a_node_has_stopped_is_told_apart_from_what_others_have() {
        let of = |number, problems: &[&str]| NodeStatus {
            member: Some(Member { number, ..Member::default() }),
            problems: problems.iter().map(|problem| (*problem).to_owned()).collect(),
            ..NodeStatus::default()
        };
        let nodes = vec![of(1, &["shard 3: a: b"]), of(2, &["meta: c", "shard 12: d"])];
        let status = ClusterStatus { nodes, ..ClusterStatus::default() };
        assert_eq!(shards(&problems(&status, 0)), [3]);
        assert_eq!(shards(&problems(&status, 1)), [12]);
        assert!(Notice::Stopped(problems(&status, 1)).concerns_meta());
        assert!(!Notice::Stopped(problems(&status, 0)).concerns_meta());
    }
}
