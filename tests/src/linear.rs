//! A checker of linearizability for registers: a search with memory, key by key (Wing and Gong's,
//! with Lowe's improvements). Pure.
//!
//! Counters need no search ([`crate::history`]). Registers do, since a write does not say its place
//! in the order. Each key is a register of its own, and linearizability is local: a history is
//! linearizable if each key's part of it is. A write with an unknown outcome may take effect at any
//! time after it was sent, or never. The search is bounded; a search that reaches its bound is a
//! finding.

use std::collections::{BTreeMap, HashSet};

/// The bound of steps of the search for one key.
pub const MAX_STEPS: u64 = 20_000_000;
/// The bound of one key's search in memory, in bytes.
const MAX_MEMORY_BYTES: usize = 1 << 30;

/// An operation on a register, with its observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The register was read and had this value.
    Read(i64),
    /// This value was written.
    Write(i64),
    /// A compare-and-set from `from` to `to`. `done` says whether it took effect, if that is known.
    Swap {
        /// The expected value.
        from: i64,
        /// The new value.
        to: i64,
        /// Whether it took effect.
        done: Option<bool>,
    },
}

impl What {
    /// The value after it, if it can happen to a register that holds `value`.
    fn after(self, value: i64) -> Option<i64> {
        match self {
            What::Read(seen) => (seen == value).then_some(value),
            What::Write(to) => Some(to),
            What::Swap { from, to, done } => match (from == value, done) {
                (true, Some(true) | None) => Some(to),
                (false, Some(false) | None) => Some(value),
                (true, Some(false)) | (false, Some(true)) => None,
            },
        }
    }
}

/// One operation as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The register.
    pub key: i64,
    /// The operation.
    pub what: What,
    /// The time of sending, in microseconds of one process's monotonic clock.
    pub sent_us: u64,
    /// The time of the answer; `None` if the outcome is unknown. Operations without effect, and
    /// reads without an answer, are not in a history.
    pub answered_us: Option<u64>,
}

/// The violations of this history, and the keys that could not be decided, in words. Empty if the
/// history is possible. Registers are `initial` at first.
pub fn check(history: &[Operation], initial: i64) -> Vec<String> {
    check_within(history, initial, MAX_STEPS)
}

/// The same with a given bound.
pub fn check_within(history: &[Operation], initial: i64, max_steps: u64) -> Vec<String> {
    let mut by_key: BTreeMap<i64, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        by_key.entry(operation.key).or_default().push(*operation);
    }
    let finding = |(key, operations): (&i64, &Vec<Operation>)| match Search::new(operations, initial).run(max_steps) {
        Verdict::Possible => None,
        Verdict::Impossible(stuck) => Some(format!("register {key} is not linearizable: nothing explains {stuck:?}")),
        Verdict::Undecided => {
            Some(format!("register {key}: undecided after {max_steps} steps over {} operations", operations.len()))
        }
    };
    by_key.iter().filter_map(finding).collect()
}

enum Verdict {
    Possible,
    /// The operation that got furthest without an explanation.
    Impossible(Operation),
    Undecided,
}

/// A sending or an answer in the order of time.
#[derive(Clone, Copy)]
struct Moment {
    operation: usize,
    is_answer: bool,
}

/// The operations that have a place in the order, one bit each.
type Placed = Vec<u64>;

/// The search: the list of moments that have no place yet, what was placed, and every state that
/// was seen before.
struct Search<'a> {
    operations: &'a [Operation],
    moments: Vec<Moment>,
    /// By operation, where its sending and (if it has one) its answer are among the moments.
    at: Vec<(usize, Option<usize>)>,
    /// A list through `moments`: index `moments.len()` is before the first and after the last.
    next: Vec<usize>,
    previous: Vec<usize>,
    value: i64,
    placed: Placed,
    seen: HashSet<(Placed, i64)>,
    /// Placed operations in their order, each with the value before it.
    order: Vec<(usize, i64)>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation], initial: i64) -> Search<'a> {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (number, operation) in operations.iter().enumerate() {
            times.push((operation.sent_us, false, number));
            // In the same microsecond nothing is known about the order: a sending counts as before
            // an answer, so both overlap.
            times.extend(operation.answered_us.map(|at| (at, true, number)));
        }
        times.sort_unstable();
        let mut at = vec![(0, None); operations.len()];
        for (place, (_, is_answer, number)) in times.iter().enumerate() {
            if *is_answer {
                at[*number].1 = Some(place);
            } else {
                at[*number].0 = place;
            }
        }
        let count = times.len();
        Search {
            operations,
            moments: times
                .iter()
                .map(|(_, is_answer, number)| Moment { operation: *number, is_answer: *is_answer })
                .collect(),
            at,
            next: (1..=count).chain([0]).collect(),
            previous: [count].into_iter().chain(0..count).collect(),
            value: initial,
            placed: vec![0; operations.len().div_ceil(64)],
            seen: HashSet::new(),
            order: Vec::new(),
        }
    }

    fn run(&mut self, max_steps: u64) -> Verdict {
        let end = self.moments.len();
        let state_bytes = self.placed.len() * 8 + 64;
        let mut at = self.next[end];
        let mut furthest = 0;
        for _ in 0..max_steps {
            if at == end {
                // No answer is left: the remaining operations need not have taken effect.
                return Verdict::Possible;
            }
            if self.seen.len() * state_bytes > MAX_MEMORY_BYTES {
                return Verdict::Undecided;
            }
            let moment = self.moments[at];
            if !moment.is_answer {
                at = if self.place(moment.operation) { self.next[end] } else { self.next[at] };
                continue;
            }
            // This operation was answered without a place in the order: an earlier choice was
            // wrong.
            furthest = furthest.max(at);
            match self.order.pop() {
                Some((operation, before)) => {
                    self.take_back(operation, before);
                    at = self.next[self.at[operation].0];
                }
                None => return Verdict::Impossible(self.operations[self.moments[furthest].operation]),
            }
        }
        Verdict::Undecided
    }

    /// Gives an operation the next place in the order, if that is possible and leads to a new
    /// state.
    fn place(&mut self, operation: usize) -> bool {
        let Some(after) = self.operations[operation].what.after(self.value) else { return false };
        self.placed[operation / 64] |= 1 << (operation % 64);
        if !self.seen.insert((self.placed.clone(), after)) {
            self.placed[operation / 64] &= !(1 << (operation % 64));
            return false;
        }
        self.order.push((operation, self.value));
        self.value = after;
        let (sent, answered) = self.at[operation];
        for moment in [Some(sent), answered].into_iter().flatten() {
            let (previous, next) = (self.previous[moment], self.next[moment]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
        true
    }

    fn take_back(&mut self, operation: usize, before: i64) {
        self.placed[operation / 64] &= !(1 << (operation % 64));
        self.value = before;
        let (sent, answered) = self.at[operation];
        // What was taken out last goes back first, so its neighbours are those that it remembers.
        for moment in [answered, Some(sent)].into_iter().flatten() {
            let (previous, next) = (self.previous[moment], self.next[moment]);
            self.next[previous] = moment;
            self.previous[next] = moment;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(what: What, sent_us: u64, answered_us: u64) -> Operation {
        Operation { key: 1, what, sent_us, answered_us: Some(answered_us) }
    }

    fn unknown(what: What, sent_us: u64) -> Operation {
        Operation { key: 1, what, sent_us, answered_us: None }
    }

    fn swap(from: i64, to: i64, done: Option<bool>) -> What {
        What::Swap { from, to, done }
    }

    fn possible(history: &[Operation]) -> bool {
        check(history, 0).is_empty()
    }

    #[test]
    fn what_can_have_happened_passes() {
        use What::{Read, Write};
        assert!(possible(&[]));
        assert!(possible(&[op(Read(0), 0, 1), op(Write(5), 2, 3), op(Read(5), 4, 5)]));
        // Overlapping writes may come in either order, whichever later reads say.
        for last in [1, 2] {
            assert!(possible(&[op(Write(1), 0, 10), op(Write(2), 5, 15), op(Read(last), 20, 30)]));
        }
        assert!(possible(&[op(Write(1), 0, 100), op(Read(1), 10, 20), op(Read(1), 30, 40)]));
        assert!(possible(&[
            op(swap(0, 3, Some(true)), 0, 10),
            op(swap(0, 4, Some(false)), 11, 20),
            op(Read(3), 21, 22)
        ]));
    }

    #[test]
    fn stale_reads_are_seen() {
        use What::{Read, Write};
        assert!(!possible(&[op(Write(1), 0, 10), op(Read(0), 11, 20)]));
        // A read that saw the new value, then one that saw the old, while the write was still under
        // way.
        assert!(!possible(&[op(Write(1), 0, 100), op(Read(1), 10, 20), op(Read(0), 30, 40)]));
        // Two readers that disagree about the order of two writes.
        let writes = [op(Write(1), 0, 100), op(Write(2), 0, 100)];
        let reads = [op(Read(1), 101, 110), op(Read(2), 111, 120)];
        assert!(!possible(&[writes[0], writes[1], reads[0], reads[1]]));
    }

    #[test]
    fn lost_writes_and_writes_from_nowhere_are_seen() {
        use What::{Read, Write};
        assert!(!possible(&[op(Read(7), 0, 10)]));
        assert!(!possible(&[op(Write(1), 0, 10), op(Write(2), 20, 30), op(Read(1), 40, 50)]));
        assert!(
            !possible(&[op(swap(0, 1, Some(true)), 0, 10), op(swap(0, 2, Some(true)), 0, 10)]),
            "both cannot have won"
        );
        assert!(!possible(&[op(swap(0, 1, Some(false)), 0, 10)]), "it had no reason to fail");
    }

    #[test]
    fn an_unknown_outcome_may_be_either_and_may_come_late() {
        use What::{Read, Write};
        let write = unknown(Write(9), 5);
        assert!(possible(&[write, op(Read(0), 100, 110)]));
        assert!(possible(&[write, op(Read(0), 100, 110), op(Read(9), 120, 130)]));
        // But it happens once, and not before it was sent.
        assert!(!possible(&[write, op(Read(9), 100, 110), op(Write(3), 120, 130), op(Read(9), 140, 150)]));
        assert!(!possible(&[write, op(Read(9), 1, 3)]));
        assert!(possible(&[unknown(swap(0, 4, None), 0), op(Read(4), 10, 20)]));
        assert!(!possible(&[unknown(swap(1, 4, None), 0), op(Read(4), 10, 20)]));
    }

    /// Fails if a search that reached its bound counts as a success.
    #[test]
    fn an_undecided_history_is_a_finding() {
        let history: Vec<Operation> = (0..12).map(|n| op(What::Write(n), 0, 1_000)).collect();
        let found = check_within(&history, 0, 10);
        assert!(found.len() == 1 && found[0].contains("undecided after 10 steps"), "{found:?}");
        assert!(possible(&history));
    }

    /// A small store that is linearizable by construction: each operation takes effect at a moment
    /// between its sending and its answer. Then one answer is changed to one that was never true at
    /// the time.
    #[test]
    fn many_histories_with_and_without_a_stale_read() {
        for seed in 0..10_u64 {
            let mut state = seed;
            let mut random = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let mut value = 0;
            let mut history = Vec::new();
            for at in 0..150_u64 {
                let moment = 100 + at * 10;
                let what = if random(2) == 0 { What::Write(at as i64 + 1) } else { What::Read(value) };
                let lost = matches!(what, What::Write(_)) && random(30) == 0;
                // Of the writes without an answer half take effect.
                if !lost || random(2) == 0 {
                    value = what.after(value).unwrap_or(value);
                }
                let answered_us = (!lost).then(|| moment + random(30));
                history.push(Operation { key: 1, what, sent_us: moment - random(30), answered_us });
            }
            assert_eq!(check(&history, 0), Vec::<String>::new(), "seed {seed}");
            // Longer ago than anything can overlap.
            let wrong = history.iter().rposition(|o| matches!(o.what, What::Read(v) if v > 20)).unwrap_or(0);
            history[wrong].what = What::Read(1);
            history.insert(0, op(What::Write(1), 0, 1));
            assert_eq!(check(&history, 0).len(), 1, "seed {seed}");
        }
    }
}
