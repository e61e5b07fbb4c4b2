//! The coordination store: its history is linearizable, and what each user saw of it is that
//! history.
//!
//! Every change has a revision, and every answer names the revision at which it was true. The order
//! of operations is therefore known: it is the order of the store, equal on all placement drivers
//! in the end. The checker compares the history with it and needs no search. The order spans all
//! keys, which is more than linearizability key by key.
//!
//! - An acknowledged write is at its revision, once. A refused write is absent. A write with
//!   unknown outcome is there at most once.
//! - The condition of a write held at the revision before. A refused condition did not hold at some
//!   revision between sending and answer.
//! - A read shows exactly the content at its revision. A request that is sent after an answer has a
//!   later revision, or shows at least that revision. A sequential read shows at least the revision
//!   that it asked for, and no process of a placement driver goes back.
//! - A watch reports every change of its keys once, in order, and without a gap.

use crate::history::coordination::{CoordinationHistory, End, KeysFound, Read, Watch, Write};
use evenkeel_placement_driver::coordination::{CoordinationStore, Expect};
use std::collections::{BTreeMap, HashMap};

/// A change: its revision, and what the key holds since.
type Change = (u64, Option<String>);

/// Violations of this history by a store whose final content is `store`, in words.
pub fn check(history: &CoordinationHistory, store: &CoordinationStore) -> Vec<String> {
    let truth = Truth::new(history, store);
    let mut wrong = truth.wrong.clone();
    wrong.extend(history.writes.iter().filter_map(|write| Some(format!("{}: {write:?}", truth.write(write).err()?))));
    wrong.extend(history.reads.iter().filter_map(|read| Some(format!("{}: {read:?}", truth.read(read).err()?))));
    wrong.extend(history.watches.iter().filter_map(|watch| truth.watch(watch).err()));
    wrong.extend(back_in_time(&history.reads));
    wrong.into_iter().map(|sentence| format!("coordination store: {sentence}")).collect()
}

/// Whether a watch has reported every change of the store.
pub fn has_told_all(watch: &Watch, store: &CoordinationStore) -> bool {
    let rest = store.history().since(watch.seen, &watch.prefix, 1, store.revision());
    rest.is_ok_and(|batch| batch.events.is_empty())
}

/// The changes in the order of revisions, and the revisions that users must have seen at each time.
struct Truth {
    by_key: BTreeMap<String, Vec<Change>>,
    /// By value, its revision.
    revisions: HashMap<String, u64>,
    last: u64,
    /// By the time of answers, the highest revision that had been shown by then.
    shown: Vec<(u64, u64)>,
    /// By the time of sending, from the end, the lowest revision of what was sent from then on.
    sent: Vec<(u64, u64)>,
    wrong: Vec<String>,
}

impl Truth {
    fn new(history: &CoordinationHistory, store: &CoordinationStore) -> Truth {
        let mut truth = Truth {
            by_key: BTreeMap::new(),
            revisions: HashMap::new(),
            last: store.revision(),
            shown: Vec::new(),
            sent: Vec::new(),
            wrong: Vec::new(),
        };
        truth.take_log(store);
        truth.take_times(history);
        truth.take_origins(history);
        truth
    }

    fn take_log(&mut self, store: &CoordinationStore) {
        let events = store.history().since(0, "", usize::MAX, store.revision()).map(|batch| batch.events);
        let events = events.unwrap_or_else(|compacted| {
            self.wrong.push(format!("not all of its history is there any more: {compacted}"));
            Vec::new()
        });
        for (expected, event) in (1..).zip(&events) {
            if event.revision != expected {
                self.wrong.push(format!("revision {} comes where {expected} was to be", event.revision));
            }
            let value = event.entry.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
            if let Some(value) = &value
                && let Some(before) = self.revisions.insert(value.clone(), event.revision)
            {
                self.wrong.push(format!("{value} took effect twice, at {before} and at {}", event.revision));
            }
            self.by_key.entry(event.key.to_string()).or_default().push((event.revision, value));
        }
        if events.len() as u64 != self.last {
            self.wrong.push(format!("it is at revision {} after {} changes", self.last, events.len()));
        }
    }

    fn take_times(&mut self, history: &CoordinationHistory) {
        let done = |write: &Write| match write.end {
            End::Done(written) => Some(written.revision),
            End::Refused(found) => found,
            End::Unknown => None,
        };
        let writes = history.writes.iter().filter_map(|write| Some((write.answered_ms, done(write)?)));
        self.shown = writes.chain(history.reads.iter().map(|read| (read.answered_ms, read.revision))).collect();
        self.shown.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut self.shown {
            highest = highest.max(*revision);
            *revision = highest;
        }
        self.sent = history.writes.iter().filter_map(|write| Some((write.sent_ms, self.revision_of(write)?))).collect();
        self.sent.sort_unstable();
        let mut lowest = u64::MAX;
        for (_, revision) in self.sent.iter_mut().rev() {
            lowest = lowest.min(*revision);
            *revision = lowest;
        }
    }

    /// A user sent each change of the log.
    fn take_origins(&mut self, history: &CoordinationHistory) {
        let sent: HashMap<&str, &Write> =
            history.writes.iter().filter_map(|write| Some((write.value.as_deref()?, write))).collect();
        for (value, revision) in &self.revisions {
            if !sent.contains_key(value.as_str()) {
                self.wrong.push(format!("nobody sent {value}, which revision {revision} wrote"));
            }
        }
        for (key, changes) in &self.by_key {
            let there = changes.iter().filter(|(_, value)| value.is_none()).count();
            let deletes = history.writes.iter().filter(|write| write.key == key && write.value.is_none());
            let possible = deletes.filter(|write| !matches!(write.end, End::Refused(_))).count();
            if there > possible {
                self.wrong.push(format!("{key} was deleted {there} times, and {possible} times at most by somebody"));
            }
        }
    }

    fn revision_of(&self, write: &Write) -> Option<u64> {
        match (&write.value, write.end) {
            (_, End::Done(written)) => Some(written.revision),
            (Some(value), _) => self.revisions.get(value).copied(),
            (None, _) => None,
        }
    }

    /// The least revision that a request sent at this time must show.
    fn least(&self, sent_ms: u64) -> u64 {
        let before = self.shown.partition_point(|(at, _)| *at < sent_ms);
        before.checked_sub(1).map_or(0, |last| self.shown[last].1)
    }

    /// The greatest revision that an answer at this time can show.
    fn most(&self, answered_ms: u64) -> u64 {
        let later = self.sent.partition_point(|(at, _)| *at <= answered_ms);
        self.sent.get(later).map_or(self.last, |(_, revision)| revision - 1)
    }

    /// The latest change of a key up to a revision.
    fn at(&self, key: &str, revision: u64) -> Option<&Change> {
        let changes = self.by_key.get(key)?;
        changes[..changes.partition_point(|(at, _)| *at <= revision)].last()
    }

    /// Which revision had written the key at this one; `None` if it was not there.
    fn modified(&self, key: &str, revision: u64) -> Option<u64> {
        self.at(key, revision).filter(|(_, value)| value.is_some()).map(|(at, _)| *at)
    }

    fn write(&self, write: &Write) -> Result<(), String> {
        let effect = self.revision_of(write);
        match (write.end, effect) {
            (End::Done(written), _) => {
                let before = self.modified(write.key, written.revision - 1);
                if self.at(write.key, written.revision) != Some(&(written.revision, write.value.clone())) {
                    return Err("acknowledged, and not there".into());
                }
                if written.created != (before.is_none() && write.value.is_some()) {
                    return Err(format!("says wrongly whether it made the key; before it was {before:?}"));
                }
                if written.revision <= self.least(write.sent_ms) {
                    return Err(format!("sent after revision {} had been shown", self.least(write.sent_ms)));
                }
            }
            (End::Refused(_), Some(revision)) => return Err(format!("refused, and there at {revision}")),
            (End::Refused(found), None) => return self.refused(write, found),
            (End::Unknown, _) => {}
        }
        let Some(revision) = effect else { return Ok(()) };
        let before = self.modified(write.key, revision - 1);
        match holds(write.expect, before) {
            true => Ok(()),
            false => Err(format!("at {revision} took effect on {before:?}")),
        }
    }

    /// A condition that did not hold: that was so at some time while it was asked.
    fn refused(&self, write: &Write, found: Option<u64>) -> Result<(), String> {
        let absent_delete = write.value.is_none() && found.is_none();
        if holds(write.expect, found) && !absent_delete {
            return Err("refused though its condition held".into());
        }
        let (least, most) = (self.least(write.sent_ms), self.most(write.answered_ms));
        let changes = self.by_key.get(write.key).into_iter().flatten().map(|(at, _)| *at);
        let moments = changes.filter(|at| (least..=most).contains(at)).chain([least]);
        match moments.into_iter().any(|at| self.modified(write.key, at) == found) {
            true => Ok(()),
            false => Err(format!("refused by what was not so from revision {least} to {most}")),
        }
    }

    fn read(&self, read: &Read) -> Result<(), String> {
        let least = read.least.unwrap_or_else(|| self.least(read.sent_ms));
        let most = self.most(read.answered_ms);
        if !(least..=most).contains(&read.revision) {
            return Err(format!("it was to show a revision from {least} to {most}"));
        }
        let covers = |key: &str| {
            key.starts_with(&read.prefix)
                && read.after.as_deref().is_none_or(|after| key > after)
                && read.upto.as_deref().is_none_or(|upto| key <= upto)
        };
        let there = |key: &String| match self.at(key, read.revision)? {
            (at, Some(value)) => Some((key.clone(), (*at, value.clone()))),
            (_, None) => None,
        };
        let truth: KeysFound = self.by_key.keys().filter(|key| covers(key)).filter_map(there).collect();
        if truth == read.found { Ok(()) } else { Err(format!("at that revision there was {truth:?}")) }
    }

    fn watch(&self, watch: &Watch) -> Result<(), String> {
        let keys = self.by_key.iter().filter(|(key, _)| key.starts_with(&watch.prefix));
        let mut truth: Vec<(u64, String, Option<String>)> =
            keys.flat_map(|(key, all)| all.iter().map(|(at, value)| (*at, key.clone(), value.clone()))).collect();
        truth.retain(|(at, ..)| *at > watch.since && *at <= watch.seen);
        truth.sort_unstable();
        let differs = |n: &usize| truth.get(*n) != watch.changes.get(*n);
        match (0..truth.len().max(watch.changes.len())).find(differs) {
            None => Ok(()),
            Some(n) => Err(format!(
                "a watch of {:?} reported {:?} where {:?} was to come",
                watch.prefix,
                watch.changes.get(n),
                truth.get(n)
            )),
        }
    }
}

fn holds(expect: Expect, modified: Option<u64>) -> bool {
    match expect {
        Expect::Anything => true,
        Expect::Absent => modified.is_none(),
        Expect::Present => modified.is_some(),
        Expect::Revision(revision) => modified == Some(revision),
    }
}

/// Reads of one process that show an earlier revision than its answers before they were sent.
fn back_in_time(reads: &[Read]) -> Vec<String> {
    let mut by_process: BTreeMap<usize, Vec<&Read>> = BTreeMap::new();
    for read in reads {
        by_process.entry(read.process).or_default().push(read);
    }
    let mut wrong = Vec::new();
    for reads in by_process.values() {
        for read in reads {
            let before = reads.iter().filter(|other| other.answered_ms < read.sent_ms);
            if let Some(known) = before.map(|other| other.revision).max().filter(|known| *known > read.revision) {
                wrong.push(format!("a replica went back behind revision {known}: {read:?}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_placement_driver::coordination::{Request, WriteAction, Written};

    fn put(store: &mut CoordinationStore, key: &'static str, value: &str, sent_ms: u64) -> Write {
        let action = WriteAction::Put { value: value.to_string().into(), content_type: "x/y".into() };
        let request = Request { key: key.into(), expect: Expect::Anything, action, id: None };
        let end = End::Done(store.apply(request, 1).unwrap());
        let (expect, value) = (Expect::Anything, Some(value.to_string()));
        Write { key, expect, value, sent_ms, answered_ms: sent_ms + 5, end }
    }

    /// `a` is given 1 at 10 ms and 2 at 20 ms, `b` is given 3 at 30 ms.
    fn fine() -> (CoordinationHistory, CoordinationStore) {
        let mut store = CoordinationStore::default();
        let mut history = CoordinationHistory::default();
        for (key, value, at) in [("a", "1", 10), ("a", "2", 20), ("b", "3", 30)] {
            history.writes.push(put(&mut store, key, value, at));
        }
        (history, store)
    }

    fn read(sent_ms: u64, revision: u64, found: &[(&str, u64, &str)]) -> Read {
        Read {
            prefix: String::new(),
            after: None,
            upto: None,
            least: None,
            process: 0,
            sent_ms,
            answered_ms: sent_ms + 1,
            revision,
            found: found.iter().map(|(key, at, value)| (key.to_string(), (*at, value.to_string()))).collect(),
        }
    }

    #[test]
    fn what_can_have_happened_passes() {
        let (mut history, store) = fine();
        history.reads.push(read(27, 2, &[("a", 2, "2")]));
        history.reads.push(Read { least: Some(1), process: 1, ..read(40, 1, &[("a", 1, "1")]) });
        let changes = vec![(1, "a".into(), Some("1".into())), (2, "a".into(), Some("2".into()))];
        history.watches.push(Watch { prefix: "a".into(), since: 0, seen: 3, changes });
        let refused = Write {
            expect: Expect::Absent,
            value: Some("4".into()),
            end: End::Refused(Some(2)),
            ..history.writes[1].clone()
        };
        history.writes.push(refused);
        assert_eq!(check(&history, &store), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_have_happened_does_not() {
        let wrong = |change: &dyn Fn(&mut CoordinationHistory)| {
            let (mut history, store) = fine();
            change(&mut history);
            check(&history, &store).len()
        };
        assert!(wrong(&|h| h.reads.push(read(40, 2, &[("a", 2, "2")]))) > 0, "stale");
        assert!(wrong(&|h| h.reads.push(read(40, 3, &[("a", 2, "2")]))) > 0, "not what was there");
        assert!(wrong(&|h| h.reads.push(read(5, 3, &[("a", 2, "2"), ("b", 3, "3")]))) > 0, "before it was sent");
        assert!(wrong(&|h| h.writes[1].end = End::Refused(None)) > 0, "refused, and there");
        assert!(wrong(&|h| h.writes[1].expect = Expect::Absent) > 0, "its condition did not hold");
        assert!(wrong(&|h| h.writes[1].value = Some("5".into())) > 0, "absent, and no user sent the present value");
        let written = Written { revision: 1, created: true };
        assert!(wrong(&|h| h.writes[1].end = End::Done(written)) > 0, "at another's revision");
        assert!(wrong(&|h| _ = h.writes.remove(2)) > 0, "nobody sent it");
        let back = |least| Read { least: Some(0), ..read(least, least / 40, &[("a", 1, "1")]) };
        assert!(
            wrong(&|h| h.reads.extend([read(50, 3, &[("a", 2, "2"), ("b", 3, "3")]), back(60)])) > 0,
            "it went back"
        );
        let changes = vec![(2, "a".into(), Some("2".into()))];
        let gap = Watch { prefix: "a".into(), since: 0, seen: 3, changes };
        assert!(wrong(&|h| h.watches.push(gap.clone())) > 0, "a gap");
    }
}
