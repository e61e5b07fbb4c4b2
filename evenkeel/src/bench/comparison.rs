//! Measurements of two systems, their ratios and their goals, as text. Pure.

use crate::display::table;
use serde::Serialize;

/// The measurement of one system. Of several rounds, the median.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Measurement {
    /// Operations a second.
    pub per_s: f64,
    /// Median latency, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the latency, in milliseconds.
    pub p99_ms: f64,
    /// Operations that failed, in all rounds.
    pub failed: u64,
}

/// The same work by Evenkeel and by a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The operation: `update`, `read`, `routes`.
    pub what: String,
    /// Clients, each with one operation under way at a time.
    pub clients: usize,
    /// Evenkeel.
    pub evenkeel: Measurement,
    /// The reference: `postgresql` or `nginx`.
    pub beside: String,
    /// The reference's measurement.
    pub other: Measurement,
    /// Evenkeel's throughput divided by the reference's.
    pub ratio: f64,
    /// The least ratio that meets the goal; absent without a goal.
    pub bar: Option<f64>,
    /// Whether the goal is met; absent without a goal.
    pub met: Option<bool>,
}

impl Comparison {
    /// The comparison of these rounds.
    pub fn new(
        what: &str,
        clients: usize,
        beside: &str,
        evenkeel: &[Measurement],
        other: &[Measurement],
        bar: Option<f64>,
    ) -> Self {
        let (evenkeel, other) = (median(evenkeel), median(other));
        let ratio = if other.per_s > 0.0 { evenkeel.per_s / other.per_s } else { 0.0 };
        let met = bar.map(|bar| ratio >= bar);
        Comparison { what: what.into(), clients, evenkeel, beside: beside.into(), other, ratio, bar, met }
    }
}

/// The median of each measure over the rounds. Failures are summed.
pub fn median(rounds: &[Measurement]) -> Measurement {
    let middle = |value: fn(&Measurement) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    Measurement {
        per_s: middle(|f| f.per_s),
        p50_ms: middle(|f| f.p50_ms),
        p99_ms: middle(|f| f.p99_ms),
        failed: rounds.iter().map(|f| f.failed).sum(),
    }
}

/// The comparisons as a table.
pub fn render(comparisons: &[Comparison]) -> String {
    let latency = |f: &Measurement| format!("{:.2} / {:.2}", f.p50_ms, f.p99_ms);
    let row = |c: &Comparison| {
        let bar = match (c.bar, c.met) {
            (Some(bar), Some(met)) => format!("{bar:.2} {}", if met { "met" } else { "MISSED" }),
            _ => "-".into(),
        };
        vec![
            c.what.clone(),
            c.clients.to_string(),
            format!("{:.0}/s", c.evenkeel.per_s),
            latency(&c.evenkeel),
            c.beside.clone(),
            format!("{:.0}/s", c.other.per_s),
            latency(&c.other),
            format!("{:.2}", c.ratio),
            bar,
            (c.evenkeel.failed + c.other.failed).to_string(),
        ]
    };
    let heading = [
        "what",
        ">clients",
        ">evenkeel",
        ">p50 / p99 ms",
        "beside",
        ">its",
        ">p50 / p99 ms",
        ">ratio",
        ">bar",
        ">failed",
    ];
    table(&heading, &comparisons.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(per_s: f64) -> Measurement {
        Measurement { per_s, p50_ms: 1.0, p99_ms: 2.0, failed: 1 }
    }

    #[test]
    fn the_median_round_counts_and_no_failure_is_forgotten() {
        let rounds = [figure(10.0), figure(1000.0), figure(20.0)];
        assert_eq!(median(&rounds), Measurement { failed: 3, ..figure(20.0) });
        assert_eq!(median(&[]).per_s, 0.0);
    }

    #[test]
    fn a_bar_is_met_or_missed() {
        let met = Comparison::new("update", 16, "postgresql", &[figure(50.0)], &[figure(100.0)], Some(0.5));
        assert_eq!((met.ratio, met.met), (0.5, Some(true)));
        let missed = Comparison::new("update", 16, "postgresql", &[figure(49.0)], &[figure(100.0)], Some(0.5));
        assert_eq!(missed.met, Some(false));
        let text = render(&[met, missed]);
        assert!(text.contains("0.50 met") && text.contains("0.50 MISSED"), "{text}");
    }
}
