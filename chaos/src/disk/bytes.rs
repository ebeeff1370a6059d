//! The bytes of one file, and what it takes to undo everything that was not synced.
//!
//! The live bytes stand in an unlinked file of the backing folder, so reading is cheap and nothing is left behind. Since
//! the last sync each write and each change of length leaves a note with what stood there before: an append leaves an
//! empty one. A sync forgets the notes, a power loss goes back along them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rand::Rng as _;
use rand::rngs::StdRng;

/// A disk writes a sector whole or not at all.
const SECTOR_BYTES: u64 = 512;
/// A kernel writes back by itself what has waited for long: so are the oldest notes here, which bounds their memory.
const NOTES_MAX: usize = 65_536;

pub(super) struct Bytes {
    file: File,
    length: u64,
    /// Oldest first.
    notes: VecDeque<Note>,
    /// A sync failed: the kernel has marked the pages clean, so later syncs succeed and keep nothing.
    is_doomed: bool,
}

/// Undoes one operation: `old` goes back to `offset`, then the length to `length`.
struct Note {
    offset: u64,
    old: Vec<u8>,
    length: u64,
    /// How much was written; 0 for a change of length.
    written: u64,
}

/// What a power loss took from one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) writes: u64,
    pub(super) bytes: u64,
    pub(super) torn: u64,
}

impl Bytes {
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        Ok(Self { file, length: 0, notes: VecDeque::new(), is_doomed: false })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What stands at `offset`: fewer bytes than `size` at the end of the file.
    pub(super) fn read(&self, offset: u64, size: u64) -> io::Result<Vec<u8>> {
        let size = size.min(self.length.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let written = data.len() as u64;
        let old = self.read(offset, written)?;
        self.file.write_all_at(data, offset)?;
        let length = self.length;
        self.length = length.max(offset + written);
        self.note(Note { offset, old, length, written });
        Ok(())
    }

    pub(super) fn resize(&mut self, length: u64) -> io::Result<()> {
        if length == self.length {
            return Ok(());
        }
        let old = self.read(length, u64::MAX)?;
        self.file.set_len(length)?;
        let before = std::mem::replace(&mut self.length, length);
        self.note(Note { offset: length, old, length: before, written: 0 });
        Ok(())
    }

    fn note(&mut self, note: Note) {
        if self.notes.len() == NOTES_MAX && !self.is_doomed {
            self.notes.pop_front();
        }
        self.notes.push_back(note);
    }

    /// What was written until now survives.
    pub(super) fn sync(&mut self) {
        if !self.is_doomed {
            self.notes.clear();
        }
    }

    /// What was written since the last sync will not survive, whatever later syncs say.
    pub(super) fn fail_sync(&mut self) {
        self.is_doomed |= !self.notes.is_empty();
    }

    /// Goes back to the last sync; with `chance`, to some moment after it, and perhaps into the middle of a write.
    pub(super) fn lose_power(&mut self, chance: Option<&mut StdRng>) -> io::Result<Taken> {
        let mut taken = Taken::default();
        let (kept, torn_at) = match chance {
            Some(random) if !self.notes.is_empty() && !self.is_doomed => {
                let kept = random.random_range(0..=self.notes.len());
                let torn_at = self.notes.get(kept).and_then(|note| note.torn(random));
                (kept, torn_at)
            }
            _ => (0, None),
        };
        while self.notes.len() > kept {
            let Some(mut note) = self.notes.pop_back() else { break };
            taken.writes += 1;
            taken.bytes += note.written;
            if let (Some(at), true) = (torn_at, self.notes.len() == kept) {
                taken.bytes -= note.keep_until(at);
                taken.torn += 1;
            }
            self.file.write_all_at(&note.old, note.offset)?;
            self.file.set_len(note.length)?;
            self.length = note.length;
        }
        self.notes.clear();
        self.is_doomed = false;
        Ok(taken)
    }

    /// A bit rots. No sync undoes it.
    pub(super) fn flip(&mut self, byte: u64, bit: u8) -> io::Result<()> {
        let mut value = [0];
        self.file.read_exact_at(&mut value, byte)?;
        self.file.write_all_at(&[value[0] ^ (1 << (bit % 8))], byte)
    }
}

impl Note {
    /// Where a write may be cut: behind its first byte, at the edge of a sector.
    fn torn(&self, random: &mut StdRng) -> Option<u64> {
        let first = self.offset / SECTOR_BYTES + 1;
        let last = (self.offset + self.written).div_ceil(SECTOR_BYTES);
        (first < last).then(|| random.random_range(first..last) * SECTOR_BYTES)
    }

    /// Leaves what was written before `edge` as it is; says how much that is.
    fn keep_until(&mut self, edge: u64) -> u64 {
        let kept = edge - self.offset;
        let old = usize::try_from(kept).map_or(self.old.len(), |kept| kept.min(self.old.len()));
        self.old.drain(..old);
        self.offset = edge;
        self.length = self.length.max(edge);
        kept
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn bytes() -> (tempfile::TempDir, Bytes) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Bytes::new(folder.path()).unwrap();
        (folder, bytes)
    }

    fn all(bytes: &Bytes) -> Vec<u8> {
        bytes.read(0, u64::MAX).unwrap()
    }

    #[test]
    fn what_was_synced_stays_and_what_came_after_goes() {
        let (_folder, mut bytes) = bytes();
        bytes.write(0, b"kept and ").unwrap();
        bytes.sync();
        bytes.write(9, b"lost").unwrap();
        bytes.write(0, b"LOST").unwrap();
        bytes.resize(2).unwrap();
        bytes.resize(40).unwrap();
        bytes.write(50, b"behind a hole").unwrap();
        let taken = bytes.lose_power(None).unwrap();
        assert_eq!(all(&bytes), b"kept and ");
        assert_eq!((taken.writes, taken.bytes), (5, 4 + 4 + 13));
    }

    #[test]
    fn a_seed_keeps_a_prefix_of_the_writes_and_tears_only_at_a_sector() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let (_folder, mut bytes) = bytes();
            bytes.write(0, &[1; 700]).unwrap();
            bytes.sync();
            bytes.write(700, &[2; 100]).unwrap();
            bytes.write(600, &[3; 2000]).unwrap();
            bytes.lose_power(Some(&mut StdRng::seed_from_u64(seed))).unwrap();
            let mut expected = vec![1; 700];
            let found = all(&bytes);
            if found.len() > 700 {
                expected.extend([2; 100]);
            }
            if let Some(edge) = found.iter().rposition(|byte| *byte == 3) {
                assert!((edge + 1).is_multiple_of(512) || edge + 1 == 2600, "torn at {edge}");
                expected.resize(expected.len().max(edge + 1), 0);
                expected[600..=edge].fill(3);
            }
            assert_eq!(found, expected, "seed {seed}");
            seen.insert((found.len(), found.contains(&3)));
        }
        assert!(seen.len() >= 5, "the seeds must reach different ends: {seen:?}");
    }

    #[test]
    fn after_a_failed_sync_later_syncs_keep_nothing() {
        let (_folder, mut bytes) = bytes();
        bytes.write(0, b"first").unwrap();
        bytes.sync();
        bytes.write(5, b" second").unwrap();
        bytes.fail_sync();
        bytes.sync();
        bytes.lose_power(None).unwrap();
        assert_eq!(all(&bytes), b"first");
    }

    #[test]
    fn a_flipped_bit_survives_everything() {
        let (_folder, mut bytes) = bytes();
        bytes.write(0, &[0; 4]).unwrap();
        bytes.sync();
        bytes.flip(2, 3).unwrap();
        bytes.lose_power(None).unwrap();
        assert_eq!(all(&bytes), [0, 0, 8, 0]);
    }
}
