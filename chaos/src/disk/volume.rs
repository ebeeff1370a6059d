//! A volume: names, files, and which of both would survive a power loss now.
//!
//! The rules are those of a journaling file system, where POSIX leaves it a choice the harsher one:
//!
//! - a file's bytes and length survive from its last fsync or fdatasync on, and its name does not come with them;
//! - changes of names (create, link, rename, unlink, mkdir, rmdir) stand in one journal, in order. An fsync of a directory
//!   makes its last change durable and every earlier one of the volume with it, as a journal's commit does;
//! - a power loss drops the rest. With a seed it keeps some of it: the changes of names up to some point, of each file the
//!   writes up to some point, and of the next write the sectors up to some edge;
//! - a rename is durable whole or not at all;
//! - after a failed fsync the file's later ones succeed and keep nothing (a kernel marks the pages clean).
//!
//! Nothing here knows FUSE but for the numbers of its errors.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use fuser::Errno;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::bytes::Bytes;

pub(super) const ROOT: u64 = 1;

/// What the seed of a power loss keeps of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    /// What this seed draws.
    Some(u64),
}

/// What a power loss took. All zero: there was nothing that it could take, and it proved nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Changes of names.
    pub names: u64,
    /// Writes and changes of length.
    pub writes: u64,
    pub bytes: u64,
    /// Writes of which some sectors were kept.
    pub torn: u64,
}

pub(super) struct Volume {
    folder: PathBuf,
    inodes: BTreeMap<u64, Inode>,
    last_inode: u64,
    /// Changes of names that are not durable, oldest first.
    journal: VecDeque<Change>,
}

pub(super) struct Inode {
    pub(super) kind: Kind,
    pub(super) owner: Owner,
    pub(super) modified: SystemTime,
    /// Names that lead here.
    pub(super) links: u32,
    /// Changes in the journal whose undoing would give it a name.
    pins: u32,
    /// What the kernel holds: it may ask for the number again.
    lookups: u64,
    handles: u64,
}

pub(super) enum Kind {
    File(Bytes),
    Directory(BTreeMap<OsString, u64>),
}

/// Who may do what with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) permissions: u16,
    pub(super) user: u32,
    pub(super) group: u32,
}

/// What one operation did to names, in the order it did it.
type Change = Vec<Binding>;

/// Where `name` led before.
struct Binding {
    directory: u64,
    name: OsString,
    before: Option<u64>,
}

impl Volume {
    /// An empty one. Its bytes go to unlinked files in `folder`.
    pub(super) fn new(folder: &Path, owner: Owner, now: SystemTime) -> Self {
        let root = Inode { lookups: 1, ..Inode::new(Kind::Directory(BTreeMap::new()), owner, now) };
        Self {
            folder: folder.to_owned(),
            inodes: BTreeMap::from([(ROOT, Inode { links: 1, ..root })]),
            last_inode: ROOT,
            journal: VecDeque::new(),
        }
    }

    pub(super) fn inode(&self, number: u64) -> Result<&Inode, Errno> {
        self.inodes.get(&number).ok_or(Errno::ENOENT)
    }

    pub(super) fn inode_mut(&mut self, number: u64) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    pub(super) fn file(&mut self, number: u64) -> Result<&mut Bytes, Errno> {
        match &mut self.inode_mut(number)?.kind {
            Kind::File(bytes) => Ok(bytes),
            Kind::Directory(_) => Err(Errno::EISDIR),
        }
    }

    pub(super) fn entries(&self, directory: u64) -> Result<&BTreeMap<OsString, u64>, Errno> {
        match &self.inode(directory)?.kind {
            Kind::Directory(entries) => Ok(entries),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn find(&self, directory: u64, name: &OsStr) -> Result<u64, Errno> {
        self.entries(directory)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// The inode that a path below the root names.
    pub(super) fn resolve(&self, path: &Path) -> Result<u64, Errno> {
        path.components().try_fold(ROOT, |at, component| match component {
            Component::Normal(name) => self.find(at, name),
            Component::RootDir | Component::CurDir => Ok(at),
            Component::Prefix(_) | Component::ParentDir => Err(Errno::EINVAL),
        })
    }

    /// Whether a file has a name that ends so.
    pub(super) fn has_extension(&self, number: u64, extension: &str) -> bool {
        self.with_extension(extension).any(|found| found == number)
    }

    /// The longest file whose name ends so, and its length.
    pub(super) fn longest(&self, extension: &str) -> Option<(u64, u64)> {
        let lengths = self.with_extension(extension);
        let lengths =
            lengths.filter_map(|number| Some((number, self.inodes.get(&number)?.length())));
        lengths.max_by_key(|(_, length)| *length)
    }

    fn with_extension(&self, extension: &str) -> impl Iterator<Item = u64> {
        let directories = self.inodes.values().filter_map(|inode| match &inode.kind {
            Kind::Directory(entries) => Some(entries),
            Kind::File(_) => None,
        });
        let ends_so =
            move |name: &OsStr| Path::new(name).extension().is_some_and(|end| end == extension);
        let named = directories.flatten().filter(move |(name, _)| ends_so(name));
        named.map(|(_, number)| *number)
    }

    /// The kernel learnt the number and will forget it again.
    pub(super) fn refer(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.lookups += 1;
        }
    }

    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
            self.collect(number);
        }
    }

    pub(super) fn open(&mut self, number: u64) -> Result<(), Errno> {
        self.inode_mut(number)?.handles += 1;
        Ok(())
    }

    pub(super) fn close(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.handles = inode.handles.saturating_sub(1);
            self.collect(number);
        }
    }

    pub(super) fn create(
        &mut self,
        directory: u64,
        name: &OsStr,
        owner: Owner,
        now: SystemTime,
    ) -> Result<u64, Errno> {
        let bytes = Bytes::new(&self.folder)?;
        self.enter(directory, name, Inode::new(Kind::File(bytes), owner, now))
    }

    pub(super) fn make_directory(
        &mut self,
        directory: u64,
        name: &OsStr,
        owner: Owner,
        now: SystemTime,
    ) -> Result<u64, Errno> {
        let kind = Kind::Directory(BTreeMap::new());
        self.enter(directory, name, Inode::new(kind, owner, now))
    }

    fn enter(&mut self, directory: u64, name: &OsStr, inode: Inode) -> Result<u64, Errno> {
        self.must_be_free(directory, name)?;
        self.last_inode += 1;
        let number = self.last_inode;
        self.inodes.insert(number, inode);
        self.change(&[(directory, name, Some(number))]);
        Ok(number)
    }

    fn must_be_free(&self, directory: u64, name: &OsStr) -> Result<(), Errno> {
        match self.find(directory, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Another name for a file.
    pub(super) fn link(&mut self, number: u64, directory: u64, name: &OsStr) -> Result<(), Errno> {
        self.must_be_free(directory, name)?;
        match self.inode(number)?.kind {
            Kind::File(_) => self.change(&[(directory, name, Some(number))]),
            Kind::Directory(_) => return Err(Errno::EPERM),
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self, directory: u64, name: &OsStr) -> Result<(), Errno> {
        let number = self.find(directory, name)?;
        match self.inode(number)?.kind {
            Kind::File(_) => self.change(&[(directory, name, None)]),
            Kind::Directory(_) => return Err(Errno::EISDIR),
        }
        Ok(())
    }

    pub(super) fn remove_directory(&mut self, directory: u64, name: &OsStr) -> Result<(), Errno> {
        let number = self.find(directory, name)?;
        if !self.entries(number)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(&[(directory, name, None)]);
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (from, name): (u64, &OsStr),
        (to, new_name): (u64, &OsStr),
    ) -> Result<(), Errno> {
        let number = self.find(from, name)?;
        let replaced = self.entries(to)?.get(new_name).copied();
        if replaced == Some(number) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            match (&self.inode(number)?.kind, &self.inode(replaced)?.kind) {
                (Kind::File(_), Kind::Directory(_)) => return Err(Errno::EISDIR),
                (Kind::Directory(_), Kind::File(_)) => return Err(Errno::ENOTDIR),
                (Kind::Directory(_), Kind::Directory(held)) if !held.is_empty() => {
                    return Err(Errno::ENOTEMPTY);
                }
                _ => {}
            }
        }
        self.change(&[(from, name, None), (to, new_name, Some(number))]);
        Ok(())
    }

    /// Does it and notes in the journal how to undo it.
    fn change(&mut self, places: &[(u64, &OsStr, Option<u64>)]) {
        let mut change = Change::new();
        for (directory, name, target) in places {
            let before = self.bind(*directory, name, *target);
            if let Some(inode) = before.and_then(|before| self.inodes.get_mut(&before)) {
                inode.pins += 1;
            }
            change.push(Binding { directory: *directory, name: (*name).to_owned(), before });
        }
        self.journal.push_back(change);
    }

    /// Lets `name` lead to `target`; where it led before.
    fn bind(&mut self, directory: u64, name: &OsStr, target: Option<u64>) -> Option<u64> {
        if let Some(inode) = target.and_then(|target| self.inodes.get_mut(&target)) {
            inode.links += 1;
        }
        let Some(Inode { kind: Kind::Directory(entries), .. }) = self.inodes.get_mut(&directory)
        else {
            return None;
        };
        let before = match target {
            Some(target) => entries.insert(name.to_owned(), target),
            None => entries.remove(name),
        };
        if let Some(inode) = before.and_then(|before| self.inodes.get_mut(&before)) {
            inode.links -= 1;
        }
        before
    }

    /// The directory's changes survive from now on, and all that came before them.
    pub(super) fn sync_directory(&mut self, directory: u64) {
        let concerns = |change: &Change| change.iter().any(|at| at.directory == directory);
        if let Some(last) = self.journal.iter().rposition(concerns) {
            self.commit(last + 1);
        }
    }

    fn commit(&mut self, changes: usize) {
        let committed: Vec<Change> = self.journal.drain(..changes).collect();
        for binding in committed.into_iter().flatten() {
            self.unpin(binding.before);
        }
    }

    fn unpin(&mut self, number: Option<u64>) {
        let Some(number) = number else { return };
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.pins -= 1;
            self.collect(number);
        }
    }

    /// Frees what nothing leads to any more.
    fn collect(&mut self, number: u64) {
        let is_free = self.inodes.get(&number).is_some_and(|inode| {
            inode.links == 0 && inode.pins == 0 && inode.lookups == 0 && inode.handles == 0
        });
        if is_free {
            self.inodes.remove(&number);
        }
    }

    /// Back to what was durable. Whoever had a file open must be dead.
    pub(super) fn lose_power(&mut self, kept: Kept) -> Result<Loss, Errno> {
        let mut chance = match kept {
            Kept::Nothing => None,
            Kept::Some(seed) => Some(StdRng::seed_from_u64(seed)),
        };
        let changes = self.journal.len();
        let kept = chance.as_mut().map_or(0, |random| random.random_range(0..=changes));
        self.undo_names(kept);
        self.commit(kept);
        let mut loss = Loss { names: (changes - kept) as u64, ..Loss::default() };
        for inode in self.inodes.values_mut() {
            if let Kind::File(bytes) = &mut inode.kind {
                let taken = bytes.lose_power(chance.as_mut())?;
                loss.writes += taken.writes;
                loss.bytes += taken.bytes;
                loss.torn += taken.torn;
            }
        }
        Ok(loss)
    }

    fn undo_names(&mut self, kept: usize) {
        while self.journal.len() > kept {
            let Some(change) = self.journal.pop_back() else { return };
            for Binding { directory, name, before } in change.into_iter().rev() {
                let after = self.bind(directory, &name, before);
                self.unpin(before);
                if let Some(after) = after {
                    self.collect(after);
                }
            }
        }
    }

    /// The length of all files together.
    pub(super) fn used_bytes(&self) -> u64 {
        self.inodes.values().map(Inode::length).sum()
    }

    pub(super) fn inode_count(&self) -> usize {
        self.inodes.len()
    }
}

impl Inode {
    fn new(kind: Kind, owner: Owner, now: SystemTime) -> Self {
        Self { kind, owner, modified: now, links: 0, pins: 0, lookups: 0, handles: 0 }
    }

    pub(super) fn length(&self) -> u64 {
        match &self.kind {
            Kind::File(bytes) => bytes.length(),
            Kind::Directory(_) => 0,
        }
    }
}
