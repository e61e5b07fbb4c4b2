//! Records of single entries (R5): which entries PostgreSQL holds, and which records may be
//! deleted. Pure.
//!
//! A record may be deleted only once a durable position covers its entry (R16). Otherwise the entry
//! would be applied again after a crash, over later entries whose records still exist. The position
//! of a recorded entry is known when this leadership writes the record. For a record that was found
//! at the start, it is known when the log delivers the entry, or when a new term shows that it
//! cannot be delivered any more.

use evenkeel_replicated_log::Term;
use std::collections::{HashSet, VecDeque};

/// An entry's term and serial.
pub type Record = (u64, u64);

/// See the module.
#[derive(Debug, Default)]
pub struct AppliedRecords {
    /// Found at the start, and their entries have not come yet.
    unmet: HashSet<Record>,
    /// At these positions, or before them; the positions grow.
    placed: VecDeque<(u64, Record)>,
}

impl AppliedRecords {
    /// Those that PostgreSQL held when it held everything up to `position`, where `term` was in
    /// force.
    pub fn found(records: HashSet<Record>, position: u64, term: Term) -> AppliedRecords {
        // Those of earlier terms have not been deleted yet: their entries lie before the position.
        let (unmet, earlier): (HashSet<Record>, HashSet<Record>) =
            records.into_iter().partition(|(recorded, _)| *recorded >= term.0);
        AppliedRecords { unmet, placed: earlier.into_iter().map(|record| (position, record)).collect() }
    }

    /// The entry at `position` has come. Whether PostgreSQL held it at the start.
    pub fn meet(&mut self, position: u64, record: Record) -> bool {
        let held = self.unmet.remove(&record);
        if held {
            self.placed.push_back((position, record));
        }
        held
    }

    /// The entry at `position` is recorded now.
    pub fn write(&mut self, position: u64, record: Record) {
        self.placed.push_back((position, record));
    }

    /// At `position` a term begins: no entry of an earlier one comes any more (invariant 1), so
    /// that those that were not met lie before the position that was recorded at the start.
    pub fn begin_term(&mut self, position: u64, term: Term) {
        let over: Vec<Record> = self.unmet.extract_if(|(recorded, _)| *recorded < term.0).collect();
        self.placed.extend(over.into_iter().map(|record| (position, record)));
    }

    /// Whether PostgreSQL held entries at the start that have not come yet.
    pub fn are_ahead(&self) -> bool {
        !self.unmet.is_empty()
    }

    /// Takes up to `most` records out that are superfluous once everything up to `durable` is on
    /// the disk.
    pub fn covered(&mut self, durable: u64, most: usize) -> Vec<Record> {
        let count = self.placed.iter().take(most).take_while(|(position, _)| *position <= durable).count();
        self.placed.drain(..count).map(|(_, record)| record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks if the records found at a start are taken for those of entries before the position:
    /// the ones of later entries would be deleted as soon as any position is durable, and after the
    /// next crash their entries be applied again, on top of what came later.
    #[test]
    fn a_record_stays_until_its_own_entry_is_covered() {
        let mut records = AppliedRecords::found(HashSet::from([(3, 9), (4, 1), (4, 2), (4, 3)]), 100, Term(4));
        assert_eq!(records.covered(100, 10), [(3, 9)], "of an earlier term");
        assert!(records.meet(105, (4, 2)) && !records.meet(106, (4, 7)));
        records.write(107, (4, 8));
        assert_eq!(records.covered(104, 10), [], "the entry lies behind that");
        assert_eq!(records.covered(106, 10), [(4, 2)]);
        assert!(records.are_ahead());
        records.begin_term(110, Term(5));
        assert!(!records.are_ahead(), "what has not come lay before the start");
        assert_eq!(records.covered(109, 10), [(4, 8)]);
        let mut rest = records.covered(110, 1);
        rest.extend(records.covered(110, 10));
        rest.sort_unstable();
        assert_eq!(rest, [(4, 1), (4, 3)]);
    }
}
