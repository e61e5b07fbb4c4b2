//! Complements of key intervals. Pure.
//!
//! A shard has a reason to hold the rows that it owns and the rows of moves that have not ended on
//! its side. All other rows are orphaned: no statement can see them (R9), but they use space, and a
//! range that returns would meet them.

use evenkeel_protocol::{Key, KeyInterval};

/// The keys that none of the intervals covers.
pub(super) fn complement(mut covered: Vec<KeyInterval>) -> Vec<KeyInterval> {
    covered.retain(|interval| !interval.is_empty());
    covered.sort_by(|a, b| a.start.cmp(&b.start));
    let mut free = Vec::new();
    let mut next = Some(Key::MIN);
    for interval in covered {
        let Some(start) = &next else { break };
        let gap = KeyInterval::new(start.clone(), Some(interval.start.clone()));
        if *start < interval.start && !gap.is_empty() {
            free.push(gap);
        }
        next = match (next, interval.end) {
            (Some(next), Some(end)) => Some(next.max(end)),
            _ => None,
        };
    }
    free.extend(next.map(|start| KeyInterval::new(start, None)));
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_whatever_overlaps() {
        let key = |n: u8| if n == 0 { Key::MIN } else { Key(vec![n].into()) };
        let interval = |start, end: Option<u8>| KeyInterval::new(key(start), end.map(key));
        let free = |covered: &[(u8, Option<u8>)]| -> Vec<(Key, Option<Key>)> {
            let covered = covered.iter().map(|(start, end)| interval(*start, *end)).collect();
            complement(covered).into_iter().map(|gap| (gap.start, gap.end)).collect()
        };
        assert_eq!(free(&[]), [(key(0), None)]);
        assert_eq!(free(&[(0, None)]), []);
        assert_eq!(free(&[(5, Some(9)), (0, Some(5)), (9, None)]), []);
        assert_eq!(free(&[(5, Some(9))]), [(key(0), Some(key(5))), (key(9), None)]);
        assert_eq!(free(&[(2, Some(8)), (3, Some(4)), (10, None)]), [(key(0), Some(key(2))), (key(8), Some(key(10)))]);
    }
}
