//! Limits of the coordination store. They are part of the state machine: every replica must have
//! the same. The limits that clients see are in `evenkeel-protocol` and are exported again here.

pub use evenkeel_protocol::coordination::{
    MAX_CONTENT_TYPE_BYTES, MAX_ID_BYTES, MAX_KEY_BYTES, MAX_KEYS, MAX_STORE_BYTES, MAX_VALUE_BYTES,
};

/// The size of an entry in addition to its key, value and content type, in bytes.
pub const ENTRY_OVERHEAD_BYTES: u64 = 64;
/// How far revisions jump for each incarnation that a restored state is ahead of its backup: more
/// changes than any backup misses.
pub(super) const REVISIONS_PER_INCARNATION: u64 = 1_000_000_000;
/// The maximum number of changes that the history keeps.
pub const MAX_EVENTS: usize = 4096;
/// The maximum size of the history's keys, values and content types, in bytes.
pub const MAX_HISTORY_BYTES: u64 = 2 << 20;
/// The minimum time for which an idempotency key is remembered, in milliseconds of the state
/// machine's time. That time stands still between two leaderships.
pub const REMEMBER_MS: u64 = 60_000;
/// The maximum number of idempotency keys that are remembered. Above it requests with a key are
/// rejected: to forget a key early could apply its request twice.
pub const MAX_IDS: usize = 16_384;
/// The maximum number of writes that are under way at one replica. The rest of the log's capacity
/// belongs to operators.
pub const MAX_WRITES: usize = 256;
