//! Limits of one statement.

/// The longest SQL text, in bytes.
pub const MAX_SQL_BYTES: usize = 1 << 20;

/// The most parameters of one statement; the protocol between the shard and PostgreSQL counts them
/// in 16 bits.
pub(super) const MAX_PARAMETERS: usize = 65_000;
