//! Values from which correctness can be checked.
//!
//! A value is a stream of bytes that key, version and length decide. A reader of a row can
//! therefore detect a value that is cut, mixed up between rows, or of another version than the row
//! says, and the ledger keeps no values.

use bytes::{BufMut, Bytes, BytesMut};

use crate::seed::{SeededRandom, mix_pair};

fn stream(seed: u64, key: i64, version: i64, length_bytes: usize) -> SeededRandom {
    SeededRandom::new(mix_pair(mix_pair(seed, key as u64), version as u64), length_bytes as u64)
}

/// The value of `length_bytes` bytes that the run with `seed` writes to `key` as `version`.
pub fn make_value(seed: u64, key: i64, version: i64, length_bytes: u32) -> Bytes {
    let length = length_bytes as usize;
    let mut random = stream(seed, key, version, length);
    let mut value = BytesMut::with_capacity(length.next_multiple_of(8));
    while value.len() < length {
        value.put_u64_le(random.next_u64());
    }
    value.truncate(length);
    value.freeze()
}

/// Whether `value` is the value of [`make_value`] for this key and version, at whatever length it
/// has.
pub fn value_matches(seed: u64, key: i64, version: i64, value: &[u8]) -> bool {
    let mut random = stream(seed, key, version, value.len());
    value.chunks(8).all(|chunk| random.next_u64().to_le_bytes().starts_with(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_belongs_to_one_key_version_and_length() {
        for length in [0, 1, 7, 8, 9, 100, 1_000] {
            let value = make_value(1, -5, 3, length);
            assert_eq!(value.len(), length as usize);
            assert!(value_matches(1, -5, 3, &value));
        }
        let value = make_value(1, -5, 3, 100);
        assert!(!value_matches(1, -5, 4, &value), "another version");
        assert!(!value_matches(1, -6, 3, &value), "another key");
        assert!(!value_matches(2, -5, 3, &value), "another run");
        assert!(!value_matches(1, -5, 3, &value[..99]), "cut");
        let mut changed = value.to_vec();
        changed[99] ^= 1;
        assert!(!value_matches(1, -5, 3, &changed), "one bit");
    }
}
