//! Which keys a shard has a reason to hold rows of: those it owns, and those of moves that are not over on its side.
//!
//! Rows elsewhere are left behind: nobody can see them (R9), but they take room, and a copy that comes back over them would find them.

use super::ShardState;
use evenkeel_protocol::{Key, KeyInterval, TableId};

impl ShardState {
    /// The keys of a table that this shard has no reason to hold rows of, as sorted intervals: at most one more than it has ranges
    /// and moves.
    pub fn without_reason(&self, table: TableId) -> Vec<KeyInterval> {
        let all = KeyInterval::ALL;
        let owned = self.overlapping(table, &all).map(|range| &range.interval);
        let out = self.moves_out().filter(|moved| moved.table == table).map(|moved| &moved.interval);
        let coming = self.moves_in().filter(|moved| moved.table == table).map(|moved| &moved.interval);
        complement(owned.chain(out).chain(coming).cloned().collect())
    }
}

/// What none of the intervals covers.
fn complement(mut covered: Vec<KeyInterval>) -> Vec<KeyInterval> {
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
    fn what_is_not_covered_is_found_whatever_overlaps() {
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
