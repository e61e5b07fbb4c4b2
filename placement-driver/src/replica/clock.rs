//! The clock of this process.

use std::time::Instant;

/// Milliseconds since the Unix epoch that never decrease while the process lives, whatever sets the
/// machine's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    /// A clock that starts at the machine's time.
    pub(super) fn new() -> Clock {
        Clock { started: evenkeel_host::now(), started_ms: evenkeel_host::wall_ms() }
    }

    /// The time of the start, in milliseconds.
    pub(super) fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// The time now, in milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.started_ms + evenkeel_host::elapsed(self.started).as_millis() as u64
    }
}
