//! Parameters of a run, and the pace of its load.

use evenkeel_workloads::replay::{LoadPace, MIN_RATE_PER_S, ReplayConfig};
use std::time::Duration;

/// The most keys that a run may write. A run remembers a few words of each.
pub const MAX_KEYS: usize = 20_000_000;
/// Default rate in operations per second: two cores serve it, with the whole cluster on them, and
/// have time left.
const DEFAULT_RATE_PER_S: f64 = 1_500.0;
/// Default rate of shards with a rate limit, as a share of the sum of their limits. The rest serves
/// the backlog of the shard that has all the load at first.
const LIMITED_SHARE: f64 = 0.8;
/// With a rate limit, the time in seconds within which one shard serves all operations in flight. A
/// shard refuses operations that would wait for more than a quarter of a second.
const LIMITED_ANSWER_S: f64 = 0.2;
/// Default number of operations in flight without a rate: it keeps two cores busy. More would only
/// lengthen queues.
const DEFAULT_WORKERS: usize = 16;
/// Default bound of operations in flight at a rate.
const DEFAULT_IN_FLIGHT: usize = 1_000;

/// The parameters of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// The seed of all random choices.
    pub seed: u64,
    /// The longest time that the load lasts, in seconds.
    pub duration_s: f64,
    /// Operations per second; 0: as fast as possible. Absent: a rate that leaves this machine, or
    /// shards with a rate limit, some reserve; for a trace, as fast as possible.
    pub rate: Option<f64>,
    /// The bound of operations in flight; 0: a default.
    pub workers: usize,
    /// Whether a trace is replayed.
    pub is_trace: bool,
    /// The table; absent: `usertable`, or the next free name.
    pub table: Option<String>,
}

impl RunOptions {
    /// The load on `shards` shards, each of which has a rate limit of `limit` statements per
    /// second, if there is one.
    pub fn replay(&self, shards: u32, limit: Option<u64>) -> Result<ReplayConfig, String> {
        let duration = Duration::try_from_secs_f64(self.duration_s);
        let duration = duration.map_err(|e| format!("duration = {}: {e}", self.duration_s))?;
        let replay = ReplayConfig { pace: self.pace(shards, limit), duration, shards, ..ReplayConfig::default() };
        replay.validate().map_err(|e| e.to_string())?;
        Ok(replay)
    }

    fn pace(&self, shards: u32, limit: Option<u64>) -> LoadPace {
        let or = |default: usize| if self.workers == 0 { default } else { self.workers };
        let rate_per_s = limit.map_or(DEFAULT_RATE_PER_S, |limit| LIMITED_SHARE * limit as f64 * f64::from(shards));
        let default = if self.is_trace { 0.0 } else { rate_per_s.max(MIN_RATE_PER_S) };
        let in_flight = limit.map_or(DEFAULT_IN_FLIGHT, |limit| {
            ((limit as f64 * LIMITED_ANSWER_S) as usize).clamp(DEFAULT_WORKERS, DEFAULT_IN_FLIGHT)
        });
        match self.rate.unwrap_or(default) {
            0.0 => LoadPace::AsFastAsPossible { workers: or(DEFAULT_WORKERS) },
            rate => LoadPace::Rate { operations_per_s: rate, max_in_flight: or(in_flight) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_limits_of_shards_bound_the_load_unless_a_rate_is_given() {
        let options = RunOptions { seed: 1, duration_s: 60.0, rate: None, workers: 0, is_trace: false, table: None };
        let pace = |rate, limit| RunOptions { rate, ..options.clone() }.pace(3, limit);
        let at = |operations_per_s, max_in_flight| LoadPace::Rate { operations_per_s, max_in_flight };
        assert_eq!(pace(None, None), at(1_500.0, 1_000));
        assert_eq!(pace(None, Some(500)), at(1_200.0, 100));
        assert_eq!(pace(Some(900.0), Some(500)), at(900.0, 100));
        assert_eq!(pace(None, Some(10)), at(24.0, DEFAULT_WORKERS), "never so few that shards wait for each other");
    }
}
