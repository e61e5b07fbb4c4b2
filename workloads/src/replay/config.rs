//! Settings of a replay: its pace, its end, its limits.

use std::time::Duration;

use super::error::ReplayError;

/// When operations start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoadPace {
    /// As fast as it goes, with a fixed number of operations under way. Latency counts from the
    /// start of the statement.
    AsFastAsPossible {
        /// Operations under way at once.
        workers: usize,
    },
    /// Evenly at a rate, whatever the answers do. Latency counts from when the operation was due.
    Rate {
        /// Operations per second.
        operations_per_s: f64,
        /// Most operations under way at once; past it, operations start late, and their waiting
        /// counts.
        max_in_flight: usize,
    },
    /// At the times that the trace recorded; an operation without a time is due with the one before
    /// it.
    Recorded {
        /// 2.0 replays in half the time.
        speed: f64,
        /// As for a rate.
        max_in_flight: usize,
    },
}

impl LoadPace {
    /// Operations under way at once, at most.
    pub fn max_in_flight(&self) -> usize {
        match *self {
            Self::AsFastAsPossible { workers } => workers,
            Self::Rate { max_in_flight, .. } | Self::Recorded { max_in_flight, .. } => max_in_flight,
        }
    }
}

/// The longest run, in seconds: per-second histograms are kept in memory, about 13 kB each.
pub const MAX_RUN_S: u64 = 6 * 3_600;

/// The slowest rate, in operations per second.
pub const MIN_RATE_PER_S: f64 = 0.001;

/// The fastest rate, in operations per second.
pub const MAX_RATE_PER_S: f64 = 1e7;

/// Most operations under way at once.
pub const MAX_IN_FLIGHT: usize = 10_000;

/// How a replay runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayConfig {
    /// When operations start.
    pub pace: LoadPace,
    /// No operation starts after this; also limited by [`MAX_RUN_S`].
    pub duration: Duration,
    /// No more operations than this.
    pub max_operations: Option<u64>,
    /// Shards that the load is divided among, until
    /// [`ReplayControl::set_shards`](super::ReplayControl::set_shards) says otherwise.
    pub shards: u32,
    /// Most writes that wait behind another write of their key.
    pub max_parked_operations: usize,
    /// How long operations under way may take to end once no more are started, in milliseconds.
    /// What has not ended by then is abandoned: a write of unknown outcome.
    pub drain_timeout_ms: u64,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self {
            pace: LoadPace::AsFastAsPossible { workers: 32 },
            duration: Duration::from_secs(60),
            max_operations: None,
            shards: 1,
            max_parked_operations: 4_096,
            drain_timeout_ms: 30_000,
        }
    }
}

impl ReplayConfig {
    /// Checks every setting; the error names the first wrong one.
    pub fn validate(&self) -> Result<(), ReplayError> {
        let check = |right: bool, key, value: String, expected| {
            if right { Ok(()) } else { Err(ReplayError::Config { key, value, expected }) }
        };
        let in_flight = self.pace.max_in_flight();
        check((1..=MAX_IN_FLIGHT).contains(&in_flight), "operations in flight", in_flight.to_string(), "1 to 10000")?;
        match self.pace {
            LoadPace::Rate { operations_per_s: rate, .. } => {
                check(
                    (MIN_RATE_PER_S..=MAX_RATE_PER_S).contains(&rate),
                    "rate",
                    rate.to_string(),
                    "0.001 to 10000000 operations per second",
                )?;
            }
            LoadPace::Recorded { speed, .. } => {
                check((0.001..=1e6).contains(&speed), "speed", speed.to_string(), "0.001 to 1000000")?;
            }
            LoadPace::AsFastAsPossible { .. } => {}
        }
        let duration_s = self.duration.as_secs_f64();
        let fits = duration_s > 0.0 && duration_s <= MAX_RUN_S as f64;
        check(fits, "duration", format!("{duration_s} s"), "more than 0 and at most 21600 seconds")?;
        check(self.shards >= 1, "shards", self.shards.to_string(), "at least 1")
    }
}
