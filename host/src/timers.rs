//! Waiting: pauses, periods and time limits of tasks, and a pause of a thread.
//!
//! Each function is tokio's own, so that a runtime with a paused clock and the simulation's clock
//! apply to it. `clippy.toml` refuses every other way to wait for time.

#![allow(clippy::disallowed_methods, reason = "the one place that waits for time")]

use std::future::IntoFuture;
use std::time::Duration;

use tokio::time::{Instant, Interval, Sleep, Timeout};

/// Waits for a time.
///
/// # Panics
/// Outside of a tokio runtime with timers, as all functions here but [`sleep_thread`].
pub fn sleep(time: Duration) -> Sleep {
    tokio::time::sleep(time)
}

/// Waits until a moment; not at all if it is over.
pub fn sleep_until(moment: Instant) -> Sleep {
    tokio::time::sleep_until(moment)
}

/// Ticks at once and then once in each period.
///
/// # Panics
/// For a period of zero.
pub fn interval(period: Duration) -> Interval {
    tokio::time::interval(period)
}

/// Lets a future run for a time at most. The awaited result is an error if it took longer; the
/// future is then dropped.
pub fn timeout<F: IntoFuture>(limit: Duration, future: F) -> Timeout<F::IntoFuture> {
    tokio::time::timeout(limit, future)
}

/// [`timeout`] with the moment at which the time is over.
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    tokio::time::timeout_at(deadline, future)
}

/// Blocks this thread for a time. Never for a task: it would block all tasks of its thread.
pub fn sleep_thread(time: Duration) {
    std::thread::sleep(time);
}
