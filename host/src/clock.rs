//! The clock that counts suspended time.

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
