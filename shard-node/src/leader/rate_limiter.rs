//! Rate limiter: statements per second of a shard's leader (`--shard-capacity`).
//!
//! It simulates a machine of limited capacity where several shards share one machine. Statements
//! are spaced evenly, and faster ones wait for their turn. A shard with a limit therefore behaves
//! like a shard on a slower machine, and the effect of moving load away from it is visible.
//!
//! Every statement that the leader executes counts, also each statement of a transaction. `local`
//! reads do not count: any replica serves them.

use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Failure, SqlError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a statement waits for its turn before it is rejected, in milliseconds.
const MAX_WAIT_MS: u64 = 5_000;
/// How far turns may lag behind the clock, in milliseconds, so that the granularity of timers does
/// not cost capacity.
const SLACK_MS: u64 = 5;

/// See the module.
#[derive(Debug)]
pub struct RateLimiter {
    interval: Duration,
    next: Mutex<Instant>,
}

impl RateLimiter {
    /// At most `per_s` statements a second.
    pub fn new(per_s: f64) -> RateLimiter {
        let interval = Duration::from_secs_f64(1.0 / per_s.max(0.001));
        RateLimiter { interval, next: Mutex::new(evenkeel_host::now()) }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// 53400 if that would take longer than five seconds.
    pub async fn acquire(&self) -> Result<(), Failure> {
        let now = evenkeel_host::now();
        let turn = self.reserve(now)?;
        if turn > now {
            evenkeel_host::sleep_until(turn.into()).await;
        }
        Ok(())
    }

    fn reserve(&self, now: Instant) -> Result<Instant, Failure> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(Duration::from_millis(SLACK_MS)).unwrap_or(now);
        let turn = (*next).max(earliest);
        if turn > now + Duration::from_millis(MAX_WAIT_MS) {
            return Err(SqlError::new(codes::LIMIT_EXCEEDED, "the shard's admission limit is reached")
                .hint("Retry later, or raise --shard-capacity.")
                .into());
        }
        *next = turn + self.interval;
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn turns_are_spaced_and_too_long_a_queue_is_rejected() {
        let limiter = RateLimiter::new(100.0);
        let now = evenkeel_host::now() + Duration::from_secs(1);
        let turns: Vec<Instant> = (0..500).map_while(|_| limiter.reserve(now).ok()).collect();
        assert!(turns.windows(2).all(|w| w[1] - w[0] == Duration::from_millis(10)));
        let refused = (0..10).find_map(|_| limiter.reserve(now).err()).unwrap();
        assert!(matches!(refused, Failure::Sql(error) if error.code == codes::LIMIT_EXCEEDED));
        assert!(limiter.reserve(now + Duration::from_secs(10)).unwrap() >= now + Duration::from_secs(9));
    }
}
