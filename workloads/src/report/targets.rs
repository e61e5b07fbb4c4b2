//! Targets of a run, compared with its figures.

use super::report_data::{PauseMs, Report, RunTarget};

/// The load should be level within this time, in seconds.
const LEVEL_WITHIN_S: u64 = 10;

/// At the end the imbalance should be at most this many times its floor: less than what counts as
/// level, since a balancer that has had time should have used it.
const STEADY_FACTOR: f64 = 1.10;

/// Of a hundred moves, 99 should let writes wait for no longer than this, in milliseconds.
const PAUSE_P99_MS: f64 = 50.0;

/// What the throughput should grow by, once the load is level, where shards have a limit each.
const THROUGHPUT_RATIO: f64 = 2.2;

/// The fewest shards with which it can grow by that much.
const RATIO_FROM_SHARDS: u32 = 3;

/// The targets that apply to this run. A run without moves has no pauses to judge; without a limit
/// for each shard, throughput says nothing about the balance.
pub(super) fn judge(report: &Report) -> Vec<RunTarget> {
    let target = |met, wanted: String, found: String| RunTarget { wanted, found, met };
    let none_of = |count: Option<u64>, what: &str| {
        let found = count.map_or("not checked".to_owned(), |count| count.to_string());
        target(count == Some(0), format!("no {what}"), found)
    };
    let mut targets = vec![
        target(
            report.level_s.is_some_and(|second| second <= LEVEL_WITHIN_S),
            format!("level within {LEVEL_WITHIN_S} s, to the end"),
            report.level_s.map_or("never level".to_owned(), |second| format!("{second} s")),
        ),
        target(
            report.imbalance_final.is_some_and(|imbalance| imbalance <= STEADY_FACTOR * report.imbalance_floor),
            format!("an imbalance of at most {STEADY_FACTOR:.2} times its floor at the end"),
            report
                .imbalance_final
                .map_or("nothing was answered".to_owned(), |i| format!("{:.2} times", i / report.imbalance_floor)),
        ),
        none_of(Some(report.statements.failed), "statement failed"),
        none_of(Some(report.lost_writes), "acknowledged write lost"),
        none_of(report.differing_replicas, "replica differs"),
    ];
    if let PauseMs { p99: Some(p99), .. } = report.pause_ms {
        let wanted = format!("write pauses of at most {PAUSE_P99_MS} ms (p99)");
        targets.push(target(p99 <= PAUSE_P99_MS, wanted, format!("{p99:.1} ms")));
    }
    let throughput = report.throughput_per_s.before.filter(|before| *before > 0.0).zip(report.throughput_per_s.after);
    if let (Some(limit), Some((before, after))) = (report.shard_capacity_per_s, throughput)
        && report.shards >= RATIO_FROM_SHARDS
    {
        let wanted = format!("{THROUGHPUT_RATIO} times the throughput, each shard limited to {limit}/s");
        let ratio = after / before;
        targets.push(target(ratio >= THROUGHPUT_RATIO, wanted, format!("{ratio:.2} times")));
    }
    targets
}
