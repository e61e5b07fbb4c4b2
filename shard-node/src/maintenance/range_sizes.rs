//! Corrects doubtful sizes of ranges ([`crate::state_machine::RangeSize`]) from samples of their
//! tables.
//!
//! A sample costs the same however large a table is, and one is taken of a table at a time, at most
//! every minute; as long as samples say nothing new, ever more rarely.

use crate::leader::Leader;
use crate::leader::latches::RangeLatch;
use crate::state_machine::{Sampled, ShardState};
use crate::storage::{self, Sample, StoreError};
use evenkeel_protocol::{Key, KeyInterval, TableId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked for sizes that are doubtful, in milliseconds.
const LOOK_MS: u64 = 1_000;
/// How long after a sample of a table another one is taken, at least and at most, in milliseconds.
const REST_MS: u64 = 60_000;
const LONGEST_REST_MS: u64 = 3_600_000;

/// When samples were taken, and how long tables rest since.
#[derive(Debug, Default)]
struct Rests(HashMap<TableId, (Instant, Duration)>);

impl Rests {
    /// Whether a table may be sampled. Where nothing but a sample tells a size, the shortest rest
    /// will do.
    fn is_over(&self, table: TableId, guessed: bool, now: Instant) -> bool {
        self.0.get(&table).is_none_or(|(since, rest)| {
            let rest = if guessed { Duration::from_millis(REST_MS) } else { *rest };
            now.saturating_duration_since(*since) >= rest
        })
    }

    /// A sample was taken, and did or did not say much that was new.
    fn begin(&mut self, table: TableId, news: bool, now: Instant) {
        let shortest = Duration::from_millis(REST_MS);
        let last = self.0.get(&table).map(|(_, rest)| *rest);
        let rest = match last {
            Some(rest) if !news => (rest * 2).min(Duration::from_millis(LONGEST_REST_MS)),
            _ => shortest,
        };
        self.0.insert(table, (now, rest));
    }
}

/// Corrects sizes until the leadership ends.
pub async fn correct_sizes(leader: Arc<Leader>) {
    let mut rests = Rests::default();
    loop {
        let state = leader.shared().state();
        let latches = leader.shared().latches.latches();
        for table in doubtful(&latches, &rests, evenkeel_host::now()) {
            let of_table = latches.iter().filter(|latch| latch.range.table == table).cloned().collect();
            let news = match sample(&leader, &state, table).await {
                Ok(sample) => take(of_table, sample),
                Err(error) => {
                    tracing::debug!(%error, %table, "no sample of the table");
                    false
                }
            };
            rests.begin(table, news, evenkeel_host::now());
        }
        evenkeel_host::sleep(Duration::from_millis(LOOK_MS)).await;
    }
}

/// Tables that have a range whose size is doubtful, and have rested.
fn doubtful(latches: &[Arc<RangeLatch>], rests: &Rests, now: Instant) -> BTreeSet<TableId> {
    let due = |latch: &&Arc<RangeLatch>| {
        let size = latch.statistics.size();
        size.is_doubtful() && rests.is_over(latch.range.table, size.is_guessed(), now)
    };
    latches.iter().filter(due).map(|latch| latch.range.table).collect()
}

async fn sample(leader: &Leader, state: &ShardState, table: TableId) -> Result<Sample, StoreError> {
    let Some(schema) = state.table(table) else { return Ok(Sample::default()) };
    let snapshots = &leader.shared().snapshots;
    let snapshot = snapshots.take().await?;
    let sample = storage::sample(&snapshot, schema, &KeyInterval::ALL).await?;
    snapshots.give_back(snapshot).await;
    metrics::counter!("evenkeel_size_samples_total").increment(1);
    Ok(sample)
}

/// Corrects the doubtful ones of a table's ranges. Says whether that made much of a difference to
/// any.
fn take(latches: Vec<Arc<RangeLatch>>, sample: Sample) -> bool {
    let by_start: BTreeMap<Key, (Arc<RangeLatch>, Sampled)> =
        latches.into_iter().map(|latch| (latch.range.interval.start.clone(), (latch, Sampled::default()))).collect();
    let (mut by_start, mut all) = (by_start, Sampled::default());
    for (key, bytes) in sample.rows {
        let last = by_start.range_mut::<Key, _>(..=&key).next_back();
        // Orphaned rows belong to no range.
        if let Some((_, (_, sampled))) = last.filter(|(_, (latch, _))| latch.range.interval.contains(&key)) {
            sampled.add(bytes);
            all.add(bytes);
        }
    }
    let correct = |(latch, sampled): (Arc<RangeLatch>, Sampled)| {
        latch.statistics.resize(|size| size.is_doubtful() && size.correct(sampled, all, sample.scale))
    };
    // All of them, whatever the first one says.
    by_start.into_values().map(correct).filter(|news| *news).count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_samples_say_nothing_new_rests_ever_longer() {
        let (mut rests, table) = (Rests::default(), TableId(1));
        let at = |s: u64| evenkeel_host::now() + Duration::from_secs(s);
        assert!(rests.is_over(table, false, at(0)));
        rests.begin(table, true, at(0));
        assert!(!rests.is_over(table, true, at(50)) && rests.is_over(table, false, at(61)));
        rests.begin(table, false, at(61));
        assert!(!rests.is_over(table, false, at(170)), "nothing new");
        assert!(rests.is_over(table, true, at(170)), "but a piece's size is needed");
        for _ in 0..20 {
            rests.begin(table, false, at(200));
        }
        assert!(!rests.is_over(table, false, at(3_700)) && rests.is_over(table, false, at(3_810)));
        rests.begin(table, true, at(4_000));
        assert!(rests.is_over(table, false, at(4_070)));
    }
}
