//! Reports of runs made by hand.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::super::run_record::{FaultRecord, OperatorRecord, RangeRecord};
use super::*;
use crate::replay::{Finding, ReplayRecord, Totals, Verification};

/// A second in which shard i answered `per_shard[i]` statements, with all latencies at
/// `latency_ms`.
fn second(per_shard: &[u64], latency_ms: u64) -> SecondRecord {
    let mut second = SecondRecord::empty(per_shard.len() as u32);
    for (shard, statements) in per_shard.iter().enumerate().filter(|(_, statements)| **statements > 0) {
        second.per_shard.insert(shard as u32 + 1, *statements);
        second.ok += statements;
    }
    second.latency.record_n(latency_ms * 1_000, second.ok as u32).unwrap();
    second
}

fn run(seconds: Vec<SecondRecord>) -> RunRecord {
    let ok = seconds.iter().map(|second| second.ok).sum();
    RunRecord {
        workload: "mixgraph".to_owned(),
        seed: 7,
        shards: 3,
        hottest_key_share: 0.01,
        replay: ReplayRecord {
            duration: Duration::from_secs(seconds.len() as u64),
            seconds,
            totals: Totals { operations: ok, ok, retried: 5, ..Totals::default() },
            hottest_key_share: 0.01,
            messages: Vec::new(),
        },
        verification: Verification { verified_keys: 10, ..Verification::default() },
        operators: Vec::new(),
        ranges: vec![RangeRecord { home_shard: 1, load: 3.0, bytes: 1_000 }],
        differing_replicas: Some(0),
        owners_wrong: Some(0),
        faults: Vec::new(),
        shard_capacity_per_s: None,
        findings: Vec::new(),
    }
}

fn operator(kind: CompletedOperator, started_s: f64, ended_s: f64) -> OperatorRecord {
    OperatorRecord { kind, started_s, ended_s, moved_bytes: 0, pause_ms: None }
}

/// Twenty seconds: all on one shard for five, uneven for three, level from second 8 on.
fn levelled() -> RunRecord {
    let mut seconds = vec![second(&[900, 0, 0], 2); 5];
    seconds.extend(vec![second(&[600, 300, 0], 30); 3]);
    seconds.extend(vec![second(&[700, 600, 500], 4); 12]);
    let mut run = run(seconds);
    run.operators = vec![
        operator(CompletedOperator::Split, 4.8, 5.2),
        operator(CompletedOperator::Split, 5.5, 5.6),
        OperatorRecord { moved_bytes: 400, pause_ms: Some(3.0), ..operator(CompletedOperator::Move, 5.7, 7.0) },
        OperatorRecord { moved_bytes: 300, pause_ms: Some(9.0), ..operator(CompletedOperator::Move, 6.0, 7.5) },
        operator(CompletedOperator::Merge, 9.0, 9.1),
    ];
    run
}

#[test]
fn a_levelled_run() {
    let report = assemble(&levelled()).unwrap();
    assert_eq!((report.first_split_s, report.level_s), (Some(5.2), Some(8)));
    assert_eq!((report.splits, report.moves, report.merges, report.moves_after_level), (2, 2, 1, 0));
    assert_eq!((report.moved_bytes, report.least_moved_bytes), (700, 584));
    assert_eq!(report.imbalance.len(), 20);
    assert_eq!((report.imbalance[0], report.imbalance[6], report.imbalance[19]), (Some(3.0), Some(2.0), Some(1.1667)));
    assert_eq!((report.imbalance_floor, report.imbalance_final), (1.0, Some(1.1667)));
    assert_eq!(report.pause_ms, PauseMs { p50: Some(3.0), p99: Some(9.0), max: Some(9.0) });
    assert_eq!(report.throughput_per_s, Throughput { before: Some(900.0), after: Some(1_800.0) });
    let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() <= expected * 0.01;
    assert!(near(report.latency_ms.before.p99, 2.0), "{:?}", report.latency_ms);
    assert!(near(report.latency_ms.during.p50, 30.0), "{:?}", report.latency_ms);
    assert!(near(report.latency_ms.after.p999, 4.0), "{:?}", report.latency_ms);
    assert_eq!(report.statements, Statements { ok: 4_500 + 2_700 + 21_600, retried: 5, failed: 0 });
}

#[test]
fn a_single_uneven_second_later_moves_level_behind_it() {
    let mut run = levelled();
    run.replay.seconds[17] = second(&[800, 500, 500], 4);
    assert_eq!(assemble(&run).unwrap().level_s, Some(18));
    run.replay.seconds[19] = second(&[800, 500, 500], 4);
    let report = assemble(&run).unwrap();
    assert_eq!((report.level_s, report.throughput_per_s.after), (None, None));
    assert_eq!(report.latency_ms.after, Quantiles::default());
    assert!(report.to_string().contains("never level"));
}

#[test]
fn the_floor_follows_the_hottest_key_and_the_shards_of_each_second() {
    let mut run = levelled();
    // Half of the load on one key: the floor is 1.5, and an imbalance of 1.875 or less is level.
    run.hottest_key_share = 0.5;
    let report = assemble(&run).unwrap();
    assert_eq!((report.imbalance_floor, report.level_s), (1.5, Some(8)));
    // With four shards from second 10 on, 700/600/500/0 of 1,800 is 1.556 of 1.25 · 2.
    for second in &mut run.replay.seconds[10..] {
        second.shards = 4;
    }
    run.shards = 4;
    let report = assemble(&run).unwrap();
    assert_eq!((report.imbalance_floor, report.level_s, report.imbalance[12]), (2.0, Some(8), Some(1.5556)));
}

#[test]
fn silent_seconds_are_null_and_the_last_part_of_a_second_is_left_out() {
    let mut run = levelled();
    run.replay.seconds[10] = SecondRecord::empty(3);
    run.replay.seconds.push(second(&[5, 0, 0], 1));
    run.replay.duration = Duration::from_millis(20_400);
    let report = assemble(&run).unwrap();
    assert_eq!((report.imbalance.len(), report.imbalance[10], report.level_s), (20, None, Some(8)));
    assert_eq!(report.throughput_per_s.after, Some(1_650.0));
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert!(json["imbalance"][10].is_null());
}

#[test]
fn moves_after_level_are_counted() {
    let mut run = levelled();
    run.operators.push(operator(CompletedOperator::Move, 8.5, 9.0));
    // After the end of the load.
    run.operators.push(operator(CompletedOperator::Move, 20.5, 21.0));
    assert_eq!(assemble(&run).unwrap().moves_after_level, 1);
}

#[test]
fn a_run_that_was_level_from_the_start_has_only_an_after() {
    let report = assemble(&run(vec![second(&[100, 100, 100], 1); 4])).unwrap();
    assert_eq!((report.first_split_s, report.level_s), (None, Some(0)));
    assert_eq!(report.throughput_per_s, Throughput { before: None, after: Some(300.0) });
    assert_eq!(report.pause_ms, PauseMs::default());
}

#[test]
fn json_has_every_field_that_is_promised() {
    let mut run = levelled();
    run.faults.push(FaultRecord { at_s: 6.5, what: "killed the leader of shard 1".to_owned() });
    let json: serde_json::Value = serde_json::from_str(&assemble(&run).unwrap().to_json()).unwrap();
    for path in [
        "/workload",
        "/seed",
        "/shards",
        "/duration_s",
        "/imbalance_floor",
        "/imbalance_final",
        "/imbalance/0",
        "/first_split_s",
        "/level_s",
        "/splits",
        "/moves",
        "/merges",
        "/moved_bytes",
        "/least_moved_bytes",
        "/pause_ms/p50",
        "/pause_ms/p99",
        "/pause_ms/max",
        "/latency_ms/before/p50",
        "/latency_ms/before/p99",
        "/latency_ms/before/p999",
        "/latency_ms/during/p50",
        "/latency_ms/during/p99",
        "/latency_ms/during/p999",
        "/latency_ms/after/p50",
        "/latency_ms/after/p99",
        "/latency_ms/after/p999",
        "/statements/ok",
        "/statements/retried",
        "/statements/failed",
        "/throughput_per_s/before",
        "/throughput_per_s/after",
        "/lost_writes",
        "/differing_replicas",
        "/owners_wrong",
        "/faults/0/at_s",
        "/faults/0/what",
    ] {
        assert!(json.pointer(path).is_some_and(|value| !value.is_null()), "{path} is missing");
    }
}

#[test]
fn impossible_records_are_refused_as_json() {
    let refused = |change: fn(&mut RunRecord)| {
        let mut run = levelled();
        change(&mut run);
        assemble(&run).unwrap_err()
    };
    assert_eq!(refused(|run| run.shards = 0).code, "no-shards");
    assert_eq!(refused(|run| run.replay.seconds.clear()).code, "no-seconds");
    assert_eq!(refused(|run| run.hottest_key_share = f64::NAN).code, "wrong-share");
    assert_eq!(refused(|run| run.operators[0].ended_s = 1.0).code, "wrong-operator-times");
    assert_eq!(refused(|run| run.operators[2].pause_ms = Some(-1.0)).code, "wrong-pause");
    assert_eq!(refused(|run| run.ranges[0].load = f64::INFINITY).code, "wrong-load");
    let json: serde_json::Value = serde_json::from_str(&refused(|run| run.shards = 0).to_json()).unwrap();
    assert_eq!(json["error"]["code"], "no-shards");
}

#[test]
fn the_text_says_what_was_lost_and_under_which_limit() {
    let mut run = levelled();
    run.shard_capacity_per_s = Some(600);
    run.differing_replicas = None;
    run.findings.push("chaos: 3 of 4 faults were made".to_owned());
    run.verification.lost_writes = 1;
    run.verification.findings.push(Finding { key: 5, what: "version 2 was acknowledged".to_owned() });
    let text = assemble(&run).unwrap().to_string();
    for part in [
        "mixgraph with seed 7, 3 shards, 20 s of load",
        "imbalance    █████▅▅▅▂▂▂▂▂▂▂▂▂▂▂▂",
        "at the end 1.17 (floor 1.00; level is at most 1.25)",
        "first split at 5.2 s, level from second 8",
        "2 splits, 2 moves (0 after level), 1 merges; 700 B moved, at least 584 B needed",
        "900 statements/s before, 1800 after  (each shard limited to 600/s, as if on a machine of its own)",
        "10 keys: 1 lost, 0 unreadable; replicas that differ: not checked",
        "0 rows: 0 that nobody wrote, 0 whose writes are miscounted; pages that are wrong: 0",
        "met          level within 10 s, to the end: 8 s",
        "MISSED       no acknowledged write lost: 1",
        "MISSED       no replica differs: not checked",
        "met          write pauses of at most 50 ms (p99): 9.0 ms",
        "MISSED       2.2 times the throughput, each shard limited to 600/s: 2.00 times",
        "WRONG        chaos: 3 of 4 faults were made",
        "note         key 5: version 2 was acknowledged",
    ] {
        assert!(text.contains(part), "missing {part:?} in\n{text}");
    }
}

#[test]
fn only_targets_that_apply_are_held_against_a_run() {
    let quiet = assemble(&run(vec![second(&[100, 100, 100], 1); 4])).unwrap();
    assert!(quiet.is_good() && quiet.targets.iter().all(|target| target.met), "{:?}", quiet.targets);
    assert_eq!(quiet.targets.len(), 5);
    let mut slow = levelled();
    slow.operators[2].pause_ms = Some(51.0);
    slow.replay.seconds = [vec![second(&[900, 0, 0], 2); 21], vec![second(&[700, 600, 500], 4); 5]].concat();
    slow.replay.duration = Duration::from_secs(26);
    let slow = assemble(&slow).unwrap();
    let missed: Vec<_> = slow.targets.iter().filter(|t| !t.met).map(|t| t.found.as_str()).collect();
    // A slow run is not a wrong one.
    assert!(slow.is_good());
    assert_eq!(missed, ["21 s", "2.08 times", "51.0 ms"]);
    let wrong: [fn(&mut Verification); 3] =
        [|found| found.miscounted = 1, |found| found.unwritten_rows = 1, |found| found.wrong_pages = 1];
    for make in wrong {
        let mut run = levelled();
        make(&mut run.verification);
        assert!(!assemble(&run).unwrap().is_good());
    }
    let mut wrong = levelled();
    wrong.findings.push("operator 7 still runs".to_owned());
    assert!(!assemble(&wrong).unwrap().is_good());
}
