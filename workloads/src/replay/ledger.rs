//! Ledger of acknowledged writes: for each key, the highest acknowledged version, and the versions
//! of unknown outcome.
//!
//! The engine has at most one write per key under way, so versions of a key are issued and resolved
//! one after the other. A write resolves in one of three ways: acknowledged (it must be found,
//! unless a later one is), not applied (it must never be found), or unknown (it may be found or
//! not). An acknowledged write makes older unknown ones impossible to find: a target writes a
//! version only over one that the ledger considers possible ([`Issued::over`]). An old write that
//! arrives late therefore changes nothing, and a write that finds another version proves that an
//! acknowledged write is lost.
//!
//! Each row also counts the writes that made it, from its insert on. The count must be the number
//! of acknowledged writes plus some or none of the unknown ones; a greater count shows that a write
//! was applied twice.
//!
//! A key takes 56 bytes, and more only while outcomes are unknown; their number per key is limited.
//! Keys are kept in order, so that the rows that a scan must show can be listed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Unknown outcomes kept per key. Past it, every version issued since counts as possible, which can
/// hide a phantom but never reports an intact key as lost.
const MAX_UNKNOWN_PER_KEY: usize = 16;

/// The effect of a write on its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEffect {
    /// A new row of the write's version, whose count is 1.
    Inserted,
    /// A row of the write's version, whose count is one higher than before.
    Updated,
    /// No row.
    Deleted,
}

impl WriteEffect {
    /// Whether it leaves a row.
    fn leaves_row(self) -> bool {
        self != WriteEffect::Deleted
    }
}

/// Whether a row is there before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is one.
    Present,
    /// There is none.
    Absent,
    /// A write of unknown outcome decides it; read the row first.
    Unknown,
}

/// The judgement of a row that was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowVerdict {
    /// It is as it may be.
    Intact,
    /// An acknowledged write is not there.
    Lost {
        /// The highest acknowledged version.
        acknowledged: u32,
    },
    /// The version was never issued, or is of a write that was reported as not applied.
    NeverIssued,
    /// The version is right and the count is not: a write was applied twice, or one that a later
    /// one covers not at all.
    Miscounted {
        /// The least that it may be.
        least: u32,
        /// The most that it may be.
        most: u32,
    },
}

/// The writes of a row that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRow {
    /// Its version.
    pub version: i64,
    /// Its writes, from its insert on.
    pub count: i64,
}

/// A version that was issued for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The new version.
    pub version: u32,
    /// The least version that the row may have until then. It may also have any up to the new one:
    /// those between are of unknown outcome, and the new one itself is there if the write is
    /// executed a second time, which the count then shows.
    pub over: u32,
}

/// More keys than the ledger may remember. A write that is not remembered could be lost unseen, so
/// it is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run writes to more than {max_keys} different keys, more than are remembered")]
pub struct LedgerFull {
    /// The limit.
    pub max_keys: usize,
}

#[derive(Debug, Default)]
struct UnknownWrites {
    writes: Vec<(u32, WriteEffect)>,
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
    /// Version of the last insert issued; 0 if none.
    last_insert: u32,
    /// Writes counted in the row of the acknowledged version, at least.
    least: u32,
    /// The same, at most.
    most: u32,
    touches: u32,
    /// Whether the acknowledged version left a row.
    present: bool,
    /// Whether version `issued` is under way.
    pending: bool,
    /// The ledger's time at which the row was known to be there, since when no delete was
    /// acknowledged.
    present_since: u64,
    unknown: Option<Box<UnknownWrites>>,
}

impl KeyRecord {
    fn pending_effect(&self) -> WriteEffect {
        match self.issued {
            version if version == self.last_delete => WriteEffect::Deleted,
            version if version == self.last_insert => WriteEffect::Inserted,
            _ => WriteEffect::Updated,
        }
    }

    /// Whether a write after the acknowledged one may have left this.
    fn possible(&self, wanted: impl Fn(u32, WriteEffect) -> bool) -> bool {
        if self.pending && wanted(self.issued, self.pending_effect()) {
            return true;
        }
        self.unknown.as_ref().is_some_and(|unknown| {
            unknown.writes.iter().any(|(version, effect)| wanted(*version, *effect))
                || unknown.open_from.is_some_and(|from| {
                    (from..=self.issued)
                        .any(|version| wanted(version, WriteEffect::Updated) || wanted(version, WriteEffect::Deleted))
                })
        })
    }

    /// Writes of unknown outcome after the acknowledged version, the one under way included, up to
    /// `version`; `None` if they were too many to be remembered.
    fn unknown_until(&self, version: u32) -> Option<Vec<(u32, WriteEffect)>> {
        let pending = self.pending.then(|| (self.issued, self.pending_effect()));
        let unknown = self.unknown.as_deref();
        if unknown.is_some_and(|unknown| unknown.open_from.is_some()) {
            return None;
        }
        let writes = unknown.into_iter().flat_map(|unknown| unknown.writes.iter().copied()).chain(pending);
        Some(writes.filter(|(issued, _)| *issued <= version).collect())
    }

    /// What a row of `version`, from the acknowledged one on, may count.
    fn counts(&self, version: u32) -> RangeInclusive<u32> {
        if version <= self.acknowledged {
            return self.least..=self.most;
        }
        let Some(writes) = self.unknown_until(version) else {
            return 1..=self.most.saturating_add(version - self.acknowledged);
        };
        let inserted =
            writes.iter().rev().find(|(_, effect)| *effect == WriteEffect::Inserted).map(|(version, _)| *version);
        let updates_since = |from: u32| {
            writes.iter().filter(|(issued, effect)| *issued > from && *effect == WriteEffect::Updated).count() as u32
        };
        // The version found is itself one of them, so that one has happened for certain.
        match inserted {
            Some(insert) => 1 + u32::from(insert != version)..=1 + updates_since(insert),
            None => self.least + 1..=self.most + updates_since(self.acknowledged),
        }
    }
}

/// The least that a read must return, taken before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadFloor {
    acknowledged: u32,
    present: bool,
}

/// The acknowledged and unknown writes of one run.
#[derive(Debug)]
pub struct Ledger {
    keys: BTreeMap<i64, KeyRecord>,
    max_keys: usize,
    seed: u64,
    touches: u64,
    /// Its time: it goes on whenever a row becomes known to be there.
    time: u64,
}

impl Ledger {
    /// An empty ledger for a run with `seed` (which decides the values) that may write to
    /// `max_keys` keys.
    pub fn new(seed: u64, max_keys: usize) -> Self {
        Self { keys: BTreeMap::new(), max_keys, seed, touches: 0, time: 0 }
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
        self.keys.keys().copied().collect()
    }

    /// Its time now: rows that have been present since then or longer were acknowledged before.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// The first key of `between` that holds a row for certain, and has held it since the ledger's
    /// `time`.
    pub fn surely_present(&self, between: RangeInclusive<i64>, time: u64) -> Option<i64> {
        if between.is_empty() {
            return None;
        }
        let sure = |record: &KeyRecord| {
            record.present && record.present_since <= time && !record.possible(|_, effect| !effect.leaves_row())
        };
        self.keys.range(between).find(|(_, record)| sure(record)).map(|(key, _)| *key)
    }

    /// Whether a row of `key` may be there.
    pub fn may_be_present(&self, key: i64) -> bool {
        self.keys.get(&key).is_some_and(|record| record.present || record.possible(|_, effect| effect.leaves_row()))
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

    /// Whether the row of `key` is there. A key that was never written counts as absent.
    pub fn presence(&self, key: i64) -> Presence {
        let Some(record) = self.keys.get(&key) else { return Presence::Absent };
        if record.possible(|_, effect| effect.leaves_row() != record.present) {
            Presence::Unknown
        } else if record.present {
            Presence::Present
        } else {
            Presence::Absent
        }
    }

    /// What was known about the row of `key` before the write that is under way.
    pub(super) fn presence_before(&self, key: i64) -> Presence {
        let Some(record) = self.keys.get(&key) else { return Presence::Absent };
        let other = |version, effect: WriteEffect| version != record.issued && effect.leaves_row() != record.present;
        match record.present {
            _ if record.possible(other) => Presence::Unknown,
            true => Presence::Present,
            false => Presence::Absent,
        }
    }

    /// Issues the next version of `key` for a write that will leave `effect`. The write before must
    /// be resolved.
    pub fn issue(&mut self, key: i64, effect: WriteEffect) -> Result<Issued, LedgerFull> {
        if self.keys.len() >= self.max_keys && !self.keys.contains_key(&key) {
            return Err(LedgerFull { max_keys: self.max_keys });
        }
        let record = self.keys.entry(key).or_default();
        debug_assert!(!record.pending, "two writes of key {key} under way");
        record.issued += 1;
        record.pending = true;
        match effect {
            WriteEffect::Inserted => record.last_insert = record.issued,
            WriteEffect::Deleted => record.last_delete = record.issued,
            WriteEffect::Updated => {}
        }
        Ok(Issued { version: record.issued, over: record.acknowledged })
    }

    /// The write of `key` that is under way was acknowledged.
    pub fn acknowledge(&mut self, key: i64) {
        let Some(record) = self.keys.get_mut(&key).filter(|record| record.pending) else { return };
        let effect = record.pending_effect();
        let counts = record.counts(record.issued);
        (record.least, record.most) = match effect {
            WriteEffect::Deleted => (0, 0),
            _ => (*counts.start(), *counts.end()),
        };
        if effect.leaves_row() && (!record.present || effect == WriteEffect::Inserted) {
            self.time += 1;
            record.present_since = self.time;
        }
        record.present = effect.leaves_row();
        record.acknowledged = record.issued;
        record.pending = false;
        record.unknown = None;
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

    /// A linearizable read of `key` while no write of it was under way found this (`None`: no row).
    /// A version of unknown outcome that was seen is as good as acknowledged from then on.
    pub fn observe(&mut self, key: i64, found: Option<FoundRow>) {
        let verdict = self.judge(key, found);
        let Some(record) = self.keys.get_mut(&key) else { return };
        if verdict != RowVerdict::Intact || record.pending {
            return;
        }
        let unknown = record.unknown.as_deref_mut();
        let seen = match found.and_then(|found| u32::try_from(found.version).ok()) {
            Some(version) => version,
            None if !record.present => record.acknowledged,
            // No row: some delete of unknown outcome happened. The first of them is the least that
            // this shows.
            None => {
                let deletes = unknown.iter().flat_map(|unknown| &unknown.writes);
                let first =
                    deletes.filter(|(_, effect)| *effect == WriteEffect::Deleted).map(|(version, _)| *version).min();
                first.unwrap_or(record.acknowledged)
            }
        };
        // Versions older than the seen one can no longer appear; newer ones still may, until a
        // write after them is acknowledged.
        if let Some(unknown) = unknown {
            unknown.writes.retain(|(version, _)| *version > seen);
            unknown.open_from = unknown.open_from.map(|from| from.max(seen + 1)).filter(|from| *from <= record.issued);
            if unknown.writes.is_empty() && unknown.open_from.is_none() {
                record.unknown = None;
            }
        }
        let count = found.map_or(0, |found| u32::try_from(found.count).unwrap_or(u32::MAX));
        (record.least, record.most) = (count, count);
        if found.is_some() && !record.present {
            self.time += 1;
            record.present_since = self.time;
        }
        record.acknowledged = seen;
        record.present = found.is_some();
    }

    /// What a read that is sent now must at least return.
    pub(super) fn read_floor(&self, key: i64) -> ReadFloor {
        let record = self.keys.get(&key);
        ReadFloor {
            acknowledged: record.map_or(0, |record| record.acknowledged),
            present: record.is_some_and(|record| record.present),
        }
    }

    /// Whether a read may return this, given what was acknowledged before it was sent.
    pub(super) fn read_allowed(&self, key: i64, floor: ReadFloor, found: Option<FoundRow>) -> bool {
        let Some(record) = self.keys.get(&key) else { return found.is_none() };
        let Some(found) = found else { return !floor.present || record.last_delete > floor.acknowledged };
        let Ok(version) = u32::try_from(found.version) else { return false };
        if !(floor.acknowledged..=record.issued).contains(&version) {
            return false;
        }
        // What an older version's row counted is no longer known.
        version < record.acknowledged || !record.present || holds(&record.counts(version), found.count)
    }

    /// Judges the row found at `key` once no write is sent any more.
    pub fn judge(&self, key: i64, found: Option<FoundRow>) -> RowVerdict {
        let Some(record) = self.keys.get(&key) else {
            return if found.is_none() { RowVerdict::Intact } else { RowVerdict::NeverIssued };
        };
        let acknowledged = record.acknowledged;
        let lost = RowVerdict::Lost { acknowledged };
        let Some(FoundRow { version, count }) = found else {
            let may_be_absent = !record.present || record.possible(|_, effect| !effect.leaves_row());
            return if may_be_absent { RowVerdict::Intact } else { lost };
        };
        let is_acknowledged = acknowledged > 0 && version == i64::from(acknowledged) && record.present;
        if !is_acknowledged && version <= i64::from(acknowledged) {
            return if version < 1 { RowVerdict::NeverIssued } else { lost };
        }
        let possible = || record.possible(|possible, effect| i64::from(possible) == version && effect.leaves_row());
        if !is_acknowledged && !possible() {
            return RowVerdict::NeverIssued;
        }
        let counts = record.counts(version as u32);
        if holds(&counts, count) {
            return RowVerdict::Intact;
        }
        RowVerdict::Miscounted { least: *counts.start(), most: *counts.end() }
    }
}

fn holds(counts: &RangeInclusive<u32>, count: i64) -> bool {
    u32::try_from(count).is_ok_and(|count| counts.contains(&count))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
