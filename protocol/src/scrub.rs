//! Comparing the replicas of a shard, piece by piece (R31).
//!
//! A piece is an interval of one range's keys, small enough to be read in a short transaction. The
//! shard's leader names pieces in a log entry, each replica computes their checksums at that
//! position, and the leader compares them. This module has the messages only; it reads and decides
//! nothing.

use crate::ids::{Epoch, RangeId, TableId};
use crate::interval::KeyInterval;
use crate::key::Key;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most pieces of one comparison.
pub const MAX_PIECES: usize = 64;
/// The approximate size limit of the rows of one comparison in PostgreSQL, in bytes; a larger row
/// is a piece of its own.
pub const MAX_COMPARED_BYTES: u64 = 16 << 20;
/// The most differences that are kept and reported.
pub const MAX_DIFFERENCES: usize = 32;

/// A checksum over rows; equal contents give equal sums whatever order the rows lie in, and the
/// sums of pieces add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RangeChecksum {
    /// Rows.
    pub rows: u64,
    /// The sum, modulo 2^64, of a 64-bit hash of each row.
    pub sum: u64,
}

impl RangeChecksum {
    /// Of the rows of both.
    pub fn plus(self, other: RangeChecksum) -> RangeChecksum {
        RangeChecksum { rows: self.rows + other.rows, sum: self.sum.wrapping_add(other.sum) }
    }
}

/// A piece of a range. It is compared only where the range, with this epoch, is owned and holds the
/// interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedPiece {
    /// The range.
    pub range: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// The piece's keys.
    pub interval: KeyInterval,
}

/// A place among all keys of all tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The table.
    pub table: TableId,
    /// The key.
    pub key: Key,
}

impl Place {
    /// Right behind a piece.
    pub fn behind(piece: &ComparedPiece) -> Place {
        match &piece.interval.end {
            Some(end) => Place { table: piece.table, key: end.clone() },
            None => Place { table: TableId(piece.table.0.saturating_add(1)), key: Key::MIN },
        }
    }
}

/// One replica's sums of the pieces that an entry of the log names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSums {
    /// The replica's number.
    pub replica: u64,
    /// The entry's place in the log; 0 if it did not get there.
    pub index: u64,
    /// The checksum of each piece, in order; `None` if the piece is not owned with its epoch at
    /// that position. An error says why there are none.
    pub sums: Result<Vec<Option<RangeChecksum>>, String>,
    /// If asked for: orphaned rows of this replica. Of each interval of keys that is neither owned
    /// nor part of a move, the first row's key.
    pub left_behind: Vec<(TableId, Key)>,
}

/// Keys of which not all replicas hold the same rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The range.
    pub range: RangeId,
    /// Its table.
    pub table: TableId,
    /// The keys, as narrow as they were found: at best the key of one row, up to the next.
    pub interval: KeyInterval,
    /// The replicas that differ from a majority. Empty if no majority agrees.
    pub replicas: Vec<u64>,
    /// The content of each replica, in one sentence.
    pub detail: String,
}

/// The result of one comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The place in the log at which the rows were compared.
    pub index: u64,
    /// By piece: its range, and its checksum on most replicas.
    pub compared: Vec<(RangeId, RangeChecksum)>,
    /// The approximate size of the compared rows in PostgreSQL, in bytes.
    pub bytes: u64,
    /// Where replicas differ.
    pub differences: Vec<Difference>,
    /// Replicas that were not compared, and why.
    pub silent: Vec<(u64, String)>,
    /// If asked for: by replica, its first orphaned rows.
    pub left_behind: Vec<(u64, TableId, Key)>,
    /// Where to go on; `None` if all of the shard's ranges from the place asked for on have been
    /// compared.
    pub next: Option<Place>,
}

/// The comparisons that a shard's leader has done since it leads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Rounds that have come to their end: each goes over all ranges.
    pub rounds: u64,
    /// Pieces compared.
    pub pieces: u64,
    /// The approximate size of their rows in PostgreSQL, in bytes, counted once and not for each
    /// replica.
    pub bytes: u64,
    /// Differences found, those that are gone included.
    pub found: u64,
    /// Those that were there when their keys were compared last; the latest if there are many.
    pub differences: Vec<Difference>,
}

/// The sum of the comparisons of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// By range: its checksum on most replicas.
    pub ranges: BTreeMap<RangeId, RangeChecksum>,
    /// Where replicas differ.
    pub differences: Vec<Difference>,
    /// Replicas that were left out at least once, and why the last time.
    pub silent: BTreeMap<u64, String>,
    /// By replica, its first orphaned rows.
    pub left_behind: Vec<(u64, TableId, Key)>,
    /// Where to go on; `None` once all has been compared.
    pub next: Option<Place>,
}

impl Compared {
    /// Adds one more.
    pub fn add(&mut self, found: Comparison) {
        for (range, sum) in found.compared {
            let known = self.ranges.entry(range).or_default();
            *known = known.plus(sum);
        }
        self.differences.extend(found.differences);
        self.silent.extend(found.silent);
        self.left_behind.extend(found.left_behind);
        self.next = found.next;
    }

    /// The replicas that are known to be wrong.
    pub fn blamed(&self) -> std::collections::BTreeSet<u64> {
        self.differences.iter().flat_map(|difference| difference.replicas.iter().copied()).collect()
    }
}
