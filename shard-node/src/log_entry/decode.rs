//! Bounds-checked reading of encoded bytes, for every part of a log entry.

use bytes::{Buf, Bytes};

/// The bytes are not an encoded entry. A replica that reads such bytes from its log stops, because
/// it would diverge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed log entry: {0}")]
pub struct Malformed(pub String);

pub(super) fn short() -> Malformed {
    Malformed("it ends early".into())
}

pub(super) fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if bytes.len() < length { Err(short()) } else { Ok(bytes.split_to(length)) }
}

pub(super) fn take_u64(bytes: &mut Bytes) -> Result<u64, Malformed> {
    if bytes.len() < 8 { Err(short()) } else { Ok(bytes.get_u64()) }
}

pub(super) fn take_u32(bytes: &mut Bytes) -> Result<u32, Malformed> {
    if bytes.len() < 4 { Err(short()) } else { Ok(bytes.get_u32()) }
}
