//! Back-pressure: a leader slows writes down when its replicas do not get to apply them.
//!
//! A follower that accepts entries faster than its PostgreSQL applies them falls behind without a limit, and a new leader serves only
//! when it has applied everything (invariant 4). So the time that a failover takes is the lag of whoever takes over. The leader
//! looks at the lag that a majority keeps within, itself included, and admits a share of the tries to write that shrinks with it, so that it
//! settles where the followers keep up. A write that is not admitted waits and tries again, for seconds: a bulk load by a few clients gets
//! slower, and does not fail. A minority that lags, or is down, slows nobody.
//!
//! [`admitted_share`] and [`Dosage`] decide; [`Pressure`] is their shell.

use evenkeel_protocol::Failure;
use evenkeel_replicated_log::{Lag, LogStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The lag of a majority at which writes have been slowed down as far as they are, in bytes of log.
pub const FULL_BYTES: u64 = 64 << 20;
/// The same as time, in milliseconds.
pub const FULL_MS: u64 = 2_000;
/// The share of writes that is admitted at least.
const LEAST_SHARE: f64 = 0.05;
/// How often the leader looks, in milliseconds: as often as replicas say where they stand.
pub const LOOK_MS: u64 = 100;
/// Between two tries of a write, in milliseconds.
const TRY_AGAIN_MS: u64 = 20;
/// How often a write is tried: for less time than its client waits for an answer.
const TRIES: u32 = 200;
/// After how long somebody who was refused should come back, in milliseconds.
const RETRY_MS: u32 = 50;

/// The lag that a majority of `members` keeps within, given those of the replicas that could lead; if these are fewer, the lag that all of
/// them keep within. Those that could not lead do not count: nobody waits for them.
pub fn majority_lag(lags: impl IntoIterator<Item = Lag>, members: usize) -> Lag {
    let mut lags: Vec<Lag> = lags.into_iter().collect();
    lags.sort_by(|a, b| fullness(*a).total_cmp(&fullness(*b)));
    lags.truncate(members / 2 + 1);
    lags.last().copied().unwrap_or_default()
}

/// Which share of the writes is admitted at this lag of a majority: all up to half of [`FULL_BYTES`] and of [`FULL_MS`], then ever fewer.
pub fn admitted_share(lag: Lag) -> f64 {
    let beyond_half = (fullness(lag) - 0.5).max(0.0) * 2.0;
    (1.0 - beyond_half).max(LEAST_SHARE)
}

fn fullness(lag: Lag) -> f64 {
    (lag.bytes as f64 / FULL_BYTES as f64).max(lag.ms as f64 / FULL_MS as f64)
}

/// Admits a share, evenly.
#[derive(Debug, Clone, Copy)]
pub struct Dosage {
    share: f64,
    credit: f64,
}

impl Default for Dosage {
    fn default() -> Dosage {
        Dosage { share: 1.0, credit: 0.0 }
    }
}

impl Dosage {
    /// Whether the next one is admitted.
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
pub struct Pressure {
    dosage: Mutex<Dosage>,
}

impl Pressure {
    fn dosage(&self) -> MutexGuard<'_, Dosage> {
        self.dosage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at how far the replicas are, this one included.
    pub fn look(&self, status: &LogStatus) {
        let lags = status
            .peers
            .values()
            .filter(|peer| peer.connected && !peer.behind && !peer.ineligible)
            .map(|peer| peer.lag);
        let share = admitted_share(majority_lag(lags.chain([status.lag]), status.peers.len() + 1));
        metrics::gauge!("evenkeel_admitted_share").set(share);
        self.dosage().share = share;
    }

    /// Whether writes are slowed down.
    pub fn is_on(&self) -> bool {
        self.dosage().share < 1.0
    }

    /// Lets a write in, now or within four seconds.
    ///
    /// # Errors
    /// [`Failure::Overloaded`]: nothing happened.
    pub async fn enter(&self) -> Result<(), Failure> {
        for _ in 0..TRIES {
            if self.dosage().admit() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(TRY_AGAIN_MS)).await;
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
    fn a_majority_counts_and_a_minority_does_not() {
        // The leader, a follower that keeps up, and one that does not, or is not there.
        assert_eq!(admitted_share(majority_lag([lag(0, 0), lag(1, 30), lag(900, 60_000)], 3)), 1.0);
        assert_eq!(admitted_share(majority_lag([lag(0, 0), lag(1, 30)], 3)), 1.0);
        // Both followers lag, by bytes or by time.
        assert!(admitted_share(majority_lag([lag(0, 0), lag(70, 100), lag(900, 60_000)], 3)) < 0.1);
        assert!(admitted_share(majority_lag([lag(0, 0), lag(1, 2_500), lag(1, 60_000)], 3)) < 0.1);
        assert!(admitted_share(majority_lag([lag(0, 0), lag(70, 100)], 3)) < 0.1, "one of them down");
        assert_eq!(admitted_share(majority_lag([lag(0, 0)], 3)), 1.0, "nobody who could lead but this one");
    }

    /// A leader that could do ten times what its followers apply, with clients that come back as told.
    #[test]
    fn the_lag_settles_below_the_bound_and_followers_are_never_idle() {
        const APPLIED_PER_MS: f64 = 12_000.0;
        let (mut dosage, mut behind, mut admitted) = (Dosage::default(), 0.0_f64, 0.0);
        let mut most: f64 = 0.0;
        for ms in 0..60_000_u64 {
            // What is asked for comes in pieces of 64 KiB.
            for _ in 0..2 {
                if dosage.admit() {
                    behind += 65_536.0;
                    admitted += 65_536.0;
                }
            }
            behind = (behind - APPLIED_PER_MS).max(0.0);
            if ms.is_multiple_of(LOOK_MS) {
                let lag_ms = behind / APPLIED_PER_MS;
                dosage.share = admitted_share(Lag { bytes: behind as u64, ms: lag_ms as u64 });
            }
            most = most.max(behind);
        }
        let bound = (FULL_BYTES as f64).min(FULL_MS as f64 * APPLIED_PER_MS);
        assert!(most <= bound * 1.2, "{most} bytes behind");
        assert!(admitted >= APPLIED_PER_MS * 60_000.0 * 0.99, "{admitted} bytes in a minute");
    }

    // A bulk load by a few clients: they are slowed down, and told nothing.
    #[tokio::test]
    async fn a_write_waits_while_the_replicas_lag() {
        let pressure = Pressure::default();
        *pressure.dosage() = Dosage { share: LEAST_SHARE * 2.0, credit: 0.0 };
        assert!(!pressure.dosage().admit());
        assert_eq!(pressure.enter().await, Ok(()));
    }

    #[test]
    fn without_lag_everything_is_admitted_and_a_share_is_admitted_evenly() {
        let mut dosage = Dosage::default();
        assert!((0..1_000).all(|_| dosage.admit()));
        dosage.share = 0.25;
        let admitted: Vec<bool> = (0..400).map(|_| dosage.admit()).collect();
        assert!(admitted.chunks(4).skip(1).all(|four| four.iter().filter(|in_| **in_).count() == 1));
    }
}
