//! The clocks: one for durations, one that follows tokio's test clock, the machine's wall clock,
//! and one that counts suspended time.
//!
//! Code that decides gets the time as an argument. Code that reads a clock reads it here:
//! `clippy.toml` refuses every other way. A simulation replaces the C function behind all of them,
//! and [`boot_ms`] by itself.

#![allow(clippy::disallowed_methods, reason = "the one place that reads clocks")]

use std::time::{Duration, Instant, SystemTime};

use crate::simulation::simulation;

/// On Linux `CLOCK_MONOTONIC` stops while the machine is suspended; this clock does not.
#[cfg(target_os = "linux")]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
/// Other systems have no such clock; the monotonic clock is the nearest.
#[cfg(not(target_os = "linux"))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

/// Milliseconds since boot with suspended time counted, rounded down. Never goes back.
pub fn boot_ms() -> u64 {
    if let Some(simulation) = simulation() {
        return simulation.boot_ms();
    }
    let now = rustix::time::clock_gettime(CLOCK);
    // Neither part is ever negative for these clocks.
    (now.tv_sec as u64) * 1_000 + (now.tv_nsec as u64) / 1_000_000
}

/// The time now, for durations and time limits within this process. Never goes back; may stop while
/// the machine is suspended.
pub fn now() -> Instant {
    Instant::now()
}

/// The time since then; zero if it is yet to come.
pub fn elapsed(since: Instant) -> Duration {
    since.elapsed()
}

/// [`now`] for tokio's timers. In a test whose runtime has a paused clock it follows that clock.
pub fn tokio_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The time since the Unix epoch by the machine's wall clock, which may be set at any time, also
/// back. Zero for a clock before the epoch.
pub fn wall_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// [`wall_time`] in milliseconds, rounded down.
pub fn wall_ms() -> u64 {
    wall_time().as_millis() as u64
}
