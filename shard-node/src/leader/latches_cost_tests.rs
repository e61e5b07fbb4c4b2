#![allow(clippy::unwrap_used)]
//! The cost of a control entry, and the equivalence of following changed keys and following all
//! keys.

use super::*;
use crate::log_entry::Control;
use crate::state_machine::OwnedRange;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, KeyValue, OperatorId, RowBatch, ShardId, TableSchema};
use proptest::prelude::*;

fn schema(id: u32) -> TableSchema {
    TableSchema {
        id: TableId(id),
        name: format!("t{id}"),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: "CREATE TABLE t (id bigint PRIMARY KEY)".into(),
        ..TableSchema::default()
    }
}

fn key(n: i64) -> Key {
    schema(1).codec().encode(&[KeyValue::Int(n)]).unwrap()
}

fn shard() -> ShardInfo {
    ShardInfo { id: ShardId(9), replicas: Default::default() }
}

/// A shard as its applier keeps it: each entry is applied, the state machine is published, and the
/// latches follow.
struct Shard {
    state: ShardState,
    published: Arc<ShardState>,
    latches: Arc<LatchManager>,
    position: u64,
    operator: u64,
}

impl Shard {
    fn new() -> Shard {
        let mut shard = Shard {
            state: ShardState::default(),
            published: Arc::default(),
            latches: Arc::default(),
            position: 0,
            operator: 0,
        };
        shard.apply(Control::CreateTable { schema: schema(1), range: RangeId(1) });
        shard
    }

    /// A shard with N ranges, `[0, 10)`, `[10, 20)` and so on.
    fn of(ranges: i64) -> Shard {
        let mut shard = Shard::new();
        let mut right = (RangeId(1), Epoch(1));
        for n in 1..ranges {
            let operator = shard.next_operator();
            let at = vec![(key(n * 10), RangeId(n as u64 + 1))];
            shard.apply(Control::Split { operator, range: right.0, epoch: right.1, at });
            right = (RangeId(n as u64 + 1), right.1.next());
        }
        shard
    }

    fn next_operator(&mut self) -> OperatorId {
        self.operator += 1;
        OperatorId(self.operator)
    }

    fn apply(&mut self, control: Control) -> bool {
        self.position += 1;
        if self.state.control(self.position, &control).is_err() {
            return false;
        }
        self.published = Arc::new(self.state.clone());
        self.latches.follow(&self.published, &HashSet::new(), ChangedKeys::Only(self.state.changed_hands()));
        true
    }

    /// The ranges that have a latch, by key.
    fn usable(&self) -> Vec<OwnedRange> {
        let mut held: Vec<_> = self.latches.latches().iter().map(|latch| latch.range.clone()).collect();
        held.sort_by(|a, b| (a.table, &a.interval.start).cmp(&(b.table, &b.interval.start)));
        held
    }

    /// A copy of an incoming range, chunk by chunk, and after every fourth chunk a split of the
    /// range that holds `n * 10`.
    fn busy(&mut self, entries: i64, ranges: i64) -> Duration {
        let operator = self.next_operator();
        let (range, interval) = (RangeId(u64::MAX), KeyInterval::ALL);
        let open = Control::IngestOpen { operator, schema: schema(2), range, interval, epoch: Epoch(1), from: shard() };
        assert!(self.apply(open));
        assert!(self.apply(Control::IngestAttempt { operator, attempt: 1, position: 0 }));
        let begun = evenkeel_host::now();
        let mut cursor = Key::MIN;
        for n in 0..entries {
            let interval = KeyInterval::new(cursor, Some(key(n)));
            cursor = key(n);
            let (rows, checksum) =
                (RowBatch { width: 1, count: 0, data: Default::default() }, RangeChecksum { rows: 0, sum: 0 });
            let position = 0;
            assert!(self.apply(Control::IngestChunk {
                operator,
                attempt: 1,
                interval,
                from: 0,
                position,
                rows,
                checksum
            }));
            if n % 4 == 0 {
                // Inside a range, at a key where no range has been split yet.
                let split = n / 4;
                let at = key((split * 37 % ranges) * 10 + 1 + split / ranges);
                let owner = self.state.owner(TableId(1), &at).cloned().unwrap();
                let operator = self.next_operator();
                let at = vec![(at, RangeId(1_000_000 + n as u64))];
                assert!(self.apply(Control::Split { operator, range: owner.id, epoch: owner.epoch, at }));
            }
        }
        evenkeel_host::elapsed(begun)
    }
}

/// Breaks if applying a control entry, publishing the state machine or following it looks at every
/// range (A23): then a shard with a hundred times as many ranges takes about a hundred times as
/// long. Times are compared only with each other.
#[test]
fn a_control_entry_costs_the_same_however_many_ranges_there_are() {
    let (few, many) = (100, 10_000);
    let best = |ranges: i64| {
        let shard = Shard::of(ranges);
        (0..5)
            .map(|_| {
                let (state, published) = (shard.state.clone(), shard.published.clone());
                let latches: Arc<LatchManager> = Arc::default();
                latches.follow(&state, &HashSet::new(), ChangedKeys::All);
                let (position, operator) = (shard.position, shard.operator);
                Shard { state, published, latches, position, operator }.busy(1_000, ranges)
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
                self.apply(Control::Split { operator, range: owner.id, epoch: owner.epoch, at });
            }
            Step::Merge(at) => {
                let Some(left) = self.state.owner(TableId(1), &key(at)).cloned() else { return };
                let right = left.interval.end.as_ref().and_then(|end| self.state.owner(TableId(1), end)).cloned();
                let Some(right) = right else { return };
                self.apply(Control::Merge { operator, left: (left.id, left.epoch), right: (right.id, right.epoch) });
            }
            Step::Leave(at) => {
                let Some(owner) = self.state.owner(TableId(1), &key(at)).cloned() else { return };
                self.apply(Control::MoveOpen { operator, range: owner.id, epoch: owner.epoch, to: shard() });
                self.apply(Control::Fence { operator, held_since_us: 0 });
            }
            Step::Return => {
                let Some(operator) = self.state.moves_out().next().map(|moved| moved.operator) else { return };
                self.apply(Control::TakeBack { operator });
            }
        }
    }
}

proptest! {
    /// Breaks if the state machine does not name all keys that changed hands, or if a change of
    /// other ranges invalidates a read.
    #[test]
    fn following_changed_keys_equals_following_all_keys(steps in prop::collection::vec(step(), 0..40)) {
        let mut shard = Shard::new();
        for (n, step) in steps.into_iter().enumerate() {
            let read = shard.latches.decide(HandleKind::Read, TableId(1), &Touches::Keys(vec![key(n as i64)]), &[]);
            let reads = match read {
                LatchDecision::Granted(latches) => latches,
                LatchDecision::Wait | LatchDecision::Rejected(_) => Vec::new(),
            };
            shard.step(step);
            let owned: Vec<OwnedRange> = shard.state.owned().cloned().collect();
            prop_assert_eq!(shard.usable(), owned);
            for range in shard.state.owned() {
                prop_assert_eq!(shard.state.range(range.id), Some(range));
                let latch = shard.latches.table().by_id(range.id).map(|latch| latch.range.clone());
                prop_assert_eq!(latch.as_ref(), Some(range));
            }
            for latch in reads {
                let here = shard.state.overlapping(TableId(1), &latch.range.interval).map(|range| &range.interval);
                let gone = shard.state.moves_out().any(|moved| moved.interval.overlaps(&latch.range.interval));
                prop_assert_eq!(latch.has_departed(), gone, "{:?}", here.collect::<Vec<_>>());
            }
        }
    }
}
