//! Whether what is read is one block of a table as RocksDB stores them: then whoever asked is about to look at all of it, and
//! must notice whatever is wrong with it.
//!
//! A table is read block by block, or further ahead than anybody looks. A block proves itself by the checksum behind it. Filters
//! are left out: whoever cannot read one looks at the data instead, and has nothing to say.

use twox_hash::XxHash3_64;

/// Behind a block: how it is compressed, and its checksum, little-endian (RocksDB's `block_based` table, format 5, XXH3).
const TRAILER_BYTES: usize = 5;
/// What RocksDB mixes into the checksum for the byte in front of it.
const PRIME: u32 = 0x6b90_83d9;
/// How a block is compressed that is not.
const UNCOMPRESSED: u8 = 0;
/// Where a block of data has the highest byte of an offset, which is 0, a Bloom filter has this.
const FILTER_MARK: u8 = 0xff;

pub(super) fn is_block(bytes: &[u8]) -> bool {
    let Some((contents, [compression, checksum @ ..])) = bytes.split_last_chunk::<TRAILER_BYTES>()
    else {
        return false;
    };
    is_checksum(contents, *compression, *checksum) && !is_filter(contents, *compression)
}

fn is_checksum(contents: &[u8], compression: u8, checksum: [u8; 4]) -> bool {
    let expected =
        XxHash3_64::oneshot(contents) as u32 ^ u32::from(compression).wrapping_mul(PRIME);
    !contents.is_empty() && expected.to_le_bytes() == checksum
}

fn is_filter(contents: &[u8], compression: u8) -> bool {
    let mark = contents.len().checked_sub(5).map(|at| contents[at]);
    compression == UNCOMPRESSED && mark == Some(FILTER_MARK)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A block with these contents, as RocksDB would store it.
    pub(in crate::disk) fn block(contents: &[u8], compression: u8) -> Vec<u8> {
        let checksum =
            XxHash3_64::oneshot(contents) as u32 ^ u32::from(compression).wrapping_mul(PRIME);
        [contents, &[compression], &checksum.to_le_bytes()].concat()
    }

    #[test]
    fn a_block_proves_itself_and_a_part_of_it_or_more_does_not() {
        let whole = block(&[7; 300], 4);
        assert!(is_block(&whole));
        assert!(!is_block(&whole[1..]) && !is_block(&whole[..whole.len() - 1]));
        assert!(!is_block(&[whole.clone(), whole.clone()].concat()));
        for damaged in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[damaged] ^= 0x10;
            assert!(!is_block(&bytes), "byte {damaged}");
        }
    }

    #[test]
    fn a_filter_is_no_block_that_must_be_looked_at() {
        let filter = [&[3; 64][..], &[FILTER_MARK, 0, 6, 0, 0]].concat();
        assert!(!is_block(&block(&filter, UNCOMPRESSED)));
        assert!(is_block(&block(&filter, 4)), "no filter is compressed");
    }
}
