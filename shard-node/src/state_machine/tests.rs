#![allow(clippy::unwrap_used)]
//! Moves between two state machines, step by step and at random.

use super::*;
use crate::log_entry::image::Image;
use crate::log_entry::{Answered, Change, Changes, Control, KeptReply, TailEntry};
use bytes::Bytes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, KeyValue, OperatorId, RangeId, ShardId, TableId, TableSchema, TxnId};
use proptest::prelude::*;

fn schema() -> TableSchema {
    TableSchema {
        id: TableId(1),
        name: "t".into(),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: "CREATE TABLE t (id bigint PRIMARY KEY)".into(),
        ..TableSchema::default()
    }
}

fn key(n: i64) -> Key {
    schema().codec().encode(&[KeyValue::Int(n)]).unwrap()
}

fn shard(id: u32) -> ShardInfo {
    ShardInfo { id: ShardId(id), replicas: Default::default() }
}

fn write(n: i64) -> Changes {
    let id = TxnId { client: 1, sequence: n as u64, first_sent_ms: 0 };
    let answered = vec![Answered { id, table: TableId(1), key: key(n), affected: 1, reply: KeptReply::Nothing }];
    let changes = vec![Change { table: TableId(1), key: key(n), image: Image::Whole(Bytes::new()) }];
    Changes { stamp_ms: 1, answered, changes }
}

/// Two shards: S with the whole table as range 1, D with nothing.
struct Pair {
    s: ShardState,
    d: ShardState,
    position: u64,
}

const OP: OperatorId = OperatorId(7);
const NO_ROWS: RangeChecksum = RangeChecksum { rows: 0, sum: 0 };

impl Pair {
    fn new() -> Pair {
        let mut s = ShardState::default();
        s.control(1, &Control::CreateTable { schema: schema(), range: RangeId(1) }).unwrap();
        Pair { s, d: ShardState::default(), position: 1 }
    }

    fn s(&mut self, control: Control) -> Result<Vec<ControlEffect>, EntryRefusal> {
        self.position += 1;
        self.s.control(self.position, &control)
    }

    fn d(&mut self, control: Control) -> Result<Vec<ControlEffect>, EntryRefusal> {
        self.position += 1;
        self.d.control(self.position, &control)
    }

    fn open(&mut self) {
        self.s(Control::MoveOpen { operator: OP, range: RangeId(1), epoch: Epoch(1), to: shard(2) }).unwrap();
        self.d(ingest_open()).unwrap();
        self.d(Control::IngestAttempt { operator: OP, attempt: 1, position: 1 }).unwrap();
    }

    fn copy(&mut self, position: u64) {
        let rows = RowBuilder::new(1).finish();
        let (interval, checksum) = (KeyInterval::ALL, NO_ROWS);
        self.d(Control::IngestChunk { operator: OP, attempt: 1, interval, from: 1, position, rows, checksum }).unwrap();
    }

    fn owners(&self, n: i64) -> usize {
        [&self.s, &self.d].iter().filter(|state| state.owner(TableId(1), &key(n)).is_some()).count()
    }
}

fn ingest_open() -> Control {
    Control::IngestOpen {
        operator: OP,
        schema: schema(),
        range: RangeId(1),
        interval: KeyInterval::ALL,
        epoch: Epoch(1),
        from: shard(1),
    }
}

fn adopt(fence: u64) -> Control {
    Control::Adopt { operator: OP, attempt: 1, fence, epoch: Epoch(2), held_since_us: 0 }
}

fn code<T: std::fmt::Debug>(result: Result<T, EntryRefusal>) -> &'static str {
    result.unwrap_err().code
}

/// Invariant 5: what PostgreSQL could not do is refused in the log.
#[test]
fn a_taken_name_and_a_bound_that_is_no_key_are_refused() {
    let mut pair = Pair::new();
    let namesake = TableSchema { id: TableId(2), ..schema() };
    assert_eq!(code(pair.s(Control::CreateTable { schema: namesake.clone(), range: RangeId(2) })), "name-taken");
    let open = |schema: TableSchema, range, operator, interval| {
        let (epoch, from) = (Epoch(1), shard(1));
        Control::IngestOpen { operator, schema, range, interval, epoch, from }
    };
    let lost = open(namesake, RangeId(3), OperatorId(8), KeyInterval::ALL);
    assert_eq!(code(pair.s(lost)), "name-taken");
    let half = Key(key(5).0.slice(..3));
    for interval in [KeyInterval::new(half.clone(), None), KeyInterval::new(Key::MIN, Some(half))] {
        assert_eq!(code(pair.d(open(schema(), RangeId(1), OP, interval))), "bad-interval");
    }
    pair.d(open(schema(), RangeId(1), OP, KeyInterval::new(key(5), Some(key(9))))).unwrap();
}

/// A creation that was given up: its name must not stay taken. But a table that more has become of
/// is somebody's.
#[test]
fn a_table_whose_creation_was_given_up_goes_and_its_name_is_free() {
    let mut pair = Pair::new();
    let namesake = |id| TableSchema { id: TableId(id), ..schema() };
    let drop = |id| Control::DropTable { table: TableId(id) };
    assert_eq!(code(pair.s(drop(9))), "no-such-table");
    pair.open();
    assert_eq!(code(pair.s(drop(1))), "table-in-use", "its range is being moved");
    pair.s(Control::MoveCancel { operator: OP }).unwrap();
    let effects = pair.s(drop(1)).unwrap();
    assert_eq!(effects, [ControlEffect::DropTable(schema().into()), ControlEffect::OwnershipChanged]);
    assert_eq!(
        pair.s(Control::CreateTable { schema: namesake(2), range: RangeId(1) }).unwrap_err().code,
        "range-exists"
    );
    pair.s(Control::CreateTable { schema: namesake(2), range: RangeId(2) }).unwrap();
    let at = vec![(key(5), RangeId(3))];
    pair.s(Control::Split { operator: OperatorId(50), range: RangeId(2), epoch: Epoch(1), at }).unwrap();
    assert_eq!(code(pair.s(drop(2))), "table-in-use");
}

#[test]
fn ownership_passes_by_fence_and_then_adopt() {
    let mut pair = Pair::new();
    pair.open();
    pair.copy(10);
    assert_eq!((pair.owners(5), pair.s.judge(&write(5))), (1, Ok(())));
    assert_eq!(code(pair.d.judge(&write(5))), "not-owned");
    pair.position = 19;
    pair.s(Control::Fence { operator: OP, held_since_us: 3 }).unwrap();
    assert_eq!(pair.owners(5), 0, "between fence and adoption nobody owns the key");
    assert_eq!(code(pair.s.judge(&write(5))), "not-owned");
    assert_eq!(code(pair.d(adopt(20))), "not-complete");
    pair.d(Control::IngestTail { operator: OP, attempt: 1, from: 10, to: 20, stamp_ms: 0, entries: vec![] }).unwrap();
    pair.d(adopt(20)).unwrap();
    assert_eq!((pair.owners(5), pair.d.judge(&write(5))), (1, Ok(())));
    assert_eq!(code(pair.d(adopt(20))), "settled");
}

/// R13: an entry is judged as a whole.
#[test]
fn an_entry_with_one_foreign_key_has_no_effect_at_all() {
    let mut pair = Pair::new();
    pair.s(Control::Split {
        operator: OperatorId(1),
        range: RangeId(1),
        epoch: Epoch(1),
        at: vec![(key(10), RangeId(2))],
    })
    .unwrap();
    pair.s(Control::MoveOpen { operator: OP, range: RangeId(2), epoch: Epoch(2), to: shard(2) }).unwrap();
    pair.s(Control::Fence { operator: OP, held_since_us: 0 }).unwrap();
    let mut both = write(5);
    both.changes.extend(write(15).changes);
    assert_eq!(pair.s.judge(&write(5)), Ok(()));
    assert_eq!(code(pair.s.judge(&both)), "not-owned");
}

/// R7: a truncation needs the whole table, and none of it on the move: its copy would keep the
/// rows.
#[test]
fn a_table_is_truncated_only_where_all_of_it_is() {
    let mut pair = Pair::new();
    let truncate = || {
        let changes = vec![Change { table: TableId(1), key: Key::MIN, image: Image::Truncated }];
        Changes { changes, ..Changes::default() }
    };
    let at = vec![(key(5), RangeId(2))];
    pair.s(Control::Split { operator: OperatorId(3), range: RangeId(1), epoch: Epoch(1), at }).unwrap();
    assert!(pair.s.owns_whole(TableId(1)));
    pair.s.judge(&truncate()).unwrap();
    pair.s(Control::MoveOpen { operator: OP, range: RangeId(2), epoch: Epoch(2), to: shard(2) }).unwrap();
    assert_eq!(code(pair.s.judge(&truncate())), "move-open");
    pair.s(Control::Fence { operator: OP, held_since_us: 0 }).unwrap();
    assert_eq!(code(pair.s.judge(&truncate())), "not-owned");
    assert!(!pair.s.owns_whole(TableId(1)) && !pair.s.owns_whole(TableId(2)));
}

#[test]
fn a_pinned_table_is_neither_split_nor_moved() {
    let mut state = ShardState::default();
    let pinned = TableSchema { pinned: true, ..schema() };
    state.control(1, &Control::CreateTable { schema: pinned, range: RangeId(1) }).unwrap();
    let at = vec![(key(5), RangeId(2))];
    let split = Control::Split { operator: OP, range: RangeId(1), epoch: Epoch(1), at };
    assert_eq!(code(state.control(2, &split)), "pinned");
    let open = Control::MoveOpen { operator: OP, range: RangeId(1), epoch: Epoch(1), to: shard(2) };
    assert_eq!(code(state.control(3, &open)), "pinned");
}

/// R20: cancellation competes with the fence in the source's log.
#[test]
fn a_move_is_cancelled_before_its_fence_or_not_at_all() {
    let mut pair = Pair::new();
    pair.open();
    pair.s(Control::MoveCancel { operator: OP }).unwrap();
    assert_eq!(code(pair.s(Control::Fence { operator: OP, held_since_us: 0 })), "no-such-operator");
    assert_eq!(pair.owners(1), 1);

    let mut pair = Pair::new();
    pair.open();
    pair.s(Control::Fence { operator: OP, held_since_us: 0 }).unwrap();
    assert_eq!(code(pair.s(Control::MoveCancel { operator: OP })), "already-fenced");
}

/// R20: a cancellation that overtakes the opening ends the move all the same, on both sides.
#[test]
fn an_opening_that_comes_after_its_cancellation_has_no_effect() {
    let mut pair = Pair::new();
    pair.s(Control::MoveCancel { operator: OP }).unwrap();
    pair.d(Control::IngestCancel { operator: OP }).unwrap();
    let open = Control::MoveOpen { operator: OP, range: RangeId(1), epoch: Epoch(1), to: shard(2) };
    assert_eq!(code(pair.s(open)), "stale-operator");
    assert_eq!(code(pair.d(ingest_open())), "stale-operator");
    let later = Control::MoveOpen { operator: OperatorId(8), range: RangeId(1), epoch: Epoch(1), to: shard(2) };
    pair.s(later).unwrap();
}

/// R20: while a move is open its range stays as it is, and an older operator comes too late.
#[test]
fn an_open_move_keeps_its_range_to_itself() {
    let mut pair = Pair::new();
    pair.open();
    let split =
        Control::Split { operator: OperatorId(8), range: RangeId(1), epoch: Epoch(1), at: vec![(key(1), RangeId(9))] };
    assert_eq!(code(pair.s(split)), "move-open");
    let second = Control::MoveOpen { operator: OperatorId(8), range: RangeId(1), epoch: Epoch(1), to: shard(3) };
    assert_eq!(code(pair.s(second)), "move-open");
    pair.s(Control::MoveCancel { operator: OP }).unwrap();
    let again = Control::MoveOpen { operator: OP, range: RangeId(1), epoch: Epoch(1), to: shard(2) };
    assert_eq!(code(pair.s(again)), "stale-operator");
}

/// R21: what does not continue the latest attempt counts for nothing. Chunks and changes go on from
/// one position, and a change applies only to a key that is copied.
#[test]
fn only_what_continues_the_latest_attempt_comes_in() {
    let mut pair = Pair::new();
    pair.open();
    let chunk = |attempt, start: Key, end: Option<Key>, from, position| Control::IngestChunk {
        operator: OP,
        attempt,
        interval: KeyInterval::new(start, end),
        from,
        position,
        rows: RowBuilder::new(1).finish(),
        checksum: NO_ROWS,
    };
    let tail = |from, to, n, position| Control::IngestTail {
        operator: OP,
        attempt: 2,
        from,
        to,
        stamp_ms: 0,
        entries: vec![TailEntry { position, changes: write(n) }.encode()],
    };
    pair.d(chunk(1, Key::MIN, Some(key(10)), 1, 5)).unwrap();
    pair.d(Control::IngestAttempt { operator: OP, attempt: 2, position: 6 }).unwrap();
    assert_eq!(code(pair.d(chunk(1, key(10), None, 5, 6))), "stale-attempt");
    assert_eq!(code(pair.d(chunk(2, key(10), None, 6, 7))), "not-continuing", "another place");
    assert_eq!(code(pair.d(chunk(2, Key::MIN, Some(key(10)), 5, 7))), "not-continuing", "another position");
    let effects = pair.d(tail(6, 6, 3, 2)).unwrap();
    let ControlEffect::Tail { entries, .. } = &effects[0] else { panic!() };
    assert!(entries[0].changes.changes.is_empty(), "nothing is copied yet");
    pair.d(chunk(2, Key::MIN, Some(key(10)), 6, 7)).unwrap();
    assert_eq!(code(pair.d(chunk(2, key(10), None, 6, 8))), "not-continuing", "what has happened until 7 is in");

    // Beside the chunks: changes below the cursor apply, others come with their chunk.
    let effects = pair.d(tail(7, 9, 12, 8)).unwrap();
    let ControlEffect::Tail { entries, .. } = &effects[0] else { panic!() };
    assert!(entries[0].changes.changes.is_empty(), "key 12 is not copied");
    assert_eq!(entries[0].changes.answered.len(), 1, "its answer is taken all the same (R14)");
    let effects = pair.d(tail(9, 15, 4, 15)).unwrap();
    let ControlEffect::Tail { entries, .. } = &effects[0] else { panic!() };
    assert_eq!(entries[0].changes.changes.len(), 1);
    assert_eq!(code(pair.d(adopt(15))), "stale-attempt");
    pair.d(chunk(2, key(10), None, 15, 20)).unwrap();
    assert_eq!(pair.d.move_in(OP).unwrap().reached(), 20);
    let effects = pair.d(tail(20, 21, 12, 21)).unwrap();
    let ControlEffect::Tail { entries, .. } = &effects[0] else { panic!() };
    assert_eq!(entries[0].changes.changes.len(), 1);
    assert_eq!(code(pair.d(tail(20, 22, 12, 22))), "not-continuing");
}

/// A23, E8: what a destination keeps of a copy does not grow with the copy.
#[test]
fn a_copy_of_many_chunks_is_kept_in_constant_space() {
    let mut pair = Pair::new();
    pair.open();
    let size = |pair: &Pair| postcard::to_stdvec(&pair.d).unwrap().len();
    let mut sizes = Vec::new();
    for n in 0..2_000 {
        let start = if n == 0 { Key::MIN } else { key(n) };
        let interval = KeyInterval::new(start, Some(key(n + 1)));
        let (rows, position) = (RowBuilder::new(1).finish(), 1 + n as u64);
        let from = (position - 1).max(1);
        pair.d(Control::IngestChunk { operator: OP, attempt: 1, interval, from, position, rows, checksum: NO_ROWS })
            .unwrap();
        sizes.push(size(&pair));
    }
    assert!(sizes[1_999] <= sizes[0] + 16, "{} and then {}", sizes[0], sizes[1_999]);
}

/// R24: a range does not come back over what was left of it; R23: a declined one is taken back at a
/// higher epoch.
#[test]
fn what_was_left_must_go_before_a_range_comes_back() {
    let mut pair = Pair::new();
    pair.open();
    pair.s(Control::Fence { operator: OP, held_since_us: 0 }).unwrap();
    let back = |operator| Control::IngestOpen {
        operator: OperatorId(operator),
        schema: schema(),
        range: RangeId(1),
        interval: KeyInterval::ALL,
        epoch: Epoch(2),
        from: shard(2),
    };
    assert_eq!(code(pair.s(back(9))), "purge-unfinished");
    assert_eq!(
        code(pair.s(Control::Purge { operator: OP, interval: KeyInterval::ALL, last: true })),
        "not-handed-over"
    );
    let mut declined = Pair { s: pair.s.clone(), d: pair.d.clone(), position: pair.position };
    pair.s(Control::HandedOver { operator: OP }).unwrap();
    assert_eq!(code(pair.s(back(9))), "copy-kept", "whoever asks now does not wait for a purge");
    let begun = KeyInterval::new(Key::MIN, Some(Key::MIN));
    pair.s(Control::Purge { operator: OP, interval: begun, last: false }).unwrap();
    assert_eq!(code(pair.s(back(9))), "purge-unfinished");
    pair.s(Control::Purge { operator: OP, interval: KeyInterval::ALL, last: true }).unwrap();
    pair.s(back(9)).unwrap();
    declined.d(Control::Decline { operator: OP }).unwrap();
    declined.s(Control::TakeBack { operator: OP }).unwrap();
    assert_eq!(declined.s.range(RangeId(1)).unwrap().epoch, Epoch(3));
    assert_eq!(code(declined.d(adopt(0))), "settled");
}

fn step() -> impl Strategy<Value = (bool, Control)> {
    let op = (6u64..9).prop_map(OperatorId);
    let range = (1u64..4).prop_map(RangeId);
    let epoch = (1u64..5).prop_map(Epoch);
    let point = 1i64..9;
    let control = prop_oneof![
        (op.clone(), range.clone(), epoch.clone(), point, 2u64..4).prop_map(|(operator, range, epoch, at, id)| {
            Control::Split { operator, range, epoch, at: vec![(key(at), RangeId(id))] }
        }),
        (op.clone(), range.clone(), epoch.clone(), range.clone(), epoch.clone())
            .prop_map(|(operator, l, le, r, re)| Control::Merge { operator, left: (l, le), right: (r, re) }),
        (op.clone(), range, epoch).prop_map(|(operator, range, epoch)| Control::MoveOpen {
            operator,
            range,
            epoch,
            to: shard(2)
        }),
        op.clone().prop_map(|operator| Control::MoveCancel { operator }),
        op.clone().prop_map(|operator| Control::Fence { operator, held_since_us: 0 }),
        op.clone().prop_map(|operator| Control::Decline { operator }),
        op.prop_map(|operator| Control::IngestAttempt { operator, attempt: 1, position: 1 }),
    ];
    (any::<bool>(), control)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Invariant 6, whatever comes in whatever order: the shards carry out what their own logs
    /// allow, `Adopt` follows only a fence, and no key ever has two owners.
    #[test]
    fn no_key_ever_has_two_owners(steps in proptest::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        for (_, control) in steps {
            let accepted = pair.s(control.clone()).is_ok();
            match control {
                Control::MoveOpen { operator, range, epoch, .. } if accepted => {
                    let interval = pair.s.range(range).unwrap().interval.clone();
                    let open = Control::IngestOpen { operator, schema: schema(), range, interval, epoch, from: shard(1) };
                    if pair.d(open).is_ok() {
                        pair.d(Control::IngestAttempt { operator, attempt: 2, position: 1 }).unwrap();
                    }
                }
                Control::Fence { operator, .. } if accepted => {
                    let fence = pair.position;
                    let movement = pair.s.move_out(operator).unwrap().clone();
                    let rows = RowBuilder::new(1).finish();
                    let chunk = Control::IngestChunk {
                        operator, attempt: 2, interval: movement.interval, from: 1, position: fence, rows, checksum: NO_ROWS
                    };
                    let adopted = pair.d(chunk).is_ok()
                        && pair.d(Control::Adopt { operator, attempt: 2, fence, epoch: movement.epoch.next(), held_since_us: 0 }).is_ok();
                    let end = if adopted { Control::HandedOver { operator } } else { Control::TakeBack { operator } };
                    pair.s(end).unwrap();
                }
                _ => {}
            }
            for n in 0..10 {
                prop_assert_eq!(pair.owners(n), 1, "key {}", n);
            }
            // A state that is stored and read again judges alike.
            let stored: ShardState = postcard::from_bytes(&postcard::to_stdvec(&pair.s).unwrap()).unwrap();
            prop_assert_eq!(&stored, &pair.s);
            prop_assert!(pair.s.owned().all(|range| stored.range(range.id) == Some(range)));
        }
    }
}
