//! The engine against a store in memory: it must see what the store does wrong, and nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::generators::Endless;
use crate::operation::{Operation, OperationKind, OperationSource, SourceError, TimedOperation};
use crate::scenario::Scenario;

/// What a store does to some statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mischief {
    None,
    /// Acknowledges every write of this key and forgets it.
    ForgetKey(i64),
    /// Carries out every seventh write and says that its outcome is unknown.
    ApplyAndHide,
    /// Says that every seventh write's outcome is unknown, and does not carry it out.
    DropAndHide,
    /// Acknowledges the hundredth write and forgets it; later ones of its key go on.
    LosesOne,
    /// Executes every fiftieth write twice.
    Twice,
    /// Scans leave out this key.
    LeavesOut(i64),
    /// Scans end before this key.
    EndsBefore(i64),
    /// Reads return the row before the last write.
    StaleReads,
    /// Stores a wrong byte with every write of this key.
    CorruptKey(i64),
    /// Every third statement needs two retries.
    Retries,
    /// Every fifth statement fails.
    Fails,
    /// Stops answering for this many milliseconds at its hundredth statement.
    Stalls(u64),
    /// Never answers this one statement (the n-th).
    Hangs(u64),
}

struct Memory {
    rows: Mutex<BTreeMap<i64, StoredRow>>,
    previous: Mutex<BTreeMap<i64, StoredRow>>,
    mischief: Mutex<Mischief>,
    statements: AtomicU64,
    writes: AtomicU64,
    under_way: Mutex<BTreeMap<i64, u32>>,
    most_writes_of_a_key: AtomicU32,
    stalled_until: Mutex<Option<tokio::time::Instant>>,
}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            previous: Mutex::default(),
            mischief: Mutex::new(Mischief::None),
            statements: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            under_way: Mutex::default(),
            most_writes_of_a_key: AtomicU32::new(0),
            stalled_until: Mutex::new(None),
        })
    }

    fn misbehave(&self, mischief: Mischief) {
        self.statements.store(0, Ordering::SeqCst);
        self.writes.store(0, Ordering::SeqCst);
        *self.mischief.lock().unwrap() = mischief;
    }

    fn apply(&self, statement: &Statement, corrupt: bool) -> u64 {
        let mut rows = self.rows.lock().unwrap();
        let before = rows.get(&statement.key).cloned();
        if let Some(before) = &before {
            self.previous.lock().unwrap().insert(statement.key, before.clone());
        }
        let mut value = statement.value.clone().unwrap_or_default().to_vec();
        if corrupt {
            value[0] ^= 1;
        }
        let takes_effect = match (statement.kind, &before) {
            (TargetStatementKind::Insert, before) => before.is_none(),
            (_, Some(before)) => (statement.over..=statement.version).contains(&before.version),
            (_, None) => false,
        };
        let count = before.map_or(0, |before| before.count) + 1;
        let row = StoredRow { key: statement.key, version: statement.version, count, value: value.into() };
        if takes_effect && statement.kind == TargetStatementKind::Delete {
            rows.remove(&statement.key);
        } else if takes_effect {
            rows.insert(statement.key, row);
        }
        u64::from(takes_effect)
    }

    fn answer(&self, statement: &Statement, mischief: Mischief) -> Result<TargetAnswer, TargetFailure> {
        let rows = || self.rows.lock().unwrap();
        match statement.kind {
            TargetStatementKind::Read if mischief == Mischief::StaleReads => {
                let previous = self.previous.lock().unwrap().get(&statement.key).cloned();
                Ok(TargetAnswer::Row(previous.or_else(|| rows().get(&statement.key).cloned())))
            }
            TargetStatementKind::Read => Ok(TargetAnswer::Row(rows().get(&statement.key).cloned())),
            TargetStatementKind::Scan | TargetStatementKind::Keys => {
                let found = rows();
                let shown = |key: i64| match mischief {
                    Mischief::LeavesOut(out) => key != out,
                    Mischief::EndsBefore(end) => key < end,
                    _ => true,
                };
                let rows = found.range(statement.key..).map(|(_, row)| row).filter(|row| shown(row.key));
                let rows = rows.take(statement.limit_rows as usize);
                match statement.kind {
                    TargetStatementKind::Scan => Ok(TargetAnswer::Rows(rows.cloned().collect())),
                    _ => Ok(TargetAnswer::Keys(rows.map(|row| row.key).collect())),
                }
            }
            _ => {
                let number = self.writes.fetch_add(1, Ordering::SeqCst);
                match mischief {
                    Mischief::LosesOne if number == 100 => Ok(TargetAnswer::Written { affected_rows: 1 }),
                    Mischief::Twice if number.is_multiple_of(50) => {
                        self.apply(statement, false);
                        Ok(TargetAnswer::Written { affected_rows: self.apply(statement, false) })
                    }
                    Mischief::ForgetKey(key) if key == statement.key => Ok(TargetAnswer::Written { affected_rows: 1 }),
                    Mischief::ApplyAndHide if number.is_multiple_of(7) => {
                        self.apply(statement, false);
                        Err(TargetFailure::Unknown("connection lost".to_owned()))
                    }
                    Mischief::DropAndHide if number.is_multiple_of(7) => {
                        Err(TargetFailure::Unknown("connection lost".to_owned()))
                    }
                    _ => {
                        let affected_rows = self.apply(statement, mischief == Mischief::CorruptKey(statement.key));
                        Ok(TargetAnswer::Written { affected_rows })
                    }
                }
            }
        }
    }
}

impl Target for Memory {
    async fn execute(&self, statement: &Statement) -> StatementOutcome {
        let mischief = *self.mischief.lock().unwrap();
        let number = self.statements.fetch_add(1, Ordering::SeqCst);
        let writes = !matches!(
            statement.kind,
            TargetStatementKind::Read | TargetStatementKind::Scan | TargetStatementKind::Keys
        );
        if writes {
            let mut under_way = self.under_way.lock().unwrap();
            let count = under_way.entry(statement.key).or_insert(0);
            *count += 1;
            self.most_writes_of_a_key.fetch_max(*count, Ordering::SeqCst);
        }
        match mischief {
            Mischief::Hangs(hanging) if hanging == number => std::future::pending().await,
            Mischief::Stalls(stall_ms) if number == 100 => {
                let until = evenkeel_host::tokio_now() + Duration::from_millis(stall_ms);
                *self.stalled_until.lock().unwrap() = Some(until);
            }
            _ => {}
        }
        let stalled_until = *self.stalled_until.lock().unwrap();
        match stalled_until {
            Some(until) => evenkeel_host::sleep_until(until).await,
            None => tokio::task::yield_now().await,
        }
        let result = match mischief {
            Mischief::Fails if number.is_multiple_of(5) => Err(TargetFailure::NotApplied("refused".to_owned())),
            _ => self.answer(statement, mischief),
        };
        if writes {
            *self.under_way.lock().unwrap().entry(statement.key).or_insert(1) -= 1;
        }
        let retries = if mischief == Mischief::Retries && number.is_multiple_of(3) { 2 } else { 0 };
        StatementOutcome { result, shard: Some((statement.key.rem_euclid(2) + 1) as u32), retries }
    }
}

/// Loads 200 rows, replays `operations` of a workload while the store misbehaves, and reads
/// everything back.
async fn replay(scenario: &str, operations: u64, mischief: Mischief) -> (ReplayRecord, Verification, Arc<Memory>) {
    let config = ReplayConfig { max_operations: Some(operations), shards: 2, ..ReplayConfig::default() };
    replay_with(config, scenario, mischief).await
}

async fn replay_with(
    config: ReplayConfig,
    scenario: &str,
    mischief: Mischief,
) -> (ReplayRecord, Verification, Arc<Memory>) {
    let target = Memory::new();
    let generator = scenario.parse::<Scenario>().unwrap().generator(200, 7).unwrap();
    let mut ledger = Ledger::new(7, 100_000);
    let rows: Vec<_> = (0..200).map(|key| (key, generator.initial_value_bytes(key))).collect();
    let loaded = load(&target, &mut ledger, rows, LoadOptions::default(), |_| {}).await.unwrap();
    assert_eq!(loaded, 200);
    target.misbehave(mischief);
    let replay = Replay::new(config, Box::new(Endless(generator)), ledger).unwrap();
    let Replayed { record, ledger } = replay.run(target.clone(), |_: &SecondSummary| {}).await.unwrap();
    target.misbehave(Mischief::None);
    let verification = verify(&target, ledger, VerifyOptions::default(), |_| {}).await.unwrap();
    assert_eq!(verification.unread_keys, 0);
    (record, verification, target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correct_store_is_found_correct() {
    for scenario in ["ycsb-a", "ycsb-e", "ycsb-f", "sequential", "mixgraph", "zipf:2.0"] {
        let (record, verification, target) = replay(scenario, 5_000, Mischief::None).await;
        assert_eq!(verification.lost_writes, 0, "{scenario}: {:?}", verification.findings);
        assert!(verification.verified_keys >= 200);
        assert_eq!(record.messages, Vec::<String>::new(), "{scenario}");
        let totals = record.totals;
        assert_eq!((totals.operations, totals.failed, totals.wrong_answers, totals.abandoned), (5_000, 0, 0, 0));
        assert!(totals.ok >= 5_000 && (scenario == "ycsb-f") == (totals.ok > 5_000));
        assert_eq!(target.most_writes_of_a_key.load(Ordering::SeqCst), 1, "{scenario}: two writes of a key at once");
        let latencies: u64 = record.seconds.iter().map(|second| second.latency.len()).sum();
        assert_eq!(latencies, 5_000);
    }
}

/// The key of the first update that [`replay`] will make; operations do not depend on the store.
fn first_updated_key(scenario: &str) -> i64 {
    let mut generator = scenario.parse::<Scenario>().unwrap().generator(200, 7).unwrap();
    loop {
        let operation = generator.next(Duration::ZERO);
        if operation.kind == OperationKind::Update {
            return operation.key;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_lost_its_writes_is_one_lost_write() {
    let forgotten = Mischief::ForgetKey(first_updated_key("uniform"));
    let (record, verification, _) = replay("uniform", 2_000, forgotten).await;
    assert_eq!((verification.lost_writes, record.totals.failed), (1, 0), "{:?}", verification.findings);
    assert!(verification.findings[0].what.contains("was acknowledged, found is Some(FoundRow { version: 1,"));

    // A hot key's loss shows up while the load runs, too.
    let (record, verification, _) = replay("zipf:2.0", 2_000, Mischief::ForgetKey(0)).await;
    assert!(record.totals.wrong_answers > 100, "{}", record.totals.wrong_answers);
    assert_eq!(verification.lost_writes, 1);
}

/// Breaks if updates do not name the version that they may find: the next write of the key covers
/// the loss, and the end shows that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_write_that_a_later_one_would_cover_is_seen_at_the_later_one() {
    // Ten rows, updated in turn; nothing is read.
    struct Updates(i64);
    impl OperationSource for Updates {
        fn next(&mut self, _now: Duration) -> Result<Option<TimedOperation>, SourceError> {
            self.0 += 1;
            let operation = Operation { kind: OperationKind::Update, key: self.0 % 10, value_bytes: 8 };
            Ok(Some(TimedOperation { at: None, operation }))
        }

        fn hottest_key_share(&self) -> Option<f64> {
            None
        }
    }
    let target = Memory::new();
    target.misbehave(Mischief::LosesOne);
    let config = ReplayConfig { max_operations: Some(500), ..ReplayConfig::default() };
    let replay = Replay::new(config, Box::new(Updates(0)), Ledger::new(7, 10)).unwrap();
    let Replayed { record, .. } = replay.run(target, |_: &SecondSummary| {}).await.unwrap();
    let told = |message: &String| message.contains("changed no row: what was acknowledged before it is lost");
    assert!(record.messages.iter().any(told), "{:?}", record.messages);
}

/// Breaks if rows do not count their writes: each write is the same, however often it is executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_applied_twice_is_seen_in_its_rows_count() {
    let (record, verification, _) = replay("ycsb-a", 3_000, Mischief::Twice).await;
    assert_eq!((record.totals.failed, verification.lost_writes), (0, 0), "{:?}", verification.findings);
    assert!(verification.miscounted > 5, "{verification:?}");
    assert!(verification.findings[0].what.contains("writes can have made the row"), "{:?}", verification.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_that_leaves_rows_out_or_ends_early_is_seen() {
    for mischief in [Mischief::LeavesOut(50), Mischief::EndsBefore(120)] {
        let (record, verification, _) = replay("ycsb-e", 1_000, mischief).await;
        assert!(record.totals.wrong_answers > 0, "{mischief:?}");
        assert!(record.messages.iter().any(|message| message.contains("left out")), "{:?}", record.messages);
        // Once it has stopped nothing is wrong any more.
        assert_eq!((verification.lost_writes, verification.wrong_pages), (0, 0), "{:?}", verification.findings);
    }
}

/// Breaks if only the keys that the run has written are looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_nobody_wrote_and_a_wrong_listing_are_found_at_the_end() {
    let target = Memory::new();
    let loaded = || async {
        let mut ledger = Ledger::new(7, 30_000);
        target.rows.lock().unwrap().clear();
        let rows = (0..25_000).map(|key| (key * 2, 1));
        load(&target, &mut ledger, rows, LoadOptions::default(), |_| {}).await.unwrap();
        ledger
    };
    let verify = |ledger| verify(&target, ledger, VerifyOptions::default(), |_| {});
    let good = verify(loaded().await).await.unwrap();
    assert_eq!((good.listed_rows, good.unwritten_rows, good.wrong_pages), (25_000, 0, 0), "{:?}", good.findings);

    let ledger = loaded().await;
    let row = target.rows.lock().unwrap()[&2].clone();
    target.rows.lock().unwrap().insert(49_999, StoredRow { key: 49_999, ..row });
    let stray = verify(ledger).await.unwrap();
    assert_eq!((stray.lost_writes, stray.unwritten_rows, stray.listed_rows), (0, 1, 25_001));
    assert_eq!(stray.findings[0], Finding { key: 49_999, what: "it is there and was never written".to_owned() });

    for mischief in [Mischief::LeavesOut(30_000), Mischief::EndsBefore(30_000)] {
        let ledger = loaded().await;
        target.misbehave(mischief);
        let short = verify(ledger).await.unwrap();
        target.misbehave(Mischief::None);
        assert_eq!((short.lost_writes, short.wrong_pages), (0, 1), "{mischief:?}: {:?}", short.findings);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_value_is_found_by_reading_back() {
    let corrupt = Mischief::CorruptKey(first_updated_key("uniform"));
    let (_, verification, _) = replay("uniform", 2_000, corrupt).await;
    assert_eq!(verification.lost_writes, 1);
    assert!(verification.findings[0].what.starts_with("the value is not the one written"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_outcomes_are_failures_and_not_losses() {
    for mischief in [Mischief::ApplyAndHide, Mischief::DropAndHide] {
        for scenario in ["ycsb-a", "sequential", "zipf:2.0"] {
            let (record, verification, _) = replay(scenario, 5_000, mischief).await;
            assert!(record.totals.failed > 100, "{scenario}");
            assert_eq!(record.totals.wrong_answers, 0, "{scenario}: {:?}", record.messages);
            assert_eq!(verification.lost_writes, 0, "{scenario} {mischief:?}: {:?}", verification.findings);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_reads_are_seen() {
    let (record, verification, _) = replay("ycsb-a", 3_000, Mischief::StaleReads).await;
    assert!(record.totals.wrong_answers > 100);
    assert!(record.messages[0].contains("acknowledged before it was"), "{:?}", record.messages);
    assert_eq!(verification.lost_writes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_and_failures_are_counted() {
    let (record, _, _) = replay("uniform", 3_000, Mischief::Retries).await;
    assert_eq!((record.totals.retried, record.totals.ok, record.totals.failed), (1_000, 3_000, 0));
    let (record, verification, _) = replay("uniform", 3_000, Mischief::Fails).await;
    assert_eq!((record.totals.failed, record.totals.ok), (600, 2_400));
    assert_eq!(verification.lost_writes, 0);
    assert!(record.messages[0].ends_with(": refused"), "{:?}", record.messages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_counted_per_second_and_seconds_are_observed() {
    let target = Memory::new();
    let generator = "uniform".parse::<Scenario>().unwrap().generator(200, 7).unwrap();
    let config = ReplayConfig {
        pace: LoadPace::Rate { operations_per_s: 1_000.0, max_in_flight: 8 },
        duration: Duration::from_millis(1_200),
        shards: 2,
        ..ReplayConfig::default()
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let seen = seen.clone();
        move |summary: &SecondSummary| seen.lock().unwrap().push(summary.clone())
    };
    let replay = Replay::new(config, Box::new(Endless(generator)), Ledger::new(7, 1_000)).unwrap();
    let control = replay.control();
    let Replayed { record, .. } = replay.run(target, observer).await.unwrap();
    assert!(control.elapsed() >= Duration::from_millis(1_190), "the last operation is due at 1.199 s");
    assert_eq!(record.totals.operations, 1_200);
    let imbalance = record.seconds[0].imbalance().unwrap();
    assert!((1.0..1.2).contains(&imbalance), "{imbalance}");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|summary| summary.second).collect::<Vec<_>>(), [0, 1]);
    assert!(seen[0].ok > 900 && seen[0].p50_ms.is_some());
}

/// The latency in milliseconds at a quantile of the whole run.
fn quantile(record: &ReplayRecord, quantile: f64) -> f64 {
    let mut all = recorder::latency_histogram();
    for second in &record.seconds {
        all.add(&second.latency).unwrap();
    }
    recorder::quantile_ms(&all, quantile).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_charged_to_every_operation_that_was_due_in_it() {
    // 1,000 operations at 1,000 per second with 4 under way, and one stall of 300 ms. A third of
    // the operations is due while nothing answers, so the 75th percentile is far up, and 90 % is
    // more than 200 ms.
    let run = |pace| {
        let config = ReplayConfig { pace, max_operations: Some(1_000), ..ReplayConfig::default() };
        replay_with(config, "uniform", Mischief::Stalls(300))
    };
    let (at_rate, _, _) = run(LoadPace::Rate { operations_per_s: 1_000.0, max_in_flight: 4 }).await;
    assert!(quantile(&at_rate, 0.75) > 30.0, "p75 {}", quantile(&at_rate, 0.75));
    assert!(quantile(&at_rate, 0.9) > 150.0, "p90 {}", quantile(&at_rate, 0.9));
    // As fast as possible only the operations under way notice: 4 of 1,000. That is what would be
    // reported without the correction.
    let (uncorrected, _, _) = run(LoadPace::AsFastAsPossible { workers: 4 }).await;
    assert!(quantile(&uncorrected, 0.9) < 50.0, "p90 {}", quantile(&uncorrected, 0.9));
    assert!(quantile(&uncorrected, 1.0) > 250.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_never_ends_is_abandoned_and_not_lost() {
    let config = ReplayConfig { max_operations: Some(500), drain_timeout_ms: 100, ..ReplayConfig::default() };
    let (record, verification, _) = replay_with(config, "ycsb-a", Mischief::Hangs(250)).await;
    assert_eq!(record.totals.abandoned, 1);
    assert_eq!(verification.lost_writes, 0, "{:?}", verification.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_can_be_stopped_and_a_full_ledger_stops_it() {
    let target = Memory::new();
    let generator = || "uniform".parse::<Scenario>().unwrap().generator(200, 7).unwrap();
    let config =
        ReplayConfig { pace: LoadPace::Rate { operations_per_s: 0.1, max_in_flight: 4 }, ..ReplayConfig::default() };
    let replay = Replay::new(config, Box::new(Endless(generator())), Ledger::new(7, 1_000)).unwrap();
    let control = replay.control();
    let running = tokio::spawn(replay.run(target.clone(), |_: &SecondSummary| {}));
    control.stop();
    let stopped = running.await.unwrap().unwrap();
    assert!(stopped.record.duration < Duration::from_secs(5), "{:?}", stopped.record.duration);

    let replay = Replay::new(ReplayConfig::default(), Box::new(Endless(generator())), Ledger::new(7, 3)).unwrap();
    let error = replay.run(target, |_: &SecondSummary| {}).await.err().unwrap();
    assert!(matches!(error, ReplayError::LedgerFull(LedgerFull { max_keys: 3 })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loading_survives_failures_and_unknown_outcomes() {
    for mischief in [Mischief::Fails, Mischief::ApplyAndHide, Mischief::DropAndHide] {
        let target = Memory::new();
        target.misbehave(mischief);
        let mut ledger = Ledger::new(7, 1_000);
        let options = LoadOptions { batch_rows: 10, retry_after_ms: 0, ..LoadOptions::default() };
        let loaded = load(&target, &mut ledger, (0..300).map(|key| (key, 10)), options, |_| {}).await.unwrap();
        assert_eq!((loaded, target.rows.lock().unwrap().len()), (300, 300), "{mischief:?}");
        target.misbehave(Mischief::None);
        let verification = verify(&target, ledger, VerifyOptions::default(), |_| {}).await.unwrap();
        assert_eq!((verification.verified_keys, verification.lost_writes), (300, 0), "{mischief:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_back_is_not_called_intact() {
    let target = Memory::new();
    let mut ledger = Ledger::new(7, 1_000);
    load(&target, &mut ledger, [(1, 10), (2, 10)], LoadOptions::default(), |_| {}).await.unwrap();
    target.misbehave(Mischief::Fails);
    let options = VerifyOptions { concurrency: 1, unreadable_ms: 0, retry_after_ms: 0 };
    let verification = verify(&target, ledger, options, |_| {}).await.unwrap();
    assert_eq!((verification.verified_keys, verification.unread_keys, verification.lost_writes), (1, 1, 0));
    assert_eq!(verification.findings[0].what, "it could not be read: refused");
}

#[test]
fn impossible_settings_are_refused_by_name() {
    let refuse = |change: fn(&mut ReplayConfig)| {
        let mut config = ReplayConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert_eq!(
        refuse(|config| config.pace = LoadPace::Rate { operations_per_s: f64::NAN, max_in_flight: 1 }),
        "replay: rate is NaN, expected 0.001 to 10000000 operations per second"
    );
    assert_eq!(refuse(|config| config.shards = 0), "replay: shards is 0, expected at least 1");
    assert!(refuse(|config| config.duration = Duration::ZERO).starts_with("replay: duration is 0 s"));
    assert!(refuse(|config| config.pace = LoadPace::AsFastAsPossible { workers: 0 }).contains("1 to 10000"));
}
