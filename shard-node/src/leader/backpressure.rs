//! Backpressure: the leader slows writes down when its replicas lag in applying them.
//!
//! A follower that accepts entries faster than its PostgreSQL applies them falls behind without
//! limit. A new leader serves only when it has applied everything (invariant 4), so the duration of
//! a failover is the lag of the new leader. The leader observes the lag that a majority of
//! replicas, itself included, does not exceed. It admits a share of the attempts to write that
//! shrinks with that lag, so that the lag stabilises where the followers keep up. A write that is
//! not admitted waits and tries again for four seconds: a bulk load by a few clients becomes slower
//! and does not fail. A minority that lags, or is down, slows no write.
//!
//! [`admitted_share`] and [`Throttle`] decide. [`Backpressure`] adds the lock, the clock and
//! metrics.

use evenkeel_protocol::Failure;
use evenkeel_replicated_log::{Lag, LogStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The lag of a majority at which writes are slowed down most, in bytes of log.
pub const FULL_BYTES: u64 = 64 << 20;
/// The same as time, in milliseconds.
pub const FULL_MS: u64 = 2_000;
/// The smallest admitted share of writes.
const LEAST_SHARE: f64 = 0.05;
/// The interval of observations, in milliseconds. Replicas report their positions as often.
pub const LOOK_MS: u64 = 100;
/// The time between two attempts of a write, in milliseconds.
const TRY_AGAIN_MS: u64 = 20;
/// The number of attempts of a write. Together they take less time than a client waits for an
/// answer.
const TRIES: u32 = 200;
/// The retry delay of a rejected write, in milliseconds.
const RETRY_MS: u32 = 50;

/// The lag that a majority of `members` does not exceed, given the lags of the replicas that are
/// eligible to lead. If fewer than a majority are, the largest of their lags. Ineligible replicas
/// do not count: no failover waits for them.
pub fn majority_lag(lags: impl IntoIterator<Item = Lag>, members: usize) -> Lag {
    let mut lags: Vec<Lag> = lags.into_iter().collect();
    lags.sort_by(|a, b| fullness(*a).total_cmp(&fullness(*b)));
    lags.truncate(members / 2 + 1);
    lags.last().copied().unwrap_or_default()
}

/// The admitted share of writes at this lag of a majority: 1 up to half of [`FULL_BYTES`] and of
/// [`FULL_MS`], then less and less.
pub fn admitted_share(lag: Lag) -> f64 {
    let beyond_half = (fullness(lag) - 0.5).max(0.0) * 2.0;
    (1.0 - beyond_half).max(LEAST_SHARE)
}

fn fullness(lag: Lag) -> f64 {
    (lag.bytes as f64 / FULL_BYTES as f64).max(lag.ms as f64 / FULL_MS as f64)
}

/// Admits a share of attempts, evenly spaced.
#[derive(Debug, Clone, Copy)]
pub struct Throttle {
    share: f64,
    credit: f64,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle { share: 1.0, credit: 0.0 }
    }
}

impl Throttle {
    /// Whether the next attempt is admitted.
    pub fn admit(&mut self) -> bool {
        self.credit = (self.credit + self.share).min(1.0);
        let admitted = self.credit >= 1.0;
        if admitted {
            self.credit -= 1.0;
        }
        admitted
    }
}

/// A leadership's back-pressure.
#[derive(Debug, Default)]
pub struct Backpressure {
    throttle: Mutex<Throttle>,
}

impl Backpressure {
    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Observes the lags of the replicas, this one included.
    pub fn observe(&self, status: &LogStatus) {
        let lags = status
            .peers
            .values()
            .filter(|peer| peer.connected && !peer.behind && !peer.ineligible)
            .map(|peer| peer.lag);
        let share = admitted_share(majority_lag(lags.chain([status.lag]), status.peers.len() + 1));
        metrics::gauge!("evenkeel_admitted_share").set(share);
        self.throttle().share = share;
    }

    /// Whether writes are slowed down.
    pub fn is_on(&self) -> bool {
        self.throttle().share < 1.0
    }

    /// Admits a write, now or within four seconds.
    ///
    /// # Errors
    /// [`Failure::Overloaded`]. The write had no effect.
    pub async fn admit(&self) -> Result<(), Failure> {
        for _ in 0..TRIES {
            if self.throttle().admit() {
                return Ok(());
            }
            evenkeel_host::sleep(Duration::from_millis(TRY_AGAIN_MS)).await;
        }
        metrics::counter!("evenkeel_statements_refused_total").increment(1);
        Err(Failure::Overloaded { retry_after_ms: RETRY_MS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(mib: u64, ms: u64) -> Lag {
        Lag { bytes: mib << 20, ms }
    }

    #[test]
    fn the_lag_of_a_majority_counts_and_that_of_a_minority_does_not() {
        // The leader, a follower that keeps up, and a follower that lags or is absent.
        assert_eq!(admitted_share(majority_lag([lag(0, 0), lag(1, 30), lag(900, 60_000)], 3)), 1.0);
        assert_eq!(admitted_share(majority_lag([lag(0, 0), lag(1, 30)], 3)), 1.0);
        // Both followers lag, by bytes or by time.
        assert!(admitted_share(majority_lag([lag(0, 0), lag(70, 100), lag(900, 60_000)], 3)) < 0.1);
        assert!(admitted_share(majority_lag([lag(0, 0), lag(1, 2_500), lag(1, 60_000)], 3)) < 0.1);
        assert!(admitted_share(majority_lag([lag(0, 0), lag(70, 100)], 3)) < 0.1, "one of them down");
        assert_eq!(admitted_share(majority_lag([lag(0, 0)], 3)), 1.0, "no other replica is eligible");
    }

    /// A leader that executes ten times as much as its followers apply, with clients that retry as
    /// requested.
    #[test]
    fn the_lag_stabilises_below_the_bound_and_followers_are_never_idle() {
        const APPLIED_PER_MS: f64 = 12_000.0;
        let (mut throttle, mut behind, mut admitted) = (Throttle::default(), 0.0_f64, 0.0);
        let mut most: f64 = 0.0;
        for ms in 0..60_000_u64 {
            // Each attempt is a write of 64 KiB.
            for _ in 0..2 {
                if throttle.admit() {
                    behind += 65_536.0;
                    admitted += 65_536.0;
                }
            }
            behind = (behind - APPLIED_PER_MS).max(0.0);
            if ms.is_multiple_of(LOOK_MS) {
                let lag_ms = behind / APPLIED_PER_MS;
                throttle.share = admitted_share(Lag { bytes: behind as u64, ms: lag_ms as u64 });
            }
            most = most.max(behind);
        }
        let bound = (FULL_BYTES as f64).min(FULL_MS as f64 * APPLIED_PER_MS);
        assert!(most <= bound * 1.2, "{most} bytes behind");
        assert!(admitted >= APPLIED_PER_MS * 60_000.0 * 0.99, "{admitted} bytes in a minute");
    }

    // A bulk load by a few clients is slowed down, and gets no error.
    #[tokio::test]
    async fn a_write_waits_while_the_replicas_lag() {
        let backpressure = Backpressure::default();
        *backpressure.throttle() = Throttle { share: LEAST_SHARE * 2.0, credit: 0.0 };
        assert!(!backpressure.throttle().admit());
        assert_eq!(backpressure.admit().await, Ok(()));
    }

    #[test]
    fn without_lag_everything_is_admitted_and_a_share_is_admitted_evenly() {
        let mut throttle = Throttle::default();
        assert!((0..1_000).all(|_| throttle.admit()));
        throttle.share = 0.25;
        let admitted: Vec<bool> = (0..400).map(|_| throttle.admit()).collect();
        assert!(admitted.chunks(4).skip(1).all(|four| four.iter().filter(|in_| **in_).count() == 1));
    }
}
