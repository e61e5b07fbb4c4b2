//! Admission control: limits the statements in flight, so that an admitted statement completes
//! within [`TARGET_MS`]. All other statements are rejected before any work is done, with a retry
//! delay.
//!
//! Queueing delay is statements in flight divided by throughput (Little's law). Admission control
//! measures the throughput while statements wait, and admits as many statements as complete within
//! [`TARGET_MS`]. A load above the shard's capacity then changes neither latency nor throughput.
//! The limit follows the machine; there is nothing to configure.
//!
//! Statements of different [`StatementKind`]s do not wait for each other: reads have sessions of
//! their own, and large writes run beside small ones. Each kind therefore has an
//! [`AdmissionLimiter`] of its own, with its own measured throughput. Otherwise a few slow, large
//! writes would keep out reads. Within a kind, a statement counts by its bytes.
//!
//! Admission control also limits the memory of waiting statements, to [`MAX_LARGE_BYTES`] and
//! [`MAX_SMALL_BYTES`].
//!
//! [`AdmissionLimiter`] decides, with times passed in. [`AdmissionControl`] adds clock, locks and
//! metrics.
//!
//! Not done: statements of open transactions are always admitted. A transaction holds locks, so it
//! should end soon.

use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::Failure;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The longest time that an admitted statement should wait and run, in milliseconds.
pub const TARGET_MS: u64 = 250;
/// Statements that are always admitted, in addition to one per session for statements that run
/// alone. With fewer statements in flight the measured throughput says nothing about the possible
/// throughput; and statements that wait for a lock, which occupy such a session, must not keep out
/// the others.
pub const MIN_IN_FLIGHT: usize = 32;
/// The most statements in flight, whatever the throughput.
pub const MAX_IN_FLIGHT: usize = 8192;
/// Bytes of text and parameters above which a statement is large. The same number of bytes counts
/// as one statement.
pub const LARGE_BYTES: usize = 16 << 10;
/// The most bytes of texts and parameters of all large statements in flight.
pub const MAX_LARGE_BYTES: usize = 96 << 20;
/// The same for each other kind of statement.
pub const MAX_SMALL_BYTES: usize = 16 << 20;
/// The limit before anything has been measured.
const FIRST_LIMIT: usize = 1024;
/// The shortest time over which throughput is measured, in milliseconds.
const WINDOW_MS: u64 = 100;
/// The half-life of a measurement, in milliseconds.
const HALF_LIFE_MS: f64 = 200.0;
/// The shortest retry delay of a rejected statement, in milliseconds.
const LEAST_RETRY_MS: u64 = 20;

/// Statements that wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementKind {
    /// A statement that only reads.
    Read,
    /// A statement that may write.
    Write,
    /// A statement of more than [`LARGE_BYTES`].
    Large,
}

impl StatementKind {
    /// The kind of a statement of `bytes`, by its first word: no more work is done on it before it
    /// is admitted. A statement that is classified wrongly waits with statements of the other kind.
    pub fn of(sql: &str, bytes: usize) -> StatementKind {
        let reads = sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select"));
        match bytes > LARGE_BYTES {
            true => StatementKind::Large,
            false if reads => StatementKind::Read,
            false => StatementKind::Write,
        }
    }

    fn max_bytes(self) -> usize {
        if self == StatementKind::Large { MAX_LARGE_BYTES } else { MAX_SMALL_BYTES }
    }
}

/// The number of small statements that a statement of `bytes` counts for.
fn cost(bytes: usize) -> u64 {
    1 + (bytes / LARGE_BYTES) as u64
}

/// The statements of one kind in flight, and their throughput. Pure; times are milliseconds of any
/// monotonic clock.
#[derive(Debug, Clone)]
pub struct AdmissionLimiter {
    in_flight: usize,
    bytes: usize,
    max_bytes: usize,
    /// The cost of all statements in flight, in small statements.
    cost: u64,
    /// The number of statements that are always admitted.
    least: usize,
    /// The possible throughput in small statements per millisecond, as far as known. The offered
    /// load may be lower.
    rate_per_ms: f64,
    /// Completed work so far, in small statements.
    done: u64,
    /// Rejected work that has not been compensated by admissions, in small statements. The retry
    /// delay grows with it.
    rejected: u64,
    /// The time of the last completion, or of an admission when nothing was in flight.
    quiet_since_ms: u64,
    window: Window,
}

/// An admitted statement, until it completes.
#[derive(Debug)]
pub struct InFlight {
    bytes: usize,
    admitted_ms: u64,
    /// Completed work at its admission.
    done_before: u64,
}

/// The observations since the last conclusion about the throughput.
#[derive(Debug, Clone, Default)]
struct Window {
    began_ms: u64,
    /// The sum of the times that statements were in flight since then, up to `at_ms`, in
    /// milliseconds.
    in_flight_ms: u64,
    at_ms: u64,
    /// The time of the first completion.
    first_completed_ms: Option<u64>,
    /// Completed statements, the sum of their admission times, and the sum of the work completed at
    /// their admissions.
    completed: u64,
    admitted_ms: u64,
    done_before: u64,
}

impl Window {
    /// Completed work per millisecond: the work completed between the mean admission of the
    /// completed statements and now. Statements that are committed together complete together, so
    /// the number of completions in a short time says nothing.
    fn rate_per_ms(&self, now_ms: u64, done: u64) -> f64 {
        let completed = self.completed as f64;
        (done as f64 - self.done_before as f64 / completed)
            / (now_ms as f64 - self.admitted_ms as f64 / completed).max(1.0)
    }
}

impl AdmissionLimiter {
    /// A limiter for statements of one kind, of a shard with `sessions` for statements that run
    /// alone.
    pub fn new(now_ms: u64, sessions: usize, kind: StatementKind) -> AdmissionLimiter {
        let rate_per_ms = FIRST_LIMIT as f64 / TARGET_MS as f64;
        let least = (sessions + MIN_IN_FLIGHT).min(MAX_IN_FLIGHT);
        let window = Window { began_ms: now_ms, at_ms: now_ms, ..Window::default() };
        AdmissionLimiter {
            in_flight: 0,
            bytes: 0,
            max_bytes: kind.max_bytes(),
            cost: 0,
            least,
            rate_per_ms,
            done: 0,
            rejected: 0,
            quiet_since_ms: now_ms,
            window,
        }
    }

    /// The limit of small statements in flight.
    pub fn limit(&self) -> usize {
        ((self.rate_per_ms * TARGET_MS as f64) as usize).clamp(self.least, MAX_IN_FLIGHT)
    }

    /// The number of statements in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether half of the limit is in use.
    pub fn is_busy(&self) -> bool {
        self.in_flight * 2 >= self.limit()
    }

    /// Admits a statement of `bytes`.
    ///
    /// # Errors
    /// The retry delay in milliseconds, if the statement is rejected. Then nothing has changed.
    pub fn admit(&mut self, now_ms: u64, bytes: usize) -> Result<InFlight, u64> {
        self.measure(now_ms);
        let too_large = self.in_flight > 0 && self.bytes.saturating_add(bytes) > self.max_bytes;
        let too_much = self.in_flight >= self.least && self.cost + cost(bytes) > self.limit() as u64;
        if too_much || self.in_flight >= MAX_IN_FLIGHT || too_large {
            self.rejected += cost(bytes);
            // The rejected work is admitted at the rate at which other work completes.
            let turn_ms = self.rejected as f64 / self.rate_per_ms.max(0.001);
            return Err((turn_ms as u64).clamp(LEAST_RETRY_MS, 2 * TARGET_MS));
        }
        if self.in_flight == 0 {
            self.quiet_since_ms = now_ms;
        }
        self.in_flight += 1;
        self.bytes += bytes;
        self.cost += cost(bytes);
        self.rejected = self.rejected.saturating_sub(cost(bytes));
        Ok(InFlight { bytes, admitted_ms: now_ms, done_before: self.done })
    }

    /// An admitted statement has completed.
    pub fn complete(&mut self, now_ms: u64, in_flight: &InFlight) {
        self.measure(now_ms);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(in_flight.bytes);
        self.cost = self.cost.saturating_sub(cost(in_flight.bytes));
        self.done += cost(in_flight.bytes);
        self.quiet_since_ms = now_ms;
        let window = &mut self.window;
        window.first_completed_ms.get_or_insert(now_ms);
        window.completed += 1;
        window.admitted_ms += in_flight.admitted_ms;
        window.done_before += in_flight.done_before;
    }

    /// Observes the time up to now. Called before every change.
    fn measure(&mut self, now_ms: u64) {
        let window = &mut self.window;
        window.in_flight_ms += self.in_flight as u64 * now_ms.saturating_sub(window.at_ms);
        window.at_ms = now_ms;
        let quiet_ms = now_ms.saturating_sub(self.quiet_since_ms);
        if quiet_ms >= WINDOW_MS && self.in_flight >= self.least {
            // If all statements in flight completed now, the throughput would not be higher than
            // this.
            self.rate_per_ms = self.rate_per_ms.min(self.cost as f64 / quiet_ms as f64);
        }
        // Counted from the first completion, so that statements committed together fall into one
        // window.
        if window.first_completed_ms.is_none_or(|first_ms| now_ms.saturating_sub(first_ms) < WINDOW_MS) {
            return;
        }
        let passed_ms = now_ms.saturating_sub(window.began_ms);
        let measured = window.rate_per_ms(now_ms, self.done);
        if 4 * window.in_flight_ms >= 3 * self.least as u64 * passed_ms {
            // Statements were waiting nearly all the time, so this is the possible throughput.
            // (`least` large statements are enough to fill the limit.)
            let weight = 1.0 - 0.5_f64.powf(passed_ms as f64 / HALF_LIFE_MS);
            self.rate_per_ms += (measured - self.rate_per_ms) * weight;
        } else {
            // The possible throughput may be higher. It is not lower than before just because the
            // load was lower.
            self.rate_per_ms = self.rate_per_ms.max(measured);
            self.rejected = 0;
        }
        self.window = Window { began_ms: now_ms, at_ms: now_ms, ..Window::default() };
    }
}

/// See the module.
#[derive(Debug)]
pub struct AdmissionControl {
    begun: Instant,
    reads: Mutex<AdmissionLimiter>,
    writes: Mutex<AdmissionLimiter>,
    large: Mutex<AdmissionLimiter>,
}

/// An admitted statement. It completes when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    control: Arc<AdmissionControl>,
    kind: StatementKind,
    in_flight: InFlight,
}

impl AdmissionControl {
    /// Admission control of a shard; see [`AdmissionLimiter::new`].
    pub fn new(sessions: usize) -> Arc<AdmissionControl> {
        let limiter = |kind| Mutex::new(AdmissionLimiter::new(0, sessions, kind));
        let (reads, writes, large) =
            (limiter(StatementKind::Read), limiter(StatementKind::Write), limiter(StatementKind::Large));
        Arc::new(AdmissionControl { begun: evenkeel_host::now(), reads, writes, large })
    }

    fn limiter(&self, kind: StatementKind) -> MutexGuard<'_, AdmissionLimiter> {
        let limiter = match kind {
            StatementKind::Read => &self.reads,
            StatementKind::Write => &self.writes,
            StatementKind::Large => &self.large,
        };
        limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        evenkeel_host::elapsed(self.begun).as_millis() as u64
    }

    /// Whether statements of any kind wait; see [`AdmissionLimiter::is_busy`].
    pub fn is_busy(&self) -> bool {
        [StatementKind::Read, StatementKind::Write, StatementKind::Large]
            .into_iter()
            .any(|kind| self.limiter(kind).is_busy())
    }

    /// Admits a statement of `bytes`.
    ///
    /// # Errors
    /// [`Failure::Overloaded`]. The statement had no effect.
    pub fn admit(self: &Arc<AdmissionControl>, kind: StatementKind, bytes: usize) -> Result<Admitted, Failure> {
        let admitted = self.limiter(kind).admit(self.now_ms(), bytes);
        match admitted {
            Ok(in_flight) => Ok(Admitted { control: self.clone(), kind, in_flight }),
            Err(_) if deliberate(Bug::NoAdmissionControl) => {
                let in_flight = InFlight { bytes, admitted_ms: self.now_ms(), done_before: 0 };
                Ok(Admitted { control: self.clone(), kind, in_flight })
            }
            Err(retry_after_ms) => {
                metrics::counter!("evenkeel_statements_refused_total").increment(1);
                Err(Failure::Overloaded { retry_after_ms: retry_after_ms as u32 })
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let now_ms = self.control.now_ms();
        self.control.limiter(self.kind).complete(now_ms, &self.in_flight);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::VecDeque;

    /// A shard that completes `per_ms` statements per millisecond in order of arrival. Each of
    /// `clients` clients sends its next statement `pause_ms` after an answer, and after the retry
    /// delay of a rejection.
    struct Shard {
        limiter: AdmissionLimiter,
        now_ms: u64,
        queue: VecDeque<InFlight>,
        /// The time of each waiting client's next statement.
        waiting: Vec<u64>,
        credit: f64,
    }

    /// The statements of a period.
    #[derive(Debug, Default)]
    struct Observed {
        done: usize,
        rejected: usize,
        waits_ms: Vec<u64>,
    }

    impl Shard {
        fn new(clients: usize) -> Shard {
            let (queue, waiting) = (VecDeque::new(), vec![0; clients]);
            Shard {
                limiter: AdmissionLimiter::new(0, 64, StatementKind::Write),
                now_ms: 0,
                queue,
                waiting,
                credit: 0.0,
            }
        }

        fn run(&mut self, ms: u64, per_ms: f64, pause_ms: u64) -> Observed {
            let mut seen = Observed::default();
            for _ in 0..ms {
                self.now_ms += 1;
                let due = self.waiting.iter().filter(|at| **at <= self.now_ms).count();
                self.waiting.retain(|at| *at > self.now_ms);
                for _ in 0..due {
                    match self.limiter.admit(self.now_ms, 100) {
                        Ok(in_flight) => self.queue.push_back(in_flight),
                        Err(after_ms) => {
                            seen.rejected += 1;
                            self.waiting.push(self.now_ms + after_ms);
                        }
                    }
                }
                self.credit = (self.credit + per_ms).min(per_ms.max(1.0));
                while self.credit >= 1.0 {
                    let Some(in_flight) = self.queue.pop_front() else { break };
                    self.credit -= 1.0;
                    self.limiter.complete(self.now_ms, &in_flight);
                    seen.done += 1;
                    seen.waits_ms.push(self.now_ms - in_flight.admitted_ms);
                    self.waiting.push(self.now_ms + pause_ms);
                }
            }
            seen.waits_ms.sort_unstable();
            seen
        }
    }

    fn p99(seen: &Observed) -> u64 {
        seen.waits_ms.get(seen.waits_ms.len() * 99 / 100).copied().unwrap_or(0)
    }

    #[test]
    fn admitted_statements_complete_soon_at_any_speed_and_no_capacity_is_wasted() {
        for per_ms in [0.5, 2.0, 20.0] {
            let mut shard = Shard::new(20_000);
            shard.run(3_000, per_ms, 1);
            let seen = shard.run(5_000, per_ms, 1);
            let possible = (5_000.0 * per_ms) as usize;
            assert!(seen.done >= possible * 95 / 100, "{per_ms}/ms: {} of {possible} done", seen.done);
            assert!(p99(&seen) <= TARGET_MS * 3 / 2, "{per_ms}/ms: p99 {} ms", p99(&seen));
            assert!(seen.rejected > 0, "{per_ms}/ms: no statement was rejected");
            // Rejected clients must not retry so often that the retries become the load.
            assert!(seen.rejected <= 5_000 * 20_000 / (2 * TARGET_MS as usize) * 2, "{} refusals", seen.rejected);
        }
    }

    #[test]
    fn a_load_below_capacity_is_never_rejected() {
        let mut shard = Shard::new(200);
        shard.run(1_000, 5.0, 1);
        // 200 clients at 5 statements per millisecond wait 40 ms each.
        assert_eq!(shard.run(20_000, 5.0, 1).rejected, 0);
        // Nor after a long time of low load.
        shard.run(60_000, 5.0, 10_000);
        assert_eq!(shard.run(5_000, 5.0, 1).rejected, 0);
    }

    #[test]
    fn the_limit_follows_a_machine_that_becomes_slower_and_recovers() {
        let mut shard = Shard::new(5_000);
        shard.run(3_000, 10.0, 1);
        // Statements that were admitted at the old speed have to complete first.
        shard.run(4_000, 1.0, 1);
        let slow = shard.run(3_000, 1.0, 1);
        assert!(p99(&slow) <= TARGET_MS * 3 / 2, "p99 {} ms", p99(&slow));
        shard.run(2_000, 10.0, 1);
        let fast = shard.run(3_000, 10.0, 1);
        assert!(fast.done >= 28_000, "{} done", fast.done);
        // The machine stands still for a while, as when a disk stalls.
        shard.run(1_000, 0.0, 1);
        shard.run(2_000, 10.0, 1);
        let after = shard.run(3_000, 10.0, 1);
        assert!(after.done >= 28_000 && p99(&after) <= TARGET_MS * 3 / 2, "{} done, p99 {}", after.done, p99(&after));
    }

    #[test]
    fn statements_that_complete_together_are_not_taken_for_throughput() {
        let mut limiter = AdmissionLimiter::new(0, 8, StatementKind::Write);
        let mut now_ms = 0;
        for _ in 0..5 {
            // As many as are admitted. They are committed together, after 5 ms for each. Others are
            // measured meanwhile.
            let group: Vec<InFlight> = (0..300).map_while(|_| limiter.admit(now_ms, 100).ok()).collect();
            for _ in 0..5 * group.len() {
                now_ms += 1;
                limiter.measure(now_ms);
            }
            group.iter().for_each(|in_flight| limiter.complete(now_ms, in_flight));
        }
        limiter.measure(now_ms + 2 * WINDOW_MS);
        assert!(
            (40..=55).contains(&limiter.limit()),
            "{} may be in flight where 50 complete in {TARGET_MS} ms",
            limiter.limit()
        );
    }

    #[test]
    fn bytes_are_bounded_and_a_single_large_statement_is_admitted() {
        let mut limiter = AdmissionLimiter::new(0, 64, StatementKind::Large);
        let large = limiter.admit(1, 2 * MAX_LARGE_BYTES).unwrap();
        assert!(limiter.admit(1, 1).is_err());
        limiter.complete(2, &large);
        let each = MAX_LARGE_BYTES / 10;
        let entered = (0..20).filter(|_| limiter.admit(3, each).is_ok()).count();
        assert_eq!((entered, limiter.in_flight()), (10, 10));
    }

    /// Breaks if one throughput is measured for all statements (E16): of 200 clients with 64 KiB
    /// each, one completes every 10 ms, and the reads of 400 other clients, which take 20 ms, are
    /// rejected because of it.
    #[test]
    fn large_statements_do_not_keep_out_small_ones() {
        let control = AdmissionControl::new(64);
        let (mut large, mut reads) = (VecDeque::new(), VecDeque::new());
        let mut rejected = 0;
        for now_ms in 0..5_000_u64 {
            let mut limiter = control.limiter(StatementKind::of("UPDATE t SET value = $1 WHERE id = $2", 64 << 10));
            while large.len() < 200
                && let Ok(in_flight) = limiter.admit(now_ms, 64 << 10)
            {
                large.push_back(in_flight);
            }
            if now_ms.is_multiple_of(10)
                && let Some(in_flight) = large.pop_front()
            {
                limiter.complete(now_ms, &in_flight);
            }
            drop(limiter);
            let mut limiter = control.limiter(StatementKind::of(" select * FROM t WHERE id = $1", 100));
            while reads.front().is_some_and(|in_flight: &InFlight| in_flight.admitted_ms + 20 <= now_ms)
                && let Some(in_flight) = reads.pop_front()
            {
                limiter.complete(now_ms, &in_flight);
            }
            // From time to time all clients return at once, after a pause.
            while now_ms % 1_000 >= 500 && reads.len() < 400 {
                match limiter.admit(now_ms, 100) {
                    Ok(in_flight) => reads.push_back(in_flight),
                    Err(_) => {
                        rejected += 1;
                        break;
                    }
                }
            }
        }
        assert_eq!(rejected, 0);
        assert!(large.len() < 200, "too many large statements are in flight");
    }

    #[test]
    fn a_statement_counts_by_its_bytes() {
        let mut limiter = AdmissionLimiter::new(0, 0, StatementKind::Large);
        // One statement of 1 MiB every 100 ms: as much as 650 small ones per second.
        let mut queue = VecDeque::new();
        for now_ms in 0..20_000 {
            if let Ok(in_flight) = limiter.admit(now_ms, 1 << 20) {
                queue.push_back(in_flight);
            }
            if now_ms.is_multiple_of(100)
                && let Some(in_flight) = queue.pop_front()
            {
                limiter.complete(now_ms, &in_flight);
            }
        }
        assert!((130..200).contains(&limiter.limit()), "{}", limiter.limit());
        // After these have completed, small statements are admitted by their bytes: ten in the time
        // of one large statement.
        queue.drain(..).for_each(|in_flight| limiter.complete(20_000, &in_flight));
        let small = (0..300).map_while(|_| limiter.admit(20_001, 100).ok()).count();
        assert!(small > 100, "{small}");
    }
}
