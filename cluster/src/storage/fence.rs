//! The fence file: what each group has acknowledged, kept outside the store's own log.
//!
//! A write-ahead log that was cut short opens without complaint, and a replica that has forgotten what it acknowledged
//! must not vote (I-33). So the last acknowledged entry and the vote of each group stand in a file of their own, which is
//! replaced as a whole: written beside, fsynced, renamed, and the folder fsynced. It is written behind, by its own thread
//! and pace, off the path of an acknowledgement: it may be old, it is never ahead of what is durable.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use drover_core::ids::GroupId;

use super::failure::Failure;
use super::{Error, Fence};

/// The least time between two writes behind. What is acknowledged within it is not fenced against a cut of the log.
const PACE: Duration = Duration::from_millis(200);
/// Names the format. Another format gets another name.
const MAGIC: &[u8; 8] = b"drvfnce1";
/// Group, then four numbers.
const RECORD_BYTES: usize = 4 + 4 * 8;

type Fences = BTreeMap<GroupId, Fence>;

/// The fence file of a store. Dropping it writes what was noted.
#[derive(Debug)]
pub(super) struct FenceFile {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    noted: Mutex<Noted>,
    /// Something is to be written that nobody is writing yet.
    changed: Condvar,
    closing: Condvar,
    /// Held while the file is replaced, so that an older content never replaces a newer one.
    replacing: Mutex<()>,
}

#[derive(Debug)]
struct Noted {
    fences: Fences,
    /// Grows with each change.
    version: u64,
    written: u64,
    is_closed: bool,
}

impl FenceFile {
    /// Makes an empty file, durable before it returns: for a new store.
    pub(super) fn create(path: &Path) -> Result<(), Error> {
        replace(path, &encode(&Fences::new())).map_err(|error| failed(path, &error))
    }

    /// A file that is missing or damaged is an error: without it nobody can tell what the log has lost.
    pub(super) fn open(path: &Path, failure: Failure) -> Result<Self, Error> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = format!("the fence file {} is missing", path.display());
                return Err(Error::Corrupt { what });
            }
            Err(error) => return Err(failed(path, &error)),
        };
        let fences = decode(&bytes).ok_or_else(|| Error::Corrupt {
            what: format!("the fence file {} does not match its checksum", path.display()),
        })?;
        let noted = Noted { fences, version: 0, written: 0, is_closed: false };
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            noted: Mutex::new(noted),
            changed: Condvar::new(),
            closing: Condvar::new(),
            replacing: Mutex::new(()),
        });
        let thread = thread::Builder::new()
            .name("drover-fence".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.write_behind(&failure)
            })
            .map_err(|error| Error::Io { what: format!("no thread for the fence: {error}") })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was in the file when it was opened, or was noted since.
    pub(super) fn fences(&self) -> Vec<(GroupId, Fence)> {
        self.shared.lock().fences.iter().map(|(group, fence)| (*group, *fence)).collect()
    }

    pub(super) fn note(&self, group: GroupId, fence: Fence) {
        self.shared.note(group, fence);
    }

    pub(super) fn write_now(&self, group: GroupId, fence: Fence) -> Result<(), Error> {
        self.shared.note(group, fence);
        self.shared.write()
    }
}

impl Drop for FenceFile {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
        self.shared.closing.notify_all();
        let thread =
            self.thread.take().filter(|thread| thread.thread().id() != thread::current().id());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes the fence had panicked");
        }
    }
}

const NOT_POISONED: &str = "nothing panics while the fences are locked";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().expect(NOT_POISONED)
    }

    fn note(&self, group: GroupId, fence: Fence) {
        let mut noted = self.lock();
        if noted.fences.insert(group, fence) != Some(fence) {
            // A thread that paces itself looks again anyway: waking it at each append would cost more than the fence.
            if noted.version == noted.written {
                self.changed.notify_all();
            }
            noted.version += 1;
        }
    }

    fn write_behind(&self, failure: &Failure) {
        while self.wait_for_change() {
            if let Err(error) = self.write() {
                failure.note(error);
                return;
            }
            let closed = |noted: &mut Noted| !noted.is_closed;
            drop(self.closing.wait_timeout_while(self.lock(), PACE, closed).expect(NOT_POISONED));
        }
    }

    /// False when the store is closed and everything is written.
    fn wait_for_change(&self) -> bool {
        let idle = |noted: &mut Noted| noted.version == noted.written && !noted.is_closed;
        let noted = self.changed.wait_while(self.lock(), idle).expect(NOT_POISONED);
        noted.version != noted.written
    }

    fn write(&self) -> Result<(), Error> {
        let _replacing = self.replacing.lock().expect(NOT_POISONED);
        let (bytes, version) = {
            let noted = self.lock();
            (encode(&noted.fences), noted.version)
        };
        replace(&self.path, &bytes).map_err(|error| failed(&self.path, &error))?;
        self.lock().written = version;
        Ok(())
    }
}

/// Replaces a file as a whole: after a crash it has its old or its new content.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes what was created, renamed or removed in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::Io { what: format!("the fence file {}: {error}", path.display()) }
}

/// Magic, a record for each group, CRC-32 of all before.
fn encode(fences: &Fences) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for (group, fence) in fences {
        bytes.extend(group.number().to_be_bytes());
        for number in [fence.last_term, fence.last_index, fence.vote_term, fence.vote_node] {
            bytes.extend(number.to_be_bytes());
        }
    }
    let checksum = crc32fast::hash(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Fences> {
    let (body, checksum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*checksum) {
        return None;
    }
    let records = body.strip_prefix(MAGIC)?;
    if records.len() % RECORD_BYTES != 0 {
        return None;
    }
    records.chunks_exact(RECORD_BYTES).map(decode_record).collect()
}

fn decode_record(record: &[u8]) -> Option<(GroupId, Fence)> {
    let (group, numbers) = record.split_first_chunk::<4>()?;
    let number = |at: usize| {
        let bytes = numbers.get(at * 8..at * 8 + 8)?.try_into().ok()?;
        Some(u64::from_be_bytes(bytes))
    };
    let fence = Fence {
        last_term: number(0)?,
        last_index: number(1)?,
        vote_term: number(2)?,
        vote_node: number(3)?,
    };
    Some((GroupId::from_number(u32::from_be_bytes(*group))?, fence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(last_index: u64) -> Fence {
        Fence { last_term: 1, last_index, vote_term: 2, vote_node: 3 }
    }

    fn group(number: u32) -> GroupId {
        GroupId::from_number(number).expect("a legal group")
    }

    fn open(path: &Path) -> Result<FenceFile, Error> {
        FenceFile::open(path, Failure::default())
    }

    #[test]
    fn what_was_noted_is_there_after_closing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fence");
        FenceFile::create(&path).unwrap();
        let file = open(&path).unwrap();
        assert_eq!(file.fences(), []);
        file.note(group(0), fence(4));
        file.note(group(7), fence(5));
        drop(file);
        assert_eq!(open(&path).unwrap().fences(), [(group(0), fence(4)), (group(7), fence(5))]);
    }

    #[test]
    fn a_fence_that_is_written_now_is_there_without_closing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fence");
        FenceFile::create(&path).unwrap();
        let file = open(&path).unwrap();
        file.note(group(1), fence(9));
        file.write_now(group(1), fence(4)).unwrap();
        assert_eq!(open(&path).unwrap().fences(), [(group(1), fence(4))]);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = encode(&Fences::from([(group(0), fence(4)), (group(7), fence(5))]));
        assert!(decode(&bytes).is_some());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_none(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none(), "cut to {length} bytes");
        }
    }

    #[test]
    fn a_missing_file_is_corruption() {
        let folder = tempfile::tempdir().unwrap();
        let missing = open(&folder.path().join("fence"));
        assert!(matches!(missing, Err(Error::Corrupt { .. })), "{missing:?}");
    }
}
