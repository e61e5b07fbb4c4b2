//! Faults in a shard's reports: the memory of them, and how often they are logged.

use super::report_validation::ReportFault;

/// A fault is logged at most this often per shard, unless it differs from the previous one, in
/// milliseconds.
const LOG_FAULT_EVERY_MS: u64 = 10_000;

/// The latest fault in a shard's reports.
#[derive(Debug, Clone)]
pub struct FaultView {
    /// The fault.
    pub fault: ReportFault,
    /// When the report came, in milliseconds of the state machine's time.
    pub at_ms: u64,
    logged_ms: u64,
}

impl FaultView {
    /// The view after another fault, and whether that fault is to be logged.
    pub(super) fn after(known: Option<&FaultView>, fault: &ReportFault, now_ms: u64) -> (FaultView, bool) {
        let logged_ms = known.filter(|known| known.fault.what == fault.what).map(|known| known.logged_ms);
        let log = logged_ms.is_none_or(|at| at + LOG_FAULT_EVERY_MS <= now_ms);
        let logged_ms = logged_ms.filter(|_| !log).unwrap_or(now_ms);
        (FaultView { fault: fault.clone(), at_ms: now_ms, logged_ms }, log)
    }
}

/// The result of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether it was taken in: it is the latest of its shard, and valid.
    pub taken: bool,
    /// The fault in it, if any.
    pub fault: Option<ReportFault>,
    /// Whether the fault is to be logged: it was not logged lately.
    pub log: bool,
}
