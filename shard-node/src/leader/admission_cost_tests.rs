#![allow(clippy::unwrap_used)]
//! What a control entry costs here, and that following what has changed comes to the same as looking at everything.

use super::*;
use crate::log_entry::Control;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{KeyValue, OperatorId, RowBatch, TableSchema};
use proptest::prelude::*;

fn schema(id: u32) -> TableSchema {
    TableSchema {
        id: TableId(id),
        name: format!("t{id}"),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: String::new(),
    }
}

fn key(n: i64) -> Key {
    schema(1).codec().encode(&[KeyValue::Int(n)]).unwrap()
}

fn shard() -> ShardInfo {
    ShardInfo { id: ShardId(9), replicas: Default::default() }
}

/// A shard as its applier keeps it: each entry is folded, the state machine is published, and admission follows.
struct Shard {
    state: ShardState,
    published: Arc<ShardState>,
    admission: Arc<Admission>,
    position: u64,
    operator: u64,
}

impl Shard {
    fn new() -> Shard {
        let mut shard = Shard {
            state: ShardState::default(),
            published: Arc::default(),
            admission: Arc::default(),
            position: 0,
            operator: 0,
        };
        shard.fold(Control::CreateTable { schema: schema(1), range: RangeId(1) });
        shard
    }

    /// One with so many ranges, `[0, 10)`, `[10, 20)` and so on.
    fn of(ranges: i64) -> Shard {
        let mut shard = Shard::new();
        let mut right = (RangeId(1), Epoch(1));
        for n in 1..ranges {
            let operator = shard.next_operator();
            let at = vec![(key(n * 10), RangeId(n as u64 + 1))];
            shard.fold(Control::Split { operator, range: right.0, epoch: right.1, at });
            right = (RangeId(n as u64 + 1), right.1.next());
        }
        shard
    }

    fn next_operator(&mut self) -> OperatorId {
        self.operator += 1;
        OperatorId(self.operator)
    }

    fn fold(&mut self, control: Control) -> bool {
        self.position += 1;
        if self.state.control(self.position, &control).is_err() {
            return false;
        }
        self.published = Arc::new(self.state.clone());
        self.admission.follow(&self.published, &HashSet::new(), Changed::Keys(self.state.changed_hands()));
        true
    }

    /// What the admission knows, by key.
    fn admitted(&self) -> Vec<OwnedRange> {
        let mut slots: Vec<_> = self.admission.slots().iter().map(|slot| slot.range.clone()).collect();
        slots.sort_by(|a, b| (a.table, &a.interval.start).cmp(&(b.table, &b.interval.start)));
        slots
    }

    /// A copy of a range that comes in, chunk by chunk, and at times a split of the range that holds `n * 10`.
    fn busy(&mut self, entries: i64, ranges: i64) -> Duration {
        let operator = self.next_operator();
        let (range, interval) = (RangeId(u64::MAX), KeyInterval::ALL);
        let open = Control::IngestOpen { operator, schema: schema(2), range, interval, epoch: Epoch(1), from: shard() };
        assert!(self.fold(open));
        assert!(self.fold(Control::IngestAttempt { operator, attempt: 1, position: 0 }));
        let begun = Instant::now();
        let mut cursor = Key::MIN;
        for n in 0..entries {
            let interval = KeyInterval::new(cursor, Some(key(n)));
            cursor = key(n);
            let (rows, checksum) =
                (RowBatch { width: 1, count: 0, data: Default::default() }, RangeChecksum { rows: 0, sum: 0 });
            let position = 0;
            assert!(self.fold(Control::IngestChunk {
                operator,
                attempt: 1,
                interval,
                from: 0,
                position,
                rows,
                checksum
            }));
            if n % 4 == 0 {
                // Inside of a range, at a place where none has been split yet.
                let split = n / 4;
                let at = key((split * 37 % ranges) * 10 + 1 + split / ranges);
                let owner = self.state.owner(TableId(1), &at).cloned().unwrap();
                let operator = self.next_operator();
                let at = vec![(at, RangeId(1_000_000 + n as u64))];
                assert!(self.fold(Control::Split { operator, range: owner.id, epoch: owner.epoch, at }));
            }
        }
        begun.elapsed()
    }
}

/// Breaks if folding a control entry, publishing the state machine or following it looks at every range (A23): then a shard with a
/// hundred times as many ranges takes about a hundred times as long. Time is compared only with time.
#[test]
fn a_control_entry_costs_the_same_however_many_ranges_there_are() {
    let (few, many) = (100, 10_000);
    let best = |ranges: i64| {
        let shard = Shard::of(ranges);
        (0..5)
            .map(|_| {
                let (state, published) = (shard.state.clone(), shard.published.clone());
                let admission: Arc<Admission> = Arc::default();
                admission.follow(&state, &HashSet::new(), Changed::All);
                let (position, operator) = (shard.position, shard.operator);
                Shard { state, published, admission, position, operator }.busy(1_000, ranges)
            })
            .min()
            .unwrap()
    };
    let (few, many) = (best(few), best(many));
    assert!(many < few * 8, "{few:?} with few ranges, {many:?} with many");
}

#[derive(Debug, Clone)]
enum Step {
    Split(i64, i64),
    Merge(i64),
    Leave(i64),
    Return,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..60_i64, 1..8_i64).prop_map(|(at, by)| Step::Split(at, by)),
        2 => (0..60_i64).prop_map(Step::Merge),
        1 => (0..60_i64).prop_map(Step::Leave),
        1 => Just(Step::Return),
    ]
}

impl Shard {
    fn step(&mut self, step: Step) {
        let operator = self.next_operator();
        let id = RangeId(1_000 + 2 * self.operator);
        match step {
            Step::Split(at, by) => {
                let Some(owner) = self.state.owner(TableId(1), &key(at)).cloned() else { return };
                let at = vec![(key(at), id), (key(at + by), RangeId(id.0 + 1))];
                self.fold(Control::Split { operator, range: owner.id, epoch: owner.epoch, at });
            }
            Step::Merge(at) => {
                let Some(left) = self.state.owner(TableId(1), &key(at)).cloned() else { return };
                let right = left.interval.end.as_ref().and_then(|end| self.state.owner(TableId(1), end)).cloned();
                let Some(right) = right else { return };
                self.fold(Control::Merge { operator, left: (left.id, left.epoch), right: (right.id, right.epoch) });
            }
            Step::Leave(at) => {
                let Some(owner) = self.state.owner(TableId(1), &key(at)).cloned() else { return };
                self.fold(Control::MoveOpen { operator, range: owner.id, epoch: owner.epoch, to: shard() });
                self.fold(Control::Fence { operator, held_since_us: 0 });
            }
            Step::Return => {
                let Some(operator) = self.state.moves_out().next().map(|moved| moved.operator) else { return };
                self.fold(Control::TakeBack { operator });
            }
        }
    }
}

proptest! {
    /// Breaks if what has changed hands is not all that has, or if a read admitted to a range loses it by what happens beside it.
    #[test]
    fn following_what_has_changed_comes_to_the_same_as_following_everything(steps in prop::collection::vec(step(), 0..40)) {
        let mut shard = Shard::new();
        for (n, step) in steps.into_iter().enumerate() {
            let read = shard.admission.decide(true, TableId(1), &Touches::Keys(vec![key(n as i64)]), &[]);
            let reads = match read {
                Decision::Granted(slots) => slots,
                Decision::Wait | Decision::Refused(_) => Vec::new(),
            };
            shard.step(step);
            let owned: Vec<OwnedRange> = shard.state.owned().cloned().collect();
            prop_assert_eq!(shard.admitted(), owned);
            for range in shard.state.owned() {
                prop_assert_eq!(shard.state.range(range.id), Some(range));
                let slot = shard.admission.inner().by_id.get(&range.id).map(|slot| slot.range.clone());
                prop_assert_eq!(slot.as_ref(), Some(range));
            }
            for slot in reads {
                let here = shard.state.overlapping(TableId(1), &slot.range.interval).map(|range| &range.interval);
                let gone = shard.state.moves_out().any(|moved| moved.interval.overlaps(&slot.range.interval));
                prop_assert_eq!(slot.left.load(Ordering::Relaxed), gone, "{:?}", here.collect::<Vec<_>>());
            }
        }
    }
}
