//! The fewest bytes that any plan would have had to move.
//!
//! A bound from below, to hold the balancer's traffic against. It looks at the ranges as they are
//! at the end of the run, puts each back on the shard that owned its keys when the load began, and
//! asks how much must leave each shard there.
//!
//! A shard is level if its load is at most `1.25 · floor · mean`. One that has more must lose at
//! least the excess, whatever the plan; the cheapest way to lose load is to give away first what
//! has most load per byte. With parts of ranges allowed (the fractional knapsack) that greedy
//! choice is optimal, and no plan of whole ranges is cheaper. Shards add up, since what leaves one
//! shard leaves no other. Where the load lands is left out: it can only cost more.
//!
//! The one assumption: within a final range, load lies as evenly as bytes do. A hotter place inside
//! one could have been cut out for fewer bytes; the splits of a run have made the ranges fine where
//! that matters.

use super::report_data::LEVEL_FACTOR;
use super::run_record::RangeRecord;

/// The bound in bytes, for `shards` shards and an imbalance that cannot fall below `floor`. Ranges
/// without load cost nothing and are never moved.
pub fn least_moved_bytes(ranges: &[RangeRecord], shards: u32, floor: f64) -> u64 {
    let total: f64 = ranges.iter().map(|range| range.load).sum();
    let limit = LEVEL_FACTOR * floor * total / f64::from(shards.max(1));
    let mut homes: Vec<u32> = ranges.iter().map(|range| range.home_shard).collect();
    homes.sort_unstable();
    homes.dedup();
    homes.into_iter().map(|home| must_leave(ranges, home, limit)).sum::<f64>().ceil() as u64
}

/// Bytes that must at least leave shard `home` so that its load is at most `limit`.
fn must_leave(ranges: &[RangeRecord], home: u32, limit: f64) -> f64 {
    let mut own: Vec<&RangeRecord> =
        ranges.iter().filter(|range| range.home_shard == home && range.load > 0.0).collect();
    let mut excess = own.iter().map(|range| range.load).sum::<f64>() - limit;
    own.sort_by(|a, b| (b.load * a.bytes as f64).total_cmp(&(a.load * b.bytes as f64)));
    let mut bytes = 0.0;
    for range in own {
        if excess <= 0.0 {
            break;
        }
        bytes += range.bytes as f64 * (excess / range.load).min(1.0);
        excess -= range.load;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(home_shard: u32, load: f64, bytes: u64) -> RangeRecord {
        RangeRecord { home_shard, load, bytes }
    }

    #[test]
    fn nothing_must_move_where_it_is_level() {
        assert_eq!(least_moved_bytes(&[range(1, 1.0, 100), range(2, 1.2, 100)], 2, 1.0), 0);
        assert_eq!(least_moved_bytes(&[range(1, 5.0, 100)], 1, 1.0), 0);
        assert_eq!(least_moved_bytes(&[], 3, 1.0), 0);
        // A single hot key: its shard may keep it, since the floor says that it cannot be level.
        assert_eq!(least_moved_bytes(&[range(1, 9.0, 100), range(2, 1.0, 50)], 2, 1.8), 0);
    }

    #[test]
    fn the_most_load_per_byte_goes_first() {
        // 8 of load on shard 1 of 2, which may keep 5: three must go. The small hot range gives two
        // for ten bytes; the third comes from the next best, a quarter of its 400 bytes.
        let ranges = [range(1, 2.0, 10), range(1, 4.0, 400), range(1, 2.0, 100_000)];
        assert_eq!(least_moved_bytes(&ranges, 2, 1.0), 110);
        // Load that was on shard 2 from the start does not have to come from shard 1.
        assert_eq!(least_moved_bytes(&[range(1, 5.0, 10), range(2, 5.0, 10)], 2, 1.0), 0);
    }

    proptest! {
        /// No choice of whole ranges that makes every shard level moves less than the bound.
        #[test]
        fn no_plan_is_cheaper(
            ranges in proptest::collection::vec((0u32..3, 0u32..50, 0u64..1_000), 1..9),
            plan in proptest::collection::vec(0u32..3, 9),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(home, load, bytes)| range(home, load.into(), bytes)).collect();
            let bound = least_moved_bytes(&ranges, 3, 1.0);
            let mut loads = [0.0; 3];
            let mut moved = 0;
            for (range, shard) in ranges.iter().zip(&plan) {
                loads[*shard as usize] += range.load;
                moved += if range.home_shard == *shard { 0 } else { range.bytes };
            }
            let total: f64 = loads.iter().sum();
            if loads.iter().all(|load| *load <= LEVEL_FACTOR * total / 3.0) {
                prop_assert!(moved >= bound, "a plan moves {moved}, the bound says {bound}");
            }
        }
    }
}
