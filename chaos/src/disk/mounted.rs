//! A disk that is mounted, and what can be done to it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{BackgroundSession, Config, MountOption, Session};

use super::behaviour::{Behaviour, Counters};
use super::server::{Server, Shared, answer_late, now};
use super::volume::{Kept, Loss, Owner, Volume};

/// Marks our mounts in the kernel's table, with the number of the process that serves each.
const NAME: &str = "drover-chaos-disk-";

/// A disk at a mount point. Dropped, it is unmounted and all that it held is gone.
pub struct Disk {
    shared: Arc<Shared>,
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
    late: Option<JoinHandle<()>>,
}

/// Why this machine can mount no disk of ours; `None` if it can.
pub fn obstacle() -> Option<String> {
    let device = Path::new("/dev/fuse");
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) if is_root() => None,
        Ok(_) => Some("only root may mount a disk".to_owned()),
        Err(error) => Some(format!("{}: {error}", device.display())),
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

impl Disk {
    /// Mounts an empty disk at `mountpoint`, a folder that is there. Its bytes go to unlinked files in `backing`.
    pub fn mount(mountpoint: &Path, backing: &Path) -> io::Result<Self> {
        let folder = fs::metadata(mountpoint)?;
        let owner = Owner { permissions: 0o755, user: folder.uid(), group: folder.gid() };
        let shared = Shared::new(Volume::new(backing, owner, now()));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(format!("{NAME}{}", std::process::id())),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
        ];
        let session = Session::new(Server(Arc::clone(&shared)), mountpoint, &config)?.spawn()?;
        let answering = Arc::clone(&shared);
        let late = thread::Builder::new()
            .name("late answers".to_owned())
            .spawn(move || answer_late(&answering))?;
        let mountpoint = mountpoint.to_owned();
        Ok(Self { shared, mountpoint, session: Some(session), late: Some(late) })
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What it does from now on. Syncs that wait are judged anew.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.alter(|state| state.behave(behaviour));
    }

    /// From now on the disk says that it has synced, whatever else it does, and has not: a check that finds nothing wrong
    /// with a program on such a disk cannot find one that forgets to sync. Each power loss brings back, as a whole, what was
    /// durable when it began to lie: older data, and all of it in good order.
    pub fn lie(&self) {
        self.shared.alter(|state| state.lies = true);
    }

    /// Drops what was not synced; the disk behaves well again. Whoever had files open on it must be dead. One that lies
    /// keeps nothing, whatever is `kept`: a part would be found damaged, and damage is another matter.
    pub fn lose_power(&self, kept: Kept) -> io::Result<Loss> {
        self.shared.alter(|state| {
            for waiting in state.waiting.drain(..) {
                waiting.fail();
            }
            state.behave(Behaviour::default());
            let kept = if state.lies { Kept::Nothing } else { kept };
            state.volume.lose_power(kept).map_err(from_errno)
        })
    }

    /// Flips a bit of the file at `path`, counted from the disk's root. No one is told.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) -> io::Result<()> {
        self.shared.alter(|state| {
            let number = state.volume.resolve(path).map_err(from_errno)?;
            state.volume.file(number).map_err(from_errno)?.flip(byte, bit)
        })
    }

    pub fn reset_counters(&self) {
        self.shared.alter(|state| state.counters = Counters::default());
    }

    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    /// The length of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.shared.lock().volume.used_bytes()
    }
}

fn from_errno(error: fuser::Errno) -> io::Error {
    io::Error::from_raw_os_error(error.into())
}

impl Drop for Disk {
    /// First every waiting sync is answered: their callers could not end.
    fn drop(&mut self) {
        self.shared.alter(|state| state.is_over = true);
        if let Some(Err(_)) = self.late.take().map(JoinHandle::join) {
            tracing::error!("the late answers of {} panicked", self.mountpoint.display());
        }
        let Some(session) = self.session.take() else { return };
        if let Err(error) = session.umount_and_join() {
            tracing::warn!(%error, "{} is busy and is detached", self.mountpoint.display());
            detach(&self.mountpoint);
        }
    }
}

fn detach(mountpoint: &Path) {
    let unmounted = Command::new("umount").arg("--lazy").arg(mountpoint).status();
    if !unmounted.is_ok_and(|status| status.success()) {
        tracing::warn!("{} cannot be unmounted", mountpoint.display());
    }
}

/// Takes away the mounts of runs that ended without doing so themselves.
pub fn remove_stale() -> io::Result<usize> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    let stale = table.lines().filter_map(stale_mountpoint);
    Ok(stale.inspect(|mountpoint| detach(mountpoint)).count())
}

/// The mount point in a line of the table, if its process is gone.
fn stale_mountpoint(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ');
    let process: u32 = fields.next()?.strip_prefix(NAME)?.parse().ok()?;
    let is_gone = !Path::new("/proc").join(process.to_string()).exists();
    // The table writes a blank as \040.
    is_gone.then(|| fields.next().map(|path| PathBuf::from(path.replace("\\040", " "))))?
}
