//! Backups of the cluster while other faults happen, one after the other, as an operator makes them: with the program itself.
//!
//! One that ends well must be whole; one that fails must say why, and must not be taken for a whole one. When the run is over,
//! the last whole one is restored into a node of its own, and what is there is held against what clients were told
//! ([`crate::promises::restored`]).

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::fault::Seen;
use crate::kill::{Driven, readback};
use crate::nodes::Nodes;
use crate::nodes::backup::Operator;
use crate::promises::restored::{self, Restored, Taken};

/// Between two backups: the nodes and the devices share the machine with whoever makes them.
const PAUSE: Duration = Duration::from_millis(500);

/// The backups of a run. Of the whole ones it keeps the last.
#[derive(Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
    made: Cell<u32>,
    last: RefCell<Option<Whole>>,
}

#[derive(Debug)]
struct Whole {
    place: PathBuf,
    began: Instant,
    ended: Instant,
}

impl Shelf {
    pub(super) fn new(folder: PathBuf) -> Rc<Self> {
        Rc::new(Self { folder, made: Cell::new(0), last: RefCell::new(None) })
    }

    /// A place where nothing is.
    fn place(&self) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.folder.join(self.made.get().to_string())
    }

    fn keep(&self, whole: Whole) -> anyhow::Result<()> {
        let former = self.last.replace(Some(whole));
        former.map_or(Ok(()), |former| Ok(fs::remove_dir_all(former.place)?))
    }
}

/// Whoever makes the backups of a period.
pub(super) struct Copying {
    pub(super) operator: Operator,
    pub(super) shelf: Rc<Shelf>,
}

impl Copying {
    /// Until the faults of the period are over, and one at the least.
    pub(super) async fn repeat(self, mut over: watch::Receiver<bool>) -> anyhow::Result<Seen> {
        let (mut whole, mut failed, mut complaint) = (0, Vec::new(), None);
        loop {
            let place = self.shelf.place();
            let began = Instant::now();
            let made = self.operator.backup("create", &place, &[]).await?;
            let ended = Instant::now();
            let verified = self.operator.backup("verify", &place, &[]).await?;
            match judge(made, verified) {
                Judged::Whole => {
                    whole += 1;
                    self.shelf.keep(Whole { place, began, ended })?;
                }
                Judged::Failed(said) => failed.push(said),
                Judged::Wrong(what) => complaint = Some(what),
            }
            if *over.borrow() {
                break;
            }
            // Whoever would tell is told when this ends.
            timeout(PAUSE, over.changed()).await.ok();
        }
        let last = failed.last().map_or_else(String::new, |said| format!(": {said}"));
        let text = format!("{whole} backups were whole, {} failed{last}", failed.len());
        // Where nothing else happens, a backup is made.
        let suffered = (whole == 0).then(|| text.clone());
        Ok(Seen::of(whole, text).complaining(complaint).suffering(suffered))
    }
}

/// What became of a backup.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Whole,
    /// It says so, and nobody takes it for a whole one.
    Failed(String),
    Wrong(String),
}

fn judge(made: Result<(), String>, verified: Result<(), String>) -> Judged {
    match (made, verified) {
        (Ok(()), Ok(())) => Judged::Whole,
        (Err(said), Err(_)) => Judged::Failed(said),
        (Ok(()), Err(said)) => {
            Judged::Wrong(format!("a backup that was made is not whole: {said}"))
        }
        (Err(said), Ok(())) => {
            Judged::Wrong(format!("a backup that failed is taken for a whole one: {said}"))
        }
    }
}

/// Restores the last whole backup beside the cluster, and looks at what is there. `begin` is the run's.
pub(super) async fn restore(
    shelf: &Shelf,
    nodes: &Nodes,
    shards: u32,
    begin: Instant,
    driven: &Driven,
) -> anyhow::Result<Restored> {
    let Some(Whole { place, began, ended }) = shelf.last.take() else {
        return Ok(Restored::default());
    };
    let fresh = nodes.restored(&place).await.context("restoring the last backup")?;
    let kept = readback::read(&fresh, shards, &driven.histories).await;
    let kept = kept.context("reading what was restored")?;
    let since = |moment: Instant| (moment - begin).as_millis() as u64;
    // What was acknowledged in the millisecond before it began was acknowledged before it began.
    let taken = Taken { began_ms: since(began), ended_ms: since(ended) };
    let found =
        restored::check(&driven.histories, &driven.streams, taken, &kept.streams, &kept.twins);
    tracing::info!(messages = found.messages, owed = found.owed, "restored the last backup");
    let violations = kept.violations.into_iter().chain(found.violations).collect();
    Ok(Restored { violations, ..found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backup_says_of_itself_must_be_true() {
        let said = |text: &str| Err(text.to_owned());
        assert_eq!(judge(Ok(()), Ok(())), Judged::Whole);
        assert_eq!(
            judge(said("no leader"), said("not finished")),
            Judged::Failed("no leader".to_owned())
        );
        assert!(matches!(judge(Ok(()), said("a flipped bit")), Judged::Wrong(_)));
        assert!(matches!(judge(said("no leader"), Ok(())), Judged::Wrong(_)));
    }
}
