//! How a run shows its progress: a trait, so that a run needs no terminal.

use crate::run::observation::Observation;
use evenkeel_protocol::api::OperatorBody;
use evenkeel_workloads::replay::SecondSummary;
use std::sync::Arc;

/// Receives the progress of a run.
pub trait ProgressListener: Send + Sync {
    /// One line of text.
    fn line(&self, text: &str);
    /// A task of `total` steps starts.
    fn task(&self, what: &str, total: u64) -> Arc<dyn TaskProgress>;
    /// The load starts and lasts `duration_s` seconds, on shards with this rate limit in statements
    /// per second, if they have one.
    fn load_starts(&self, duration_s: f64, limit: Option<u64>);
    /// The load has ended.
    fn load_ended(&self);
    /// A second of load is over.
    fn second(&self, summary: &SecondSummary);
    /// The placement driver was observed.
    fn observed(&self, observation: &Observation);
    /// An operator is new, or has changed from `before`.
    fn operator(&self, before: Option<&OperatorBody>, now: &OperatorBody);
}

/// Receives the progress of one task.
pub trait TaskProgress: Send + Sync {
    /// `steps` steps are done.
    fn set(&self, steps: u64);
    /// All steps are done.
    fn done(&self);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl ProgressListener for Silent {
    fn line(&self, _text: &str) {}

    fn task(&self, _what: &str, _total: u64) -> Arc<dyn TaskProgress> {
        Arc::new(Silent)
    }

    fn load_starts(&self, _duration_s: f64, _limit: Option<u64>) {}

    fn load_ended(&self) {}

    fn second(&self, _summary: &SecondSummary) {}

    fn observed(&self, _observation: &Observation) {}

    fn operator(&self, _before: Option<&OperatorBody>, _now: &OperatorBody) {}
}

impl TaskProgress for Silent {
    fn set(&self, _steps: u64) {}

    fn done(&self) {}
}
