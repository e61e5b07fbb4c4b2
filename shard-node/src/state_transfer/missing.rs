//! Which rows a replica that is re-seeded still lacks. Pure.

use bytes::Bytes;
use evenkeel_protocol::{Key, KeyInterval, TableId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// See the module. Its size follows from how many pieces are under way at once, not from how many
/// there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The missing intervals per table: in order, none empty, none overlapping another.
    tables: BTreeMap<TableId, Vec<KeyInterval>>,
    /// What has come holds no entry behind this position.
    holds_to: u64,
    /// Tables without a key whose rows have come, with the position that they hold just
    /// everything up to: an earlier change of theirs must not be applied again (R18).
    exact: BTreeMap<TableId, u64>,
}

impl Missing {
    /// All rows of these tables.
    pub fn all(tables: impl IntoIterator<Item = TableId>) -> Missing {
        let tables = tables.into_iter().map(|table| (table, vec![KeyInterval::ALL])).collect();
        Missing { tables, ..Missing::default() }
    }

    /// What [`Missing::encode`] gave; `None` if it is something else.
    pub fn decode(encoded: &[u8]) -> Option<Missing> {
        postcard::from_bytes(encoded).ok()
    }

    /// As bytes.
    pub fn encode(&self) -> Bytes {
        // Keys and numbers always encode; what cannot be decoded is refused when it is read.
        postcard::to_stdvec(self).map(Bytes::from).unwrap_or_default()
    }

    /// Whether the row with this key may be missing.
    pub fn lacks(&self, table: TableId, key: &Key) -> bool {
        let Some(intervals) = self.tables.get(&table) else { return false };
        let at = intervals.partition_point(|interval| interval.start <= *key);
        at.checked_sub(1).is_some_and(|at| intervals[at].contains(key))
    }

    /// The rows of an interval have come, in a piece that holds no entry behind `holds_to`.
    pub fn came(&mut self, table: TableId, covered: &KeyInterval, holds_to: u64) {
        self.holds_to = self.holds_to.max(holds_to);
        let Some(intervals) = self.tables.get_mut(&table) else { return };
        let left = intervals.drain(..).flat_map(|interval| without(interval, covered)).collect();
        *intervals = left;
        if intervals.is_empty() {
            self.tables.remove(&table);
        }
    }

    /// All rows of a table without a key have come, as of just this position.
    pub fn came_exactly(&mut self, table: TableId, position: u64) {
        self.exact.insert(table, position);
    }

    /// Whether the rows of a table without a key hold the entry at `position` already.
    pub fn holds(&self, table: TableId, position: u64) -> bool {
        self.exact.get(&table).is_some_and(|exact| position <= *exact)
    }

    /// The rows that have come may hold entries up to this position: it was applied before
    /// PostgreSQL was opened again.
    pub fn may_hold(&mut self, position: u64) {
        self.holds_to = self.holds_to.max(position);
    }

    /// Whether all rows have come.
    pub fn is_nothing(&self) -> bool {
        self.tables.is_empty()
    }

    /// The rows that have come hold no entry behind this position: once it is applied too, all of
    /// them belong to one position.
    pub fn holds_to(&self) -> u64 {
        self.holds_to
    }

    /// The missing intervals, cut where `bounds` say, so that several parts can be fetched at once.
    /// `bounds` are places in a table's keys.
    pub fn parts<'a>(&self, bounds: impl IntoIterator<Item = (TableId, &'a Key)>) -> Vec<(TableId, KeyInterval)> {
        let mut cuts: BTreeMap<TableId, Vec<&Key>> = BTreeMap::new();
        for (table, key) in bounds {
            cuts.entry(table).or_default().push(key);
        }
        cuts.values_mut().for_each(|keys| keys.sort());
        let mut parts = Vec::new();
        for (table, intervals) in &self.tables {
            for interval in intervals {
                let mut rest = interval.clone();
                for &key in cuts.get(table).into_iter().flatten() {
                    if rest.splits_at(key) {
                        let end = rest.end.take();
                        parts.push((*table, KeyInterval::new(rest.start.clone(), Some(key.clone()))));
                        rest = KeyInterval::new(key.clone(), end);
                    }
                }
                parts.push((*table, rest));
            }
        }
        parts
    }
}

/// The remainder of `interval` outside `taken`: up to two intervals.
fn without(interval: KeyInterval, taken: &KeyInterval) -> impl Iterator<Item = KeyInterval> {
    let (left, right) = if interval.overlaps(taken) {
        let left = KeyInterval::new(interval.start.clone(), Some(taken.start.clone()));
        let right = taken.end.clone().map(|end| KeyInterval::new(end, interval.end.clone()));
        (Some(left), right)
    } else {
        (Some(interval), None)
    };
    left.into_iter().chain(right).filter(|piece| !piece.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const TABLE: TableId = TableId(1);

    fn key(n: u8) -> Key {
        Key(vec![n].into())
    }

    fn interval() -> impl Strategy<Value = KeyInterval> {
        (0u8..12, proptest::option::of(0u8..12)).prop_map(|(start, end)| {
            let start = if start == 0 { Key::MIN } else { key(start) };
            KeyInterval::new(start, end.map(key))
        })
    }

    // R18: what a table without a key holds already must not be applied to it again.
    #[test]
    fn an_exact_table_holds_what_came_before_its_position() {
        let mut missing = Missing::all([TABLE]);
        missing.came(TABLE, &KeyInterval::ALL, 7);
        missing.came_exactly(TABLE, 7);
        let missing = Missing::decode(&missing.encode()).unwrap();
        assert!(missing.is_nothing() && missing.holds(TABLE, 7));
        assert!(!missing.holds(TABLE, 8) && !missing.holds(TableId(2), 1));
    }

    proptest! {
        #[test]
        fn what_has_come_is_missing_no_longer_and_everything_else_is(pieces in proptest::collection::vec(interval(), 0..6)) {
            let mut missing = Missing::all([TABLE, TableId(2)]);
            for (n, piece) in pieces.iter().enumerate() {
                missing.came(TABLE, piece, n as u64);
            }
            for k in (0..12).map(key).chain([Key::MIN]) {
                let came = pieces.iter().any(|piece| piece.contains(&k));
                prop_assert_eq!(missing.lacks(TABLE, &k), !came);
                prop_assert!(missing.lacks(TableId(2), &k) && !missing.lacks(TableId(3), &k));
            }
            prop_assert_eq!(Missing::decode(&missing.encode()), Some(missing.clone()));
            missing.came(TABLE, &KeyInterval::ALL, 0);
            missing.came(TableId(2), &KeyInterval::ALL, 0);
            prop_assert!(missing.is_nothing());
            prop_assert_eq!(missing.holds_to(), pieces.len().saturating_sub(1) as u64);
        }

        #[test]
        fn parts_are_the_missing_rows_wherever_they_are_cut(pieces in proptest::collection::vec(interval(), 0..4), cuts in proptest::collection::vec(0u8..12, 0..5)) {
            let mut missing = Missing::all([TABLE]);
            pieces.iter().for_each(|piece| missing.came(TABLE, piece, 0));
            let cuts: Vec<Key> = cuts.into_iter().map(key).collect();
            let parts = missing.parts(cuts.iter().map(|key| (TABLE, key)));
            for k in (0..12).map(key).chain([Key::MIN]) {
                let holding = parts.iter().filter(|(_, part)| part.contains(&k)).count();
                prop_assert_eq!(holding, usize::from(missing.lacks(TABLE, &k)));
            }
            for (table, part) in parts {
                missing.came(table, &part, 0);
            }
            prop_assert!(missing.is_nothing());
        }
    }
}
