//! Bits that come back wrong, each from one place: what is stored is untouched, and read again it is as wrong as before.
//!
//! In tables the place is drawn in a [block](super::block) that is read alone, so that whoever reads it must notice. In a log
//! it is drawn beforehand: a log is read from its beginning to its end.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::behaviour::Flips;
use super::block::is_block;
use super::volume::Volume;

/// How the names of tables end, and of logs.
pub(super) const TABLE: &str = "sst";
const LOG: &str = "log";
/// Of blocks that are read, one in so many is spoilt, until there are enough: the first that are read are those that every
/// start needs.
const ONE_IN: u32 = 3;
/// RocksDB writes logs in pieces of this length. At the end of one there may be a few bytes that nobody reads.
const PIECE_BYTES: u64 = 32 << 10;
const UNREAD_BYTES: u64 = 6;

pub(super) struct Rot {
    /// Blocks that are still to be spoilt.
    left: usize,
    places: Vec<Place>,
    random: StdRng,
}

struct Place {
    inode: u64,
    byte: u64,
    bit: u8,
}

impl Rot {
    pub(super) fn new(flips: Flips, volume: &Volume) -> Self {
        match flips {
            Flips::Blocks { blocks, seed } => {
                Self { left: blocks, places: Vec::new(), random: StdRng::seed_from_u64(seed) }
            }
            Flips::Log { seed } => {
                let mut random = StdRng::seed_from_u64(seed);
                let bit = random.random_range(0..8);
                let middle = volume
                    .longest(LOG)
                    .and_then(|(inode, length)| Some(Place { inode, byte: middle(length)?, bit }));
                Self { left: 0, places: middle.into_iter().collect(), random }
            }
        }
    }

    /// Flips a bit of what stands at `offset` of a file, if it is to come back wrong. At most one.
    pub(super) fn spoil(
        &mut self,
        inode: u64,
        is_table: bool,
        offset: u64,
        answer: &mut [u8],
    ) -> bool {
        let index = |place: &Place| {
            let index = place.byte.checked_sub(offset).filter(|_| place.inode == inode)?;
            usize::try_from(index).ok().filter(|index| *index < answer.len())
        };
        let known = self.places.iter().find_map(|place| Some((index(place)?, place.bit)));
        let spoilt = known.or_else(|| {
            let may_spoil = is_table && self.left > 0 && is_block(answer);
            (may_spoil && self.random.random_ratio(1, ONE_IN))
                .then(|| self.draw(inode, offset, answer.len()))
        });
        let Some((index, bit)) = spoilt else { return false };
        answer[index] ^= 1 << bit;
        true
    }

    fn draw(&mut self, inode: u64, offset: u64, length: usize) -> (usize, u8) {
        let (index, bit) = (self.random.random_range(0..length), self.random.random_range(0..8));
        self.left -= 1;
        self.places.push(Place { inode, byte: offset + index as u64, bit });
        (index, bit)
    }
}

/// A byte in the middle of a log that nobody can take for its torn end; `None` if it is too short to have one.
fn middle(length: u64) -> Option<u64> {
    let middle = length / 2;
    let last_read = middle / PIECE_BYTES * PIECE_BYTES + PIECE_BYTES - 1 - UNREAD_BYTES;
    (length >= 4 * PIECE_BYTES).then_some(middle.min(last_read))
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::block;
    use super::*;

    const INODE: u64 = 7;

    fn rot(blocks: usize, seed: u64) -> Rot {
        Rot { left: blocks, places: Vec::new(), random: StdRng::seed_from_u64(seed) }
    }

    fn difference(one: &[u8], other: &[u8]) -> u32 {
        one.iter().zip(other).map(|(one, other)| (one ^ other).count_ones()).sum()
    }

    #[test]
    fn a_spoilt_answer_differs_in_one_bit_and_in_the_same_again() {
        let sound = block(&[9; 4_000], 4);
        for seed in 0..50 {
            let mut rot = rot(1, seed);
            let mut spoilt = sound.clone();
            while !rot.spoil(INODE, true, 4_096, &mut spoilt) {}
            assert_eq!(difference(&sound, &spoilt), 1, "seed {seed}");
            let mut again = sound.clone();
            assert!(rot.spoil(INODE, true, 4_096, &mut again));
            assert_eq!(again, spoilt, "seed {seed}");
            // As a part of a larger answer, too.
            let mut larger = [vec![0; 96], sound.clone()].concat();
            assert!(rot.spoil(INODE, true, 4_000, &mut larger));
            assert_eq!(larger[96..], spoilt, "seed {seed}");
            for (inode, offset) in [(INODE + 1, 4_096), (INODE, 0), (INODE, 9_000)] {
                assert!(!rot.spoil(inode, true, offset, &mut sound.clone()), "{inode} {offset}");
            }
        }
    }

    #[test]
    fn so_many_blocks_are_spoilt_and_nothing_that_is_none() {
        let mut rot = rot(3, 1);
        let sound = block(&[9; 400], 4);
        let mut spoil = |is_table, offset, bytes: &[u8]| {
            (0..50).filter(|_| rot.spoil(INODE, is_table, offset, &mut bytes.to_vec())).count()
        };
        assert_eq!(spoil(false, 0, &sound), 0, "it is no table");
        assert_eq!(spoil(true, 0, &[9; 400]), 0, "it is no block");
        let spoilt = (0..9).filter(|number| spoil(true, number * 1_000, &sound) > 0);
        assert_eq!(spoilt.count(), 3);
    }

    #[test]
    fn the_middle_of_a_log_is_read_by_whoever_reads_it_and_is_not_its_last_piece() {
        assert_eq!(middle(3 * PIECE_BYTES), None);
        for length in (4 * PIECE_BYTES..8 * PIECE_BYTES).step_by(3) {
            let middle = middle(length).expect("it is long enough");
            assert!(middle + PIECE_BYTES < length);
            assert!(PIECE_BYTES - middle % PIECE_BYTES > UNREAD_BYTES, "{length}: {middle}");
        }
    }
}
