//! A log entry of changes that are encoded already.
//!
//! The node where a change enters encodes it once; forwarding, proposing and storing the log copy those bytes. The
//! layout is that of `record.v1.Batch`, and a test holds the two together.

use bytes::{BufMut, Bytes, BytesMut};
use drover_core::ids::LogTime;
use prost::encoding::{encode_varint, encoded_len_varint};

/// The keys of `record.v1.Batch`: `at_ms = 1`, a varint; `changes = 2`, length-delimited.
const AT_MS: u8 = 1 << 3;
const CHANGES: u8 = 2 << 3 | 2;

/// What a change of so many bytes adds to an entry.
pub fn encoded_change_bytes(change: &Bytes) -> usize {
    1 + encoded_len_varint(change.len() as u64) + change.len()
}

/// Encodes a `record.v1.Batch` of encoded `record.v1.Change`s.
pub fn encode_batch<'a>(at: LogTime, changes: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let bytes: usize = changes.clone().map(encoded_change_bytes).sum();
    let mut entry = BytesMut::with_capacity(1 + encoded_len_varint(at.get()) + bytes);
    entry.put_u8(AT_MS);
    encode_varint(at.get(), &mut entry);
    for change in changes {
        entry.put_u8(CHANGES);
        encode_varint(change.len() as u64, &mut entry);
        entry.put_slice(change);
    }
    entry.freeze()
}

#[cfg(test)]
mod tests {
    use drover_proto::record;
    use prost::Message;

    use super::*;

    #[test]
    fn a_batch_of_encoded_changes_is_a_record_batch() {
        let change = |device: &str| record::Change { device: device.to_owned(), kind: None };
        let changes = vec![change("a"), change(&"b".repeat(300)), change("")];
        let encoded: Vec<Bytes> =
            changes.iter().map(|change| change.encode_to_vec().into()).collect();
        let entry = encode_batch(LogTime::new(1_795_391_424_000), encoded.iter());
        let decoded = record::Batch::decode(entry).expect("a batch");
        assert_eq!(decoded, record::Batch { at_ms: 1_795_391_424_000, changes });
    }
}
