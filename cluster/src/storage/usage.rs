//! How full the disk is, asked at most once a second.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Error, Usage};

/// Free space moves slowly against the reserve, and every proposal asks.
const VALID_FOR: Duration = Duration::from_secs(1);
const RESERVE_BYTES_MIN: u64 = 1 << 30;
/// A twentieth of the disk: RocksDB needs room to compact even to delete.
const RESERVE_SHARE: u64 = 20;

#[derive(Debug)]
pub(super) struct FreeSpace {
    folder: PathBuf,
    /// `None`: the larger of 1 GiB and 5 % of the disk.
    reserve_bytes: Option<u64>,
    last: Mutex<Option<(Instant, Usage)>>,
}

impl FreeSpace {
    pub(super) fn new(folder: PathBuf, reserve_bytes: Option<u64>) -> Self {
        Self { folder, reserve_bytes, last: Mutex::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "the real disk's state is outside of simulation")]
    pub(super) fn usage(&self) -> Result<Usage, Error> {
        let mut last = self.last.lock().expect("nothing panics while the usage is locked");
        let now = Instant::now();
        if let Some((at, usage)) = *last
            && now.duration_since(at) < VALID_FOR
        {
            return Ok(usage);
        }
        let usage = self.ask()?;
        *last = Some((now, usage));
        Ok(usage)
    }

    fn ask(&self) -> Result<Usage, Error> {
        let disk = rustix::fs::statvfs(&self.folder).map_err(|error| Error::Io {
            what: format!("the free space of {} is unknown: {error}", self.folder.display()),
        })?;
        let share = || (disk.f_blocks * disk.f_frsize / RESERVE_SHARE).max(RESERVE_BYTES_MIN);
        Ok(Usage {
            free_bytes: disk.f_bavail * disk.f_frsize,
            reserve_bytes: self.reserve_bytes.unwrap_or_else(share),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_less_than_the_reserve_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let usage = |reserve| {
            FreeSpace::new(folder.path().to_owned(), reserve).usage().expect("the folder exists")
        };
        assert!(usage(Some(u64::MAX)).is_full());
        assert!(!usage(Some(0)).is_full());
        assert!(usage(None).reserve_bytes >= RESERVE_BYTES_MIN);
    }
}
