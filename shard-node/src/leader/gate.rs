//! The gate: how many statements may be in the house at once, so that one that is let in is answered soon, and one that cannot be is told
//! at once.
//!
//! A statement that has been let in waits for as long as it takes to do everything before it: the number of statements in the house over
//! the rate at which they are done. So the gate measures that rate while the house is busy, and lets in what can be done within
//! [`TARGET_MS`]. More load than the shard can carry then changes neither its latency nor its throughput; the rest is refused before
//! anything has been spent on it, with a hint when to come back. The rate is a measurement and follows the machine: there is nothing to
//! configure.
//!
//! Statements of different [`Kind`]s do not wait for each other: reads have sessions of their own, and large writes take turns beside small ones. So
//! each kind has a house of its own, with a rate of its own; otherwise a few large writes, which are done slowly, would keep out
//! reads that could be answered at once. Within a house a statement counts by its bytes: one of 1 MiB is not one like any other.
//!
//! It also bounds what waiting statements may take in memory, [`MAX_LARGE_BYTES`] and [`MAX_SMALL_BYTES`].
//!
//! [`House`] decides, with time passed in; [`Gate`] is its shell. What a transaction that is open sends is not stopped here: it holds locks,
//! and the sooner it ends the better.

use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::Failure;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How long a statement that is let in should wait and run at most, in milliseconds.
pub const TARGET_MS: u64 = 250;
/// So many statements more than there are sessions for single statements are always let in: with fewer inside, the rate says nothing about
/// what could be done; and those that wait for a lock, which hold such a session, must not keep out those that do not.
pub const MIN_INSIDE: usize = 32;
/// So many are let in at most, however fast they are done.
pub const MAX_INSIDE: usize = 8192;
/// From how many bytes of text and parameters on a statement is large. So many count as one statement, too.
pub const LARGE_BYTES: usize = 16 << 10;
/// The most that large statements inside may take together, in bytes of their texts and parameters.
pub const MAX_LARGE_BYTES: usize = 96 << 20;
/// The same of others, of each kind.
pub const MAX_SMALL_BYTES: usize = 16 << 20;
/// How many are let in before anything has been measured.
const FIRST_INSIDE: usize = 1024;
/// Over how long the rate is measured, in milliseconds.
const WINDOW_MS: u64 = 100;
/// After how long of other measurements an old one counts half, in milliseconds.
const HALF_LIFE_MS: f64 = 200.0;
/// The shortest time after which somebody who was refused should come back, in milliseconds.
const LEAST_RETRY_MS: u64 = 20;

/// Which statements wait for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What only reads.
    Read,
    /// What may write.
    Write,
    /// Whatever has much to send.
    Large,
}

impl Kind {
    /// Of a statement of so many bytes; by its first word, since nothing is to be spent on it yet. Whoever is taken for another kind waits
    /// with that.
    pub fn of(sql: &str, bytes: usize) -> Kind {
        let reads = sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select"));
        match bytes > LARGE_BYTES {
            true => Kind::Large,
            false if reads => Kind::Read,
            false => Kind::Write,
        }
    }

    fn max_bytes(self) -> usize {
        if self == Kind::Large { MAX_LARGE_BYTES } else { MAX_SMALL_BYTES }
    }
}

/// As how many small statements one of so many bytes counts.
fn cost(bytes: usize) -> u64 {
    1 + (bytes / LARGE_BYTES) as u64
}

/// Who is in the house, and how fast they are served. Pure; times are milliseconds of any clock that does not go back.
#[derive(Debug, Clone)]
pub struct House {
    inside: usize,
    bytes: usize,
    max_bytes: usize,
    /// What they cost together, in small statements.
    cost: u64,
    /// So many are always let in.
    least: usize,
    /// Small statements done in a millisecond, as far as known: what could be done, not what is asked for.
    rate_per_ms: f64,
    /// What has been done so far, in small statements.
    done: u64,
    /// Those turned away since somebody was let in, in small statements: the longer the row of refusals, the later they should come back.
    refused: u64,
    /// When somebody left last, or came in when nobody was inside.
    quiet_since_ms: u64,
    window: Window,
}

/// Somebody who was let in, until they leave.
#[derive(Debug)]
pub struct Stay {
    bytes: usize,
    entered_ms: u64,
    /// What had been done before.
    done_before: u64,
}

/// What has been seen since something was last concluded from it.
#[derive(Debug, Clone, Default)]
struct Window {
    began_ms: u64,
    /// The sum of all stays inside since then, up to `at_ms`, in milliseconds.
    stays_ms: u64,
    at_ms: u64,
    /// When the first left.
    first_left_ms: Option<u64>,
    /// How many did; the sums of when they had come, and of what had been done before.
    left: u64,
    entered_ms: u64,
    done_before: u64,
}

impl Window {
    /// How many statements are done in a millisecond: those since they came who have left now, so over as long as that takes. Statements that
    /// are committed together leave together, and how many left in any short time says nothing.
    fn rate_per_ms(&self, now_ms: u64, done: u64) -> f64 {
        let left = self.left as f64;
        (done as f64 - self.done_before as f64 / left) / (now_ms as f64 - self.entered_ms as f64 / left).max(1.0)
    }
}

impl House {
    /// An empty one for statements of one kind, of a shard with `sessions` for statements that run by themselves.
    pub fn new(now_ms: u64, sessions: usize, kind: Kind) -> House {
        let rate_per_ms = FIRST_INSIDE as f64 / TARGET_MS as f64;
        let least = (sessions + MIN_INSIDE).min(MAX_INSIDE);
        let window = Window { began_ms: now_ms, at_ms: now_ms, ..Window::default() };
        House {
            inside: 0,
            bytes: 0,
            max_bytes: kind.max_bytes(),
            cost: 0,
            least,
            rate_per_ms,
            done: 0,
            refused: 0,
            quiet_since_ms: now_ms,
            window,
        }
    }

    /// How many small ones may be inside.
    pub fn limit(&self) -> usize {
        ((self.rate_per_ms * TARGET_MS as f64) as usize).clamp(self.least, MAX_INSIDE)
    }

    /// How many are.
    pub fn inside(&self) -> usize {
        self.inside
    }

    /// Whether half of those are inside who may be.
    pub fn is_busy(&self) -> bool {
        self.inside * 2 >= self.limit()
    }

    /// Lets a statement of `bytes` in.
    ///
    /// # Errors
    /// After how many milliseconds it should come back; nothing has changed then.
    pub fn enter(&mut self, now_ms: u64, bytes: usize) -> Result<Stay, u64> {
        self.measure(now_ms);
        let too_large = self.inside > 0 && self.bytes.saturating_add(bytes) > self.max_bytes;
        let too_much = self.inside >= self.least && self.cost + cost(bytes) > self.limit() as u64;
        if too_much || self.inside >= MAX_INSIDE || too_large {
            self.refused += cost(bytes);
            // So many are waiting outside, and they are let in at the rate at which others leave.
            let turn_ms = self.refused as f64 / self.rate_per_ms.max(0.001);
            return Err((turn_ms as u64).clamp(LEAST_RETRY_MS, 2 * TARGET_MS));
        }
        if self.inside == 0 {
            self.quiet_since_ms = now_ms;
        }
        self.inside += 1;
        self.bytes += bytes;
        self.cost += cost(bytes);
        self.refused = self.refused.saturating_sub(cost(bytes));
        Ok(Stay { bytes, entered_ms: now_ms, done_before: self.done })
    }

    /// A statement that was let in has ended.
    pub fn leave(&mut self, now_ms: u64, stay: &Stay) {
        self.measure(now_ms);
        self.inside = self.inside.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(stay.bytes);
        self.cost = self.cost.saturating_sub(cost(stay.bytes));
        self.done += cost(stay.bytes);
        self.quiet_since_ms = now_ms;
        let window = &mut self.window;
        window.first_left_ms.get_or_insert(now_ms);
        window.left += 1;
        window.entered_ms += stay.entered_ms;
        window.done_before += stay.done_before;
    }

    /// To be called before anything changes.
    fn measure(&mut self, now_ms: u64) {
        let window = &mut self.window;
        window.stays_ms += self.inside as u64 * now_ms.saturating_sub(window.at_ms);
        window.at_ms = now_ms;
        let quiet_ms = now_ms.saturating_sub(self.quiet_since_ms);
        if quiet_ms >= WINDOW_MS && self.inside >= self.least {
            // Should all of them leave now, it would be no more than this.
            self.rate_per_ms = self.rate_per_ms.min(self.cost as f64 / quiet_ms as f64);
        }
        // From when the first left: who is done with them leaves in this window too.
        if window.first_left_ms.is_none_or(|first_ms| now_ms.saturating_sub(first_ms) < WINDOW_MS) {
            return;
        }
        let passed_ms = now_ms.saturating_sub(window.began_ms);
        let measured = window.rate_per_ms(now_ms, self.done);
        if 4 * window.stays_ms >= 3 * self.least as u64 * passed_ms {
            // There was nearly always somebody waiting: this is what can be done. (Large ones fill a house of no more than `least`.)
            let weight = 1.0 - 0.5_f64.powf(passed_ms as f64 / HALF_LIFE_MS);
            self.rate_per_ms += (measured - self.rate_per_ms) * weight;
        } else {
            // It could have been more, and is not less than before only because less was asked for.
            self.rate_per_ms = self.rate_per_ms.max(measured);
            self.refused = 0;
        }
        self.window = Window { began_ms: now_ms, at_ms: now_ms, ..Window::default() };
    }
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    begun: Instant,
    reads: Mutex<House>,
    writes: Mutex<House>,
    large: Mutex<House>,
}

/// Leave to be in the house, until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    kind: Kind,
    stay: Stay,
}

impl Gate {
    /// An open gate to empty houses; see [`House::new`].
    pub fn new(sessions: usize) -> Arc<Gate> {
        let house = |kind| Mutex::new(House::new(0, sessions, kind));
        let (reads, writes, large) = (house(Kind::Read), house(Kind::Write), house(Kind::Large));
        Arc::new(Gate { begun: Instant::now(), reads, writes, large })
    }

    fn house(&self, kind: Kind) -> MutexGuard<'_, House> {
        let house = match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
            Kind::Large => &self.large,
        };
        house.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Whether statements of any kind wait; see [`House::is_busy`].
    pub fn is_busy(&self) -> bool {
        [Kind::Read, Kind::Write, Kind::Large].into_iter().any(|kind| self.house(kind).is_busy())
    }

    /// Lets a statement of `bytes` in.
    ///
    /// # Errors
    /// [`Failure::Overloaded`]: nothing happened.
    pub fn enter(self: &Arc<Gate>, kind: Kind, bytes: usize) -> Result<Ticket, Failure> {
        let entered = self.house(kind).enter(self.now_ms(), bytes);
        match entered {
            Ok(stay) => Ok(Ticket { gate: self.clone(), kind, stay }),
            Err(_) if deliberate(Bug::NoAdmissionControl) => {
                let stay = Stay { bytes, entered_ms: self.now_ms(), done_before: 0 };
                Ok(Ticket { gate: self.clone(), kind, stay })
            }
            Err(retry_after_ms) => {
                metrics::counter!("evenkeel_statements_refused_total").increment(1);
                Err(Failure::Overloaded { retry_after_ms: retry_after_ms as u32 })
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now_ms = self.gate.now_ms();
        self.gate.house(self.kind).leave(now_ms, &self.stay);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::VecDeque;

    /// A shard that does `per_ms` statements a millisecond, first come first served, with `clients` who each come back `pause_ms` after an
    /// answer and as told after a refusal.
    struct Shard {
        house: House,
        now_ms: u64,
        queue: VecDeque<Stay>,
        /// When each client that is outside comes.
        outside: Vec<u64>,
        credit: f64,
    }

    /// What became of a period.
    #[derive(Debug, Default)]
    struct Seen {
        done: usize,
        refused: usize,
        waits_ms: Vec<u64>,
    }

    impl Shard {
        fn new(clients: usize) -> Shard {
            let (queue, outside) = (VecDeque::new(), vec![0; clients]);
            Shard { house: House::new(0, 64, Kind::Write), now_ms: 0, queue, outside, credit: 0.0 }
        }

        fn run(&mut self, ms: u64, per_ms: f64, pause_ms: u64) -> Seen {
            let mut seen = Seen::default();
            for _ in 0..ms {
                self.now_ms += 1;
                let due = self.outside.iter().filter(|at| **at <= self.now_ms).count();
                self.outside.retain(|at| *at > self.now_ms);
                for _ in 0..due {
                    match self.house.enter(self.now_ms, 100) {
                        Ok(stay) => self.queue.push_back(stay),
                        Err(after_ms) => {
                            seen.refused += 1;
                            self.outside.push(self.now_ms + after_ms);
                        }
                    }
                }
                self.credit = (self.credit + per_ms).min(per_ms.max(1.0));
                while self.credit >= 1.0 {
                    let Some(stay) = self.queue.pop_front() else { break };
                    self.credit -= 1.0;
                    self.house.leave(self.now_ms, &stay);
                    seen.done += 1;
                    seen.waits_ms.push(self.now_ms - stay.entered_ms);
                    self.outside.push(self.now_ms + pause_ms);
                }
            }
            seen.waits_ms.sort_unstable();
            seen
        }
    }

    fn p99(seen: &Seen) -> u64 {
        seen.waits_ms.get(seen.waits_ms.len() * 99 / 100).copied().unwrap_or(0)
    }

    #[test]
    fn whoever_is_let_in_is_done_soon_at_any_speed_and_nothing_is_wasted() {
        for per_ms in [0.5, 2.0, 20.0] {
            let mut shard = Shard::new(20_000);
            shard.run(3_000, per_ms, 1);
            let seen = shard.run(5_000, per_ms, 1);
            let possible = (5_000.0 * per_ms) as usize;
            assert!(seen.done >= possible * 95 / 100, "{per_ms}/ms: {} of {possible} done", seen.done);
            assert!(p99(&seen) <= TARGET_MS * 3 / 2, "{per_ms}/ms: p99 {} ms", p99(&seen));
            assert!(seen.refused > 0, "{per_ms}/ms: nobody was refused");
            // Those outside must not ask so often that asking becomes the load.
            assert!(seen.refused <= 5_000 * 20_000 / (2 * TARGET_MS as usize) * 2, "{} refusals", seen.refused);
        }
    }

    #[test]
    fn a_load_that_can_be_carried_is_never_refused() {
        let mut shard = Shard::new(200);
        shard.run(1_000, 5.0, 1);
        // 200 clients at 5 a millisecond wait 40 ms each.
        assert_eq!(shard.run(20_000, 5.0, 1).refused, 0);
        // Nor after a long quiet time, in which next to nothing was asked for.
        shard.run(60_000, 5.0, 10_000);
        assert_eq!(shard.run(5_000, 5.0, 1).refused, 0);
    }

    #[test]
    fn a_machine_that_becomes_slower_is_noticed_and_one_that_recovers_too() {
        let mut shard = Shard::new(5_000);
        shard.run(3_000, 10.0, 1);
        // Those who were let in at the old speed have to be done first.
        shard.run(4_000, 1.0, 1);
        let slow = shard.run(3_000, 1.0, 1);
        assert!(p99(&slow) <= TARGET_MS * 3 / 2, "p99 {} ms", p99(&slow));
        shard.run(2_000, 10.0, 1);
        let fast = shard.run(3_000, 10.0, 1);
        assert!(fast.done >= 28_000, "{} done", fast.done);
        // It stood still for a while, as when a disk stalls.
        shard.run(1_000, 0.0, 1);
        shard.run(2_000, 10.0, 1);
        let after = shard.run(3_000, 10.0, 1);
        assert!(after.done >= 28_000 && p99(&after) <= TARGET_MS * 3 / 2, "{} done, p99 {}", after.done, p99(&after));
    }

    #[test]
    fn those_who_leave_together_are_not_taken_for_speed() {
        let mut house = House::new(0, 8, Kind::Write);
        let mut now_ms = 0;
        for _ in 0..5 {
            // As many as may come in; they are committed together, after 5 ms for each of them. Others look in meanwhile.
            let group: Vec<Stay> = (0..300).map_while(|_| house.enter(now_ms, 100).ok()).collect();
            for _ in 0..5 * group.len() {
                now_ms += 1;
                house.measure(now_ms);
            }
            group.iter().for_each(|stay| house.leave(now_ms, stay));
        }
        house.measure(now_ms + 2 * WINDOW_MS);
        assert!(
            (40..=55).contains(&house.limit()),
            "{} may be inside where 50 are done in {TARGET_MS} ms",
            house.limit()
        );
    }

    #[test]
    fn bytes_are_bounded_and_a_single_large_statement_is_not_locked_out() {
        let mut house = House::new(0, 64, Kind::Large);
        let large = house.enter(1, 2 * MAX_LARGE_BYTES).unwrap();
        assert!(house.enter(1, 1).is_err());
        house.leave(2, &large);
        let each = MAX_LARGE_BYTES / 10;
        let entered = (0..20).filter(|_| house.enter(3, each).is_ok()).count();
        assert_eq!((entered, house.inside()), (10, 10));
    }

    /// Breaks if one rate is measured for all statements (E16): 200 clients with 64 KiB each are done at one in 10 ms, and 400 clients with reads
    /// that take 20 ms beside them are refused for it.
    #[test]
    fn large_statements_do_not_keep_out_small_ones() {
        let gate = Gate::new(64);
        let (mut large, mut reads) = (VecDeque::new(), VecDeque::new());
        let mut refused = 0;
        for now_ms in 0..5_000_u64 {
            let mut house = gate.house(Kind::of("UPDATE t SET value = $1 WHERE id = $2", 64 << 10));
            while large.len() < 200
                && let Ok(stay) = house.enter(now_ms, 64 << 10)
            {
                large.push_back(stay);
            }
            if now_ms.is_multiple_of(10)
                && let Some(stay) = large.pop_front()
            {
                house.leave(now_ms, &stay);
            }
            drop(house);
            let mut house = gate.house(Kind::of(" select * FROM t WHERE id = $1", 100));
            while reads.front().is_some_and(|stay: &Stay| stay.entered_ms + 20 <= now_ms)
                && let Some(stay) = reads.pop_front()
            {
                house.leave(now_ms, &stay);
            }
            // All come back at once now and then, after a pause.
            while now_ms % 1_000 >= 500 && reads.len() < 400 {
                match house.enter(now_ms, 100) {
                    Ok(stay) => reads.push_back(stay),
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
            }
        }
        assert_eq!(refused, 0);
        assert!(large.len() < 200, "of the large ones there are too many");
    }

    #[test]
    fn a_statement_counts_by_its_bytes() {
        let mut house = House::new(0, 0, Kind::Large);
        // One of 1 MiB every 100 ms: as much as 650 small ones a second.
        let mut queue = VecDeque::new();
        for now_ms in 0..20_000 {
            if let Ok(stay) = house.enter(now_ms, 1 << 20) {
                queue.push_back(stay);
            }
            if now_ms.is_multiple_of(100)
                && let Some(stay) = queue.pop_front()
            {
                house.leave(now_ms, &stay);
            }
        }
        assert!((130..200).contains(&house.limit()), "{}", house.limit());
        // Those that are there are let out, and small ones are done as fast as their bytes let them be: ten in the time of one of those.
        queue.drain(..).for_each(|stay| house.leave(20_000, &stay));
        let small = (0..300).map_while(|_| house.enter(20_001, 100).ok()).count();
        assert!(small > 100, "{small}");
    }
}
