//! Encoded keys back to packed column values, without a detour over decoded ones.
//!
//! The key's encoding and PostgreSQL's binary format differ by a flipped sign bit or by escapes, so
//! that a batch of keys becomes one buffer with one pass. This is the reverse of
//! `KeyCodec::encode_binary`, and the tests hold it against that.

use bytes::{BufMut, BytesMut};
use evenkeel_protocol::key::KeyError;
use evenkeel_protocol::{Key, KeyType};

/// Appends the key's columns to `out`, packed as in `protocol::rows`, and returns how many there
/// are. That is fewer than the table's key has if the key is a prefix, as an interval's bound may
/// be.
///
/// # Errors
/// [`KeyError::Malformed`] if the bytes do not end where a column ends.
pub(super) fn pack_key(types: &[KeyType], key: &Key, out: &mut BytesMut) -> Result<usize, KeyError> {
    let mut rest = key.as_bytes();
    let mut columns = 0;
    for kind in types {
        if rest.is_empty() {
            break;
        }
        rest = match kind {
            KeyType::SmallInt => pack_fixed::<2>(rest, 0x80, out)?,
            KeyType::Integer => pack_fixed::<4>(rest, 0x80, out)?,
            KeyType::BigInt | KeyType::TimestampTz => pack_fixed::<8>(rest, 0x80, out)?,
            KeyType::Uuid => pack_fixed::<16>(rest, 0, out)?,
            KeyType::Text | KeyType::Bytea | KeyType::Opaque => pack_escaped(rest, out)?,
        };
        columns += 1;
    }
    if rest.is_empty() { Ok(columns) } else { Err(KeyError::Malformed) }
}

/// As [`pack_key`], of a whole key.
pub(super) fn pack_whole_key(types: &[KeyType], key: &Key, out: &mut BytesMut) -> Result<(), KeyError> {
    let found = pack_key(types, key, out)?;
    if found == types.len() { Ok(()) } else { Err(KeyError::WrongCount { expected: types.len(), found }) }
}

fn pack_fixed<'a, const N: usize>(rest: &'a [u8], flip: u8, out: &mut BytesMut) -> Result<&'a [u8], KeyError> {
    let (value, rest) = rest.split_first_chunk::<N>().ok_or(KeyError::Malformed)?;
    out.put_i32(N as i32);
    out.put_u8(value[0] ^ flip);
    out.put_slice(&value[1..]);
    Ok(rest)
}

/// A text or bytea: `00 FF` stands for 00, `00 00` is the end.
fn pack_escaped<'a>(mut rest: &'a [u8], out: &mut BytesMut) -> Result<&'a [u8], KeyError> {
    let length_at = out.len();
    out.put_i32(0);
    loop {
        let zero = rest.iter().position(|byte| *byte == 0).ok_or(KeyError::Malformed)?;
        out.put_slice(&rest[..zero]);
        match rest.get(zero + 1) {
            Some(0) => {
                let length = (out.len() - length_at - 4) as i32;
                out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
                return Ok(&rest[zero + 2..]);
            }
            Some(0xFF) => out.put_u8(0),
            _ => return Err(KeyError::Malformed),
        }
        rest = &rest[zero + 2..];
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::KeyCodec;
    use evenkeel_protocol::rows::{RowValues, put_value};
    use proptest::prelude::*;

    fn column() -> impl Strategy<Value = (KeyType, Vec<u8>)> {
        let fixed = |kind, width| (Just(kind), proptest::collection::vec(any::<u8>(), width));
        prop_oneof![
            fixed(KeyType::SmallInt, 2),
            fixed(KeyType::Integer, 4),
            fixed(KeyType::BigInt, 8),
            fixed(KeyType::TimestampTz, 8),
            fixed(KeyType::Uuid, 16),
            (Just(KeyType::Bytea), proptest::collection::vec(0u8..3, 0..6)),
            (Just(KeyType::Text), proptest::collection::vec(1u8..127, 0..6)),
        ]
    }

    proptest! {
        #[test]
        fn a_key_comes_back_as_the_values_it_was_made_of(columns in proptest::collection::vec(column(), 1..4), cut in 0usize..4) {
            let types: Vec<KeyType> = columns.iter().map(|(kind, _)| *kind).collect();
            let key = KeyCodec::new(types.clone()).encode_binary(columns.iter().map(|(_, raw)| Some(&raw[..]))).unwrap();
            let (mut packed, mut expected) = (BytesMut::new(), BytesMut::new());
            pack_whole_key(&types, &key, &mut packed).unwrap();
            columns.iter().for_each(|(_, raw)| put_value(&mut expected, Some(raw)));
            prop_assert_eq!(&packed, &expected);

            let cut = cut.min(types.len());
            let prefix = KeyCodec::new(types[..cut].to_vec()).encode_binary(columns[..cut].iter().map(|(_, raw)| Some(&raw[..]))).unwrap();
            let mut packed = BytesMut::new();
            prop_assert_eq!(pack_key(&types, &prefix, &mut packed).unwrap(), cut);
            prop_assert_eq!(RowValues::new(&packed, cut).count(), cut);
            prop_assert_eq!(pack_whole_key(&types, &prefix, &mut BytesMut::new()).is_ok(), cut == types.len());
        }

        #[test]
        fn any_bytes_are_refused_or_packed_but_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..24)) {
            let _ = pack_key(&[KeyType::Integer, KeyType::Text, KeyType::Uuid], &Key(raw.into()), &mut BytesMut::new());
        }
    }
}
