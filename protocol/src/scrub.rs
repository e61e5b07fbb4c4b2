//! Comparing the replicas of a shard, piece by piece (R31).
//!
//! A piece is an interval of one range's keys, small enough to be read in a short transaction. The shard's leader names pieces in an entry of
//! its log; each replica sums them up as they are at that place, and the leader judges. These are the values that are exchanged; nothing
//! here reads or decides.

use crate::ids::{Epoch, RangeId, TableId};
use crate::interval::KeyInterval;
use crate::key::Key;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most pieces of one comparison.
pub const MAX_PIECES: usize = 64;
/// The most that the rows of one comparison take in PostgreSQL, in bytes, about; a single row that takes more is a piece of its own.
pub const MAX_COMPARED_BYTES: u64 = 16 << 20;
/// The most differences that are remembered, and told in a report.
pub const MAX_DIFFERENCES: usize = 32;

/// A checksum over rows; equal contents give equal sums whatever order the rows lie in, and the sums of pieces add up.
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

/// A piece of a range. It is compared only where the range, with this epoch, is owned and holds the interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
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
    pub fn behind(piece: &Piece) -> Place {
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
    /// Of each piece, in order; `None` if it is not owned so at that place. An error says why there are none.
    pub sums: Result<Vec<Option<RangeChecksum>>, String>,
    /// If that was asked for: rows that this replica holds and has no reason to. Of each interval of keys that is neither owned nor part of a
    /// move, the first row's key.
    pub left_behind: Vec<(TableId, Key)>,
}

/// Keys of which not all replicas hold the same rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The range.
    pub range: RangeId,
    /// Its table.
    pub table: TableId,
    /// The keys, as narrow as they were found: those of one row, perhaps, and what would lie between it and the next.
    pub interval: KeyInterval,
    /// The replicas that hold something else than a majority does. Empty if no majority holds the same: then nobody can be blamed.
    pub replicas: Vec<u64>,
    /// Who holds what, in one sentence.
    pub detail: String,
}

/// What one comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The place in the log at which the rows were compared.
    pub index: u64,
    /// By piece: its range, and what most replicas hold of it.
    pub compared: Vec<(RangeId, RangeChecksum)>,
    /// What the rows compared take in PostgreSQL, in bytes, about.
    pub bytes: u64,
    /// Where replicas differ.
    pub differences: Vec<Difference>,
    /// Replicas that were not compared, and why.
    pub silent: Vec<(u64, String)>,
    /// If that was asked for: by replica, the first rows of what it holds without a reason.
    pub left_behind: Vec<(u64, TableId, Key)>,
    /// Where to go on; `None` if all of the shard's ranges from the place asked for on have been compared.
    pub next: Option<Place>,
}

/// What a shard's leader has compared since it leads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Rounds that have come to their end: each goes over all ranges.
    pub rounds: u64,
    /// Pieces compared.
    pub pieces: u64,
    /// What their rows take in PostgreSQL, in bytes, about, counted once and not for each replica.
    pub bytes: u64,
    /// Differences found, those that are gone included.
    pub found: u64,
    /// Those that were there when their keys were compared last; the latest if there are many.
    pub differences: Vec<Difference>,
}

/// What the comparisons of one shard, one after the other, come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// By range: what most replicas hold of it.
    pub ranges: BTreeMap<RangeId, RangeChecksum>,
    /// Where replicas differ.
    pub differences: Vec<Difference>,
    /// Replicas that were left out at least once, and why the last time.
    pub silent: BTreeMap<u64, String>,
    /// By replica, the first rows of what it holds without a reason.
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
