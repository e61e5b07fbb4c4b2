//! Recorder of answers, second by second.
//!
//! Answers are recorded in the second of the run in which they ended, and merged afterwards: only
//! at the end is it known when the first split happened and from when on the load was level, so
//! only then can "before", "during" and "after" be distinguished. A second costs about 13 kB,
//! nearly all of it the latency histogram (HDR, two significant digits, one microsecond to one
//! hour).

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::target::TargetFailure;

/// Failures whose messages are kept.
const MAX_MESSAGES: usize = 20;

/// The longest recorded latency, in microseconds; longer ones are recorded as this.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// The busiest shard's statements over the mean of all `shards`; `None` without statements.
pub fn imbalance(per_shard: impl IntoIterator<Item = u64>, shards: u32) -> Option<f64> {
    let (mut busiest, mut total) = (0u64, 0u64);
    for statements in per_shard {
        busiest = busiest.max(statements);
        total += statements;
    }
    (total > 0).then(|| busiest as f64 * f64::from(shards.max(1)) / total as f64)
}

/// A histogram of latencies in microseconds.
pub type LatencyHistogram = Histogram<u32>;

/// An empty histogram.
pub fn latency_histogram() -> LatencyHistogram {
    // The bounds are constants that the crate accepts; a histogram that resizes itself is the same,
    // only slower.
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 2).unwrap_or_else(|_| {
        let mut histogram = Histogram::new(2).unwrap_or_else(|_| unreachable!("two digits are always possible"));
        histogram.auto(true);
        histogram
    })
}

/// The latency in milliseconds at `quantile` (0 to 1); `None` if nothing was recorded.
pub fn quantile_ms(histogram: &LatencyHistogram, quantile: f64) -> Option<f64> {
    (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64 / 1_000.0)
}

/// One second of a run.
#[derive(Clone, Debug)]
pub struct SecondRecord {
    /// Statements that were answered.
    pub ok: u64,
    /// Statements that were answered after at least one retry; part of `ok`.
    pub retried: u64,
    /// Statements that failed.
    pub failed: u64,
    /// Statements that each shard answered.
    pub per_shard: BTreeMap<u32, u64>,
    /// Shards at that time.
    pub shards: u32,
    /// Latencies of the operations that ended in this second, failed ones included.
    pub latency: LatencyHistogram,
}

impl SecondRecord {
    /// A second in which nothing has happened yet.
    pub fn empty(shards: u32) -> Self {
        Self { ok: 0, retried: 0, failed: 0, per_shard: BTreeMap::new(), shards, latency: latency_histogram() }
    }

    /// This second's imbalance; `None` if no shard answered.
    pub fn imbalance(&self) -> Option<f64> {
        imbalance(self.per_shard.values().copied(), self.shards)
    }

    /// The same for a display during the run.
    pub fn summary(&self, second: u64) -> SecondSummary {
        SecondSummary {
            second,
            ok: self.ok,
            retried: self.retried,
            failed: self.failed,
            per_shard: self.per_shard.clone(),
            shards: self.shards,
            imbalance: self.imbalance(),
            p50_ms: quantile_ms(&self.latency, 0.5),
            p99_ms: quantile_ms(&self.latency, 0.99),
            max_ms: (!self.latency.is_empty()).then(|| self.latency.max() as f64 / 1_000.0),
        }
    }
}

/// One second, for a display during the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecondSummary {
    /// Seconds since the start of the run; 0 is the first.
    pub second: u64,
    /// Statements that were answered.
    pub ok: u64,
    /// Statements that were answered after at least one retry; part of `ok`.
    pub retried: u64,
    /// Statements that failed.
    pub failed: u64,
    /// Statements that each shard answered.
    pub per_shard: BTreeMap<u32, u64>,
    /// Shards that the load is divided among.
    pub shards: u32,
    /// The busiest shard's statements over the mean; `None` if no shard answered.
    pub imbalance: Option<f64>,
    /// Median latency in milliseconds; `None` if nothing ended.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the latency in milliseconds.
    pub p99_ms: Option<f64>,
    /// Greatest latency in milliseconds.
    pub max_ms: Option<f64>,
}

/// Sums over a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Operations that were started. A read-modify-write is one operation and two statements.
    pub operations: u64,
    /// Statements that were answered.
    pub ok: u64,
    /// Statements that were answered after at least one retry; part of `ok`.
    pub retried: u64,
    /// Statements that failed.
    pub failed: u64,
    /// Answers that contradict what was acknowledged before: stale or invented reads, values that
    /// do not belong to their version, writes that found no row where there is one.
    pub wrong_answers: u64,
    /// Operations that were due in time and never started, because the run ended while they waited
    /// for others.
    pub not_started: u64,
    /// Operations that had not ended when the engine stopped waiting for them.
    pub abandoned: u64,
}

/// The figures of a run that the engine sees.
#[derive(Clone, Debug)]
pub struct ReplayRecord {
    /// One record per second; seconds past `duration` hold what was still under way then.
    pub seconds: Vec<SecondRecord>,
    /// How long operations were started for.
    pub duration: Duration,
    /// Sums.
    pub totals: Totals,
    /// The hottest key's share (0 to 1) of the operations: the source's own figure if it has one,
    /// otherwise counted.
    pub hottest_key_share: f64,
    /// The first failures and wrong answers, in words.
    pub messages: Vec<String>,
}

/// Collects one run.
#[derive(Debug)]
pub struct Recorder {
    seconds: Vec<SecondRecord>,
    max_seconds: usize,
    shards: u32,
    totals: Totals,
    messages: Vec<String>,
}

impl Recorder {
    /// An empty record of a run on `shards` shards, of at most `max_seconds` seconds; what comes
    /// later is recorded in the last.
    pub fn new(shards: u32, max_seconds: usize) -> Self {
        let (totals, messages) = (Totals::default(), Vec::new());
        Self { seconds: Vec::new(), max_seconds: max_seconds.max(1), shards, totals, messages }
    }

    /// From now on the load is divided among `shards` shards.
    pub fn set_shards(&mut self, shards: u32) {
        self.shards = shards;
    }

    fn second(&mut self, now: Duration) -> &mut SecondRecord {
        let index = usize::try_from(now.as_secs()).unwrap_or(usize::MAX).min(self.max_seconds - 1);
        while self.seconds.len() <= index {
            self.seconds.push(SecondRecord::empty(self.shards));
        }
        &mut self.seconds[index]
    }

    /// A statement was answered at `now`.
    pub fn answered(&mut self, now: Duration, shard: Option<u32>, retries: u32) {
        let retried = u64::from(retries > 0);
        self.totals.ok += 1;
        self.totals.retried += retried;
        let second = self.second(now);
        second.ok += 1;
        second.retried += retried;
        if let Some(shard) = shard {
            *second.per_shard.entry(shard).or_insert(0) += 1;
        }
    }

    /// A statement failed at `now`.
    pub fn failed(&mut self, now: Duration, what: impl FnOnce() -> String, failure: &TargetFailure) {
        self.totals.failed += 1;
        self.second(now).failed += 1;
        self.message(now, || format!("{}: {failure}", what()));
    }

    /// An answer was wrong.
    pub fn wrong(&mut self, now: Duration, what: impl FnOnce() -> String) {
        self.totals.wrong_answers += 1;
        self.message(now, what);
    }

    fn message(&mut self, now: Duration, what: impl FnOnce() -> String) {
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(format!("at {:.3} s: {}", now.as_secs_f64(), what()));
        }
    }

    /// An operation ended at `now`, `latency` after it was due or started.
    pub fn ended(&mut self, now: Duration, latency: Duration) {
        self.totals.operations += 1;
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        self.second(now).latency.saturating_record(latency_us);
    }

    /// The figures recorded so far of one second.
    pub fn summary(&mut self, second: u64) -> SecondSummary {
        self.second(Duration::from_secs(second)).summary(second)
    }

    /// Ends the recording and hands it out. Seconds without any end of an operation are there, too,
    /// as empty records.
    pub fn finish(
        &mut self,
        duration: Duration,
        hottest_key_share: f64,
        not_started: u64,
        abandoned: u64,
    ) -> ReplayRecord {
        let whole_seconds = duration.as_secs_f64().ceil().max(1.0) as u64;
        self.second(Duration::from_secs(whole_seconds - 1));
        (self.totals.not_started, self.totals.abandoned) = (not_started, abandoned);
        let (seconds, messages) = (std::mem::take(&mut self.seconds), std::mem::take(&mut self.messages));
        ReplayRecord { seconds, duration, totals: self.totals, hottest_key_share, messages }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn imbalance_is_busiest_over_mean_of_all_shards() {
        assert_eq!(imbalance([30, 30, 30], 3), Some(1.0));
        assert_eq!(imbalance([90], 3), Some(3.0));
        assert_eq!(imbalance([60, 30], 2), Some(60.0 / 45.0));
        assert_eq!(imbalance([0, 0], 2), None);
        assert_eq!(imbalance([], 3), None);
    }

    #[test]
    fn things_land_in_the_second_they_end_in() {
        let mut recorder = Recorder::new(3, 100);
        recorder.answered(MS * 999, Some(1), 0);
        recorder.ended(MS * 999, MS * 2);
        recorder.set_shards(4);
        recorder.answered(MS * 2_000, Some(2), 3);
        recorder.answered(MS * 2_001, Some(2), 0);
        recorder.failed(MS * 2_002, || "read of 5".to_owned(), &TargetFailure::NotApplied("no".to_owned()));
        recorder.ended(MS * 2_001, MS * 1_500);
        let record = recorder.finish(MS * 4_500, 0.5, 1, 2);
        assert_eq!(record.seconds.len(), 5);
        assert_eq!(record.seconds[0].imbalance(), Some(3.0));
        assert_eq!(record.seconds[1].imbalance(), None);
        let second = record.seconds[2].summary(2);
        assert_eq!((second.ok, second.retried, second.failed, second.shards), (2, 1, 1, 4));
        assert_eq!(second.imbalance, Some(4.0));
        // Two significant digits.
        assert!((second.p50_ms.unwrap() - 1_500.0).abs() < 15.0);
        assert_eq!(record.messages, ["at 2.002 s: read of 5: no"]);
        let totals = record.totals;
        assert_eq!((totals.operations, totals.ok, totals.retried, totals.failed), (2, 3, 1, 1));
        assert_eq!((totals.not_started, totals.abandoned), (1, 2));
    }

    #[test]
    fn memory_is_bounded_in_time_and_in_messages() {
        let mut recorder = Recorder::new(1, 3);
        for _ in 0..100 {
            recorder.wrong(Duration::from_secs(1 << 40), || "stale".to_owned());
            recorder.ended(Duration::from_secs(1 << 40), Duration::MAX);
        }
        let record = recorder.finish(Duration::from_secs(2), 0.0, 0, 0);
        assert_eq!((record.seconds.len(), record.messages.len()), (3, MAX_MESSAGES));
        assert_eq!(record.totals.wrong_answers, 100);
        assert_eq!(record.seconds[2].latency.len(), 100);
    }
}
