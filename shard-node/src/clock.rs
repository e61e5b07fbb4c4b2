//! The clock of this process. Times that are compared with another machine's come from the log's
//! clock instead.

/// Milliseconds since the Unix epoch by this process's own clock, for times that are compared with
/// no other machine's. The log's stamps, and decisions based on them, use
/// [`evenkeel_replicated_log::LogHandle::unix_ms`].
pub fn now_ms() -> u64 {
    evenkeel_replicated_log::unix_ms()
}

/// Microseconds since the Unix epoch.
pub fn now_us() -> u64 {
    evenkeel_host::wall_time().as_micros() as u64
}
