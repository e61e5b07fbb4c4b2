//! The clock that leases are measured with.
//!
//! It must not stop while the machine is suspended: a leader that was suspended must detect
//! afterwards that its lease is over. It is therefore the time since boot with suspended time
//! counted, in whole milliseconds. It is read at the edges only and passed into the core. Log rule
//! 9 relies on it running at most 5 % faster or slower than real time. The clock of a virtual
//! machine that is paused and resumed must be corrected before its processes continue.

use std::sync::OnceLock;

/// The largest drift of a clock from real time, either way, in per cent (log rule 9).
pub const CLOCK_DRIFT_PERCENT: u64 = 5;

/// Milliseconds since boot, rounded down. Never goes back.
pub(crate) fn now_ms() -> u64 {
    evenkeel_host::boot_ms()
}

/// Milliseconds since the Unix epoch: the wall clock at the first call of the process, plus the
/// time since then. It never goes back, and setting the machine's clock does not make it jump.
/// Entries kept for a time (R14) must neither be dropped at once nor kept for ever because an
/// administrator set a clock. Clocks of different machines differ, and so do those of processes
/// started before and after a clock was set.
pub fn unix_ms() -> u64 {
    static ANCHOR: OnceLock<(u64, u64)> = OnceLock::new();
    if let Some(simulation) = evenkeel_host::simulation() {
        // In a simulation many simulated processes share the statics of this one.
        return simulation.unix_ms();
    }
    let boot_ms = now_ms();
    let (wall_ms, then_ms) = *ANCHOR.get_or_init(|| (crate::fault_hook::wall_ms(), boot_ms));
    wall_ms + boot_ms.saturating_sub(then_ms)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_moves_on_with_real_time() {
        let (begun, real) = (super::now_ms(), evenkeel_host::now());
        while super::now_ms() < begun + 20 {
            std::thread::yield_now();
        }
        assert!(
            evenkeel_host::elapsed(real).as_millis() >= 18,
            "twenty milliseconds took {:?}",
            evenkeel_host::elapsed(real)
        );
    }
}
