//! The clock of load measurements.

/// Milliseconds since the Unix epoch, by the clock of this process. Use it only for times that are
/// compared within this process. Stamps in the log, and decisions that depend on them, use
/// [`evenkeel_replicated_log::LogHandle::unix_ms`].
pub fn now_ms() -> u64 {
    evenkeel_replicated_log::unix_ms()
}
