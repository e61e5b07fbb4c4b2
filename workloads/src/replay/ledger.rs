//! What was promised: for each key, the highest acknowledged version, and what may have happened besides.
//!
//! Because the engine lets one write per key be under way, versions of a key are issued, and settled, one after the
//! other. A write settles in one of three ways: acknowledged (it must be found, unless a later one is), not applied (it
//! must never be found), or unknown (it may be found or not). An acknowledged write makes older unknown ones
//! impossible to find: targets write a version only over a smaller one, so an old write that arrives late changes nothing.
//!
//! A key takes 40 bytes here, and more only while outcomes are unknown; their number per key is limited, too.

use std::collections::HashMap;

/// Unknown outcomes kept per key. Past it, every version issued since counts as possible, which can hide a phantom
/// but never reports an intact key as lost.
const MAX_UNKNOWN_PER_KEY: usize = 16;

/// What a write leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A row of the write's version.
    Present,
    /// No row.
    Absent,
}

/// What is known about a row before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// A write of unknown outcome decides it; read the row first.
    Unknown,
}

/// What a row that was read back says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it may be.
    Intact,
    /// An acknowledged write is not there.
    Lost {
        /// The highest acknowledged version.
        acknowledged: u32,
    },
    /// The version was never issued, or is of a write that was reported as not applied.
    NeverIssued,
}

/// More keys than the ledger may remember. A write that is not remembered could be lost unseen, so it is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run writes to more than {max_keys} different keys, more than are remembered")]
pub struct LedgerFull {
    /// The limit.
    pub max_keys: usize,
}

#[derive(Debug, Default)]
struct UnknownWrites {
    writes: Vec<(u32, Effect)>,
    /// Set once there were too many: everything from here on is possible.
    open_from: Option<u32>,
}

#[derive(Debug, Default)]
struct KeyRecord {
    issued: u32,
    /// Highest acknowledged version; 0 if none.
    acknowledged: u32,
    /// Version of the last delete issued; 0 if none.
    last_delete: u32,
    touches: u32,
    /// Whether the acknowledged version left a row.
    present: bool,
    /// Whether version `issued` is under way.
    pending: bool,
    unknown: Option<Box<UnknownWrites>>,
}

impl KeyRecord {
    fn pending_effect(&self) -> Effect {
        if self.last_delete == self.issued { Effect::Absent } else { Effect::Present }
    }

    /// Whether a write after the acknowledged one may have left this.
    fn possible(&self, wanted: impl Fn(u32, Effect) -> bool) -> bool {
        if self.pending && wanted(self.issued, self.pending_effect()) {
            return true;
        }
        self.unknown.as_ref().is_some_and(|unknown| {
            unknown.writes.iter().any(|(version, effect)| wanted(*version, *effect))
                || unknown.open_from.is_some_and(|from| {
                    (from..=self.issued)
                        .any(|version| wanted(version, Effect::Present) || wanted(version, Effect::Absent))
                })
        })
    }
}

/// What a read must at least return, taken before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadFloor {
    acknowledged: u32,
    present: bool,
}

/// The promises made in one run.
#[derive(Debug)]
pub struct Ledger {
    keys: HashMap<i64, KeyRecord>,
    max_keys: usize,
    seed: u64,
    touches: u64,
}

impl Ledger {
    /// An empty ledger for a run with `seed` (which decides the values) that may write to `max_keys` keys.
    pub fn new(seed: u64, max_keys: usize) -> Self {
        Self { keys: HashMap::new(), max_keys, seed, touches: 0 }
    }

    /// The seed that values are made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Keys that are remembered.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The remembered keys in ascending order.
    pub fn sorted_keys(&self) -> Vec<i64> {
        let mut keys: Vec<i64> = self.keys.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// Notes that an operation touches `key`.
    pub(super) fn touch(&mut self, key: i64) {
        self.touches += 1;
        if let Some(record) = self.keys.get_mut(&key) {
            record.touches += 1;
        }
    }

    /// The share (0 to 1) of all touches that the hottest key got.
    pub fn hottest_key_share(&self) -> f64 {
        let hottest = self.keys.values().map(|record| record.touches).max().unwrap_or(0);
        if self.touches == 0 { 0.0 } else { f64::from(hottest) / self.touches as f64 }
    }

    /// What is known about the row of `key`. A key never written is taken to be absent.
    pub fn presence(&self, key: i64) -> Presence {
        let Some(record) = self.keys.get(&key) else { return Presence::Absent };
        let known = if record.present { Effect::Present } else { Effect::Absent };
        if record.possible(|_, effect| effect != known) {
            Presence::Unknown
        } else if record.present {
            Presence::Present
        } else {
            Presence::Absent
        }
    }

    /// Issues the next version of `key` for a write that will leave `effect`. The write before must be settled.
    pub fn issue(&mut self, key: i64, effect: Effect) -> Result<u32, LedgerFull> {
        if self.keys.len() >= self.max_keys && !self.keys.contains_key(&key) {
            return Err(LedgerFull { max_keys: self.max_keys });
        }
        let record = self.keys.entry(key).or_default();
        debug_assert!(!record.pending, "two writes of key {key} under way");
        record.issued += 1;
        record.pending = true;
        if effect == Effect::Absent {
            record.last_delete = record.issued;
        }
        Ok(record.issued)
    }

    /// The write of `key` that is under way was acknowledged.
    pub fn acknowledge(&mut self, key: i64) {
        if let Some(record) = self.keys.get_mut(&key).filter(|record| record.pending) {
            record.present = record.pending_effect() == Effect::Present;
            record.acknowledged = record.issued;
            record.pending = false;
            record.unknown = None;
        }
    }

    /// The write of `key` that is under way had no effect.
    pub fn not_applied(&mut self, key: i64) {
        if let Some(record) = self.keys.get_mut(&key) {
            record.pending = false;
        }
    }

    /// The write of `key` that is under way may or may not have happened.
    pub fn unknown(&mut self, key: i64) {
        let Some(record) = self.keys.get_mut(&key).filter(|record| record.pending) else { return };
        let (version, effect) = (record.issued, record.pending_effect());
        record.pending = false;
        let unknown = record.unknown.get_or_insert_default();
        if unknown.writes.len() < MAX_UNKNOWN_PER_KEY {
            unknown.writes.push((version, effect));
        } else {
            unknown.open_from.get_or_insert(version);
        }
    }

    /// A linearizable read of `key` while no write of it was under way found `version` (`None`: no row). A version of
    /// unknown outcome that was seen is as good as acknowledged from then on.
    pub fn observe(&mut self, key: i64, version: Option<i64>) {
        let verdict = self.judge(key, version);
        let Some(record) = self.keys.get_mut(&key) else { return };
        if verdict != Verdict::Intact || record.pending {
            return;
        }
        let unknown = record.unknown.as_deref_mut();
        let seen = match version.and_then(|version| u32::try_from(version).ok()) {
            Some(version) => version,
            None if !record.present => record.acknowledged,
            // No row: some delete of unknown outcome happened. The first of them is the least that this shows.
            None => {
                let deletes = unknown.iter().flat_map(|unknown| &unknown.writes);
                let first = deletes.filter(|(_, effect)| *effect == Effect::Absent).map(|(version, _)| *version).min();
                first.unwrap_or(record.acknowledged)
            }
        };
        // What is older than what was seen can no longer appear; what is newer still may, until a write after it is
        // acknowledged.
        if let Some(unknown) = unknown {
            unknown.writes.retain(|(version, _)| *version > seen);
            unknown.open_from = unknown.open_from.map(|from| from.max(seen + 1)).filter(|from| *from <= record.issued);
            if unknown.writes.is_empty() && unknown.open_from.is_none() {
                record.unknown = None;
            }
        }
        record.acknowledged = seen;
        record.present = version.is_some();
    }

    /// What a read that is sent now must at least return.
    pub(super) fn read_floor(&self, key: i64) -> ReadFloor {
        let record = self.keys.get(&key);
        ReadFloor {
            acknowledged: record.map_or(0, |record| record.acknowledged),
            present: record.is_some_and(|record| record.present),
        }
    }

    /// Whether a read may return `version`, given what was acknowledged before it was sent.
    pub(super) fn read_allowed(&self, key: i64, floor: ReadFloor, version: Option<i64>) -> bool {
        let Some(record) = self.keys.get(&key) else { return version.is_none() };
        match version {
            Some(version) => (i64::from(floor.acknowledged)..=i64::from(record.issued)).contains(&version),
            None => !floor.present || record.last_delete > floor.acknowledged,
        }
    }

    /// Judges what is found at `key` once no write is sent any more.
    pub fn judge(&self, key: i64, found: Option<i64>) -> Verdict {
        let Some(record) = self.keys.get(&key) else {
            return if found.is_none() { Verdict::Intact } else { Verdict::NeverIssued };
        };
        let acknowledged = record.acknowledged;
        let lost = Verdict::Lost { acknowledged };
        let Some(version) = found else {
            let may_be_absent = !record.present || record.possible(|_, effect| effect == Effect::Absent);
            return if may_be_absent { Verdict::Intact } else { lost };
        };
        if acknowledged > 0 && version == i64::from(acknowledged) && record.present {
            return Verdict::Intact;
        }
        if version <= i64::from(acknowledged) {
            return if version < 1 { Verdict::NeverIssued } else { lost };
        }
        if record.possible(|possible, effect| i64::from(possible) == version && effect == Effect::Present) {
            Verdict::Intact
        } else {
            Verdict::NeverIssued
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const LOST_TWO: Verdict = Verdict::Lost { acknowledged: 2 };

    fn acknowledged(ledger: &mut Ledger, key: i64, effect: Effect) -> u32 {
        let version = ledger.issue(key, effect).unwrap();
        ledger.acknowledge(key);
        version
    }

    #[test]
    fn an_acknowledged_write_must_be_there() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        assert_eq!(acknowledged(&mut ledger, 7, Effect::Present), 2);
        assert_eq!(ledger.judge(7, Some(2)), Verdict::Intact);
        assert_eq!(ledger.judge(7, Some(1)), LOST_TWO);
        assert_eq!(ledger.judge(7, None), LOST_TWO);
        assert_eq!(ledger.judge(7, Some(3)), Verdict::NeverIssued);
        assert_eq!(ledger.judge(7, Some(0)), Verdict::NeverIssued);
        assert_eq!(ledger.judge(7, Some(i64::MAX)), Verdict::NeverIssued);
        assert_eq!(ledger.judge(8, Some(1)), Verdict::NeverIssued);
        assert_eq!(ledger.judge(8, None), Verdict::Intact);
    }

    #[test]
    fn an_unknown_write_may_or_may_not_be_there_until_a_later_one_is_acknowledged() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        ledger.issue(7, Effect::Present).unwrap();
        ledger.unknown(7);
        for version in [1, 2] {
            assert_eq!(ledger.judge(7, Some(version)), Verdict::Intact);
        }
        assert_eq!(ledger.judge(7, None), Verdict::Lost { acknowledged: 1 });
        acknowledged(&mut ledger, 7, Effect::Present);
        assert_eq!(ledger.judge(7, Some(2)), Verdict::Lost { acknowledged: 3 });
        assert_eq!(ledger.judge(7, Some(3)), Verdict::Intact);
    }

    #[test]
    fn a_write_reported_as_not_applied_must_not_appear() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        ledger.issue(7, Effect::Present).unwrap();
        ledger.not_applied(7);
        assert_eq!(ledger.judge(7, Some(1)), Verdict::Intact);
        assert_eq!(ledger.judge(7, Some(2)), Verdict::NeverIssued);
    }

    #[test]
    fn deletes_leave_nothing_and_unknown_ones_leave_it_open() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        ledger.issue(7, Effect::Absent).unwrap();
        ledger.unknown(7);
        assert_eq!(ledger.presence(7), Presence::Unknown);
        assert_eq!(ledger.judge(7, None), Verdict::Intact);
        assert_eq!(ledger.judge(7, Some(1)), Verdict::Intact);
        assert_eq!(ledger.judge(7, Some(2)), Verdict::NeverIssued);
        ledger.observe(7, None);
        assert_eq!(ledger.presence(7), Presence::Absent);
        assert_eq!(ledger.judge(7, Some(1)), LOST_TWO);
        acknowledged(&mut ledger, 7, Effect::Present);
        assert_eq!(ledger.presence(7), Presence::Present);
        assert_eq!(ledger.judge(7, None), Verdict::Lost { acknowledged: 3 });
    }

    #[test]
    fn an_abandoned_write_counts_as_unknown() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        ledger.issue(7, Effect::Present).unwrap();
        assert_eq!(ledger.judge(7, Some(1)), Verdict::Intact);
        assert_eq!(ledger.judge(7, Some(2)), Verdict::Intact);
    }

    #[test]
    fn unknown_outcomes_are_limited_and_never_turn_into_false_alarms() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        for _ in 0..100 {
            ledger.issue(7, Effect::Present).unwrap();
            ledger.unknown(7);
        }
        assert_eq!(ledger.keys[&7].unknown.as_ref().unwrap().writes.len(), MAX_UNKNOWN_PER_KEY);
        for version in 1..=101 {
            assert_eq!(ledger.judge(7, Some(version)), Verdict::Intact, "{version}");
        }
        assert_eq!(ledger.judge(7, Some(102)), Verdict::NeverIssued);
        ledger.observe(7, Some(50));
        assert_eq!(ledger.judge(7, Some(49)), Verdict::Lost { acknowledged: 50 });
        assert_eq!(ledger.judge(7, Some(51)), Verdict::Intact, "it may still arrive");
        acknowledged(&mut ledger, 7, Effect::Present);
        assert_eq!(ledger.judge(7, Some(51)), Verdict::Lost { acknowledged: 102 });
    }

    #[test]
    fn reads_are_checked_against_what_was_acknowledged_before_them() {
        let mut ledger = Ledger::new(1, 10);
        acknowledged(&mut ledger, 7, Effect::Present);
        let floor = ledger.read_floor(7);
        acknowledged(&mut ledger, 7, Effect::Present);
        ledger.issue(7, Effect::Present).unwrap();
        for (version, allowed) in [(Some(0), false), (Some(1), true), (Some(3), true), (Some(4), false), (None, false)]
        {
            assert_eq!(ledger.read_allowed(7, floor, version), allowed, "{version:?}");
        }
        ledger.acknowledge(7);
        ledger.issue(7, Effect::Absent).unwrap();
        assert!(ledger.read_allowed(7, floor, None), "a delete may have overtaken the read");
        assert!(ledger.read_allowed(99, ledger.read_floor(99), None));
        assert!(!ledger.read_allowed(99, ledger.read_floor(99), Some(1)));
    }

    #[test]
    fn keys_are_limited() {
        let mut ledger = Ledger::new(1, 1);
        acknowledged(&mut ledger, 7, Effect::Present);
        assert_eq!(ledger.issue(8, Effect::Present), Err(LedgerFull { max_keys: 1 }));
        assert_eq!(ledger.issue(7, Effect::Present), Ok(2));
        assert_eq!(ledger.sorted_keys(), [7]);
    }

    #[test]
    fn the_hottest_share_is_exact() {
        let mut ledger = Ledger::new(1, 10);
        assert_eq!(ledger.hottest_key_share(), 0.0);
        acknowledged(&mut ledger, 7, Effect::Present);
        for key in [7, 7, 7, 1] {
            ledger.touch(key);
        }
        assert_eq!(ledger.hottest_key_share(), 0.75);
    }

    /// What becomes of a write in the store, and what the engine is told.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Acknowledged,
        Refused,
        UnknownApplied,
        UnknownDropped,
        /// Unknown, and applied only after this many more writes.
        UnknownLate(usize),
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            4 => Just(Fate::Acknowledged),
            1 => Just(Fate::Refused),
            1 => Just(Fate::UnknownApplied),
            1 => Just(Fate::UnknownDropped),
            2 => (1usize..5).prop_map(Fate::UnknownLate),
        ]
    }

    /// One row of a correct store. Updates and deletes take effect only over smaller versions, as targets ask for.
    fn apply(stored: &mut Option<u32>, version: u32, effect: Effect) -> bool {
        let takes_effect = stored.is_none_or(|stored| stored < version);
        if takes_effect {
            *stored = (effect == Effect::Present).then_some(version);
        }
        takes_effect
    }

    proptest! {
        /// A correct store is never called wrong, whatever arrives late; and undoing the last acknowledged write
        /// never goes unseen.
        #[test]
        fn no_false_alarm_and_no_loss_unseen(writes in proptest::collection::vec((fate(), prop::bool::weighted(0.2)), 1..60)) {
            let mut ledger = Ledger::new(1, 1);
            let mut stored: Option<u32> = None;
            let mut late: Vec<(usize, u32)> = Vec::new();
            for (step, (fate, delete)) in writes.into_iter().enumerate() {
                for (_, version) in late.extract_if(.., |(due, _)| *due <= step) {
                    // Only updates arrive late here: there must be a row, and it must be older.
                    if stored.is_some_and(|stored| stored < version) {
                        stored = Some(version);
                    }
                }
                if ledger.presence(7) == Presence::Unknown {
                    ledger.observe(7, stored.map(i64::from));
                }
                let effect = if delete && stored.is_some() { Effect::Absent } else { Effect::Present };
                let updates = effect == Effect::Present && stored.is_some();
                let version = ledger.issue(7, effect).unwrap();
                match fate {
                    Fate::Acknowledged => {
                        prop_assert!(apply(&mut stored, version, effect));
                        ledger.acknowledge(7);
                    }
                    Fate::Refused => ledger.not_applied(7),
                    Fate::UnknownApplied => {
                        apply(&mut stored, version, effect);
                        ledger.unknown(7);
                    }
                    Fate::UnknownLate(steps) if updates => {
                        late.push((step + steps, version));
                        ledger.unknown(7);
                    }
                    Fate::UnknownLate(_) | Fate::UnknownDropped => ledger.unknown(7),
                }
                prop_assert_eq!(ledger.judge(7, stored.map(i64::from)), Verdict::Intact, "after {:?}", fate);
            }
            let record = &ledger.keys[&7];
            if record.acknowledged > 0 && record.present {
                let older = i64::from(record.acknowledged) - 1;
                prop_assert_ne!(ledger.judge(7, Some(older)), Verdict::Intact);
            }
        }
    }
}
