//! Answers the kernel for one mounted volume.
//!
//! No handler waits: a sync that takes time is put aside and answered by the thread in [`answer_late`], so reads go on while
//! a disk hangs. The kernel caches neither names nor attributes, and pages only as long as a file is open, so that after a
//! power loss it sees what is there. Of tables that are read it caches none: each read comes here as it was asked.

use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tokio::time::Instant;

use super::behaviour::{Behaviour, Counters, Sync, Waiting, Writes};
use super::rot::{self, Rot};
use super::volume::{Inode, Kind, Owner, Volume};

/// Nothing is cached: a power loss changes everything behind the kernel's back.
const TTL: Duration = Duration::ZERO;
const BLOCK_BYTES: u64 = 4096;
/// What a disk without a limit says it can hold: no program's reserve is near.
const UNLIMITED_BYTES: u64 = 1 << 40;
const NAME_BYTES_MAX: u32 = 255;
/// fallocate: the length stays as it is. All that RocksDB asks for.
const FALLOC_FL_KEEP_SIZE: i32 = 1;

/// One disk, as its server, its late answers and its owner share it.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The behaviour, the waiting syncs or the end have changed.
    changed: Condvar,
}

pub(super) struct State {
    pub(super) volume: Volume,
    behaviour: Behaviour,
    rot: Option<Rot>,
    pub(super) counters: Counters,
    pub(super) waiting: Vec<Waiting>,
    /// Syncs are answered and do nothing.
    pub(super) lies: bool,
    pub(super) is_over: bool,
}

impl Shared {
    pub(super) fn new(volume: Volume) -> Arc<Self> {
        let state = State {
            volume,
            behaviour: Behaviour::default(),
            rot: None,
            counters: Counters::default(),
            waiting: Vec::new(),
            lies: false,
            is_over: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics while it holds the lock")
    }

    /// Changes the state and lets [`answer_late`] look at it.
    pub(super) fn alter<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let answer = change(&mut self.lock());
        self.changed.notify_all();
        answer
    }
}

/// Ends waiting syncs when they are due, until the disk is over; then all that still wait fail.
pub(super) fn answer_late(shared: &Shared) {
    let mut state = shared.lock();
    while !state.is_over {
        let now = Instant::now();
        let sync = state.behaviour.sync;
        let is_due = |waiting: &mut Waiting| waiting.due(sync).is_some_and(|due| due <= now);
        let due: Vec<Waiting> = state.waiting.extract_if(.., is_due).collect();
        for waiting in due {
            state.end_sync(waiting);
        }
        let next = state.waiting.iter().filter_map(|waiting| waiting.due(sync)).min();
        let pause = next.map_or(Duration::from_secs(1), |next| next.saturating_duration_since(now));
        state = shared.changed.wait_timeout(state, pause).expect("no handler panics").0;
    }
    state.waiting.drain(..).for_each(Waiting::fail);
}

impl State {
    pub(super) fn behave(&mut self, behaviour: Behaviour) {
        self.rot = behaviour.flips.map(|flips| Rot::new(flips, &self.volume));
        self.behaviour = behaviour;
    }

    fn end_sync(&mut self, waiting: Waiting) {
        let Waiting { inode, is_directory, reply, .. } = waiting;
        if self.behaviour.sync == Sync::Fails {
            self.counters.failed_syncs += 1;
            if let Ok(bytes) = self.volume.file(inode) {
                bytes.fail_sync();
            }
            return reply.error(Errno::EIO);
        }
        self.counters.syncs += 1;
        if self.lies {
            return reply.ok();
        }
        if is_directory {
            self.volume.sync_directory(inode);
        } else if let Ok(bytes) = self.volume.file(inode) {
            bytes.sync();
        }
        reply.ok();
    }

    /// Whether a file may grow to `length`.
    fn has_room(&self, number: u64, length: u64) -> Result<(), Errno> {
        let Some(capacity) = self.behaviour.capacity_bytes else { return Ok(()) };
        let growth = length.saturating_sub(self.volume.inode(number)?.length());
        let fits = growth == 0 || self.volume.used_bytes() + growth <= capacity;
        if fits { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let outcome = match self.behaviour.writes {
            Writes::Taken => self.has_room(number, offset + data.len() as u64),
            Writes::Fail => Err(Errno::EIO),
            Writes::ReadOnly => Err(Errno::EROFS),
        };
        if let Err(error) = outcome {
            self.counters.failed_writes += 1;
            return Err(error);
        }
        self.volume.file(number)?.write(offset, data)?;
        self.volume.inode_mut(number)?.modified = now();
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    fn read(&mut self, number: u64, offset: u64, size: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = self.volume.file(number)?.read(offset, size)?;
        if let Some(rot) = &mut self.rot {
            let is_table = self.volume.has_extension(number, rot::TABLE);
            let is_spoilt = rot.spoil(number, is_table, offset, &mut bytes);
            self.counters.flipped += u64::from(is_spoilt);
        }
        Ok(bytes)
    }

    /// What is read of a table alone comes here as it was asked for: behind the kernel's pages, nobody could say what of an
    /// answer was looked at.
    fn open(&mut self, number: u64, access: OpenAccMode) -> Result<FopenFlags, Errno> {
        self.volume.open(number)?;
        let is_table = self.volume.has_extension(number, rot::TABLE);
        let is_direct = is_table && access == OpenAccMode::O_RDONLY;
        Ok(if is_direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() })
    }

    /// The volume, to change it in another way than by writing to a file.
    fn writable(&mut self) -> Result<&mut Volume, Errno> {
        if self.behaviour.writes == Writes::ReadOnly {
            self.counters.failed_writes += 1;
            return Err(Errno::EROFS);
        }
        Ok(&mut self.volume)
    }

    fn resize(&mut self, number: u64, length: u64) -> Result<(), Errno> {
        self.has_room(number, length)?;
        self.writable()?.file(number)?.resize(length)?;
        self.volume.inode_mut(number)?.modified = now();
        Ok(())
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        Ok(attributes(number, self.volume.inode(number)?))
    }

    /// The kernel gets to know an inode.
    fn introduce(&mut self, number: u64) -> Result<FileAttr, Errno> {
        self.volume.refer(number);
        self.attributes(number)
    }
}

#[expect(clippy::disallowed_methods, reason = "the time stamps of files are wall clock time")]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

fn attributes(number: u64, inode: &Inode) -> FileAttr {
    let (kind, links) = match inode.kind {
        Kind::File(_) => (FileType::RegularFile, inode.links),
        Kind::Directory(_) => (FileType::Directory, 2),
    };
    FileAttr {
        ino: INodeNo(number),
        size: inode.length(),
        blocks: inode.length().div_ceil(512),
        atime: inode.modified,
        mtime: inode.modified,
        ctime: inode.modified,
        crtime: inode.modified,
        kind,
        perm: inode.owner.permissions,
        nlink: links,
        uid: inode.owner.user,
        gid: inode.owner.group,
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

fn owner(request: &Request, mode: u32, umask: u32) -> Owner {
    let permissions = (mode & !umask & 0o7777) as u16;
    Owner { permissions, user: request.uid(), group: request.gid() }
}

/// The FUSE side of a disk.
pub(super) struct Server(pub(super) Arc<Shared>);

impl Server {
    fn sync(&self, inode: INodeNo, is_directory: bool, reply: ReplyEmpty) {
        let waiting = Waiting { inode: inode.0, is_directory, since: Instant::now(), reply };
        let mut state = self.0.lock();
        match state.behaviour.sync {
            Sync::Prompt | Sync::Fails => state.end_sync(waiting),
            Sync::Slow(_) | Sync::Hung if !state.is_over => {
                state.counters.delayed += 1;
                state.waiting.push(waiting);
                self.0.changed.notify_all();
            }
            Sync::Slow(_) | Sync::Hung => waiting.fail(),
        }
    }

    fn entry(reply: ReplyEntry, outcome: Result<FileAttr, Errno>) {
        match outcome {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn attr(reply: ReplyAttr, outcome: Result<FileAttr, Errno>) {
        match outcome {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn empty(reply: ReplyEmpty, outcome: Result<(), Errno>) {
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}

/// Handles carry no state: the inode's number says all.
const HANDLE: FileHandle = FileHandle(0);

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.lock();
        let found = state.volume.find(parent.0, name);
        Self::entry(reply, found.and_then(|number| state.introduce(number)));
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        self.0.lock().volume.forget(inode.0, lookups);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        Self::attr(reply, self.0.lock().attributes(inode.0));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        user: Option<u32>,
        group: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock();
        let resized = size.map_or(Ok(()), |size| state.resize(inode.0, size));
        let changed = resized.and_then(|()| {
            let inode = state.writable()?.inode_mut(inode.0)?;
            let owner = &mut inode.owner;
            owner.permissions = mode.map_or(owner.permissions, |mode| (mode & 0o7777) as u16);
            owner.user = user.unwrap_or(owner.user);
            owner.group = group.unwrap_or(owner.group);
            match modified {
                Some(TimeOrNow::SpecificTime(time)) => inode.modified = time,
                Some(TimeOrNow::Now) => inode.modified = now(),
                None => {}
            }
            Ok(())
        });
        Self::attr(reply, changed.and_then(|()| state.attributes(inode.0)));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mut state = self.0.lock();
        let owner = owner(request, mode, umask);
        let made =
            state.writable().and_then(|volume| volume.make_directory(parent.0, name, owner, now()));
        Self::entry(reply, made.and_then(|number| state.introduce(number)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        Self::empty(reply, state.writable().and_then(|volume| volume.unlink(parent.0, name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        let removed = state.writable().and_then(|volume| volume.remove_directory(parent.0, name));
        Self::empty(reply, removed);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let mut state = self.0.lock();
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        Self::empty(reply, state.writable().and_then(|volume| volume.rename(from, to)));
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.lock();
        let linked = state.writable().and_then(|volume| volume.link(inode.0, parent.0, name));
        Self::entry(reply, linked.and_then(|()| state.introduce(inode.0)));
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.0.lock().open(inode.0, flags.acc_mode()) {
            Ok(flags) => reply.opened(HANDLE, flags),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.0.lock();
        let owner = owner(request, mode, umask);
        let created =
            state.writable().and_then(|volume| volume.create(parent.0, name, owner, now()));
        let opened = created.and_then(|number| {
            state.volume.open(number)?;
            state.introduce(number)
        });
        match opened {
            Ok(attributes) => {
                reply.created(&TTL, &attributes, Generation(0), HANDLE, FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().read(inode.0, offset, u64::from(size)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.lock().write(inode.0, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    /// A close promises nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().volume.close(inode.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(inode, false, reply);
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(inode, true, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.0.lock();
        let entries = match state.volume.entries(inode.0) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        let own = [(OsStr::new("."), inode.0), (OsStr::new(".."), inode.0)];
        let held = entries.iter().map(|(name, number)| (name.as_os_str(), *number));
        for (next, (name, number)) in (1..).zip(own.into_iter().chain(held)) {
            let kind = match state.attributes(number) {
                Ok(attributes) => attributes.kind,
                Err(error) => return reply.error(error),
            };
            if next > offset && reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.lock();
        let outcome = match mode {
            0 => state
                .volume
                .inode(inode.0)
                .map(Inode::length)
                .and_then(|before| state.resize(inode.0, before.max(offset + length))),
            FALLOC_FL_KEEP_SIZE => state.has_room(inode.0, offset + length),
            _ => Err(Errno::EOPNOTSUPP),
        };
        Self::empty(reply, outcome);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let mut state = self.0.lock();
        let capacity = state.behaviour.capacity_bytes.unwrap_or(UNLIMITED_BYTES);
        let free = capacity.saturating_sub(state.volume.used_bytes()) / BLOCK_BYTES;
        state.counters.told_capacity += u64::from(state.behaviour.capacity_bytes.is_some());
        let files = state.volume.inode_count() as u64;
        let block = BLOCK_BYTES as u32;
        let total = capacity / BLOCK_BYTES;
        reply.statfs(total, free, free, files, u64::from(u32::MAX), block, NAME_BYTES_MAX, block);
    }
}
