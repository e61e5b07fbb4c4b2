//! Sets of keys: a list of points, or of disjoint intervals, with union and intersection.
//!
//! All ends are whole encoded keys, so that they can be decoded where an interval becomes an SQL
//! predicate: the values of a key's first columns are completed with the smallest of the rest.

use super::refuse::key_error;
use evenkeel_protocol::error::SqlError;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::key::{Key, KeyCodec, KeyValue, least_value};

/// What encoding the first columns of a key takes.
#[derive(Debug, Clone)]
pub(super) struct KeyShape {
    /// The whole key's codec.
    pub codec: KeyCodec,
    /// The codec of the first `i + 1` columns.
    prefixes: Vec<KeyCodec>,
    /// The encoded smallest values of the columns after the first `i + 1`.
    least: Vec<Vec<u8>>,
}

impl KeyShape {
    pub fn new(codec: KeyCodec) -> Result<KeyShape, SqlError> {
        let types = &codec.types;
        let prefixes: Vec<_> = (1..=types.len()).map(|n| KeyCodec::new(types[..n].to_vec())).collect();
        let least = (1..=types.len()).map(|n| {
            let rest: Vec<KeyValue> = types[n..].iter().map(|kind| least_value(*kind)).collect();
            KeyCodec::new(types[n..].to_vec()).encode(&rest).map(|key| key.0.to_vec()).map_err(key_error)
        });
        Ok(KeyShape { prefixes, least: least.collect::<Result<_, _>>()?, codec })
    }

    pub fn columns(&self) -> usize {
        self.codec.types.len()
    }

    fn padded(&self, columns: usize, key: Key) -> Key {
        match self.least.get(columns.wrapping_sub(1)) {
            Some(least) if !least.is_empty() => {
                let mut bytes = Vec::with_capacity(key.0.len() + least.len());
                bytes.extend_from_slice(&key.0);
                bytes.extend_from_slice(least);
                Key(bytes.into())
            }
            _ => key,
        }
    }

    /// The first key that begins with these values; the beginning of the table for none.
    pub fn first_with(&self, values: &[KeyValue]) -> Result<Key, SqlError> {
        let prefix = self.codec.encode_prefix(values).map_err(key_error)?;
        Ok(self.padded(values.len(), prefix))
    }

    /// The first key after all that begin with these values; `None` for the end of the table.
    pub fn first_after(&self, values: &[KeyValue]) -> Result<Option<Key>, SqlError> {
        let Some(codec) = self.prefixes.get(values.len().wrapping_sub(1)) else { return Ok(None) };
        let prefix = codec.encode(values).map_err(key_error)?;
        let next = codec.successor(&prefix).map_err(key_error)?;
        Ok(next.map(|next| self.padded(values.len(), next)))
    }
}

/// A set of keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Region {
    /// Sorted, each once.
    Points(Vec<Key>),
    /// Sorted, disjoint, not touching, none empty.
    Intervals(Vec<KeyInterval>),
}

impl Region {
    pub const NOTHING: Region = Region::Points(Vec::new());

    pub fn everything() -> Region {
        Region::Intervals(vec![KeyInterval::ALL])
    }

    pub fn is_nothing(&self) -> bool {
        match self {
            Region::Points(keys) => keys.is_empty(),
            Region::Intervals(intervals) => intervals.is_empty(),
        }
    }

    pub fn points(mut keys: Vec<Key>) -> Region {
        keys.sort_unstable();
        keys.dedup();
        Region::Points(keys)
    }

    pub fn intervals(mut intervals: Vec<KeyInterval>) -> Region {
        intervals.retain(|interval| !interval.is_empty());
        intervals.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<KeyInterval> = Vec::with_capacity(intervals.len());
        for next in intervals {
            match merged.last_mut() {
                Some(last) if last.end.as_ref().is_none_or(|end| *end >= next.start) => {
                    if last.end.is_some() && (next.end.is_none() || next.end > last.end) {
                        last.end = next.end;
                    }
                }
                _ => merged.push(next),
            }
        }
        Region::Intervals(merged)
    }

    pub fn intersection(self, other: Region) -> Region {
        match (self, other) {
            (Region::Points(mut keys), Region::Points(other)) => {
                keys.retain(|key| other.binary_search(key).is_ok());
                Region::Points(keys)
            }
            (Region::Points(mut keys), Region::Intervals(intervals))
            | (Region::Intervals(intervals), Region::Points(mut keys)) => {
                keys.retain(|key| {
                    let after = intervals.partition_point(|interval| interval.start <= *key);
                    after > 0 && intervals[after - 1].contains(key)
                });
                Region::Points(keys)
            }
            (Region::Intervals(left), Region::Intervals(right)) => Region::Intervals(intersect(&left, &right)),
        }
    }

    pub fn union(self, other: Region, shape: &KeyShape) -> Result<Region, SqlError> {
        Ok(match (self, other) {
            (Region::Points(mut keys), Region::Points(other)) => {
                keys.extend(other);
                Region::points(keys)
            }
            (left, right) => {
                let mut intervals = left.into_intervals(shape)?;
                intervals.extend(right.into_intervals(shape)?);
                Region::intervals(intervals)
            }
        })
    }

    fn into_intervals(self, shape: &KeyShape) -> Result<Vec<KeyInterval>, SqlError> {
        match self {
            Region::Intervals(intervals) => Ok(intervals),
            Region::Points(keys) => {
                let interval = |key: Key| {
                    let end = shape.codec.successor(&key).map_err(key_error)?;
                    Ok(KeyInterval::new(key, end))
                };
                keys.into_iter().map(interval).collect()
            }
        }
    }
}

/// Both lists are sorted and disjoint, and so is the result.
fn intersect(left: &[KeyInterval], right: &[KeyInterval]) -> Vec<KeyInterval> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        let common = a.intersection(b);
        if !common.is_empty() {
            both.push(common);
        }
        // The interval that ends first meets no later interval.
        match (&a.end, &b.end) {
            (Some(a_end), Some(b_end)) if a_end <= b_end => i += 1,
            (Some(_), None) => i += 1,
            (_, Some(_)) => j += 1,
            (None, None) => break,
        }
    }
    both
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::key::KeyType;
    use proptest::prelude::*;

    fn key(n: i64) -> Key {
        KeyCodec::new(vec![KeyType::SmallInt]).encode(&[KeyValue::Int(n)]).unwrap()
    }

    fn region() -> impl Strategy<Value = Region> {
        let end = prop_oneof![3 => (0i64..12).prop_map(|n| Some(key(n))), 1 => Just(None)];
        let start = prop_oneof![3 => (0i64..12).prop_map(key), 1 => Just(Key::MIN)];
        let interval = (start, end).prop_map(|(start, end)| KeyInterval::new(start, end));
        prop_oneof![
            prop::collection::vec(interval, 0..5).prop_map(Region::intervals),
            prop::collection::vec((0i64..12).prop_map(key), 0..5).prop_map(Region::points),
        ]
    }

    fn contains(region: &Region, key: &Key) -> bool {
        match region {
            Region::Points(keys) => keys.contains(key),
            Region::Intervals(intervals) => intervals.iter().any(|interval| interval.contains(key)),
        }
    }

    fn is_tidy(region: &Region) -> bool {
        match region {
            Region::Points(keys) => keys.windows(2).all(|pair| pair[0] < pair[1]),
            Region::Intervals(list) => {
                list.iter().all(|interval| !interval.is_empty())
                    && list.windows(2).all(|pair| pair[0].end.as_ref().is_some_and(|end| *end <= pair[1].start))
            }
        }
    }

    proptest! {
        #[test]
        fn set_operations_agree_with_membership(a in region(), b in region()) {
            let shape = KeyShape::new(KeyCodec::new(vec![KeyType::SmallInt])).unwrap();
            let both = a.clone().intersection(b.clone());
            let either = a.clone().union(b.clone(), &shape).unwrap();
            prop_assert!(is_tidy(&a) && is_tidy(&both) && is_tidy(&either), "{a:?} {both:?} {either:?}");
            for n in -1..13 {
                let key = key(n);
                let (in_a, in_b) = (contains(&a, &key), contains(&b, &key));
                prop_assert_eq!(contains(&both, &key), in_a && in_b, "{} in {:?}", n, both);
                prop_assert_eq!(contains(&either, &key), in_a || in_b, "{} in {:?}", n, either);
            }
        }
    }
}
