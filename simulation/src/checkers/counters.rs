//! Invariant 7 and linearizability (log rule 9, R8), on counters: nothing acknowledged is lost,
//! nothing is applied twice, nothing is stale.
//!
//! Clients add one to a counter and learn its new value, or they read it. If every key is
//! linearizable and each statement is applied at most once, each addition has a value of its own
//! and values respect real time. Sorting decides that, without search.

use crate::history::events::{Event, LEADER, LOCAL, Last};
use std::collections::{BTreeMap, BTreeSet};

/// Violations of this history, in words. Counters begin at 0; `last` has their final values.
pub fn check(history: &[Event], last: Option<&Last>) -> Vec<String> {
    let mut by_key: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for event in history {
        by_key.entry(event.key).or_default().push(event);
    }
    by_key.iter().flat_map(|(key, events)| counter(*key, events, last)).collect()
}

fn counter(key: i64, events: &[&Event], last: Option<&Last>) -> Vec<String> {
    let mut wrong = Vec::new();
    let adds: Vec<&&Event> = events.iter().filter(|event| event.adds).collect();
    let mut values = BTreeSet::new();
    for value in adds.iter().filter_map(|event| event.seen) {
        if !values.insert(value) {
            wrong.push(format!("counter {key}: two additions both gave {value}"));
        }
    }
    let highest_acknowledged = values.last().copied().unwrap_or(0);
    if let Some(last) = last.map(|last| last.get(&key).copied().unwrap_or(0)) {
        if last < highest_acknowledged.max(values.len() as i64) {
            let known = values.len();
            wrong.push(format!(
                "counter {key} ends at {last}, but {known} additions were acknowledged, up to {highest_acknowledged}"
            ));
        }
        if last > adds.len() as i64 {
            wrong.push(format!("counter {key} ends at {last}, but only {} additions were ever sent", adds.len()));
        }
    }
    wrong.extend(real_time(key, events, &adds));
    wrong
}

/// A request that is sent after an answer sees at least its value, an addition a greater one; and
/// no answer shows an addition that was not sent yet.
fn real_time(key: i64, events: &[&Event], adds: &[&&Event]) -> Vec<String> {
    // A value that a client has seen at any level is decided (R28): every later addition comes
    // after it. The leader's own COMMIT may follow a little later than a follower's, so a `local`
    // read obliges no reads; and only acknowledged values oblige a `local` read.
    let all = highest(events.iter().copied());
    let committed = highest(events.iter().copied().filter(|event| event.how != LOCAL));
    let acknowledged = highest(events.iter().copied().filter(|event| ![LOCAL, LEADER].contains(&event.how)));
    let nothing = Vec::new();
    let mut sent: Vec<u64> = adds.iter().map(|event| event.sent_ms).collect();
    sent.sort_unstable();
    let mut wrong = Vec::new();
    for event in events {
        let Some(seen) = event.seen else { continue };
        let obliged_by = match event.how {
            LOCAL => &acknowledged,
            // `super::levels` says by what.
            LEADER => &nothing,
            _ if event.adds => &all,
            _ => &committed,
        };
        let before = obliged_by.partition_point(|(at, _)| *at < event.sent_ms);
        let least = before.checked_sub(1).map_or(0, |i| obliged_by[i].1) + i64::from(event.adds);
        let what = event.how;
        if seen < least {
            let at = event.sent_ms;
            wrong.push(format!("counter {key}: {what} sent at {at} ms saw {seen}, but {least} was to be seen by then"));
        }
        let most = sent.partition_point(|at| *at <= event.answered_ms) as i64;
        if seen > most {
            let at = event.answered_ms;
            wrong.push(format!(
                "counter {key}: {what} answered at {at} ms saw {seen}, but {most} additions had been sent"
            ));
        }
    }
    wrong
}

/// By the time of answers, the highest value seen by then.
fn highest<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<(u64, i64)> {
    let mut answered: Vec<(u64, i64)> = events.filter_map(|event| Some((event.answered_ms, event.seen?))).collect();
    answered.sort_unstable();
    let mut so_far = 0;
    for (_, value) in &mut answered {
        so_far = so_far.max(*value);
        *value = so_far;
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(adds: bool, sent_ms: u64, answered_ms: u64, seen: Option<i64>) -> Event {
        Event { key: 1, adds, how: "", sent_ms, answered_ms, seen, by: None }
    }

    fn wrong(history: &[Event], last: i64) -> usize {
        check(history, Some(&Last::from([(1, last)]))).len()
    }

    #[test]
    fn what_can_have_happened_passes_and_what_cannot_does_not() {
        let fine = [event(true, 0, 10, Some(1)), event(false, 5, 30, Some(0)), event(true, 40, 0, None)];
        assert_eq!((wrong(&fine, 1), wrong(&fine, 2)), (0, 0));
        assert_eq!(wrong(&fine, 0), 1, "lost");
        assert_eq!(wrong(&fine, 3), 1, "applied twice");
        assert_eq!(wrong(&[event(true, 0, 10, Some(1)), event(false, 11, 20, Some(0))], 1), 1, "stale");
        assert_eq!(wrong(&[event(true, 0, 9, Some(1)), event(true, 0, 9, Some(1))], 2), 1, "the same value twice");
        assert_eq!(wrong(&[event(true, 0, 10, Some(2))], 1), 2, "from nowhere");
    }
}
