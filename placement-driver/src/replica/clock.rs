//! The clock of this process.

use std::time::{Duration, Instant, SystemTime};

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
        let since_epoch: Duration = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { started: Instant::now(), started_ms: since_epoch.as_millis() as u64 }
    }

    /// The time of the start, in milliseconds.
    pub(super) fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// The time now, in milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.started_ms + self.started.elapsed().as_millis() as u64
    }
}
