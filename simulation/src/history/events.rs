//! Operations on counters as their clients saw them, and lost writes.

use evenkeel_protocol::Durability;
use std::collections::BTreeMap;

/// How an addition was made.
pub const ADDITION: &str = "an addition";
/// An addition within a transfer.
pub const TRANSFER: &str = "a transfer's addition";
/// A read at level `local`.
pub const LOCAL: &str = "a local read";
/// A read at level `leader`.
pub const LEADER: &str = "a read at level leader";

/// A shard and one of its replicas.
pub type ShardReplica = (u32, u64);

/// One operation on a counter, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which counter.
    pub key: i64,
    /// Whether it added one; else it read.
    pub adds: bool,
    /// How, for people.
    pub how: &'static str,
    /// When it was sent, in milliseconds.
    pub sent_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
    /// What it saw; `None` if the outcome is unknown.
    pub seen: Option<i64>,
    /// The replica that answered, if one did.
    pub by: Option<ShardReplica>,
}

/// A write that was answered before its COMMIT, and is gone (R28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The level at which it was answered.
    pub durability: Durability,
    /// The replica that answered it.
    pub by: ShardReplica,
    /// When it was sent, in milliseconds.
    pub sent_ms: u64,
    /// When it was known to be gone.
    pub told_ms: u64,
    /// The replica that said so.
    pub told_by: ShardReplica,
}

/// A replica has said that it does not lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Which.
    pub by: ShardReplica,
    /// When it was asked, in milliseconds.
    pub asked_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
}

/// The final values of counters and accounts, by key.
pub type Last = BTreeMap<i64, i64>;
