//! Results of comparisons, and the place where the round continues. Pure.

use evenkeel_protocol::KeyInterval;
use evenkeel_protocol::scrub::{ComparedPiece, Comparison, Difference, MAX_DIFFERENCES, Place, ScrubReport};

/// See the module.
#[derive(Debug, Default)]
pub struct ScrubStatus {
    /// Where the round goes on. Every replica follows it, so that the next leader goes on from
    /// there.
    pub place: Place,
    /// The reported results.
    pub report: ScrubReport,
}

impl ScrubStatus {
    /// A leadership begins: what an earlier one found may have been repaired since. The place
    /// stays.
    pub fn begin(&mut self) {
        self.report = ScrubReport::default();
    }

    /// These pieces have been compared: what was known of them is replaced by what was found now.
    /// What was known of a replica that was not compared this time stays.
    pub fn compared(&mut self, pieces: &[ComparedPiece], found: &Comparison) {
        let report = &mut self.report;
        let silent = |replicas: &[u64]| {
            found.silent.iter().any(|(replica, _)| replicas.is_empty() || replicas.contains(replica))
        };
        let overlaps = |piece: &ComparedPiece, interval: &KeyInterval| piece.interval.overlaps(interval);
        let compared = |d: &Difference| pieces.iter().any(|p| p.table == d.table && overlaps(p, &d.interval));
        let again = |d: &Difference| {
            found.differences.iter().any(|new| new.table == d.table && new.interval.overlaps(&d.interval))
        };
        report.differences.retain(|known| !compared(known) || silent(&known.replicas) && !again(known));
        report.differences.extend(found.differences.iter().cloned());
        let surplus = report.differences.len().saturating_sub(MAX_DIFFERENCES);
        report.differences.drain(..surplus);
        report.pieces += found.compared.len() as u64;
        report.bytes += found.bytes;
        report.found += found.differences.len() as u64;
    }

    /// A round has come to its end; the next begins at the first key.
    pub fn round_ended(&mut self) {
        self.place = Place::default();
        self.report.rounds += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::{Epoch, Key, RangeId, TableId};

    fn piece(start: u8, end: u8) -> ComparedPiece {
        let key = |byte: u8| Key(vec![byte].into());
        let interval = KeyInterval::new(key(start), Some(key(end)));
        ComparedPiece { range: RangeId(1), epoch: Epoch(1), table: TableId(1), interval }
    }

    fn difference(piece: &ComparedPiece) -> Difference {
        let (range, table, interval) = (piece.range, piece.table, piece.interval.clone());
        Difference { range, table, interval, replicas: vec![2], detail: "differs".into() }
    }

    #[test]
    fn a_difference_is_reported_until_its_keys_are_found_equal() {
        let mut status = ScrubStatus::default();
        let (left, right) = (piece(0, 10), piece(10, 20));
        let narrow = piece(4, 5);
        let found = Comparison { differences: vec![difference(&narrow)], ..Comparison::default() };
        status.compared(std::slice::from_ref(&left), &found);
        status.compared(std::slice::from_ref(&right), &Comparison::default());
        assert_eq!(status.report.differences, [difference(&narrow)]);
        // Found again: it is one difference still.
        status.compared(std::slice::from_ref(&left), &found);
        assert_eq!((status.report.differences.len(), status.report.found), (1, 2));
        // The replica is down: nothing is known of it that was not known before.
        let without = |replica| Comparison { silent: vec![(replica, "down".into())], ..Comparison::default() };
        status.compared(std::slice::from_ref(&left), &without(2));
        assert_eq!(status.report.differences.len(), 1);
        status.compared(std::slice::from_ref(&left), &Comparison { differences: found.differences, ..without(2) });
        assert_eq!(status.report.differences.len(), 1, "found again");
        status.compared(&[left], &without(3));
        assert_eq!((status.report.differences.len(), status.report.found), (0, 3));
        let many = (0..=MAX_DIFFERENCES as u8).map(|at| difference(&piece(at, at + 1))).collect();
        status.compared(&[], &Comparison { differences: many, ..Comparison::default() });
        assert_eq!(status.report.differences.len(), MAX_DIFFERENCES);
    }
}
