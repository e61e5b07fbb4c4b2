//! The plan of a comparison: which pieces are compared next, and which of them a replica reads.
//! Pure.

use crate::state_machine::ShardState;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::scrub::{ComparedPiece, MAX_COMPARED_BYTES, MAX_PIECES, Place};
use evenkeel_protocol::{KeyInterval, TableSchema};
use std::collections::VecDeque;
use std::sync::Arc;

/// The pieces of one comparison: the first rows of the shard's ranges from a place on, as many as
/// it takes.
#[derive(Debug, Clone)]
pub struct ScrubPlan {
    /// Owned ranges from the place on: the parts that are not in `pieces` yet.
    rest: VecDeque<ComparedPiece>,
    /// Whether more is owned behind `rest`.
    more: bool,
    pieces: Vec<ComparedPiece>,
    rows: u64,
    bytes: u64,
}

impl ScrubPlan {
    /// An empty plan over the owned ranges from this place on.
    pub fn new(state: &ShardState, from: &Place) -> ScrubPlan {
        let behind = state.owned().filter(|range| {
            let end = range.interval.end.as_ref();
            let ahead = range.table > from.table || range.table == from.table && end.is_none_or(|end| *end > from.key);
            // A sequence may be ahead of its log where it was used.
            ahead && state.table(range.table).is_some_and(|table| table.kind == RelationKind::Table)
        });
        let piece = |range: &crate::state_machine::OwnedRange| {
            let mut interval = range.interval.clone();
            if range.table == from.table && interval.start < from.key {
                interval.start = from.key.clone();
            }
            ComparedPiece { range: range.id, epoch: range.epoch, table: range.table, interval }
        };
        let mut rest: VecDeque<ComparedPiece> = behind.take(MAX_PIECES + 1).map(piece).collect();
        let more = rest.len() > MAX_PIECES;
        rest.truncate(MAX_PIECES);
        ScrubPlan { rest, more, pieces: Vec::new(), rows: 0, bytes: 0 }
    }

    /// Of what the beginning has to be measured next, and how many bytes there is room for; `None`
    /// if the plan is made.
    pub fn wanted(&self) -> Option<(&ComparedPiece, u64)> {
        let room = MAX_COMPARED_BYTES.saturating_sub(self.bytes);
        let next = self.rest.front().filter(|_| room > 0 && self.pieces.len() < MAX_PIECES)?;
        Some((next, room))
    }

    /// The beginning of what was wanted: its keys, rows and bytes.
    pub fn measured(&mut self, covered: KeyInterval, rows: u64, bytes: u64) {
        let Some(next) = self.rest.pop_front() else { return };
        if let Some(end) = covered.end.clone().filter(|_| covered.end != next.interval.end) {
            let interval = KeyInterval::new(end, next.interval.end.clone());
            self.rest.push_front(ComparedPiece { interval, ..next.clone() });
        }
        self.pieces.push(ComparedPiece { interval: covered, ..next });
        self.rows += rows;
        self.bytes += bytes;
    }

    /// The pieces, in the order of their keys.
    pub fn pieces(&self) -> &[ComparedPiece] {
        &self.pieces
    }

    /// What their rows take, in bytes, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next comparison goes on; `None` if nothing that is owned lies behind these pieces.
    pub fn next(&self) -> Option<Place> {
        let last = self.pieces.last().filter(|_| self.more || !self.rest.is_empty())?;
        Some(Place::behind(last))
    }
}

/// What a replica sums up at a checkpoint, by the state machine there.
#[derive(Debug, Clone)]
pub struct Asked {
    /// By piece: its table and keys; `None` if it is not owned so at that place, alike on every
    /// replica.
    pub pieces: Vec<Option<(Arc<TableSchema>, KeyInterval)>>,
    /// Where this replica should hold no rows.
    pub gaps: Vec<(Arc<TableSchema>, KeyInterval)>,
}

impl Asked {
    /// The readable ones of these pieces; and with `left_behind`, all keys that are neither owned
    /// nor part of a move.
    pub fn of(state: &ShardState, pieces: &[ComparedPiece], left_behind: bool) -> Asked {
        let pieces = pieces.iter().map(|piece| {
            let owner = state.owner(piece.table, &piece.interval.start)?;
            let same = owner.id == piece.range && owner.epoch == piece.epoch && owner.interval.covers(&piece.interval);
            let table = state.table(piece.table).filter(|_| same)?;
            Some((table.clone(), piece.interval.clone()))
        });
        let gaps = state
            .tables()
            .filter(|_| left_behind)
            .flat_map(|table| state.unclaimed(table.id).into_iter().map(|interval| (table.clone(), interval)));
        Asked { pieces: pieces.collect(), gaps: gaps.collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::Control;
    use evenkeel_protocol::schema::ColumnSchema;
    use evenkeel_protocol::{Epoch, Key, OperatorId, RangeId, TableId};

    /// The key of a smallint.
    fn key(byte: u8) -> Key {
        Key(vec![0x80, byte].into())
    }

    /// Two tables; the first is split at these keys into ranges 1, 11, 12, …
    fn state(split_at: &[u8]) -> ShardState {
        let mut state = ShardState::default();
        for (id, range) in [(1, 1), (2, 2)] {
            let column = ColumnSchema { name: "id".into(), type_name: "smallint".into(), type_oid: 21 };
            let (id, name) = (TableId(id), format!("t{id}"));
            let schema = TableSchema {
                id,
                name,
                columns: vec![column],
                key: vec![0],
                create_sql: String::new(),
                ..TableSchema::default()
            };
            state.control(1, &Control::CreateTable { schema, range: RangeId(range) }).unwrap();
        }
        if !split_at.is_empty() {
            let at = split_at.iter().zip(11..).map(|(byte, id)| (key(*byte), RangeId(id))).collect();
            let split = Control::Split { operator: OperatorId(1), range: RangeId(1), epoch: Epoch(1), at };
            state.control(2, &split).unwrap();
        }
        state
    }

    /// A piece's range, start and end.
    type Brief = (u64, u8, Option<u8>);

    /// Plans as if each byte were a key of a row of 1 MiB; gives the pieces' ranges, starts and
    /// ends.
    fn planned(state: &ShardState, from: &Place) -> (Vec<Brief>, Option<Place>) {
        let mut plan = ScrubPlan::new(state, from);
        let first = |key: &Key| key.as_bytes().get(1).copied();
        while let Some((piece, room)) = plan.wanted() {
            let start = first(&piece.interval.start).unwrap_or(0);
            let end = piece.interval.end.as_ref().and_then(first).map_or(256, u64::from);
            let rows = (end - u64::from(start)).min(room >> 20);
            let cut = u64::from(start) + rows;
            let covered_end = if cut >= end { piece.interval.end.clone() } else { Some(key(cut as u8)) };
            let covered = KeyInterval::new(piece.interval.start.clone(), covered_end);
            plan.measured(covered, rows, rows << 20);
        }
        let brief = |p: &ComparedPiece| {
            (p.range.0, first(&p.interval.start).unwrap_or(0), p.interval.end.as_ref().and_then(first))
        };
        (plan.pieces().iter().map(brief).collect(), plan.next())
    }

    #[test]
    fn pieces_go_round_all_ranges_within_their_bounds() {
        let state = state(&[4, 6]);
        let (pieces, next) = planned(&state, &Place::default());
        assert_eq!(pieces, [(1, 0, Some(4)), (11, 4, Some(6)), (12, 6, Some(16))]);
        let mut at = next;
        assert_eq!(at, Some(Place { table: TableId(1), key: key(16) }));
        let (mut rounds, mut seen) = (1, 16u64);
        while let Some(place) = at {
            let (pieces, next) = planned(&state, &place);
            seen += pieces.iter().map(|(_, start, end)| end.map_or(256, u64::from) - u64::from(*start)).sum::<u64>();
            rounds += 1;
            at = next;
        }
        assert_eq!((rounds, seen), (32, 512), "both tables, each key once");
    }

    // What was split, merged or moved between two comparisons is compared by its new ranges from
    // the same key on.
    #[test]
    fn a_round_goes_on_at_a_key_whatever_has_become_of_its_range() {
        let place = Place { table: TableId(1), key: key(5) };
        assert_eq!(planned(&state(&[]), &place).0, [(1, 5, Some(21))]);
        assert_eq!(planned(&state(&[4, 8]), &place).0, [(11, 5, Some(8)), (12, 8, Some(21))]);
        let gone = Place { table: TableId(1), key: Key(vec![255, 255].into()) };
        let mut none = ScrubPlan::new(&ShardState::default(), &gone);
        assert_eq!((none.wanted(), none.next()), (None, None));
        none.measured(KeyInterval::ALL, 0, 0);
        assert!(none.pieces().is_empty());
    }

    #[test]
    fn many_small_ranges_are_compared_at_once() {
        let splits: Vec<u8> = (1..=200).collect();
        let state = state(&splits);
        let mut plan = ScrubPlan::new(&state, &Place::default());
        while let Some((piece, _)) = plan.wanted() {
            let covered = piece.interval.clone();
            plan.measured(covered, 1, 10);
        }
        assert_eq!((plan.pieces().len(), plan.bytes()), (MAX_PIECES, 640));
        assert_eq!(plan.next(), Some(Place { table: TableId(1), key: key(64) }));
    }

    // A range that was split or left before the checkpoint is in is summed up by nobody: no false
    // alarm.
    #[test]
    fn only_pieces_that_are_owned_at_that_position_are_read() {
        let before = state(&[]);
        let mut plan = ScrubPlan::new(&before, &Place { table: TableId(1), key: key(5) });
        plan.measured(KeyInterval::new(key(5), Some(key(9))), 4, 4);
        let asked = |state: &ShardState| {
            Asked::of(state, plan.pieces(), false).pieces.iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(asked(&before), [true]);
        assert_eq!(asked(&state(&[7])), [false]);
        assert_eq!(asked(&state(&[20])), [false], "another epoch");
        assert_eq!(asked(&ShardState::default()), [false]);
        assert!(Asked::of(&before, plan.pieces(), true).gaps.is_empty());
    }
}
