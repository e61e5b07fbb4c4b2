//! The metrics of the placement driver, for Prometheus. [`install`] lists and describes all of
//! them.

use crate::balancer::Imbalance;
use crate::load::{LoadModel, Observed};
use crate::operators::STUCK_AFTER_MS;
use crate::state::{Operator, PlacementState, Status, Work};
use evenkeel_protocol::ShardId;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Upper limits of the histograms' buckets, in seconds.
const BUCKETS_S: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Installs the recorder of this process, once. If another is installed already, `/metrics` is
/// empty.
pub fn install() {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS_S).unwrap_or_else(|_| PrometheusBuilder::new());
        let handle = builder.install_recorder().ok();
        describe_counters();
        describe_gauges();
        describe_histograms();
        handle
    });
}

fn describe_counters() {
    use Unit::{Bytes, Count};
    describe_counter!(
        "evenkeel_placement_reports_total",
        Count,
        "Reports of shards, by whether this replica accepted them"
    );
    describe_counter!(
        "evenkeel_placement_report_faults_total",
        Count,
        "Reports of a shard with impossible numbers, by kind of number and by whether the whole report was refused"
    );
    describe_counter!("evenkeel_placement_operators_total", Count, "Operators that ended, by kind and by how");
    describe_counter!("evenkeel_placement_moved_bytes_total", Bytes, "Bytes of rows that moves brought in");
    describe_counter!(
        "evenkeel_placement_differs_total",
        Count,
        "ALARM: moves whose two copies differed (R24); the source keeps its copy"
    );
    describe_counter!("evenkeel_placement_lookups_total", Count, "Lookups of a key's route");
    describe_counter!("evenkeel_placement_rest_requests_total", Count, "Other REST requests, by status");
}

fn describe_gauges() {
    use Unit::{Bytes, Count, Seconds};
    describe_gauge!("evenkeel_placement_leads", Count, "1 on the replica that leads, and only while it serves as such");
    describe_gauge!("evenkeel_placement_operators_running", Count, "Operators under way");
    describe_gauge!("evenkeel_placement_operators_stuck", Count, "Operators at one step for more than 30 seconds");
    describe_gauge!(
        "evenkeel_placement_shard_clock_off_seconds",
        Seconds,
        "How far the clock of a shard's leader is ahead of the median of all"
    );
    describe_gauge!("evenkeel_placement_ranges", Count, "Ranges");
    describe_gauge!(
        "evenkeel_placement_restoring",
        "1 while no numbers are assigned, because the state comes from an old copy and not all shards have reported"
    );
    describe_gauge!(
        "evenkeel_placement_missing",
        Count,
        "Objects that shards report and the placement driver lacks, or waits for: GET /v1/status names them"
    );
    describe_gauge!(
        "evenkeel_placement_replica_differences",
        Count,
        "ALARM: places where the replicas of a shard hold different rows (R31); GET /v1/shards names them"
    );
    describe_gauge!(
        "evenkeel_placement_scrubbed_bytes",
        Bytes,
        "Size of the rows whose replicas a shard's leader has compared since it leads"
    );
    describe_gauge!(
        "evenkeel_placement_scrub_rounds",
        Count,
        "Number of times that a shard's leader has compared all rows"
    );
    describe_gauge!(
        "evenkeel_placement_imbalance",
        "The highest load of a shard divided by the mean, moves counted at their destination"
    );
    describe_gauge!("evenkeel_placement_imbalance_floor", "The minimum imbalance that the hottest key allows");
    describe_gauge!(
        "evenkeel_placement_shard_load",
        "Statements per second of a shard, moves counted at their destination"
    );
    describe_gauge!(
        "evenkeel_placement_watchers",
        Count,
        "Open watches of the routing table and the coordination store"
    );
    describe_gauge!("evenkeel_placement_kv_keys", Count, "Keys of the coordination store");
    describe_gauge!("evenkeel_placement_kv_bytes", Bytes, "Size of the coordination store's entries");
    describe_gauge!("evenkeel_placement_kv_revision", Count, "The coordination store's revision");
}

fn describe_histograms() {
    use Unit::Seconds;
    describe_histogram!(
        "evenkeel_placement_move_pause_seconds",
        Seconds,
        "How long writes to a range waited at its switch"
    );
    describe_histogram!("evenkeel_placement_move_seconds", Seconds, "Duration of a move from its opening to its end");
}

/// All metrics in the text format of Prometheus.
pub fn render() -> String {
    HANDLE.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// A report came, and this replica accepted it or not.
pub fn report(accepted: bool) {
    counter!("evenkeel_placement_reports_total", "taken" => if accepted { "yes" } else { "no" }).increment(1);
}

/// The fault of a shard's report, if there is one.
pub fn fault(shard: ShardId, observed: &Observed) {
    let Some(fault) = &observed.fault else { return };
    let outcome = if fault.refused { "refused" } else { "left-out" };
    let labels = [("shard", shard.to_string()), ("what", fault.what.to_string()), ("outcome", outcome.to_string())];
    counter!("evenkeel_placement_report_faults_total", &labels).increment(1);
    if observed.log {
        tracing::warn!(%shard, what = fault.what, found = fault.found, outcome, "a shard's report has an impossible number");
    }
}

/// The errors of the shards' clocks. Logs the shards whose clocks are off now and were not
/// `before`, and the reverse. The result is the set of shards whose clocks are off now.
pub fn clocks(load_model: &LoadModel, before: &BTreeSet<ShardId>) -> BTreeSet<ShardId> {
    for shard in load_model.shards.keys() {
        if let Some(off_ms) = load_model.clock_off_ms(*shard) {
            gauge!("evenkeel_placement_shard_clock_off_seconds", "shard" => shard.to_string()).set(off_ms as f64 / 1e3);
        }
    }
    let off: BTreeMap<ShardId, i64> = load_model.clocks_off().collect();
    for (shard, off_ms) in off.iter().filter(|(shard, _)| !before.contains(shard)) {
        tracing::warn!(%shard, off_ms, "the clock of a shard's leader is off: nothing is moved there");
    }
    for shard in before.iter().filter(|shard| !off.contains_key(shard)) {
        tracing::info!(%shard, "the clock of a shard's leader is right again, or cannot be judged");
    }
    off.into_keys().collect()
}

/// An operator has advanced. Every replica counts the transitions that it applies.
pub fn advanced(operator: &Operator) {
    tracing::debug!(operator = %operator.id, step = operator.step.name(), status = operator.status.name(), "operator");
    if !operator.status.is_over() {
        return;
    }
    let kind = match operator.work {
        Work::CreateTable { .. } => "create-table",
        Work::Split { .. } => "split",
        Work::Merge { .. } => "merge",
        Work::Move { .. } => "move",
        Work::SchemaChange { .. } => "schema-change",
    };
    counter!("evenkeel_placement_operators_total", "kind" => kind, "status" => operator.status.name()).increment(1);
    if operator.status == Status::Differs {
        let detail = operator.detail.as_deref().unwrap_or_default();
        tracing::error!(operator = %operator.id, detail, "the two copies of a moved range differ");
        counter!("evenkeel_placement_differs_total").increment(1);
    }
    if let (Work::Move { .. }, Some(pause_us)) = (&operator.work, operator.pause_us) {
        counter!("evenkeel_placement_moved_bytes_total").increment(operator.bytes);
        histogram!("evenkeel_placement_move_pause_seconds").record(pause_us as f64 / 1e6);
        let took_ms = operator.step_since_ms.saturating_sub(operator.began_ms);
        histogram!("evenkeel_placement_move_seconds").record(took_ms as f64 / 1e3);
    }
}

/// The leader has finished a round.
pub fn round(state: &PlacementState, imbalance: &Imbalance, load_model: &LoadModel, missing: usize, now_ms: u64) {
    gauge!("evenkeel_placement_imbalance").set(imbalance.ratio_to_mean);
    gauge!("evenkeel_placement_imbalance_floor").set(imbalance.floor);
    for (shard, load) in &imbalance.loads {
        gauge!("evenkeel_placement_shard_load", "shard" => shard.to_string()).set(*load);
    }
    gauge!("evenkeel_placement_restoring").set(if state.restoring { 1.0 } else { 0.0 });
    gauge!("evenkeel_placement_missing").set(missing as f64);
    for (shard, view) in &load_model.shards {
        let (shard, scrub) = (shard.to_string(), &view.report.scrub);
        gauge!("evenkeel_placement_replica_differences", "shard" => shard.clone()).set(scrub.differences.len() as f64);
        gauge!("evenkeel_placement_scrubbed_bytes", "shard" => shard.clone()).set(scrub.bytes as f64);
        gauge!("evenkeel_placement_scrub_rounds", "shard" => shard).set(scrub.rounds as f64);
    }
    gauge!("evenkeel_placement_ranges").set(state.ranges.len() as f64);
    gauge!("evenkeel_placement_kv_keys").set(state.kv.len() as f64);
    gauge!("evenkeel_placement_kv_bytes").set(state.kv.bytes() as f64);
    gauge!("evenkeel_placement_kv_revision").set(state.kv.revision() as f64);
    gauge!("evenkeel_placement_operators_running").set(state.running().count() as f64);
    let stuck = state.running().filter(|operator| operator.step_since_ms + STUCK_AFTER_MS < now_ms).count();
    gauge!("evenkeel_placement_operators_stuck").set(stuck as f64);
}

/// Whether this replica leads.
pub fn leads(leads: bool) {
    gauge!("evenkeel_placement_leads").set(if leads { 1.0 } else { 0.0 });
}
