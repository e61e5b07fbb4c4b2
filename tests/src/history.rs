//! A checker of histories of counters. Pure.
//!
//! Clients concurrently add one to a counter, which returns its new value, or read it, while faults
//! are injected. A history has their operations: the request, the answer, and the times of both on
//! one process's monotonic clock. A store that is linearizable and applies each statement at most
//! once (invariant 7) gives each addition a value of its own. Values respect real time: an
//! operation that was sent after an answer sees at least the value of that answer. For counters,
//! sorting decides this without a search.

use std::collections::{BTreeMap, BTreeSet};

/// The operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Add one and return the new value.
    Add,
    /// Return the value.
    Read,
}

/// One operation as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The counter.
    pub key: i64,
    /// The operation.
    pub asked: Asked,
    /// The time of sending, in microseconds.
    pub sent_us: u64,
    /// The time of the answer, in microseconds; meaningless without an answer.
    pub answered_us: u64,
    /// The value seen; `None` if the outcome is unknown. Operations without effect are not in a
    /// history.
    pub seen: Option<i64>,
}

/// The violations of this history, in words. Empty if the history is possible. Counters begin at 0,
/// and `last` has their final values.
pub fn check(history: &[Event], last: &BTreeMap<i64, i64>) -> Vec<String> {
    let mut by_key: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for event in history {
        by_key.entry(event.key).or_default().push(event);
    }
    by_key.iter().flat_map(|(key, events)| check_counter(*key, events, last.get(key).copied())).collect()
}

fn check_counter(key: i64, events: &[&Event], last: Option<i64>) -> Vec<String> {
    let mut wrong = Vec::new();
    let adds: Vec<&&Event> = events.iter().filter(|e| e.asked == Asked::Add).collect();
    let mut values = BTreeSet::new();
    for value in adds.iter().filter_map(|e| e.seen) {
        if !values.insert(value) {
            wrong.push(format!("counter {key}: two additions both gave {value}"));
        }
    }
    let known = values.len() as i64;
    let possible = adds.len() as i64;
    match last {
        None => wrong.push(format!("counter {key} is gone")),
        Some(last) if last < known.max(values.last().copied().unwrap_or(0)) => {
            wrong.push(format!(
                "counter {key} ends at {last}, but {known} additions were acknowledged, up to {:?}",
                values.last()
            ));
        }
        Some(last) if last > possible => {
            wrong.push(format!("counter {key} ends at {last}, but only {possible} additions were ever sent"));
        }
        Some(_) => {}
    }
    // In real time, an operation sent after an answer sees at least the answer's value; an addition
    // sees more.
    let mut answered: Vec<(u64, i64)> = events.iter().filter_map(|e| Some((e.answered_us, e.seen?))).collect();
    answered.sort_unstable();
    let mut highest = Vec::with_capacity(answered.len());
    let mut so_far = 0;
    for (at, value) in answered {
        so_far = so_far.max(value);
        highest.push((at, so_far));
    }
    let mut sent: Vec<u64> = adds.iter().map(|e| e.sent_us).collect();
    sent.sort_unstable();
    for event in events {
        let Some(seen) = event.seen else { continue };
        let before = highest.partition_point(|(at, _)| *at < event.sent_us);
        let least = before.checked_sub(1).map_or(0, |i| highest[i].1) + i64::from(event.asked == Asked::Add);
        if seen < least {
            wrong.push(format!(
                "counter {key}: sent at {} µs, {:?} saw {seen}, but {least} was to be seen by then",
                event.sent_us, event.asked
            ));
        }
        let most = sent.partition_point(|at| *at <= event.answered_us) as i64;
        if seen > most {
            wrong.push(format!(
                "counter {key}: answered at {} µs, {:?} saw {seen}, but only {most} additions had been sent",
                event.answered_us, event.asked
            ));
        }
    }
    wrong
}

/// A read at level `local`, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgedRead {
    /// The time of sending, in microseconds.
    pub sent_us: u64,
    /// The value seen.
    pub seen: i64,
    /// The staleness that the answer states, in milliseconds.
    pub age_ms: u64,
}

/// The reads of one counter that were older than they stated. `acknowledged` has the time of each
/// value's acknowledgement, in microseconds; values only grow. An answer leaves its replica after
/// the read was sent, so it must include every value that was acknowledged longer than its age
/// before the sending.
pub fn check_ages(acknowledged: &[(u64, i64)], reads: &[AgedRead]) -> Vec<String> {
    let mut known = acknowledged.to_vec();
    known.sort_unstable();
    let mut highest = 0;
    for (_, value) in &mut known {
        highest = highest.max(*value);
        *value = highest;
    }
    let older = reads.iter().filter_map(|read| {
        let since_us = read.sent_us.saturating_sub(read.age_ms * 1_000);
        let before = known.partition_point(|(at_us, _)| *at_us < since_us);
        let least = before.checked_sub(1).map_or(0, |last| known[last].1);
        (read.seen < least).then(|| format!("{read:?} should have seen {least}"))
    });
    older.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_older_than_it_says_is_seen() {
        let acknowledged = [(10_000, 1), (20_000, 2), (30_000, 3)];
        let read = |sent_us, seen, age_ms| AgedRead { sent_us, seen, age_ms };
        // At 35 ms, ten milliseconds old: the second was acknowledged before, the third need not be
        // seen.
        assert_eq!(check_ages(&acknowledged, &[read(35_000, 2, 10), read(35_000, 3, 10)]), Vec::<String>::new());
        assert_eq!(check_ages(&acknowledged, &[read(35_000, 1, 10)]).len(), 1);
        assert_eq!(check_ages(&acknowledged, &[read(35_000, -1, 20)]).len(), 1, "a row that is gone");
        assert_eq!(check_ages(&acknowledged, &[read(5_000, 0, 10)]), Vec::<String>::new());
    }

    fn event(asked: Asked, sent_us: u64, answered_us: u64, seen: Option<i64>) -> Event {
        Event { key: 1, asked, sent_us, answered_us, seen }
    }

    fn wrong(history: &[Event], last: i64) -> Vec<String> {
        check(history, &BTreeMap::from([(1, last)]))
    }

    #[test]
    fn what_can_have_happened_passes() {
        let history = [
            event(Asked::Add, 0, 10, Some(1)),
            event(Asked::Add, 5, 30, Some(2)),
            event(Asked::Read, 11, 20, Some(1)),
            event(Asked::Read, 12, 22, Some(2)),
            event(Asked::Add, 40, 0, None),
            event(Asked::Read, 60, 70, Some(3)),
        ];
        assert_eq!(wrong(&history, 3), Vec::<String>::new());
        // The addition with the unknown outcome may not have taken effect.
        assert_eq!(wrong(&history[..5], 2), Vec::<String>::new());
    }

    #[test]
    fn a_lost_write_is_seen() {
        assert_eq!(wrong(&[event(Asked::Add, 0, 10, Some(1))], 0).len(), 1);
        assert_eq!(check(&[event(Asked::Add, 0, 10, Some(1))], &BTreeMap::new()), ["counter 1 is gone"]);
    }

    #[test]
    fn a_write_applied_twice_is_seen() {
        assert!(wrong(&[event(Asked::Add, 0, 10, Some(1))], 2)[0].contains("only 1 additions were ever sent"));
        let twice = [event(Asked::Add, 0, 10, Some(1)), event(Asked::Add, 0, 10, Some(1))];
        assert!(wrong(&twice, 2)[0].contains("two additions both gave 1"));
        let skipped = [event(Asked::Add, 0, 10, Some(2))];
        assert!(!wrong(&skipped, 2).is_empty());
    }

    #[test]
    fn a_stale_read_is_seen() {
        let history = [event(Asked::Add, 0, 10, Some(1)), event(Asked::Read, 11, 20, Some(0))];
        assert!(wrong(&history, 1)[0].contains("saw 0, but 1 was to be seen"));
        // Begun before the answer, it may see either.
        let history = [event(Asked::Add, 0, 10, Some(1)), event(Asked::Read, 9, 20, Some(0))];
        assert_eq!(wrong(&history, 1), Vec::<String>::new());
        // Two reads in sequence must not go back, even if the addition's outcome is unknown.
        let back =
            [event(Asked::Add, 0, 0, None), event(Asked::Read, 5, 10, Some(1)), event(Asked::Read, 11, 20, Some(0))];
        assert_eq!(wrong(&back, 1).len(), 1);
    }
}
