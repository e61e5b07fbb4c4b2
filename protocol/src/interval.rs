//! Key intervals `[start, end)` and their arithmetic.

use crate::key::Key;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The keys from `start` (included) to `end` (excluded). An `end` of `None` is the end of the
/// table, a `start` of [`Key::MIN`] its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyInterval {
    /// The first key.
    pub start: Key,
    /// The first key after it; `None` for the end of the table.
    pub end: Option<Key>,
}

impl KeyInterval {
    /// The whole table.
    pub const ALL: KeyInterval = KeyInterval { start: Key::MIN, end: None };

    /// `[start, end)`.
    pub fn new(start: Key, end: Option<Key>) -> KeyInterval {
        KeyInterval { start, end }
    }

    /// Whether no key can lie in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether `key` lies in it.
    pub fn contains(&self, key: &Key) -> bool {
        self.start <= *key && self.end.as_ref().is_none_or(|end| key < end)
    }

    /// Whether all of `other` lies in it. An empty interval lies in every other.
    pub fn covers(&self, other: &KeyInterval) -> bool {
        other.is_empty() || (self.start <= other.start && end_order(&other.end) <= end_order(&self.end))
    }

    /// The common part; empty (see [`KeyInterval::is_empty`]) if there is none.
    pub fn intersection(&self, other: &KeyInterval) -> KeyInterval {
        let start = self.start.clone().max(other.start.clone());
        let end = if end_order(&self.end) <= end_order(&other.end) { &self.end } else { &other.end };
        KeyInterval { start, end: end.clone() }
    }

    /// Whether they share a key.
    pub fn overlaps(&self, other: &KeyInterval) -> bool {
        !self.is_empty() && !other.is_empty() && !self.intersection(other).is_empty()
    }

    /// Whether the interval can be split at `key`: strictly inside, so that neither side is empty.
    pub fn splits_at(&self, key: &Key) -> bool {
        self.start < *key && self.contains(key)
    }

    /// The pieces that splitting at `points` gives. `None` unless the points grow strictly and each
    /// lies strictly inside.
    pub fn split(&self, points: &[Key]) -> Option<Vec<KeyInterval>> {
        let mut pieces = Vec::with_capacity(points.len() + 1);
        let mut start = self.start.clone();
        for point in points {
            if *point <= start || !self.contains(point) {
                return None;
            }
            pieces.push(KeyInterval::new(std::mem::replace(&mut start, point.clone()), Some(point.clone())));
        }
        pieces.push(KeyInterval::new(start, self.end.clone()));
        Some(pieces)
    }

    /// The union of two neighbours, the left one first. `None` unless one ends where the other
    /// starts.
    pub fn join(&self, right: &KeyInterval) -> Option<KeyInterval> {
        (self.end.as_ref() == Some(&right.start)).then(|| KeyInterval::new(self.start.clone(), right.end.clone()))
    }

    /// Whether `parts`, in any order, cover exactly this interval: no gap and no overlap.
    pub fn is_partitioned_by<'a>(&self, parts: impl IntoIterator<Item = &'a KeyInterval>) -> bool {
        let mut parts: Vec<_> = parts.into_iter().collect();
        parts.sort_by(|a, b| a.start.cmp(&b.start));
        let mut at = Some(self.start.clone());
        for part in parts {
            if part.is_empty() || at.as_ref() != Some(&part.start) {
                return false;
            }
            at = part.end.clone();
        }
        at == self.end
    }
}

impl fmt::Display for KeyInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = if self.start == Key::MIN { "-∞".to_string() } else { self.start.to_hex() };
        let end = self.end.as_ref().map_or("+∞".to_string(), Key::to_hex);
        write!(f, "[{start}, {end})")
    }
}

/// Orders ends of intervals: the end of the table is after every key.
fn end_order(end: &Option<Key>) -> (bool, Option<&Key>) {
    (end.is_none(), end.as_ref())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn key(n: u8) -> Key {
        Key(vec![n].into())
    }

    fn interval() -> impl Strategy<Value = KeyInterval> {
        (0u8..12, proptest::option::of(0u8..12)).prop_map(|(start, end)| {
            let start = if start == 0 { Key::MIN } else { key(start) };
            KeyInterval::new(start, end.map(key))
        })
    }

    proptest! {
        #[test]
        fn set_operations_agree_with_membership(a in interval(), b in interval()) {
            let keys: Vec<Key> = (0..12).map(key).chain([Key::MIN]).collect();
            let both = a.intersection(&b);
            for k in &keys {
                prop_assert_eq!(both.contains(k), a.contains(k) && b.contains(k));
                if a.covers(&b) && b.contains(k) { prop_assert!(a.contains(k)); }
            }
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            prop_assert_eq!(a.overlaps(&b), !a.is_empty() && !b.is_empty() && !both.is_empty());
        }

        #[test]
        fn splitting_partitions_and_joining_reverses(a in interval(), points in proptest::collection::btree_set(0u8..12, 0..5)) {
            let points: Vec<Key> = points.into_iter().map(key).collect();
            if let Some(pieces) = a.split(&points) {
                if !a.is_empty() {
                    prop_assert!(a.is_partitioned_by(&pieces));
                }
                let joined = pieces[1..].iter().fold(pieces[0].clone(), |l, r| l.join(r).unwrap());
                prop_assert_eq!(joined, a.clone());
                prop_assert!(points.iter().all(|p| a.splits_at(p)));
            } else {
                prop_assert!(points.iter().any(|p| !a.splits_at(p)));
            }
        }
    }

    #[test]
    fn a_gap_or_an_overlap_is_no_partition() {
        let part = |a, b| KeyInterval::new(key(a), Some(key(b)));
        assert!(part(1, 9).is_partitioned_by(&[part(5, 9), part(1, 5)]));
        assert!(!part(1, 9).is_partitioned_by(&[part(1, 4), part(5, 9)]));
        assert!(!part(1, 9).is_partitioned_by(&[part(1, 6), part(5, 9)]));
        assert!(!part(1, 9).is_partitioned_by(&[]));
    }
}
