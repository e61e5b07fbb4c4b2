//! Metrics of the log, labelled by group.

/// The metrics of one group's log.
pub(crate) struct LogMetrics {
    /// Turns of the event loop.
    pub(crate) turns: metrics::Counter,
    /// Duration of each sync that wrote, in seconds.
    pub(crate) syncs: metrics::Histogram,
    /// Entries appended on this replica's initiative.
    pub(crate) proposals: metrics::Counter,
    /// Proposals that came after the end of their leadership.
    pub(crate) dropped: metrics::Counter,
    /// Decided entries published.
    pub(crate) decided: metrics::Counter,
    /// Leaderships begun.
    pub(crate) leaderships: metrics::Counter,
    /// Probes of read barriers sent.
    pub(crate) probes: metrics::Counter,
    /// Sessions with peers opened.
    pub(crate) sessions: metrics::Counter,
    /// Payload bytes written to disk.
    pub(crate) payload_bytes: metrics::Counter,
    /// Bytes written to disk.
    pub(crate) disk_bytes: metrics::Counter,
    /// How far this replica's wall clock is ahead of the group's time, in milliseconds; 0 if it is
    /// within two seconds.
    pub(crate) clock_off_ms: metrics::Gauge,
}

impl LogMetrics {
    /// Registers the metrics under the label `group`.
    pub(crate) fn new(group: u64) -> LogMetrics {
        let group = group.to_string();
        LogMetrics {
            turns: metrics::counter!("evenkeel_log_turns_total", "group" => group.clone()),
            syncs: metrics::histogram!("evenkeel_log_sync_seconds", "group" => group.clone()),
            proposals: metrics::counter!("evenkeel_log_proposals_total", "group" => group.clone()),
            dropped: metrics::counter!("evenkeel_log_late_proposals_total", "group" => group.clone()),
            decided: metrics::counter!("evenkeel_log_decided_total", "group" => group.clone()),
            probes: metrics::counter!("evenkeel_log_probes_total", "group" => group.clone()),
            leaderships: metrics::counter!("evenkeel_log_leaderships_total", "group" => group.clone()),
            sessions: metrics::counter!("evenkeel_log_sessions_total", "group" => group.clone()),
            payload_bytes: metrics::counter!("evenkeel_log_payload_bytes_total", "group" => group.clone()),
            disk_bytes: metrics::counter!("evenkeel_log_disk_bytes_total", "group" => group.clone()),
            clock_off_ms: metrics::gauge!("evenkeel_log_clock_off_ms", "group" => group),
        }
    }
}

/// The counter of read barriers that a lease served.
pub(crate) fn lease_reads(group: u64) -> metrics::Counter {
    metrics::counter!("evenkeel_log_lease_reads_total", "group" => group.to_string())
}
