//! Load profiles: where within a range the load falls. Cutting a profile to a part of the range,
//! finding the keys to split at, and measuring how far the load shifts.

use evenkeel_protocol::{Key, KeyCodec, KeyInterval};
use std::collections::BTreeMap;

/// Where within a range the load falls. Shares are parts (0 to 1) of the range's load.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadProfile {
    /// Keys in order, each with the share that falls from it up to the next.
    pub points: Vec<(Key, f64)>,
    /// Hot single keys and their shares, hottest first. They are included in `points`.
    pub hot: Vec<(Key, f64)>,
}

/// A part of a range with the share of the load that falls on it. It reaches up to the next
/// segment's start.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its first key.
    pub start: Key,
    /// Its share of the range's load.
    pub share: f64,
    /// Whether it is a single hot key.
    pub hot: bool,
}

impl LoadProfile {
    /// The profile as segments that partition `interval`. Each hot key is a segment of its own.
    /// Empty without load.
    pub fn segments(&self, interval: &KeyInterval, codec: &KeyCodec) -> Vec<Segment> {
        let mut parts: BTreeMap<Key, (f64, bool)> = BTreeMap::new();
        for (key, share) in &self.points {
            // Keys that statements named before the range was cut count at its start.
            let key = if interval.contains(key) { key } else { &interval.start };
            parts.entry(key.clone()).or_default().0 += share.max(0.0);
        }
        if parts.is_empty() {
            return Vec::new();
        }
        parts.entry(interval.start.clone()).or_default();
        for (key, share) in self.hot.iter().filter(|(key, _)| interval.contains(key)) {
            insert_hot(&mut parts, key, *share, interval, codec);
        }
        let total: f64 = parts.values().map(|(share, _)| share).sum();
        if total <= 0.0 {
            return Vec::new();
        }
        parts.into_iter().map(|(start, (share, hot))| Segment { start, share: share / total, hot }).collect()
    }

    /// The share of the load that falls into `part`, and the profile there.
    pub fn cut(&self, whole: &KeyInterval, part: &KeyInterval, codec: &KeyCodec) -> (f64, LoadProfile) {
        let inside: Vec<Segment> =
            self.segments(whole, codec).into_iter().filter(|segment| part.contains(&segment.start)).collect();
        let share: f64 = inside.iter().map(|segment| segment.share).sum();
        if share <= 0.0 {
            return (0.0, LoadProfile::default());
        }
        let mut hot: Vec<(Key, f64)> =
            inside.iter().filter(|s| s.hot).map(|s| (s.start.clone(), s.share / share)).collect();
        hot.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let points = inside.into_iter().map(|segment| (segment.start, segment.share / share)).collect();
        (share, LoadProfile { points, hot })
    }

    /// The common profile of neighbouring ranges, each given with its load.
    pub fn join<'a>(parts: impl IntoIterator<Item = (f64, &'a LoadProfile)>) -> LoadProfile {
        let parts: Vec<_> = parts.into_iter().collect();
        let total: f64 = parts.iter().map(|(load, _)| load).sum();
        if total <= 0.0 {
            return LoadProfile::default();
        }
        let scale = |load: f64, list: &[(Key, f64)]| -> Vec<(Key, f64)> {
            list.iter().map(|(key, share)| (key.clone(), share * load / total)).collect()
        };
        let mut points: Vec<_> = parts.iter().flat_map(|(load, profile)| scale(*load, &profile.points)).collect();
        points.sort_by(|a, b| a.0.cmp(&b.0));
        let mut hot: Vec<_> = parts.iter().flat_map(|(load, profile)| scale(*load, &profile.hot)).collect();
        hot.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        LoadProfile { points, hot }
    }

    /// The share of the hottest single key, 0 to 1.
    pub fn hottest_share(&self) -> f64 {
        self.hot.first().map_or(0.0, |(_, share)| *share)
    }
}

/// Makes `key` a segment of its own. Its share is taken from the segment around it.
fn insert_hot(parts: &mut BTreeMap<Key, (f64, bool)>, key: &Key, share: f64, interval: &KeyInterval, codec: &KeyCodec) {
    let Ok(next) = codec.successor(key) else { return };
    let Some((start, (around, hot))) = parts.range(..=key.clone()).next_back().map(|(k, v)| (k.clone(), *v)) else {
        return;
    };
    if hot {
        return;
    }
    let rest = (around - share).max(0.0);
    // How the rest of the segment is spread around the key is unknown: half of it on each side.
    let after = if start == *key { rest } else { rest / 2.0 };
    if start != *key {
        parts.insert(start, (rest - after, false));
    }
    parts.insert(key.clone(), (share, true));
    if let Some(next) = next.filter(|next| interval.contains(next)) {
        let entry = parts.entry(next).or_default();
        entry.0 += after;
    }
}

/// Where to cut `segments`, which partition `interval`, into at most `ways` pieces of about
/// `target` share each. Of many pieces a few are smaller. Every hot key above `target` is alone in
/// its piece. The keys grow strictly and lie strictly inside `interval`. Empty if the load cannot
/// be cut.
pub fn cut_points(segments: &[Segment], interval: &KeyInterval, target: f64, ways: usize) -> Vec<Key> {
    let mut target = target.max(f64::EPSILON);
    // A target above the whole load yields no cut, so this ends.
    while target < 2.0 {
        let points = cut_once(segments, interval, target);
        if points.len() < ways {
            return points;
        }
        target *= 1.2;
    }
    Vec::new()
}

/// Sizes of the first pieces of a split into many, in targets. A few are smaller, so that the
/// imbalance that is left when the large ones are placed is removed without another split.
const FIRST_SIZES: [f64; 6] = [1.0, 1.0, 1.0, 0.5, 0.25, 0.25];
/// Pieces from which a split has smaller first pieces.
const MANY_PIECES: f64 = 10.0;

fn cut_once(segments: &[Segment], interval: &KeyInterval, target: f64) -> Vec<Key> {
    let mut points: Vec<Key> = Vec::new();
    let mut piece = 0.0;
    let mut after_hot = false;
    for segment in segments {
        let alone = segment.hot && segment.share > target;
        let many = target * MANY_PIECES <= 1.0;
        let size = FIRST_SIZES.get(points.len()).filter(|_| many).map_or(target, |size| size * target);
        let fuller = (piece + segment.share - size).abs();
        let full = piece > 0.0 && segment.share > 0.0 && (piece - size).abs() <= fuller;
        if (alone || after_hot || full) && interval.splits_at(&segment.start) {
            points.push(segment.start.clone());
            piece = 0.0;
        }
        piece += segment.share;
        after_hot = alone;
    }
    // A small rest is not worth a range of its own, unless a hot key lies before it.
    let hot_before_last = points.last().is_some_and(|last| {
        segments.windows(2).any(|pair| pair[1].start == *last && pair[0].hot && pair[0].share > target)
    });
    let last_is_hot = segments.last().is_some_and(|s| s.hot && s.share > target);
    if piece < target / 3.0 && !hot_before_last && !last_is_hot {
        points.pop();
    }
    points
}

/// The key that cuts off about `share` on the left, and the share that it cuts off. `None` if no
/// cut comes within half of `share`.
pub fn cut_off(segments: &[Segment], interval: &KeyInterval, share: f64) -> Option<(Key, f64)> {
    let mut left = 0.0;
    let mut best: Option<(Key, f64)> = None;
    for segment in segments {
        let better = best.as_ref().is_none_or(|(_, found): &(Key, f64)| (left - share).abs() < (found - share).abs());
        if left > 0.0 && better && interval.splits_at(&segment.start) {
            best = Some((segment.start.clone(), left));
        }
        left += segment.share;
    }
    best.filter(|(_, found)| (found - share).abs() <= share / 2.0)
}

/// How far the load has shifted within a range from one profile to the other: the largest
/// difference of the two cumulative distributions (Kolmogorov-Smirnov distance), less the possible
/// difference of two coarse sketches of the same load.
pub fn shift(before: &LoadProfile, now: &LoadProfile) -> f64 {
    let coarse = 1.0 / before.points.len().min(now.points.len()).max(1) as f64;
    let mut keys: Vec<&Key> = before.points.iter().chain(&now.points).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let (mut a, mut b) = (before.points.iter().peekable(), now.points.iter().peekable());
    let (mut below_a, mut below_b, mut widest) = (0.0, 0.0, 0.0f64);
    for key in keys {
        while let Some((_, share)) = a.next_if(|(point, _)| point <= key) {
            below_a += share;
        }
        while let Some((_, share)) = b.next_if(|(point, _)| point <= key) {
            below_b += share;
        }
        widest = widest.max((below_a - below_b).abs());
    }
    (widest - coarse).max(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::{KeyType, KeyValue};
    use proptest::prelude::*;

    fn codec() -> KeyCodec {
        KeyCodec::new(vec![KeyType::BigInt])
    }

    fn key(n: i64) -> Key {
        codec().encode(&[KeyValue::Int(n)]).unwrap()
    }

    fn profile(points: &[(i64, f64)], hot: &[(i64, f64)]) -> LoadProfile {
        let keys = |list: &[(i64, f64)]| list.iter().map(|(n, share)| (key(*n), *share)).collect();
        LoadProfile { points: keys(points), hot: keys(hot) }
    }

    #[test]
    fn equal_load_is_cut_into_equal_pieces() {
        let points: Vec<_> = (0..64).map(|n| (n * 10, 1.0 / 64.0)).collect();
        let profile = profile(&points, &[]);
        let segments = profile.segments(&KeyInterval::ALL, &codec());
        let cuts = cut_points(&segments, &KeyInterval::ALL, 1.0 / 8.0, 32);
        assert_eq!(cuts, (1..8).map(|n| key(n * 80)).collect::<Vec<_>>());
        for piece in KeyInterval::ALL.split(&cuts).unwrap() {
            let (share, _) = profile.cut(&KeyInterval::ALL, &piece, &codec());
            assert!((share - 1.0 / 8.0).abs() < 1e-9, "{share}");
        }
    }

    /// What a split without keys promises: within 45 and 55 %, unless one key alone carries more
    /// than the rest of the way.
    #[test]
    fn the_median_is_as_close_to_the_middle_as_the_sketch_allows() {
        let halves = |points: &[(i64, f64)], hot: &[(i64, f64)]| {
            let segments = profile(points, hot).segments(&KeyInterval::ALL, &codec());
            cut_off(&segments, &KeyInterval::ALL, 0.5)
        };
        // 64 points of unequal shares, none above 2/64.
        let points: Vec<_> = (0..64).map(|n| (n, f64::from(n as u32 % 7 + 1) / 252.0)).collect();
        let (_, share) = halves(&points, &[]).unwrap();
        assert!((share - 0.5).abs() <= 0.05, "{share}");
        // One key with 40 % in the middle: beside it, on the side that is nearer.
        let (at, share) = halves(&[(0, 0.25), (50, 0.45), (90, 0.3)], &[(50, 0.40)]).unwrap();
        assert!(at == key(51) && (share - 0.65).abs() < 1e-9, "{at:?} {share}");
    }

    #[test]
    fn a_hot_key_is_isolated_exactly() {
        let profile = profile(&[(0, 0.2), (50, 0.6), (90, 0.2)], &[(60, 0.5)]);
        let segments = profile.segments(&KeyInterval::ALL, &codec());
        let cuts = cut_points(&segments, &KeyInterval::ALL, 0.3, 8);
        assert!(cuts.contains(&key(60)) && cuts.contains(&key(61)), "{cuts:?}");
        let (share, alone) = profile.cut(&KeyInterval::ALL, &KeyInterval::new(key(60), Some(key(61))), &codec());
        assert!((share - 0.5).abs() < 1e-9);
        assert!((alone.hottest_share() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_single_key_cannot_be_cut() {
        let only = KeyInterval::new(key(5), Some(key(6)));
        let profile = profile(&[(5, 1.0)], &[(5, 1.0)]);
        let segments = profile.segments(&only, &codec());
        assert!(cut_points(&segments, &only, 0.1, 8).is_empty());
        assert_eq!(cut_off(&segments, &only, 0.5), None);
    }

    #[test]
    fn a_front_that_moves_on_is_distinguished_from_a_load_that_stays() {
        let stays: Vec<_> = (0..64).map(|n| (n * 10, 1.0 / 64.0)).collect();
        let jittered: Vec<_> = (0..64).map(|n| (n * 10 + n % 7, 1.0 / 64.0)).collect();
        let moved: Vec<_> = (0..64).map(|n| (n * 10 + 400, 1.0 / 64.0)).collect();
        assert!(shift(&profile(&stays, &[]), &profile(&jittered, &[])) < 0.05);
        assert!(shift(&profile(&stays, &[]), &profile(&moved, &[])) > 0.5);
    }

    proptest! {
        #[test]
        fn cuts_are_legal_and_shares_add_up(
            points in proptest::collection::btree_map(-50i64..50, 0.001f64..1.0, 1..40),
            hot in proptest::collection::btree_map(-60i64..60, 0.01f64..0.9, 0..6),
            bounds in (-60i64..0, 1i64..60), target in 0.02f64..0.9, ways in 2usize..40,
        ) {
            let profile = profile(
                &points.into_iter().collect::<Vec<_>>(),
                &hot.into_iter().collect::<Vec<_>>(),
            );
            let interval = KeyInterval::new(key(bounds.0), Some(key(bounds.1)));
            let segments = profile.segments(&interval, &codec());
            let cuts = cut_points(&segments, &interval, target, ways);
            prop_assert!(cuts.len() < ways);
            let pieces = interval.split(&cuts);
            prop_assert!(pieces.is_some(), "{cuts:?}");
            let sum: f64 = pieces.unwrap().iter().map(|piece| profile.cut(&interval, piece, &codec()).0).sum();
            prop_assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            if let Some((cut, _)) = cut_off(&segments, &interval, target) {
                prop_assert!(interval.splits_at(&cut));
            }
        }
    }
}
