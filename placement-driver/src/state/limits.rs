//! Limits of the placement state: what it holds is bounded, whatever is proposed.

/// Tables, at most.
pub const MAX_TABLES: usize = 1000;
/// Schema changes, at most: a shard that joins makes all of them, one after the other.
pub const MAX_SCHEMA_VERSIONS: usize = 10_000;
/// The statements of all schema changes together, in bytes, at most.
pub const MAX_SCHEMA_BYTES: usize = 4 << 20;
/// The statements, settings and relations of one schema change, in bytes, at most: with what
/// surrounds them they fit into an entry of a log.
pub const MAX_SCHEMA_CHANGE_BYTES: usize = 512 << 10;
/// Shards, at most.
pub const MAX_SHARDS: usize = 256;
/// Ranges, at most, whether the balancer or an administrator asks for the split.
pub const MAX_RANGES: usize = 16_384;
/// Replicas of one shard, at most.
pub const MAX_REPLICAS: usize = 9;
/// Operators under way at once, at most.
pub const MAX_RUNNING: usize = 64;
/// Remembered tables whose creation was given up, at most.
pub const MAX_GIVEN_UP: usize = 256;
/// Remembered operators that have ended, at most.
pub const MAX_ENDED: usize = 512;
/// Remembered decisions of the balancer, at most.
pub const MAX_DECISIONS: usize = 256;
/// Shards that a range remembers having left, at most.
pub const MAX_LEFT: usize = 4;
/// Pieces of one split, at most.
pub const MAX_PIECES: usize = 64;
/// The longest pause after failures on a range, in milliseconds, unless the configured pause is
/// longer.
pub const MAX_COOLDOWN_MS: u64 = 600_000;
