//! Identifiers. Each is a type of its own, so that a range is never passed where a table is meant.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map($name)
            }
        }
    };
}

number!(
    /// A shard: one replica group with one log. Chosen by the administrator when the shard is
    /// added, from 1.
    ShardId(u32)
);
number!(
    /// A table, allocated by the placement driver, from 1; never reused.
    TableId(u32)
);
number!(
    /// A range of one table's keys, allocated by the placement driver, from 1; never reused.
    RangeId(u64)
);
number!(
    /// How often a range's bounds or owner have changed; grows with each split, merge and move
    /// (invariant 6).
    Epoch(u64)
);
number!(
    /// An operator of the placement driver. Numbers only grow, so of two operators on a range the
    /// later is the larger (R20).
    OperatorId(u64)
);

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// A client's name for one statement or transaction, the same on every retry (invariant 7, R14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// The client's session, drawn at random when the session starts.
    pub client: u64,
    /// Counts that session's statements, from 1.
    pub sequence: u64,
    /// When the client first sent it, in milliseconds since the Unix epoch. Ids that are older than
    /// the retry window are refused.
    pub first_sent_ms: u64,
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.client, self.sequence)
    }
}
