//! An admission limit on a shard's leader, as a stand-in for a machine of its own where shards share one (`--shard-capacity`).
//!
//! Statements are spaced evenly; what comes faster waits its turn. So a shard with a limit behaves as one whose machine can do
//! no more, and moving load away from it shows.
//!
//! Every statement that the leader executes counts, those of transactions each for itself. `local` reads do not, wherever they are
//! served: any replica takes them, and they are no work of the leader's.

use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Failure, SqlError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a statement may wait for its turn, in milliseconds, before it is refused.
const MAX_WAIT_MS: u64 = 5_000;
/// How far turns may lag behind the clock, in milliseconds: a timer's granularity must not cost capacity.
const SLACK_MS: u64 = 5;

/// See the module.
#[derive(Debug)]
pub struct Capacity {
    interval: Duration,
    next: Mutex<Instant>,
}

impl Capacity {
    /// At most `per_s` statements a second.
    pub fn new(per_s: f64) -> Capacity {
        let interval = Duration::from_secs_f64(1.0 / per_s.max(0.001));
        Capacity { interval, next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn; 53400 if that would take too long.
    pub async fn acquire(&self) -> Result<(), Failure> {
        let now = Instant::now();
        let turn = self.reserve(now)?;
        if turn > now {
            tokio::time::sleep_until(turn.into()).await;
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
    fn turns_are_spaced_and_too_long_a_queue_is_refused() {
        let capacity = Capacity::new(100.0);
        let now = Instant::now() + Duration::from_secs(1);
        let turns: Vec<Instant> = (0..500).map_while(|_| capacity.reserve(now).ok()).collect();
        assert!(turns.windows(2).all(|w| w[1] - w[0] == Duration::from_millis(10)));
        let refused = (0..10).find_map(|_| capacity.reserve(now).err()).unwrap();
        assert!(matches!(refused, Failure::Sql(error) if error.code == codes::LIMIT_EXCEEDED));
        assert!(capacity.reserve(now + Duration::from_secs(10)).unwrap() >= now + Duration::from_secs(9));
    }
}
